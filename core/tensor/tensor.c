/* Tensor headers: creation, views, copies; see tensor.h. */
#include "tensor.h"

#include <stdio.h>

#include "core/base/mem.h"

static int64_t next_tape_id = 1;

static sl_status new_header(sl_storage *storage, sl_dtype dtype, sl_tensor **out) {
  sl_tensor *tensor;
  SL_TRY(sl_mem_alloc(sizeof *tensor, "a tensor header", (void **)&tensor));
  tensor->references = 1;
  tensor->dtype = dtype;
  tensor->storage = sl_storage_retain(storage);
  tensor->tape_id = next_tape_id++;
  *out = tensor;
  return SL_OK;
}

static void set_contiguous(sl_tensor *tensor, int rank, const int64_t *shape) {
  tensor->rank = rank;
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; i--) {
    tensor->shape[i] = shape[i];
    tensor->strides[i] = stride;
    stride *= shape[i];
  }
}

/* The bytes that a shape needs; checks rank, signs and overflow (of the sizes that are not 0 as well: strides are
 * made from them). */
static sl_status shape_bytes(sl_dtype dtype, int rank, const int64_t *shape, size_t *out) {
  char text[SL_SHAPE_TEXT];
  if (rank < 0 || rank > SL_MAX_RANK)
    return sl_fail(SL_ESHAPE, "a tensor has 0 to %d dimensions, not %d", SL_MAX_RANK, rank);
  size_t bytes = sl_dtype_size(dtype);
  bool empty = false;
  for (int i = 0; i < rank; i++) {
    if (shape[i] < 0)
      return sl_fail(SL_ESHAPE, "shape %s: sizes must not be negative", sl_shape_text(rank, shape, text));
    if (shape[i] == 0) empty = true;
    else if (__builtin_mul_overflow(bytes, (size_t)shape[i], &bytes) || bytes > (size_t)INT64_MAX / 2)
      return sl_fail(SL_ESHAPE, "shape %s is too large to address", sl_shape_text(rank, shape, text));
  }
  *out = empty ? 0 : bytes;
  return SL_OK;
}

sl_status sl_tensor_create(sl_device *device, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out) {
  size_t bytes;
  SL_TRY(shape_bytes(dtype, rank, shape, &bytes));
  sl_storage *storage;
  sl_status status = sl_storage_create(device, bytes, &storage);
  if (status != SL_OK) {
    char text[SL_SHAPE_TEXT];
    return sl_fail_context(status, "tensor %s %s", sl_dtype_name(dtype), sl_shape_text(rank, shape, text));
  }
  status = new_header(storage, dtype, out);
  sl_storage_release(storage);
  if (status == SL_OK) set_contiguous(*out, rank, shape);
  return status;
}

sl_status sl_tensor_zeros(sl_device *device, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out) {
  SL_TRY(sl_tensor_create(device, dtype, rank, shape, out));
  sl_status status = sl_tensor_fill_zero(*out);
  if (status != SL_OK) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  return status;
}

sl_status sl_tensor_workspace(sl_device *device, size_t bytes, sl_tensor **out) {
  int64_t count = (int64_t)bytes;
  *out = NULL;
  if (bytes == 0) return SL_OK;
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_WORKSPACE);
  sl_status status = sl_tensor_create(device, SL_U8, 1, &count, out);
  sl_memory_set_label(before);
  return status;
}

sl_status sl_tensor_create_like(const sl_tensor *like, sl_dtype dtype, sl_tensor **out) {
  return sl_tensor_create(sl_tensor_device(like), dtype, like->rank, like->shape, out);
}

sl_status sl_tensor_over(sl_storage *storage, sl_dtype dtype, int rank, const int64_t *shape, int64_t offset,
                         sl_tensor **out) {
  size_t bytes;
  SL_TRY(shape_bytes(dtype, rank, shape, &bytes));
  size_t start;
  if (offset < 0 || __builtin_mul_overflow((size_t)offset, sl_dtype_size(dtype), &start) || start > storage->bytes ||
      bytes > storage->bytes - start)
    return sl_fail(SL_ESHAPE, "a view of %zu bytes at element %lld does not fit a storage of %zu bytes", bytes,
                   (long long)offset, storage->bytes);
  SL_TRY(new_header(storage, dtype, out));
  set_contiguous(*out, rank, shape);
  (*out)->offset = offset;
  return SL_OK;
}

