/* The frame of an operation; see op.h. */
#include "op.h"

#include <string.h>

#include "core/base/interrupt.h"
#include "core/base/mem.h"
#include "nn.h"

sl_status sl__inputs(sl_op *op, int n, sl_tensor *const *inputs) {
  SL_TRY(sl_interrupt_check());
  op->device = sl_tensor_device(inputs[0]);
  for (int i = 1; i < n; i++) {
    if (inputs[i] == NULL || sl_tensor_device(inputs[i]) == op->device) continue;
    return sl_fail(SL_EDEVICE, "%s: argument 1 is on %s, argument %d on %s; move one with :to()", op->name,
                   op->device->name, i + 1, sl_tensor_device(inputs[i])->name);
  }
  op->records = sl_tape_wants(n, inputs);
  return SL_OK;
}

static void keep(sl_op *op, sl_tensor *tensor) { op->temporaries[op->n_temporaries++] = tensor; }

sl_status sl__dense(sl_op *op, const sl_tensor *x, const char *argument, sl_dtype dtype, int rank,
                    sl_tensor **out) {
  SL_TRY(sl_tensor_expect(x, op->name, argument, dtype, rank));
  SL_TRY(sl_tensor_contiguous(x, out));
  keep(op, *out);
  return SL_OK;
}

sl_status sl__scratch(sl_op *op, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out) {
  SL_TRY(sl_tensor_create(op->device, dtype, rank, shape, out));
  keep(op, *out);
  return SL_OK;
}

static sl_status refuse_out(const sl_op *op) {
  return sl_fail(SL_ESTATE, "%s: out= cannot be used while the tape records this operation", op->name);
}

sl_status sl__output(sl_op *op, sl_dtype dtype, int rank, const int64_t *shape) {
  bool given = *op->out != NULL;
  if (given && op->records) return refuse_out(op);
  sl_status status = sl_tensor_output(op->device, dtype, rank, shape, op->out);
  if (status != SL_OK) return sl_fail_context(status, "%s", op->name);
  op->made_out = !given;
  return SL_OK;
}

sl_status sl__place(sl_op *op, const sl_tensor *like, bool needed, sl_tensor **given, sl_tensor **out) {
  *out = NULL;
  if (given != NULL) {
    SL_TRY(sl_tensor_output(op->device, SL_F32, like->rank, like->shape, given));
    *out = *given;
  } else if (needed) {
    SL_TRY(sl__scratch(op, SL_F32, like->rank, like->shape, out));
  }
  return SL_OK;
}

sl_status sl__output_view(sl_op *op, sl_tensor *view) {
  if (*op->out == NULL) {
    *op->out = view;
    op->made_out = true;
    return SL_OK;
  }
  sl_status status = op->records ? refuse_out(op) : sl_tensor_copy_(*op->out, view);
  sl_tensor_release(view);
  return status;
}

sl_status sl__record(sl_op *op, sl_node *node) {
  if (!op->records) return SL_OK;
  node->op = op->name;
  return sl_tape_record(node, *op->out);
}

sl_status sl__close(sl_op *op, sl_status status) {
  for (int i = 0; i < op->n_temporaries; i++) sl_tensor_release(op->temporaries[i]);
  if (status != SL_OK && op->made_out) {
    sl_tensor_release(*op->out);
    *op->out = NULL;
  }
  return status;
}

int64_t sl__count_rows(const sl_tensor *x) {
  int64_t rows = 1;
  for (int i = 0; i < x->rank - 1; i++) rows *= x->shape[i];
  return rows;
}

sl_status sl__expect_rows(const sl_op *op, const sl_tensor *x) {
  char text[SL_SHAPE_TEXT];
  if (x->rank >= 1 && x->shape[x->rank - 1] > 0) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: x is %s, expected rows of at least one entry", op->name,
                 sl_tensor_shape_text(x, text));
}

sl_status sl__rows(sl_op *op, const sl_tensor *x, const char *argument, sl_tensor **out) {
  SL_TRY(sl_tensor_expect(x, op->name, argument, SL_F32, 3));
  bool rows = (x->shape[2] <= 1 || x->strides[2] == 1) &&
              (x->shape[1] <= 1 || x->strides[1] >= x->shape[2]) &&
              (x->shape[0] <= 1 || x->strides[0] == x->shape[1] * x->strides[1]);
  if (!rows || x->shape[1] <= 1) return sl__dense(op, x, argument, SL_F32, 3, out);
  *out = sl__mutable(x);
  return SL_OK;
}

sl_status sl__dim(const char *op, const sl_tensor *x, int dim, int *out) {
  char text[SL_SHAPE_TEXT];
  int from_start = dim < 0 ? dim + x->rank : dim;
  if (from_start < 0 || from_start >= x->rank) {
    return sl_fail(SL_ESHAPE, "%s: %s has no dimension %d", op, sl_tensor_shape_text(x, text),
                   dim < 0 ? dim : dim + 1);
  }
  *out = from_start;
  return SL_OK;
}

