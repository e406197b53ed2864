/* Counter-based random numbers: the words and the counters of kernels/cpu/random.c; one thread makes four elements. */
#include "pack.h"
#include "kernels/philox.h"

enum { BLOCK = 256 };

struct random_job {
  uint32_t key[2], stream, step[2];
  float low, high;
  int32_t bound;
  int64_t n;
};

static __device__ __forceinline__ void words_of(const random_job &job, int64_t group, uint32_t words[4]) {
  uint32_t counter[4] = { static_cast<uint32_t>(group), job.stream, job.step[0], job.step[1] };
  slk_philox(counter, job.key, words);
}

template <int KIND> static __global__ void random_kernel(random_job job, void *y) {
  SLK_LOOP(group, (job.n + 3) / 4) {
    uint32_t words[4];
    int64_t first = group * 4;
    int count = static_cast<int>(job.n - first < 4 ? job.n - first : 4);
    words_of(job, group, words);
    if (KIND == SL_RANDOM_INT) {
      for (int i = 0; i < count; i++) static_cast<int32_t *>(y)[first + i] = slk_philox_int(words[i], job.bound);
      continue;
    }
    float out[4];
    if (KIND == SL_RANDOM_UNIFORM) {
      for (int i = 0; i < 4; i++) out[i] = slk_philox_uniform(words[i], job.low, job.high);
    } else {
      slk_philox_normal(words, job.low, job.high, out);
      slk_philox_normal(words + 2, job.low, job.high, out + 2);
    }
    for (int i = 0; i < count; i++) static_cast<float *>(y)[first + i] = out[i];
  }
}

extern "C" sl_status slk_cuda_random(sl_device *device, const sl_random_args *args) {
  slk_cuda_enter(device);
  int64_t groups = slk_ceil_div<int64_t>(args->n, 4);
  if (groups > static_cast<int64_t>(UINT32_MAX) + 1) {
    return sl_fail(SL_EINVAL, "random on %s: %lld elements; one (seed, stream, step) holds 2^34", device->name,
                   static_cast<long long>(args->n));
  }
  if (args->n == 0) return SL_OK;
  random_job job = { { static_cast<uint32_t>(args->seed), static_cast<uint32_t>(args->seed >> 32) },
                     args->stream,
                     { static_cast<uint32_t>(args->step), static_cast<uint32_t>(args->step >> 32) },
                     args->low, args->high, args->bound, args->n };
  unsigned grid = slk_grid(device, groups, BLOCK);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->kind == SL_RANDOM_INT) LAUNCH((random_kernel<SL_RANDOM_INT>), grid, BLOCK, 0, stream, job, args->y);
  else if (args->kind == SL_RANDOM_UNIFORM)
    LAUNCH((random_kernel<SL_RANDOM_UNIFORM>), grid, BLOCK, 0, stream, job, args->y);
  else LAUNCH((random_kernel<SL_RANDOM_NORMAL>), grid, BLOCK, 0, stream, job, args->y);
  return slk_cuda_launched(device, "random");
}
