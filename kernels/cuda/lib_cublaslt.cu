/* Matrix products by cuBLASLt, opened at run time.
 *
 * The library is found when the first product is asked for; a build with CUDA starts without it. Function pointers take
 * their types from the toolkit's header. cuBLASLt thinks in columns: our row-major C = op(A) op(B) is its column-major
 * C' = op(B)' op(A)', so our B is its first factor, the row of biases its column, and no transpose changes.
 *
 * What the heuristic chose is remembered for each kind of product, in a table of the device. Split sums are taken in
 * float32 and in a fixed order (the reductions in the output's dtype are excluded), so equal calls give equal bits. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib.h"

/* -- The library -- */

#define LT_FUNCTIONS(X)              \
  X(cublasLtCreate)                  \
  X(cublasLtGetStatusName)           \
  X(cublasLtMatmul)                  \
  X(cublasLtMatmulAlgoGetHeuristic)  \
  X(cublasLtMatmulDescCreate)        \
  X(cublasLtMatmulDescDestroy)       \
  X(cublasLtMatmulDescSetAttribute)  \
  X(cublasLtMatmulPreferenceCreate)  \
  X(cublasLtMatmulPreferenceDestroy) \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)      \
  X(cublasLtMatrixLayoutDestroy)     \
  X(cublasLtMatrixLayoutSetAttribute)

/* One for the process: a library is loaded once, whatever the number of devices. */
static struct {
#define X(name) decltype(&::name) name;
  LT_FUNCTIONS(X)
#undef X
  char problem[256]; /* why it cannot be used; "" when it can */
} api;
static pthread_once_t api_once = PTHREAD_ONCE_INIT;

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

static void *open_library(void) {
  static const char *const names[] = { "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), "libcublasLt.so.13", "libcublasLt.so.12",
                                       "libcublasLt.so" };
  const char *folders[] = { "", getenv("CUDA_PATH"), "/usr/local/cuda" };
  for (const char *folder : folders) {
    for (const char *name : names) {
      char path[512];
      if (folder == NULL) continue;
      snprintf(path, sizeof path, "%s%s%s", folder, folder[0] != '\0' ? "/lib64/" : "", name);
      void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
      if (library != NULL) return library;
    }
  }
  return NULL;
}

