/* Matrix products: oneDNN does the multiplying, one pass of our own the bias
 * and activation.
 *
 * float32 goes through dnnl_sgemm, which beats the matmul primitive on nearly
 * every shape (2048-4096 rows: 5 %, tiny ones: 2 times) and needs no primitive.
 * bf16 goes through matmul primitives; oneDNN keeps the last 1024 kinds itself,
 * thread-safe, so making one again costs about 5 us and a cache of our own
 * would only repeat it. Our epilogue, not oneDNN's post-ops, because its erf is
 * the 5-term Abramowitz-Stegun formula and because the backward wants the
 * pre-activation too. */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <string.h>

#include "cpu.h"
#include "vmath.h"

/* -- Epilogue: pre (+ bias) -> activation -- */

#define ACTIVATION_LIST(X)                                                                                   \
  X(SL_ACT_NONE, x)                                                                                          \
  X(SL_ACT_RELU, x <= 0 ? 0.0f : x)                                                                          \
  X(SL_ACT_GELU_ERF, slk_gelu(x))                                                                            \
  X(SL_ACT_GELU_TANH, slk_gelu_tanh(x))                                                                      \
  X(SL_ACT_TANH, slk_tanh(x))

SLK_HOT static void add_bias(float *x, const float *bias, int64_t n) {
  SLK_SIMD for (int64_t i = 0; i < n; i++) x[i] += bias[i];
}

#define X(id, f)                                                                                             \
  SLK_HOT static void row_##id(const float *pre, const float *bias, float *y, int64_t n) {                   \
    if (bias != NULL) {                                                                                      \
      SLK_SIMD for (int64_t i = 0; i < n; i++) {                                                             \
        const float x = pre[i] + bias[i];                                                                    \
        y[i] = (f);                                                                                          \
      }                                                                                                      \
    } else {                                                                                                 \
      SLK_SIMD for (int64_t i = 0; i < n; i++) {                                                             \
        const float x = pre[i];                                                                              \
        y[i] = (f);                                                                                          \
      }                                                                                                      \
    }                                                                                                        \
  }
ACTIVATION_LIST(X)
#undef X

static void activate_row(sl_activation activation, const float *pre, const float *bias, float *y, int64_t n) {
  switch (activation) {
#define X(id, f)                                                                                             \
  case id:                                                                                                   \
    row_##id(pre, bias, y, n);                                                                               \
    break;
    ACTIVATION_LIST(X)
#undef X
  }
}

/* After the raw product is in pre_activation (if kept) or in c. */
static void finish_rows(const sl_gemm_args *args, int64_t from, int64_t to) {
  for (int64_t r = from; r < to; r++) {
    float *c = (float *)args->c + r / args->m * args->stride_c + r % args->m * args->ldc;
    float *pre = args->pre_activation != NULL ? args->pre_activation + r * args->n : c;
    if (pre != c && args->bias != NULL) {
      add_bias(pre, args->bias, args->n);
      activate_row(args->activation, pre, NULL, c, args->n);
    } else {
      activate_row(args->activation, pre, args->bias, c, args->n);
    }
  }
}

static void finish(const sl_gemm_args *args) {
  if (args->bias == NULL && args->activation == SL_ACT_NONE && args->pre_activation == NULL) return;
  int64_t rows = args->m * args->batch, part = slk_max(1, SLK_PARALLEL_MIN / args->n);
#pragma omp parallel for schedule(static) if (rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < rows; from += part) finish_rows(args, from, slk_min(from + part, rows));
}

/* -- float32 -- */

static sl_status product_f32(const sl_gemm_args *args, int64_t index) {
  const float *a = (const float *)args->a + index * args->stride_a,
              *b = (const float *)args->b + index * args->stride_b;
  float *c = (float *)args->c + index * args->stride_c;
  int64_t ldc = args->ldc;
  if (args->pre_activation != NULL) {
    c = args->pre_activation + index * args->m * args->n;
    ldc = args->n;
  }
  dnnl_status_t status =
      dnnl_sgemm(args->transpose_a ? 'T' : 'N', args->transpose_b ? 'T' : 'N', args->m, args->n, args->k,
                 1.0f, a, args->lda, b, args->ldb, args->accumulate ? 1.0f : 0.0f, c, ldc);
  return status == dnnl_success ? SL_OK : SL_EDEVICE;
}

static sl_status gemm_f32(const sl_gemm_args *args) {
  /* Many small products: one a thread (oneDNN sees the parallel region and
   * stays serial). Few or large: all threads on each. */
  int failures = 0;
  bool spread =
      args->batch > 1 && (args->batch >= omp_get_max_threads() && args->m * args->n * args->k <= 1 << 24);
  if (spread) {
#pragma omp parallel for schedule(static) reduction(+ : failures)
    for (int64_t i = 0; i < args->batch; i++) failures += product_f32(args, i) != SL_OK;
  } else {
    for (int64_t i = 0; i < args->batch; i++) failures += product_f32(args, i) != SL_OK;
  }
  if (failures != 0) return sl_fail(SL_EDEVICE, "gemm on cpu: oneDNN refused a float32 product");
  finish(args);
  return SL_OK;
}

