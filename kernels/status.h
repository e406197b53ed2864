/* Status codes and the last-error message: the lowest floor, used by everything.
 *
 * A fallible function returns sl_status; its results leave through the last parameters.
 * The text of the most recent failure is kept per thread (512 bytes); it names the
 * operation, the shapes or the file, what was expected and what to do. Nothing here
 * allocates, prints or jumps. */
#ifndef SL_STATUS_H
#define SL_STATUS_H

/*          name          code  meaning */
#define SL_STATUS_LIST(X)                                                        \
  X(SL_OK,                0, "success")                                          \
  X(SL_EINVAL,           -1, "a bad argument")                                   \
  X(SL_ESHAPE,           -2, "shapes that do not fit")                           \
  X(SL_EDTYPE,           -3, "a dtype that this operation does not take")        \
  X(SL_ENOMEM,           -4, "out of memory")                                    \
  X(SL_EDEVICE,          -5, "a device failure")                                 \
  X(SL_EUNSUPPORTED,     -6, "not available on this device or in this build")    \
  X(SL_EIO,              -7, "the file system failed")                           \
  X(SL_EFORMAT,          -8, "a file that does not hold what it should")         \
  X(SL_ENOTFOUND,        -9, "nothing of that name")                             \
  X(SL_EINTERRUPT,      -10, "stopped by the user")                              \
  X(SL_EHOOK,           -11, "a hook function failed")                           \
  X(SL_ESTATE,          -12, "a call in the wrong order")

typedef enum {
#define X(name, code, meaning) name = code,
  SL_STATUS_LIST(X)
#undef X
} sl_status;

/* Stores the printf-style message for this thread and returns `code`. */
sl_status sl_fail(sl_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "context: " before the stored message (for example a file name) and returns `code`. */
sl_status sl_fail_context(sl_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The message of this thread's last failure; "" if there was none. Valid until the next failure. */
const char *sl_last_error(void);

/* The name of a code, such as "SL_ESHAPE". */
const char *sl_status_name(sl_status code);

/* Returns from the enclosing function when `call` fails. The one macro that hides a return. */
#define SL_TRY(call)                        \
  do {                                      \
    sl_status sl_try_status_ = (call);      \
    if (sl_try_status_ != SL_OK) return sl_try_status_; \
  } while (0)

#endif
