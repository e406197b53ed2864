/* The memory books: what each device holds, for what, and within which budget.
 *
 * Every storage is booked under the label that was set when it was made (sl_memory_set_label), so that a report,
 * and the message of an allocation that failed, can say what the memory is used for. One thread drives the engine;
 * none of this is thread-safe. Who allocates: storage.h. */
#ifndef SL_MEMORY_H
#define SL_MEMORY_H

#include "kernels/kernels.h"

/*   id                    name in reports */
#define SL_MEMORY_LABELS(X)                            \
  X(SL_MEMORY_OTHER,       "tensors")                  \
  X(SL_MEMORY_MODEL,       "model weights")            \
  X(SL_MEMORY_ACTIVATIONS, "activations")              \
  X(SL_MEMORY_PARAMETERS,  "SAE parameters")           \
  X(SL_MEMORY_MOMENTS,     "optimiser moments")        \
  X(SL_MEMORY_GRADIENTS,   "gradients")                \
  X(SL_MEMORY_BATCH,       "SAE codes and residuals")  \
  X(SL_MEMORY_WORKSPACE,   "workspace")

typedef enum {
#define X(id, name) id,
  SL_MEMORY_LABELS(X)
#undef X
  SL_MEMORY_LABEL_COUNT
} sl_memory_label;

/* As above; a literal. */
const char *sl_memory_label_name(sl_memory_label label);

/* The label of storages made from now on; returns the one before, to be set again at the end of the scope. */
sl_memory_label sl_memory_set_label(sl_memory_label label);
sl_memory_label sl_memory_get_label(void);

typedef struct {
  sl_device *device;
  int64_t live_bytes, peak_bytes;  /* of storages; peak: the largest so far */
  int64_t pooled_bytes;            /* free blocks kept for reuse */
  int64_t borrowed_bytes;          /* mapped files that tensors lie over; not part of live_bytes */
  int64_t budget_bytes;            /* live and pooled bytes stay below it; 0 = none */
  int64_t label_bytes[SL_MEMORY_LABEL_COUNT], label_at_peak[SL_MEMORY_LABEL_COUNT];
} sl_memory_stats;

/* The devices that have been used, by number from 0: NULL beyond the last. */
const sl_memory_stats *sl_memory_get_stats(int index);

/* The most that tensors on the device may take, pooled blocks included; what is pooled beyond it is freed at once.
 * 0 = the default: none on the CPU, elsewhere what the device reports as free at first use, less a reserve of 512 MiB
 * (a sixteenth of a small device) for the driver's and libraries' own needs. SL_EINVAL below what is live. */
sl_status sl_memory_set_budget(sl_device *device, int64_t bytes);

/* Starts new peaks at what is live now. */
void sl_memory_reset_peaks(void);

#endif
