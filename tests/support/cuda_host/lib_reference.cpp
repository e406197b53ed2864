/* Reference bodies of the library calls (kernels/cuda/lib.h): what cuBLASLt and CUB do on a GPU, as plain loops that take
 * their turn on the stream. They keep what callers must not rely on visible: a workspace is overwritten, a fused
 * epilogue is now and then refused, TF32 factors lose their digits. */
#include <math.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/cuda/lib.h"

/* Work on a stream lives until the process ends: a recorded graph may run it again. */
static std::vector<std::unique_ptr<std::function<void()>>> enqueued;

static void run(void *work) { (*static_cast<std::function<void()> *>(work))(); }

static sl_status enqueue(sl_device *device, const char *what, std::function<void()> work) {
  enqueued.emplace_back(new std::function<void()>(std::move(work)));
  return slk_cuda_check(device, cudaLaunchHostFunc(slk_cuda_stream(device), run, enqueued.back().get()), what);
}

/* -- Products -- */

static float read(const void *p, int64_t i, sl_dtype dtype, bool tf32) {
  if (dtype == SL_BF16) return sl_bf16_to_f32(static_cast<const uint16_t *>(p)[i]);
  float x = static_cast<const float *>(p)[i];
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (tf32 && (bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  memcpy(&x, &bits, sizeof bits);
  return x;
}

static float gelu_tanh(float x) { return x < -14.5f ? 0.0f : x / (1.0f + expf(-1.5957691216f * (x + 0.044715f * x * x * x))); }

static void multiply(const sl_gemm_args &g, int64_t b, bool tf32) {
  std::vector<double> sums(static_cast<size_t>(g.n));
  for (int64_t i = 0; i < g.m; i++) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t l = 0; l < g.k; l++) {
      double left = read(g.a, b * g.stride_a + (g.transpose_a ? l * g.lda + i : i * g.lda + l), g.dtype_ab, tf32);
      for (int64_t j = 0; j < g.n; j++)
        sums[static_cast<size_t>(j)] +=
            left * read(g.b, b * g.stride_b + (g.transpose_b ? j * g.ldb + l : l * g.ldb + j), g.dtype_ab, tf32);
    }
    for (int64_t j = 0; j < g.n; j++) {
      int64_t at = b * g.stride_c + i * g.ldc + j;
      float x = static_cast<float>(sums[static_cast<size_t>(j)]);
      if (g.bias != nullptr) x += g.bias[j];
      if (g.accumulate) x += read(g.c, at, g.dtype_c, false);
      if (g.activation == SL_ACT_GELU_TANH) x = gelu_tanh(x);
      if (g.dtype_c == SL_BF16) static_cast<uint16_t *>(g.c)[at] = sl_f32_to_bf16(x);
      else static_cast<float *>(g.c)[at] = x;
    }
  }
}

bool slk_lib_gemm_fuses(const sl_gemm_args *args) {
  if (args->dtype_c != SL_F32 || args->pre_activation != nullptr) return false;
  return args->activation == SL_ACT_NONE ||
         (args->activation == SL_ACT_GELU_TANH && args->bias != nullptr && args->dtype_ab == SL_BF16);
}

sl_status slk_lib_gemm(sl_device *device, const sl_gemm_args *args, bool tf32) {
  const bool fused = args->bias != nullptr || args->activation != SL_ACT_NONE;
  if (fused && (!slk_lib_gemm_fuses(args) || args->n % 2 == 1)) {
    return sl_fail(SL_EUNSUPPORTED, "gemm on %s: the reference library refuses this epilogue", device->name);
  }
  const sl_gemm_args g = *args;
  return enqueue(device, "gemm", [g, tf32]() {
    for (int64_t b = 0; b < g.batch; b++) multiply(g, b, tf32 && g.dtype_ab == SL_F32);
  });
}

extern "C" sl_status slk_lib_gemm_open(void) { return SL_OK; }

/* -- Sorts and sums -- */

/* CUB asks for memory and uses it. */
static bool asks(void *workspace, size_t *need, int64_t n) {
  const size_t wanted = static_cast<size_t>(n) * 8 + 768;
  if (workspace == nullptr) *need = wanted;
  return workspace == nullptr;
}

sl_status slk_lib_sort_pairs(sl_device *device, void *workspace, size_t *need, const slk_sort &sort) {
  const slk_sort s = sort;
  if (asks(workspace, need, s.n)) return SL_OK;
  const size_t bytes = *need;
  return enqueue(device, "sort_pairs", [=]() {
    const uint32_t mask = s.bits >= 32 ? 0xffffffffu : (1u << s.bits) - 1;
    std::vector<uint32_t> order(static_cast<size_t>(s.n));
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [=](uint32_t a, uint32_t b) { return (s.keys_in[a] & mask) < (s.keys_in[b] & mask); });
    memset(workspace, 0xcd, bytes);
    for (size_t i = 0; i < order.size(); i++)
      s.keys_out[i] = s.keys_in[order[i]], s.values_out[i] = s.values_in[order[i]];
  });
}

sl_status slk_lib_exclusive_sum(sl_device *device, void *workspace, size_t *need, const int64_t *in, int64_t *out,
                                int64_t n) {
  if (asks(workspace, need, n)) return SL_OK;
  const size_t bytes = *need;
  return enqueue(device, "exclusive_sum", [=]() {
    memset(workspace, 0xcd, bytes);
    for (int64_t i = 0, sum = 0; i < n; i++) {
      const int64_t own = in[i];
      out[i] = sum;
      sum += own;
    }
  });
}