sl_tensor *sl_tensor_retain(sl_tensor *tensor) {
  tensor->references++;
  return tensor;
}

void sl_tensor_release(sl_tensor *tensor) {
  if (!tensor || --tensor->references > 0) return;
  sl_tensor_release(tensor->grad);
  sl_storage_release(tensor->storage);
  sl_mem_free(tensor);
}

static bool has_shape(const sl_tensor *tensor, int rank, const int64_t *shape) {
  if (tensor->rank != rank) return false;
  for (int i = 0; i < rank; i++)
    if (tensor->shape[i] != shape[i]) return false;
  return true;
}

sl_status sl_tensor_output(sl_device *device, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out) {
  if (!*out) return sl_tensor_create(device, dtype, rank, shape, out);
  const sl_tensor *given = *out;
  if (sl_tensor_device(given) == device && given->dtype == dtype && has_shape(given, rank, shape) &&
      sl_tensor_is_contiguous(given))
    return SL_OK;
  char want[SL_SHAPE_TEXT], got[SL_SHAPE_TEXT];
  return sl_fail(SL_ESHAPE, "out: the result is %s %s on %s, but the destination is %s%s %s on %s",
                 sl_dtype_name(dtype), sl_shape_text(rank, shape, want), device->name,
                 sl_tensor_is_contiguous(given) ? "" : "a non-contiguous ", sl_dtype_name(given->dtype),
                 sl_tensor_shape_text(given, got), sl_tensor_device(given)->name);
}

int64_t sl_tensor_count(const sl_tensor *tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor->rank; i++) count *= tensor->shape[i];
  return count;
}

bool sl_tensor_is_contiguous(const sl_tensor *tensor) {
  int64_t stride = 1;
  for (int i = tensor->rank - 1; i >= 0; i--) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != stride) return sl_tensor_count(tensor) == 0;
    stride *= tensor->shape[i];
  }
  return true;
}

bool sl_tensor_same_shape(const sl_tensor *a, const sl_tensor *b) { return has_shape(a, b->rank, b->shape); }

const char *sl_shape_text(int rank, const int64_t *shape, char text[SL_SHAPE_TEXT]) {
  int used = snprintf(text, SL_SHAPE_TEXT, "[");
  for (int i = 0; i < rank && used < SL_SHAPE_TEXT - 24; i++)
    used += snprintf(text + used, (size_t)(SL_SHAPE_TEXT - used), i ? " x %lld" : "%lld", (long long)shape[i]);
  snprintf(text + used, (size_t)(SL_SHAPE_TEXT - used), "]");
  return text;
}

const char *sl_tensor_shape_text(const sl_tensor *tensor, char text[SL_SHAPE_TEXT]) {
  return sl_shape_text(tensor->rank, tensor->shape, text);
}

sl_status sl_tensor_expect(const sl_tensor *tensor, const char *op, const char *argument, sl_dtype dtype, int rank) {
  char text[SL_SHAPE_TEXT];
  if (tensor->dtype != dtype)
    return sl_fail(SL_EDTYPE, "%s: %s is %s %s, expected %s; convert it with :to(\"%s\")", op, argument,
                   sl_dtype_name(tensor->dtype), sl_tensor_shape_text(tensor, text), sl_dtype_name(dtype),
                   sl_dtype_name(dtype));
  if (rank >= 0 && tensor->rank != rank)
    return sl_fail(SL_ESHAPE, "%s: %s is %s, expected %d dimension%s", op, argument,
                   sl_tensor_shape_text(tensor, text), rank, rank == 1 ? "" : "s");
  return SL_OK;
}

/* -- Views ------------------------------------------------------------------------------- */

static sl_status new_view(const sl_tensor *tensor, sl_tensor **out) {
  SL_TRY(new_header(tensor->storage, tensor->dtype, out));
  sl_tensor *view = *out;
  view->rank = tensor->rank;
  view->offset = tensor->offset;
  for (int i = 0; i < tensor->rank; i++) {
    view->shape[i] = tensor->shape[i];
    view->strides[i] = tensor->strides[i];
  }
  return SL_OK;
}