static sl_status scan_ids(const char *op, const int32_t *ids, int64_t n, const int64_t range[2],
                          int64_t *counted) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    if (ids[i] < range[0] || ids[i] >= range[1]) {
      return sl_fail(SL_EINVAL, "%s: id %d at position %lld is outside 0 .. %lld", op, (int)ids[i],
                     (long long)i + 1, (long long)range[1] - 1);
    }
    count += ids[i] >= 0;
  }
  if (counted != NULL) *counted = count;
  return SL_OK;
}

static sl_status check_ids(const char *op, const sl_tensor *ids, const int64_t range[2], int64_t *counted) {
  int64_t n = sl_tensor_count(ids);
  if (sl_tensor_device(ids)->host_memory) return scan_ids(op, sl_tensor_data(ids), n, range, counted);
  void *host;
  SL_TRY(sl_mem_alloc((size_t)n * sizeof(int32_t), "ids to check", &host));
  sl_status status = sl_tensor_read(ids, host, (size_t)n * sizeof(int32_t));
  if (status == SL_OK) status = scan_ids(op, host, n, range, counted);
  sl_mem_free(host);
  return status;
}

sl_status sl_check_ids(const char *op, const sl_tensor *ids, int64_t limit) {
  return check_ids(op, ids, (int64_t[]){ 0, limit }, NULL);
}

sl_status sl__ids(sl_op *op, const sl_tensor *ids, const char *argument, int rank, const int64_t range[2],
                  int64_t *counted, sl_tensor **out) {
  sl_device *from = sl_tensor_device(ids);
  if (from != op->device && !from->host_memory)
    return sl_fail(SL_EDEVICE, "%s: %s are on %s, expected the CPU or %s", op->name, argument, from->name,
                   op->device->name);
  SL_TRY(sl__dense(op, ids, argument, SL_I32, rank, out));
  SL_TRY(check_ids(op->name, *out, range, counted));
  if (from == op->device) return SL_OK;
  SL_TRY(sl_tensor_to_device(*out, op->device, out));
  keep(op, *out);
  return SL_OK;
}

/* grad [lead..., shape...] with only leading sums: the reduction kernel does it
 * in float64. */
static sl_status sum_leading(sl_tensor *grad, int64_t lead, sl_tensor *out) {
  sl_device *device = sl_tensor_device(grad);
  int64_t inner = sl_tensor_count(out);
  sl_reduce_args args = { .op = SL_REDUCE_SUM,
                          .outer = 1,
                          .n = lead,
                          .inner = inner,
                          .x = sl_tensor_f32(grad),
                          .y = sl_tensor_f32(out) };
  sl_status status;
  SL_RUN_WORKING(status, device, reduce, &args);
  return status;
}

/* Any pattern of broadcast dimensions: add into a view whose strides are 0
 * along them. */
static sl_status sum_strided(sl_tensor *grad, sl_tensor *out) {
  sl_device *device = sl_tensor_device(grad);
  int skip = grad->rank - out->rank;
  sl_scatter_strided_args args = { .rank = grad->rank,
                                   .x = sl_tensor_data(grad),
                                   .y = sl_tensor_data(out),
                                   .dtype = SL_F32,
                                   .accumulate = true };
  for (int i = 0; i < grad->rank; i++) {
    args.shape[i] = grad->shape[i];
    bool broadcast = i < skip || (out->shape[i - skip] == 1 && grad->shape[i] != 1);
    args.strides[i] = broadcast ? 0 : out->strides[i - skip];
  }
  SL_TRY(sl_tensor_fill_zero(out));
  return SL_RUN(device, scatter_strided, &args);
}

sl_status sl__reduce_to(sl_tensor *grad, int rank, const int64_t *shape, sl_tensor **out) {
  int skip = grad->rank - rank;
  bool same = skip == 0, leading = true,
       kept = false; /* kept: a dimension that is not summed has been seen */
  for (int i = 0; i < grad->rank; i++) {
    bool equal = i >= skip && shape[i - skip] == grad->shape[i];
    same = same && equal;
    if (equal)
      kept = kept || grad->shape[i] != 1;
    else if (kept)
      leading = false;
  }
  if (same) {
    *out = sl_tensor_retain(grad);
    return SL_OK;
  }
  SL_TRY(sl_tensor_create(sl_tensor_device(grad), SL_F32, rank, shape, out));
  int64_t kept_count = sl_tensor_count(*out);
  sl_status status = leading && kept_count > 0 ? sum_leading(grad, sl_tensor_count(grad) / kept_count, *out)
                                               : sum_strided(grad, *out);
  if (status != SL_OK) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  return status;
}

sl_status sl__no_kernel(const sl_device *device, const char *kernel) {
  return sl_fail(SL_EUNSUPPORTED,
                 "kernel %s does not exist on %s yet; move the tensors to the "
                 "CPU with :to(\"cpu\")",
                 kernel, device->name);
}
