/* Rotary position embedding: the formulas of kernels/cpu/rotary.c.
 *
 * The angle, position times frequency, is float64 and brought to [-pi, pi] there; sine and cosine of the rest are
 * float32, each within 3e-7 of the true value at any position. A thread has one pair of one row and walks over some of
 * the row's heads, so that they share the angle; neighbouring threads have neighbouring pairs. */
#include "pack.h"

enum { BLOCK = 256, HEADS_AT_ONCE = 8 };

struct rotary_job {
  sl_rotary_args a;
  int64_t pairs, groups;         /* pairs a head; groups of HEADS_AT_ONCE heads a row */
  double step;                   /* log2 of the base times -2 / width */
};

static __device__ __forceinline__ void turn_of(const rotary_job &job, int64_t row, int64_t pair, float *c, float *s) {
  const sl_rotary_args &a = job.a;
  const int64_t b = row / a.tokens, t = row % a.tokens;
  const int64_t position = a.positions != nullptr ? a.positions[b * a.positions_stride + t] : t;
  const double frequency = a.frequencies != nullptr ? static_cast<double>(a.frequencies[pair])
                                                    : exp2(static_cast<double>(pair) * job.step);
  const double angle = static_cast<double>(position) * frequency;
  const double rest = fma(-rint(angle * 0.15915494309189535), 6.283185307179586, angle);
  sincosf(static_cast<float>(rest), s, c);
  if (a.inverse) *s = -*s;
}

static __global__ void rotary_kernel(rotary_job job) {
  const sl_rotary_args &a = job.a;
  const int64_t apart = a.adjacent ? 1 : job.pairs;
  SLK_LOOP(i, a.batch * a.tokens * job.groups * job.pairs) {
    const int64_t pair = i % job.pairs, rest = i / job.pairs, group = rest % job.groups, row = rest / job.groups;
    const int64_t from = group * HEADS_AT_ONCE, to = from + HEADS_AT_ONCE < a.heads ? from + HEADS_AT_ONCE : a.heads;
    float c, s;
    turn_of(job, row, pair, &c, &s);
    for (int64_t h = from; h < to; h++) {
      const int64_t at = h * a.head_dim + (a.adjacent ? 2 * pair : pair);
      const float *x = a.x + row * a.ld_x + at;
      float *y = a.y + row * a.ld_y + at;
      const float first = x[0], second = x[apart];
      y[0] = first * c - second * s;
      y[apart] = second * c + first * s;
    }
  }
}

static __global__ void rotary_copy_rest(sl_rotary_args a) {
  const int64_t rest = a.head_dim - a.width;
  SLK_LOOP(i, a.batch * a.tokens * a.heads * rest) {
    const int64_t column = a.width + i % rest, h = i / rest % a.heads, row = i / rest / a.heads;
    a.y[row * a.ld_y + h * a.head_dim + column] = a.x[row * a.ld_x + h * a.head_dim + column];
  }
}

extern "C" sl_status slk_cuda_rotary(sl_device *device, const sl_rotary_args *args) {
  slk_cuda_enter(device);
  const int64_t heads = args->batch * args->tokens * args->heads, rest = args->head_dim - args->width;
  if (heads > 0 && args->width > 0) {
    rotary_job job = {};
    job.a = *args;
    job.pairs = args->width / 2;
    job.groups = slk_ceil_div<int64_t>(args->heads, HEADS_AT_ONCE);
    job.step = -2.0 * log2(args->base) / static_cast<double>(args->width);
    const int64_t items = args->batch * args->tokens * job.groups * job.pairs;
    LAUNCH(rotary_kernel, slk_grid(device, items, BLOCK), BLOCK, 0, slk_cuda_stream(device), job);
  }
  if (heads * rest > 0 && args->x != args->y)
    LAUNCH(rotary_copy_rest, slk_grid(device, heads * rest, BLOCK), BLOCK, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "rotary");
}
