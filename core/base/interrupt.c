/* The interrupt flag; see interrupt.h. */
#include "interrupt.h"

#include <stdatomic.h>

static atomic_int flag; /* lock-free, so a signal handler may set it */

void sl_interrupt_raise(void) { atomic_store(&flag, 1); }

int sl_interrupt_clear(void) { return atomic_exchange(&flag, 0); }

sl_status sl_interrupt_check(void) {
  if (atomic_load_explicit(&flag, memory_order_relaxed)) return sl_fail(SL_EINTERRUPT, "interrupted");
  return SL_OK;
}
