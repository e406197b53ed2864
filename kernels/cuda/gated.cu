/* Gated activations, f(gate) up, and their backward: the formulas of kernels/cpu/gated.c. */
#include "pack.h"
#include "math.h"

enum { BLOCK = 256 };

template <int ACT> static __device__ __forceinline__ float gate_value(float x);
template <int ACT> static __device__ __forceinline__ float gate_slope(float x);
#define X(id, name, f, df)                                                                        \
  template <> __device__ __forceinline__ float gate_value<SL_GATE_##id>(float x) { return (f); }  \
  template <> __device__ __forceinline__ float gate_slope<SL_GATE_##id>(float x) { return (df); }
SL_GATE_LIST(X)
#undef X

/* WIDTH neighbours of one row at a time; units: how many of them a row has. */
template <int ACT, int WIDTH> static __global__ void gated_kernel(sl_gated_args a, int64_t units) {
  typedef slk_pack<float, WIDTH> pack;
  SLK_LOOP(i, a.rows * units) {
    const int64_t row = i / units, column = i % units * WIDTH;
    pack x = *reinterpret_cast<const pack *>(a.gate + row * a.ld_gate + column);
    const pack up = *reinterpret_cast<const pack *>(a.up + row * a.ld_up + column);
    SLK_UNROLL
    for (int j = 0; j < WIDTH; j++) x.at[j] = gate_value<ACT>(x.at[j]) * up.at[j];
    *reinterpret_cast<pack *>(a.y + row * a.ld_y + column) = x;
  }
}

template <int ACT, int WIDTH> static __global__ void gated_backward_kernel(sl_gated_backward_args a, int64_t units) {
  typedef slk_pack<float, WIDTH> pack;
  SLK_LOOP(i, a.rows * units) {
    const int64_t row = i / units, column = i % units * WIDTH;
    const pack x = *reinterpret_cast<const pack *>(a.gate + row * a.ld_gate + column);
    const pack dy = *reinterpret_cast<const pack *>(a.dy + row * a.ld_dy + column);
    pack to;
    if (a.dgate != nullptr) {
      const pack up = *reinterpret_cast<const pack *>(a.up + row * a.ld_up + column);
      SLK_UNROLL
      for (int j = 0; j < WIDTH; j++) to.at[j] = dy.at[j] * up.at[j] * gate_slope<ACT>(x.at[j]);
      *reinterpret_cast<pack *>(a.dgate + row * a.ld_dgate + column) = to;
    }
    if (a.dup != nullptr) {
      SLK_UNROLL
      for (int j = 0; j < WIDTH; j++) to.at[j] = gate_value<ACT>(x.at[j]) * dy.at[j];
      *reinterpret_cast<pack *>(a.dup + row * a.ld_dup + column) = to;
    }
  }
}

/* Whether every row of a matrix starts on 16 bytes; an absent one does. */
static bool starts_wide(const float *x, int64_t ld) { return slk_aligned(x, 16) && (x == NULL || ld % 4 == 0); }

template <int ACT> static void launch_gated(sl_device *device, const sl_gated_args *a, bool fours) {
  const int64_t units = fours ? a->n / 4 : a->n;
  const unsigned grid = slk_grid(device, a->rows * units, BLOCK);
  if (fours) LAUNCH((gated_kernel<ACT, 4>), grid, BLOCK, 0, slk_cuda_stream(device), *a, units);
  else LAUNCH((gated_kernel<ACT, 1>), grid, BLOCK, 0, slk_cuda_stream(device), *a, units);
}

template <int ACT> static void launch_slope(sl_device *device, const sl_gated_backward_args *a, bool fours) {
  const int64_t units = fours ? a->n / 4 : a->n;
  const unsigned grid = slk_grid(device, a->rows * units, BLOCK);
  if (fours) LAUNCH((gated_backward_kernel<ACT, 4>), grid, BLOCK, 0, slk_cuda_stream(device), *a, units);
  else LAUNCH((gated_backward_kernel<ACT, 1>), grid, BLOCK, 0, slk_cuda_stream(device), *a, units);
}

extern "C" sl_status slk_cuda_gated(sl_device *device, const sl_gated_args *args) {
  slk_cuda_enter(device);
  if (args->rows * args->n == 0) return SL_OK;
  bool fours = args->n % 4 == 0 && starts_wide(args->gate, args->ld_gate) && starts_wide(args->up, args->ld_up) &&
               starts_wide(args->y, args->ld_y);
  switch (args->act) {
#define X(id, name, f, df)                                \
  case SL_GATE_##id:                                      \
    launch_gated<SL_GATE_##id>(device, args, fours);      \
    break;
    SL_GATE_LIST(X)
#undef X
  default:
    break;
  }
  return slk_cuda_launched(device, "gated");
}

extern "C" sl_status slk_cuda_gated_backward(sl_device *device, const sl_gated_backward_args *args) {
  slk_cuda_enter(device);
  if (args->rows * args->n == 0) return SL_OK;
  bool fours = args->n % 4 == 0 && starts_wide(args->gate, args->ld_gate) && starts_wide(args->up, args->ld_up) &&
               starts_wide(args->dy, args->ld_dy) && starts_wide(args->dgate, args->ld_dgate) &&
               starts_wide(args->dup, args->ld_dup);
  switch (args->act) {
#define X(id, name, f, df)                                \
  case SL_GATE_##id:                                      \
    launch_slope<SL_GATE_##id>(device, args, fours);      \
    break;
    SL_GATE_LIST(X)
#undef X
  default:
    break;
  }
  return slk_cuda_launched(device, "gated_backward");
}
