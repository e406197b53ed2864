/* Tensor: a refcounted header {storage, offset, dtype, shape, strides} over shared storage.
 *
 * Row-major; views share storage and cost no copy. Gradients belong to the tape (tape.h): a leaf
 * that requires a gradient keeps it in `grad`. Nothing here computes; see core/ops.
 * Ownership: a function that returns through `out` hands one reference to the caller. */
#ifndef SL_TENSOR_H
#define SL_TENSOR_H

#include "storage.h"

typedef struct sl_tape sl_tape;

typedef struct sl_tensor {
  int references;
  sl_dtype dtype;
  int rank;                        /* 0 (a scalar) to SL_MAX_RANK */
  int64_t shape[SL_MAX_RANK];
  int64_t strides[SL_MAX_RANK];    /* in elements; 0 along a broadcast dimension */
  int64_t offset;                  /* in elements */
  sl_storage *storage;
  bool requires_grad;              /* a leaf whose gradient is wanted; f32 only */
  int64_t tape_id;                 /* identity on the tape; unique for each header, never 0 */
  struct sl_tensor *grad;          /* of a leaf, after backward; NULL = none yet */
} sl_tensor;

/* Uninitialised, contiguous. Sizes are checked against overflow. */
sl_status sl_tensor_create(sl_device *device, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out);
sl_status sl_tensor_zeros(sl_device *device, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out);
/* Uninitialised bytes for a kernel to work in; *out stays NULL where it wants none. */
sl_status sl_tensor_workspace(sl_device *device, size_t bytes, sl_tensor **out);
/* Same device and shape as `like`, contiguous, uninitialised. */
sl_status sl_tensor_create_like(const sl_tensor *like, sl_dtype dtype, sl_tensor **out);
/* A contiguous tensor over `storage` from `offset` elements; retains the storage. */
sl_status sl_tensor_over(sl_storage *storage, sl_dtype dtype, int rank, const int64_t *shape, int64_t offset,
                         sl_tensor **out);

sl_tensor *sl_tensor_retain(sl_tensor *tensor);
void sl_tensor_release(sl_tensor *tensor); /* NULL is allowed */

/* *out NULL: a new tensor. Otherwise checks that *out has this device, dtype and shape and is contiguous. */
sl_status sl_tensor_output(sl_device *device, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor **out);

int64_t sl_tensor_count(const sl_tensor *tensor);          /* elements */
bool sl_tensor_is_contiguous(const sl_tensor *tensor);
bool sl_tensor_same_shape(const sl_tensor *a, const sl_tensor *b);
static inline sl_device *sl_tensor_device(const sl_tensor *tensor) { return tensor->storage->device; }
/* Device pointer to the first element. */
static inline void *sl_tensor_data(const sl_tensor *tensor) {
  return (char *)tensor->storage->data + (size_t)tensor->offset * sl_dtype_size(tensor->dtype);
}
static inline float *sl_tensor_f32(const sl_tensor *tensor) { return (float *)sl_tensor_data(tensor); }

/* "[32 x 768]" into a caller's buffer; returns it. */
enum { SL_SHAPE_TEXT = 96 };
const char *sl_tensor_shape_text(const sl_tensor *tensor, char text[SL_SHAPE_TEXT]);
const char *sl_shape_text(int rank, const int64_t *shape, char text[SL_SHAPE_TEXT]);

/* Views: no copy, no tape (core/ops records them). Dimensions are 0-based here. */
sl_status sl_tensor_view(const sl_tensor *tensor, int rank, const int64_t *shape, sl_tensor **out); /* contiguous only */
sl_status sl_tensor_transpose(const sl_tensor *tensor, int a, int b, sl_tensor **out);
sl_status sl_tensor_slice(const sl_tensor *tensor, int dim, int64_t start, int64_t length, sl_tensor **out);
sl_status sl_tensor_select(const sl_tensor *tensor, int dim, int64_t index, sl_tensor **out);  /* drops the dimension */
sl_status sl_tensor_expand(const sl_tensor *tensor, int rank, const int64_t *shape, sl_tensor **out);

/* Copies: `out` is contiguous. sl_tensor_contiguous retains when nothing needs copying. */
sl_status sl_tensor_contiguous(const sl_tensor *tensor, sl_tensor **out);
sl_status sl_tensor_clone(const sl_tensor *tensor, sl_tensor **out);
/* dst[...] = src[...]: same shape and dtype, any strides on either side. */
sl_status sl_tensor_copy_(sl_tensor *dst, const sl_tensor *src);
sl_status sl_tensor_fill_zero(sl_tensor *tensor);           /* contiguous only */
sl_status sl_tensor_to_device(const sl_tensor *tensor, sl_device *device, sl_tensor **out);

/* Host <-> contiguous tensor; bytes must be count * dtype size. */
sl_status sl_tensor_read(const sl_tensor *tensor, void *host, size_t bytes);
sl_status sl_tensor_write(sl_tensor *tensor, const void *host, size_t bytes);
/* The one element of a one-element tensor, as a double. */
sl_status sl_tensor_item(const sl_tensor *tensor, double *out);

/* SL_EDTYPE / SL_ESHAPE naming `op` and `argument`, unless the tensor has this dtype (and rank; -1 = any). */
sl_status sl_tensor_expect(const sl_tensor *tensor, const char *op, const char *argument, sl_dtype dtype, int rank);

#endif
