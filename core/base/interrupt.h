/* The interrupt flag: a signal handler raises it, every operation looks at it on entry. */
#ifndef SL_INTERRUPT_H
#define SL_INTERRUPT_H

#include "kernels/status.h"

/* Async-signal-safe. */
void sl_interrupt_raise(void);
/* Takes the flag down; returns whether it was up. */
int sl_interrupt_clear(void);
/* SL_EINTERRUPT while the flag is up. */
sl_status sl_interrupt_check(void);

#endif