/* -- bf16 -- */

static dnnl_engine_t engine;
static dnnl_status_t engine_status;
static pthread_once_t engine_once = PTHREAD_ONCE_INIT;
static void create_engine(void) { engine_status = dnnl_engine_create(&engine, dnnl_cpu, 0); }

enum { arg_a, arg_b, arg_c, arg_bias, arg_count };

/* What one execution needs; everything is NULL until made, and released in any
 * state. */
typedef struct {
  dnnl_memory_desc_t descs[arg_count];
  dnnl_memory_t memories[arg_count];
  dnnl_primitive_attr_t attributes;
  dnnl_post_ops_t post_ops;
  dnnl_primitive_desc_t desc;
  dnnl_primitive_t primitive;
  dnnl_stream_t stream;
} product;

/* oneDNN calls in a row: the first failure skips the rest. */
#define DNNL_TRY(call)                                                                                       \
  do {                                                                                                       \
    dnnl_status_t dnnl_try_status_ = (call);                                                                 \
    if (dnnl_try_status_ != dnnl_success) return dnnl_try_status_;                                           \
  } while (0)

/* rows x columns as stored with leading dimension ld, seen transposed or not; a
 * shared matrix has batch size 1. */
static dnnl_status_t describe(dnnl_memory_desc_t *desc, const sl_gemm_args *args, const int64_t matrix[3],
                              int64_t stride, dnnl_data_type_t type, bool transpose) {
  bool shared = stride == 0;
  int64_t down = transpose ? 1 : matrix[2], along = transpose ? matrix[2] : 1;
  if (args->batch == 1) {
    dnnl_dims_t dims = { matrix[0], matrix[1] }, strides = { down, along };
    return dnnl_memory_desc_init_by_strides(desc, 2, dims, type, strides);
  }
  dnnl_dims_t dims = { shared ? 1 : args->batch, matrix[0], matrix[1] };
  dnnl_dims_t strides = { shared ? matrix[0] * matrix[1] : stride, down, along };
  return dnnl_memory_desc_init_by_strides(desc, 3, dims, type, strides);
}

static dnnl_status_t add_post_ops(product *p, const sl_gemm_args *args, bool fuse) {
  DNNL_TRY(dnnl_primitive_attr_create(&p->attributes));
  DNNL_TRY(dnnl_post_ops_create(&p->post_ops));
  if (args->accumulate) DNNL_TRY(dnnl_post_ops_append_sum(p->post_ops, 1.0f));
  if (fuse && args->activation != SL_ACT_NONE) {
    static const dnnl_alg_kind_t kinds[] = { [SL_ACT_RELU] = dnnl_eltwise_relu,
                                             [SL_ACT_GELU_ERF] = dnnl_eltwise_gelu_erf,
                                             [SL_ACT_GELU_TANH] = dnnl_eltwise_gelu_tanh,
                                             [SL_ACT_TANH] = dnnl_eltwise_tanh };
    DNNL_TRY(dnnl_post_ops_append_eltwise(p->post_ops, 1.0f, kinds[args->activation], 0, 0));
  }
  return dnnl_primitive_attr_set_post_ops(p->attributes, p->post_ops);
}

/* `fuse`: C is bf16, so bias and activation must be done before it is rounded.
 */