static sl_status check_dim(const sl_tensor *tensor, const char *op, int dim) {
  char text[SL_SHAPE_TEXT];
  if (dim >= 0 && dim < tensor->rank) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: %s has no dimension %d (they count from 1)", op,
                 sl_tensor_shape_text(tensor, text), dim + 1);
}

sl_status sl_tensor_view(const sl_tensor *tensor, int rank, const int64_t *shape, sl_tensor **out) {
  char from[SL_SHAPE_TEXT], to[SL_SHAPE_TEXT];
  size_t bytes;
  SL_TRY(shape_bytes(tensor->dtype, rank, shape, &bytes));
  if (bytes != (size_t)sl_tensor_count(tensor) * sl_dtype_size(tensor->dtype))
    return sl_fail(SL_ESHAPE, "reshape: %s has %lld elements, %s needs %zu", sl_tensor_shape_text(tensor, from),
                   (long long)sl_tensor_count(tensor), sl_shape_text(rank, shape, to),
                   bytes / sl_dtype_size(tensor->dtype));
  if (!sl_tensor_is_contiguous(tensor))
    return sl_fail(SL_ESHAPE, "reshape: %s is not contiguous; use :contiguous() first",
                   sl_tensor_shape_text(tensor, from));
  SL_TRY(new_view(tensor, out));
  set_contiguous(*out, rank, shape);
  return SL_OK;
}

sl_status sl_tensor_transpose(const sl_tensor *tensor, int a, int b, sl_tensor **out) {
  SL_TRY(check_dim(tensor, "transpose", a));
  SL_TRY(check_dim(tensor, "transpose", b));
  SL_TRY(new_view(tensor, out));
  sl_tensor *view = *out;
  view->shape[a] = tensor->shape[b];
  view->shape[b] = tensor->shape[a];
  view->strides[a] = tensor->strides[b];
  view->strides[b] = tensor->strides[a];
  return SL_OK;
}

sl_status sl_tensor_slice(const sl_tensor *tensor, int dim, int64_t start, int64_t length, sl_tensor **out) {
  char text[SL_SHAPE_TEXT];
  SL_TRY(check_dim(tensor, "slice", dim));
  if (start < 0 || length < 0 || start > tensor->shape[dim] || length > tensor->shape[dim] - start)
    return sl_fail(SL_ESHAPE, "slice: positions %llu to %llu are outside dimension %d of %s",
                   (unsigned long long)start + 1, (unsigned long long)start + (unsigned long long)length, dim + 1,
                   sl_tensor_shape_text(tensor, text));
  SL_TRY(new_view(tensor, out));
  (*out)->offset += start * tensor->strides[dim];
  (*out)->shape[dim] = length;
  return SL_OK;
}

sl_status sl_tensor_select(const sl_tensor *tensor, int dim, int64_t index, sl_tensor **out) {
  SL_TRY(sl_tensor_slice(tensor, dim, index, 1, out));
  sl_tensor *view = *out;
  view->rank--;
  for (int i = dim; i < view->rank; i++) {
    view->shape[i] = view->shape[i + 1];
    view->strides[i] = view->strides[i + 1];
  }
  return SL_OK;
}

sl_status sl_tensor_expand(const sl_tensor *tensor, int rank, const int64_t *shape, sl_tensor **out) {
  char from[SL_SHAPE_TEXT], to[SL_SHAPE_TEXT];
  size_t bytes; /* of the copy that an operation may make of it */
  SL_TRY(shape_bytes(tensor->dtype, rank, shape, &bytes));
  int lead = rank - tensor->rank;
  bool fits = lead >= 0;
  for (int i = 0; fits && i < tensor->rank; i++)
    fits = tensor->shape[i] == shape[lead + i] || tensor->shape[i] == 1;
  if (!fits)
    return sl_fail(SL_ESHAPE, "expand: %s does not broadcast to %s", sl_tensor_shape_text(tensor, from),
                   sl_shape_text(rank, shape, to));
  SL_TRY(new_view(tensor, out));
  sl_tensor *view = *out;
  view->rank = rank;
  for (int i = 0; i < rank; i++) {
    bool broadcast = i < lead || tensor->shape[i - lead] != shape[i];
    view->shape[i] = shape[i];
    view->strides[i] = broadcast ? 0 : tensor->strides[i - lead];
  }
  return SL_OK;
}

