/* What every operation shares; private to core/ops. An operation is two
 * functions: the public one opens an sl_op and closes it, the body in between
 * may return at any line.
 *
 *   static sl_status softmax(sl_op *op, const sl_tensor *x, bool log) {
 * SL_TRY(...); ...; return sl__record(op, &node); } sl_status sl_softmax(const
 * sl_tensor *x, bool log, sl_tensor **out) { sl_op op = { .name = "softmax",
 * .out = out }; return sl__close(&op, softmax(&op, x, log));
 *   }
 *
 * Ownership: sl__dense and sl__scratch tensors belong to the op and go at
 * close; *out is the caller's on success and is taken back on failure if the op
 * made it. */
#ifndef SL_OPS_OP_H
#define SL_OPS_OP_H

#include "core/tensor/tape.h"

enum { SL_OP_TEMPORARIES = 12 };

typedef struct {
  const char *name;
  sl_tensor **out;   /* the caller's; *out NULL = to be made */
  sl_device *device; /* of the inputs */
  bool records;      /* the tape is active and tracks an input */
  bool made_out;     /* *out was made here */
  int n_temporaries;
  sl_tensor *temporaries[SL_OP_TEMPORARIES];
} sl_op;

/* Interrupt flag, one device, and whether the tape wants this. NULL inputs are
 * skipped; the first is not NULL. */
sl_status sl__inputs(sl_op *op, int n, sl_tensor *const *inputs);

/* Takes an input: checks dtype (and rank; -1 = any) and hands out a contiguous
 * tensor, a copy only when needed. */
sl_status sl__dense(sl_op *op, const sl_tensor *x, const char *argument, sl_dtype dtype, int rank,
                    sl_tensor **out);
/* A contiguous work tensor that lives until close; zeros if asked. Save it in a
 * node to keep it longer. */
sl_status sl__scratch(sl_op *op, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out);
/* Makes or checks *op->out. */
sl_status sl__output(sl_op *op, sl_dtype dtype, int rank, const int64_t *shape);
/* A work output beside *op->out: the caller's `given`, made or checked, or scratch if `needed`; else *out is NULL. */
sl_status sl__place(sl_op *op, const sl_tensor *like, bool needed, sl_tensor **given, sl_tensor **out);
/* The op ends in the view `view` (taken over, also on failure): *op->out
 * becomes it, or a copy where the caller gave one. */
sl_status sl__output_view(sl_op *op, sl_tensor *view);

/* Appends the node when the op records; fills in the name. */
sl_status sl__record(sl_op *op, sl_node *node);
/* Releases temporaries; on failure also what was made. Returns status. */
sl_status sl__close(sl_op *op, sl_status status);

/* Rows of a tensor seen along its last dimension, and SL_ESHAPE unless they have entries. */
int64_t sl__count_rows(const sl_tensor *x);
sl_status sl__expect_rows(const sl_op *op, const sl_tensor *x);
/* Accepts any row stride of a [batch, tokens, width] tensor as long as rows follow each other across the batch; copies
 * what does not. */
sl_status sl__rows(sl_op *op, const sl_tensor *x, const char *argument, sl_tensor **out);

/* Negative dimensions count from the end. */
sl_status sl__dim(const char *op, const sl_tensor *x, int dim, int *out);
/* Takes an input of ids (i32; rank -1 = any), each in [range[0], range[1]): hands them out contiguous on the op's
 * device. They may be on the CPU, where they are checked without waiting for the device, or on the device itself.
 * `counted`, if not NULL, receives how many are >= 0. */
sl_status sl__ids(sl_op *op, const sl_tensor *ids, const char *argument, int rank, const int64_t range[2],
                  int64_t *counted, sl_tensor **out);

/* Sums a contiguous f32 gradient over the dimensions along which `shape` was
 * broadcast; a new reference. */
sl_status sl__reduce_to(sl_tensor *grad, int rank, const int64_t *shape, sl_tensor **out);

sl_status sl__no_kernel(const sl_device *device, const char *kernel);
/* Runs a kernel of the device; an empty slot fails by name. */
#define SL_RUN(device, kernel, args)                                                                         \
  ((device)->kernels->kernel != NULL ? (device)->kernels->kernel(device, args)                               \
                                     : sl__no_kernel(device, #kernel))

/* The same for a kernel with `need` and `workspace` (args is not const): asks what it wants to work in, makes it, runs,
 * lets go of it. How it went is put into `status`. */
#define SL_RUN_WORKING(status, device, kernel, args)                                                         \
  do {                                                                                                       \
    sl_tensor *work_ = NULL;                                                                                 \
    (args)->need = &(args)->workspace_bytes;                                                                 \
    (status) = SL_RUN(device, kernel, args);                                                                 \
    (args)->need = NULL;                                                                                     \
    if ((status) == SL_OK) (status) = sl_tensor_workspace(device, (args)->workspace_bytes, &work_);          \
    (args)->workspace = work_ != NULL ? sl_tensor_data(work_) : NULL;                                        \
    if ((status) == SL_OK) (status) = SL_RUN(device, kernel, args);                                          \
    sl_tensor_release(work_);                                                                                \
  } while (0)

/* Tensors are passed as const where only their header is read; nodes keep
 * references. */
static inline sl_tensor *sl__mutable(const sl_tensor *x) { return (sl_tensor *)x; }

#endif