static void load_api(void) {
  void *library = open_library();
  if (library == NULL) {
    snprintf(api.problem, sizeof api.problem,
             "cuBLASLt (libcublasLt.so.%d) was not found; install CUDA's cuBLAS or name its folder in LD_LIBRARY_PATH or "
             "CUDA_PATH",
             CUBLAS_VER_MAJOR);
    return;
  }
#define X(name)                                                                                          \
  api.name = reinterpret_cast<decltype(&name)>(dlsym(library, #name));                                   \
  if (api.name == NULL) snprintf(api.problem, sizeof api.problem, "cuBLASLt here has no function %s", #name);
  LT_FUNCTIONS(X)
#undef X
}

sl_status slk_lib_gemm_open(void) {
  pthread_once(&api_once, load_api);
  return api.problem[0] == '\0' ? SL_OK : sl_fail(SL_EUNSUPPORTED, "%s", api.problem);
}

/* -- Kinds of products -- */

/* All that a plan depends on; compared byte by byte, so made from zeros. */
typedef struct {
  int64_t m, n, k, batch, lda, ldb, ldc, stride_a, stride_b, stride_c;
  uint32_t align_a, align_b, align_c, align_bias;
  uint8_t transpose_a, transpose_b, dtype_ab, dtype_c, tf32, accumulate, epilogue, padding;
} plan_key;

typedef struct {
  bool used;
  plan_key key;
  cublasLtMatmulDesc_t matmul;
  cublasLtMatrixLayout_t a, b, c; /* in cuBLASLt's order: a is our b */
  cublasLtMatmulAlgo_t algorithm;
} plan;

enum { PLANS = 512, LT_WORKSPACE_BYTES = 32 << 20, MAX_BATCH = 32768 };

struct slk_lt {
  cublasLtHandle_t handle;
  void *workspace;
  plan plans[PLANS]; /* by hash; a newcomer evicts */
};

/* cuBLASLt calls in a row: the first failure skips the rest. */
#define LT_TRY(call)                                            \
  do {                                                          \
    cublasStatus_t lt_try_status_ = (call);                     \
    if (lt_try_status_ != CUBLAS_STATUS_SUCCESS) return lt_try_status_; \
  } while (0)

static sl_status get_lt(sl_device *device, slk_lt **out) {
  slk_cuda_state *state = slk_cuda_get(device);
  *out = state->lt;
  if (state->lt != NULL) return SL_OK;
  SL_TRY(slk_lib_gemm_open());
  slk_lt *lt = static_cast<slk_lt *>(calloc(1, sizeof *lt));
  if (lt == NULL) return sl_fail(SL_ENOMEM, "gemm on %s: no memory for the table of products", device->name);
  sl_status status = device->table->alloc(device, LT_WORKSPACE_BYTES, &lt->workspace);
  if (status == SL_OK) {
    cublasStatus_t created = api.cublasLtCreate(&lt->handle);
    if (created != CUBLAS_STATUS_SUCCESS) {
      device->table->free(device, lt->workspace, LT_WORKSPACE_BYTES);
      status = sl_fail(SL_EDEVICE, "gemm on %s: cuBLASLt does not start: %s", device->name,
                       api.cublasLtGetStatusName(created));
    }
  }
  if (status != SL_OK) {
    free(lt);
    return status;
  }
  *out = state->lt = lt;
  return SL_OK;
}

/* The largest power of two up to 256 that divides the address and, in a batch, the distance between matrices. */
static uint32_t alignment_of(const void *p, int64_t stride, size_t size) {
  uint64_t bits = reinterpret_cast<uintptr_t>(p) | (static_cast<uint64_t>(stride) * size) | 256u;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

static cublasLtEpilogue_t epilogue_of(const sl_gemm_args *args) {
  if (args->activation == SL_ACT_GELU_TANH) return CUBLASLT_EPILOGUE_GELU_BIAS;
  return args->bias != NULL ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static plan_key key_of(const sl_gemm_args *args, bool tf32) {
  plan_key key;
  memset(&key, 0, sizeof key);
  size_t size_ab = sl_dtype_size(args->dtype_ab), size_c = sl_dtype_size(args->dtype_c);
  bool many = args->batch > 1;
  key.m = args->m, key.n = args->n, key.k = args->k, key.batch = args->batch;
  key.lda = args->lda, key.ldb = args->ldb, key.ldc = args->ldc;
  key.stride_a = many ? args->stride_a : 0;
  key.stride_b = many ? args->stride_b : 0;
  key.stride_c = many ? args->stride_c : 0;
  key.align_a = alignment_of(args->a, key.stride_a, size_ab);
  key.align_b = alignment_of(args->b, key.stride_b, size_ab);
  key.align_c = alignment_of(args->c, key.stride_c, size_c);
  key.align_bias = args->bias != NULL ? alignment_of(args->bias, 0, sizeof(float)) : 0;
  key.transpose_a = args->transpose_a, key.transpose_b = args->transpose_b;
  key.dtype_ab = static_cast<uint8_t>(args->dtype_ab), key.dtype_c = static_cast<uint8_t>(args->dtype_c);
  key.tf32 = tf32 && args->dtype_ab == SL_F32, key.accumulate = args->accumulate;
  key.epilogue = static_cast<uint8_t>(epilogue_of(args));
  return key;
}

static uint32_t hash_of(const plan_key *key) {
  const unsigned char *bytes = reinterpret_cast<const unsigned char *>(key);
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

static void release_plan(plan *p) {
  if (p->matmul != NULL) (void)api.cublasLtMatmulDescDestroy(p->matmul);
  if (p->a != NULL) (void)api.cublasLtMatrixLayoutDestroy(p->a);
  if (p->b != NULL) (void)api.cublasLtMatrixLayoutDestroy(p->b);
  if (p->c != NULL) (void)api.cublasLtMatrixLayoutDestroy(p->c);
  memset(p, 0, sizeof *p);
}

/* -- Making a plan -- */

/* `rows` x `columns` stored row-major with leading dimension ld is, to cuBLASLt, columns x rows. */
static cublasStatus_t describe(cublasLtMatrixLayout_t *layout, cudaDataType type, int64_t rows, int64_t columns,
                               int64_t ld, int64_t batch, int64_t stride) {
  LT_TRY(api.cublasLtMatrixLayoutCreate(layout, type, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), ld));
  if (batch == 1) return CUBLAS_STATUS_SUCCESS;
  int32_t count = static_cast<int32_t>(batch);
  LT_TRY(api.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
  return api.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                              sizeof stride);
}

template <typename T>
static cublasStatus_t set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
  return api.cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value);
}

static cublasStatus_t describe_product(plan *p, const sl_gemm_args *args) {
  const plan_key *key = &p->key;
  cudaDataType type_ab = args->dtype_ab == SL_BF16 ? CUDA_R_16BF : CUDA_R_32F;
  cudaDataType type_c = args->dtype_c == SL_BF16 ? CUDA_R_16BF : CUDA_R_32F;
  LT_TRY(api.cublasLtMatmulDescCreate(&p->matmul, key->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                      CUDA_R_32F));
  LT_TRY(set<int32_t>(p->matmul, CUBLASLT_MATMUL_DESC_TRANSA, args->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N));
  LT_TRY(set<int32_t>(p->matmul, CUBLASLT_MATMUL_DESC_TRANSB, args->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N));
  LT_TRY(set<uint32_t>(p->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE, key->epilogue));
  if (args->bias != NULL) {
    LT_TRY(set<const void *>(p->matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args->bias));
    LT_TRY(set<int32_t>(p->matmul, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F));
  }
  int64_t rows_a = args->transpose_a ? args->k : args->m, rows_b = args->transpose_b ? args->n : args->k;
  LT_TRY(describe(&p->a, type_ab, rows_b, args->k + args->n - rows_b, args->ldb, args->batch, args->stride_b));
  LT_TRY(describe(&p->b, type_ab, rows_a, args->m + args->k - rows_a, args->lda, args->batch, args->stride_a));
  return describe(&p->c, type_c, args->m, args->n, args->ldc, args->batch, args->stride_c);
}

static cublasStatus_t choose(slk_lt *lt, plan *p, cublasLtMatmulPreference_t preference) {
  const struct { cublasLtMatmulPreferenceAttributes_t attribute; uint32_t value; } wishes[] = {
    { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p->key.align_b },
    { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p->key.align_a },
    { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p->key.align_c },
    { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p->key.align_c },
    { CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE },
  };
  uint64_t room = LT_WORKSPACE_BYTES;
  LT_TRY(api.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room,
                                                  sizeof room));
  for (const auto &wish : wishes)
    LT_TRY(api.cublasLtMatmulPreferenceSetAttribute(preference, wish.attribute, &wish.value, sizeof wish.value));
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  LT_TRY(api.cublasLtMatmulAlgoGetHeuristic(lt->handle, p->matmul, p->a, p->b, p->c, p->c, preference, 1, &found,
                                            &count));
  if (count == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  p->algorithm = found.algo;
  return found.state;
}

static cublasStatus_t make_plan(slk_lt *lt, plan *p, const sl_gemm_args *args) {
  LT_TRY(describe_product(p, args));
  cublasLtMatmulPreference_t preference;
  LT_TRY(api.cublasLtMatmulPreferenceCreate(&preference));
  cublasStatus_t status = choose(lt, p, preference);
  (void)api.cublasLtMatmulPreferenceDestroy(preference);
  return status;
}

/* -- The product -- */

static cublasStatus_t multiply(slk_lt *lt, cudaStream_t stream, const sl_gemm_args *args, bool tf32) {
  plan_key key = key_of(args, tf32);
  plan *p = &lt->plans[hash_of(&key) % PLANS];
  if (!p->used || memcmp(&p->key, &key, sizeof key) != 0) {
    release_plan(p);
    p->key = key;
    cublasStatus_t status = make_plan(lt, p, args);
    if (status != CUBLAS_STATUS_SUCCESS) {
      release_plan(p);
      return status;
    }
    p->used = true;
  } else if (args->bias != NULL) {
    LT_TRY(set<const void *>(p->matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args->bias));
  }
  const float one = 1.0f, beta = args->accumulate ? 1.0f : 0.0f;
  return api.cublasLtMatmul(lt->handle, p->matmul, &one, args->b, p->a, args->a, p->b, &beta, args->c, p->c, args->c,
                            p->c, &p->algorithm, lt->workspace, LT_WORKSPACE_BYTES, stream);
}

/* A bias with float32 results only: with bf16 results cuBLASLt wants it in bf16. ReLU not at all, because a NaN must
 * pass; the tanh form of GELU where the inputs are bf16 already, because its tanh is an approximation. */
bool slk_lib_gemm_fuses(const sl_gemm_args *args) {
  if (args->dtype_c != SL_F32 || args->pre_activation != NULL) return false;
  if (args->activation == SL_ACT_NONE) return true;
  return args->activation == SL_ACT_GELU_TANH && args->bias != NULL && args->dtype_ab == SL_BF16;
}

static const void *at(const void *p, int64_t elements, sl_dtype dtype) {
  return static_cast<const char *>(p) + elements * static_cast<int64_t>(sl_dtype_size(dtype));
}

sl_status slk_lib_gemm(sl_device *device, const sl_gemm_args *args, bool tf32) {
  slk_lt *lt;
  SL_TRY(get_lt(device, &lt));
  for (int64_t from = 0; from < args->batch; from += MAX_BATCH) {
    sl_gemm_args part = *args;
    part.batch = args->batch - from;
    if (part.batch > MAX_BATCH) part.batch = MAX_BATCH;
    part.a = at(args->a, from * args->stride_a, args->dtype_ab);
    part.b = at(args->b, from * args->stride_b, args->dtype_ab);
    part.c = const_cast<void *>(at(args->c, from * args->stride_c, args->dtype_c));
    cublasStatus_t status = multiply(lt, slk_cuda_stream(device), &part, tf32);
    if (status == CUBLAS_STATUS_SUCCESS) continue;
    return sl_fail(status == CUBLAS_STATUS_NOT_SUPPORTED ? SL_EUNSUPPORTED : SL_EDEVICE,
                   "gemm on %s: cuBLASLt answers %s to [%lld x %lld] x [%lld x %lld] in %s, leading dimensions %lld, "
                   "%lld, %lld, batch %lld",
                   device->name, api.cublasLtGetStatusName(status), (long long)args->m, (long long)args->k,
                   (long long)args->k, (long long)args->n, sl_dtype_name(args->dtype_ab), (long long)args->lda,
                   (long long)args->ldb, (long long)args->ldc, (long long)args->batch);
  }
  return SL_OK;
}
