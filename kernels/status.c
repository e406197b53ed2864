/* The per-thread last-error message; see status.h. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[512];

sl_status sl_fail(sl_status code, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  /* Through a second buffer: an argument may be the old message itself. */
  char text[sizeof message];
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  memcpy(message, text, sizeof message);
  return code;
}

sl_status sl_fail_context(sl_status code, const char *fmt, ...) {
  char context[256], text[sizeof message];
  va_list args;
  va_start(args, fmt);
  vsnprintf(context, sizeof context, fmt, args);
  va_end(args);
  /* A long message loses its tail, never the context. */
  snprintf(text, sizeof text, "%s: %.*s", context, (int)(sizeof text - strlen(context) - 3), message);
  memcpy(message, text, sizeof message);
  return code;
}

const char *sl_last_error(void) { return message; }

const char *sl_status_name(sl_status code) {
  switch (code) {
#define X(name, value, meaning) \
  case name: return #name;
    SL_STATUS_LIST(X)
#undef X
  }
  return "unknown status";
}