/* -- Copies ------------------------------------------------------------------------------ */

/* Strided source to the contiguous block at `y`. */
static sl_status gather(const sl_tensor *tensor, void *y) {
  sl_device *device = sl_tensor_device(tensor);
  sl_gather_strided_args args = { .rank = tensor->rank, .x = sl_tensor_data(tensor), .y = y,
                                  .element_size = sl_dtype_size(tensor->dtype) };
  for (int i = 0; i < tensor->rank; i++) {
    args.shape[i] = tensor->shape[i];
    args.strides[i] = tensor->strides[i];
  }
  return device->kernels->gather_strided(device, &args);
}

sl_status sl_tensor_clone(const sl_tensor *tensor, sl_tensor **out) {
  *out = NULL;
  SL_TRY(sl_tensor_create_like(tensor, tensor->dtype, out));
  sl_status status = sl_tensor_copy_(*out, tensor);
  if (status != SL_OK) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  return status;
}

sl_status sl_tensor_contiguous(const sl_tensor *tensor, sl_tensor **out) {
  if (!sl_tensor_is_contiguous(tensor)) return sl_tensor_clone(tensor, out);
  *out = sl_tensor_retain((sl_tensor *)tensor);
  return SL_OK;
}

/* Contiguous `x` into the strided `dst`. */
static sl_status scatter(sl_tensor *dst, const void *x) {
  sl_device *device = sl_tensor_device(dst);
  sl_scatter_strided_args args = { .rank = dst->rank, .x = x, .y = sl_tensor_data(dst), .dtype = dst->dtype };
  for (int i = 0; i < dst->rank; i++) {
    args.shape[i] = dst->shape[i];
    args.strides[i] = dst->strides[i];
  }
  return device->kernels->scatter_strided(device, &args);
}

static bool repeats_elements(const sl_tensor *tensor) {
  for (int i = 0; i < tensor->rank; i++)
    if (tensor->strides[i] == 0 && tensor->shape[i] > 1) return true;
  return false;
}

/* Through a block of its own: into strided memory, or where source and destination share their memory. */
static sl_status copy_in_two(sl_tensor *dst, const sl_tensor *src) {
  sl_tensor *block;
  SL_TRY(dst->storage == src->storage ? sl_tensor_clone(src, &block) : sl_tensor_contiguous(src, &block));
  sl_status status = sl_tensor_is_contiguous(dst) ? sl_tensor_copy_(dst, block) : scatter(dst, sl_tensor_data(block));
  sl_tensor_release(block);
  return status;
}

sl_status sl_tensor_copy_(sl_tensor *dst, const sl_tensor *src) {
  char to[SL_SHAPE_TEXT], from[SL_SHAPE_TEXT];
  if (repeats_elements(dst))
    return sl_fail(SL_ESHAPE, "copy: the destination %s is expanded, so that several positions are one element",
                   sl_tensor_shape_text(dst, to));
  if (!sl_tensor_same_shape(dst, src) || dst->dtype != src->dtype || sl_tensor_device(dst) != sl_tensor_device(src))
    return sl_fail(SL_ESHAPE, "copy: the destination is %s %s on %s, the source %s %s on %s",
                   sl_dtype_name(dst->dtype), sl_tensor_shape_text(dst, to), sl_tensor_device(dst)->name,
                   sl_dtype_name(src->dtype), sl_tensor_shape_text(src, from), sl_tensor_device(src)->name);
  if (sl_tensor_count(src) == 0) return SL_OK;
  if (sl_tensor_is_contiguous(dst) && sl_tensor_is_contiguous(src)) {
    sl_device *device = sl_tensor_device(dst);
    return device->table->copy(device, sl_tensor_data(dst), sl_tensor_data(src),
                               (size_t)sl_tensor_count(src) * sl_dtype_size(src->dtype));
  }
  if (!sl_tensor_is_contiguous(dst) || dst->storage == src->storage) return copy_in_two(dst, src);
  return gather(src, sl_tensor_data(dst));
}