static dnnl_status_t create_product(product *p, const sl_gemm_args *args, float *c, bool fuse) {
  const int64_t a[3] = { args->m, args->k, args->lda }, b[3] = { args->k, args->n, args->ldb };
  int64_t out[3] = { args->m, args->n, args->pre_activation != NULL ? args->n : args->ldc };
  int64_t stride_out = args->pre_activation != NULL ? args->m * args->n : args->stride_c;
  dnnl_data_type_t type_c = args->dtype_c == SL_BF16 ? dnnl_bf16 : dnnl_f32;
  void *bias = (void *)(uintptr_t)args->bias;
  DNNL_TRY(describe(&p->descs[arg_a], args, a, args->stride_a, dnnl_bf16, args->transpose_a));
  DNNL_TRY(describe(&p->descs[arg_b], args, b, args->stride_b, dnnl_bf16, args->transpose_b));
  DNNL_TRY(
      describe(&p->descs[arg_c], args, out, args->batch == 1 ? out[0] * out[2] : stride_out, type_c, false));
  bool with_bias = fuse && bias != NULL;
  if (with_bias) {
    int rank = args->batch == 1 ? 2 : 3;
    dnnl_dims_t dims = { 1, rank == 2 ? args->n : 1, args->n };
    DNNL_TRY(dnnl_memory_desc_init_by_tag(&p->descs[arg_bias], rank, dims, dnnl_f32,
                                          rank == 2 ? dnnl_ab : dnnl_abc));
  }
  DNNL_TRY(add_post_ops(p, args, fuse));
  dnnl_matmul_desc_t desc;
  DNNL_TRY(dnnl_matmul_desc_init(&desc, &p->descs[arg_a], &p->descs[arg_b],
                                 with_bias ? &p->descs[arg_bias] : NULL, &p->descs[arg_c]));
  DNNL_TRY(dnnl_primitive_desc_create(&p->desc, &desc, p->attributes, engine, NULL));
  DNNL_TRY(dnnl_primitive_create(&p->primitive, p->desc));
  DNNL_TRY(dnnl_memory_create(&p->memories[arg_a], &p->descs[arg_a], engine, (void *)(uintptr_t)args->a));
  DNNL_TRY(dnnl_memory_create(&p->memories[arg_b], &p->descs[arg_b], engine, (void *)(uintptr_t)args->b));
  DNNL_TRY(dnnl_memory_create(&p->memories[arg_c], &p->descs[arg_c], engine, c));
  if (with_bias) DNNL_TRY(dnnl_memory_create(&p->memories[arg_bias], &p->descs[arg_bias], engine, bias));
  return dnnl_stream_create(&p->stream, engine, dnnl_stream_default_flags);
}

static dnnl_status_t execute_product(const product *p) {
  dnnl_exec_arg_t arguments[arg_count] = { { DNNL_ARG_SRC, p->memories[arg_a] },
                                           { DNNL_ARG_WEIGHTS, p->memories[arg_b] },
                                           { DNNL_ARG_DST, p->memories[arg_c] },
                                           { DNNL_ARG_BIAS, p->memories[arg_bias] } };
  DNNL_TRY(dnnl_primitive_execute(p->primitive, p->stream, p->memories[arg_bias] != NULL ? 4 : 3, arguments));
  return dnnl_stream_wait(p->stream);
}

static void release_product(product *p) {
  for (int i = 0; i < arg_count; i++) {
    if (p->memories[i] != NULL) dnnl_memory_destroy(p->memories[i]);
  }
  if (p->primitive != NULL) dnnl_primitive_destroy(p->primitive);
  if (p->desc != NULL) dnnl_primitive_desc_destroy(p->desc);
  if (p->attributes != NULL) dnnl_primitive_attr_destroy(p->attributes);
  if (p->post_ops != NULL) dnnl_post_ops_destroy(p->post_ops);
  if (p->stream != NULL) dnnl_stream_destroy(p->stream);
}

static sl_status gemm_bf16(const sl_gemm_args *args) {
  pthread_once(&engine_once, create_engine);
  if (engine_status != dnnl_success) return sl_fail(SL_EDEVICE, "gemm on cpu: oneDNN has no CPU engine");
  bool fuse = args->dtype_c == SL_BF16;
  product p = { .stream = NULL };
  dnnl_status_t status =
      create_product(&p, args, args->pre_activation != NULL ? args->pre_activation : args->c, fuse);
  if (status == dnnl_success) status = execute_product(&p);
  release_product(&p);
  if (status == dnnl_unimplemented) {
    return sl_fail(SL_EUNSUPPORTED, "gemm on cpu: oneDNN has no bf16 product "
                                    "for this processor; use float32");
  }
  if (status != dnnl_success) {
    return sl_fail(SL_EDEVICE, "gemm on cpu: oneDNN failed with status %d on a bf16 product", (int)status);
  }
  if (!fuse) finish(args);
  return SL_OK;
}

/* A product over nothing is zero: oneDNN refuses it, so it is written here. */
static void fill_empty(const sl_gemm_args *args) {
  size_t size = sl_dtype_size(args->dtype_c);
  for (int64_t r = 0; r < args->batch * args->m && !args->accumulate; r++) {
    int64_t at = r / args->m * args->stride_c + r % args->m * args->ldc;
    char *c = (char *)args->c + at * (int64_t)size;
    memset(c, 0, (size_t)args->n * size);
    if (args->pre_activation != NULL)
      memset(args->pre_activation + r * args->n, 0, (size_t)args->n * sizeof(float));
  }
}

sl_status slk_cpu_gemm(sl_device *device, const sl_gemm_args *args) {
  if (args->accumulate && (args->activation != SL_ACT_NONE || args->pre_activation != NULL)) {
    return sl_fail(SL_EINVAL, "gemm on %s: accumulate and an activation exclude each other", device->name);
  }
  if (args->m == 0 || args->n == 0 || args->batch == 0) return SL_OK;
  if (args->k == 0) {
    fill_empty(args);
    if (args->dtype_c == SL_F32) finish(args);
    return SL_OK;
  }
  return args->dtype_ab == SL_F32 ? gemm_f32(args) : gemm_bf16(args);
}