static sl_status check_host_copy(const sl_tensor *tensor, const char *op, size_t bytes) {
  char text[SL_SHAPE_TEXT];
  size_t want = (size_t)sl_tensor_count(tensor) * sl_dtype_size(tensor->dtype);
  if (want != bytes || !sl_tensor_is_contiguous(tensor))
    return sl_fail(SL_ESHAPE, "%s: %s %s holds %zu bytes%s, the host buffer %zu", op, sl_dtype_name(tensor->dtype),
                   sl_tensor_shape_text(tensor, text), want,
                   sl_tensor_is_contiguous(tensor) ? "" : " and is not contiguous", bytes);
  return SL_OK;
}

sl_status sl_tensor_fill_zero(sl_tensor *tensor) {
  size_t bytes = (size_t)sl_tensor_count(tensor) * sl_dtype_size(tensor->dtype);
  SL_TRY(check_host_copy(tensor, "zero", bytes));
  sl_device *device = sl_tensor_device(tensor);
  return device->table->fill(device, sl_tensor_data(tensor), 0, bytes);
}

sl_status sl_tensor_read(const sl_tensor *tensor, void *host, size_t bytes) {
  SL_TRY(check_host_copy(tensor, "read", bytes));
  sl_device *device = sl_tensor_device(tensor);
  return device->table->copy_to_host(device, host, sl_tensor_data(tensor), bytes);
}

sl_status sl_tensor_write(sl_tensor *tensor, const void *host, size_t bytes) {
  SL_TRY(check_host_copy(tensor, "write", bytes));
  sl_device *device = sl_tensor_device(tensor);
  return device->table->copy_from_host(device, sl_tensor_data(tensor), host, bytes);
}

sl_status sl_tensor_to_device(const sl_tensor *tensor, sl_device *device, sl_tensor **out) {
  if (sl_tensor_device(tensor) == device) {
    *out = sl_tensor_retain((sl_tensor *)tensor);
    return SL_OK;
  }
  sl_tensor *source, *copy;
  SL_TRY(sl_tensor_contiguous(tensor, &source));
  sl_status status = sl_tensor_create(device, tensor->dtype, tensor->rank, tensor->shape, &copy);
  size_t bytes = (size_t)sl_tensor_count(source) * sl_dtype_size(source->dtype);
  if (status == SL_OK) {
    /* One side is host memory as long as the CPU is one of the two devices. */
    if (device->host_memory) status = sl_tensor_read(source, sl_tensor_data(copy), bytes);
    else if (sl_tensor_device(source)->host_memory) status = sl_tensor_write(copy, sl_tensor_data(source), bytes);
    else status = sl_fail(SL_EUNSUPPORTED, "copying from %s to %s: go through the CPU",
                          sl_tensor_device(source)->name, device->name);
    if (status == SL_OK) *out = copy;
    else sl_tensor_release(copy);
  }
  sl_tensor_release(source);
  return status;
}

sl_status sl_tensor_item(const sl_tensor *tensor, double *out) {
  char text[SL_SHAPE_TEXT];
  if (sl_tensor_count(tensor) != 1)
    return sl_fail(SL_ESHAPE, "item: %s does not have exactly one element", sl_tensor_shape_text(tensor, text));
  union { float f; uint16_t h; int64_t l; int32_t i; uint8_t b; } value;
  sl_device *device = sl_tensor_device(tensor);
  SL_TRY(device->table->copy_to_host(device, &value, sl_tensor_data(tensor), sl_dtype_size(tensor->dtype)));
  switch (tensor->dtype) {
  case SL_F32: *out = (double)value.f; break;
  case SL_BF16: *out = (double)sl_bf16_to_f32(value.h); break;
  case SL_F16: *out = (double)sl_f16_to_f32(value.h); break;
  case SL_I64: *out = (double)value.l; break;
  case SL_I32: *out = (double)value.i; break;
  default: *out = (double)value.b; break;
  }
  return SL_OK;
}
