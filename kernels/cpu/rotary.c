/* Rotary position embedding. Source: Su et al., "RoFormer", arXiv 2104.09864. Angles, sines and cosines are float64 and
 * rounded once, so that long contexts lose nothing (float32 angles, as most libraries have them, are off by 1e-3 at
 * position 16,000). They are made once for a row and used by all of its heads. */
#include <math.h>
#include <string.h>

#include "cpu.h"

/* Pairs whose sines lie on the stack at a time; rows that share the powers of the base. */
enum { pairs_at_once = 64, row_piece = 16 };

typedef struct {
  float cosine[pairs_at_once], sine[pairs_at_once];
} turns;

static int64_t position_of(const sl_rotary_args *a, int64_t row) {
  const int64_t b = row / a->tokens, t = row % a->tokens;
  return a->positions != NULL ? a->positions[b * a->positions_stride + t] : t;
}

static void find_turns(const sl_rotary_args *a, int64_t row, const double *frequencies, int64_t count, turns *out) {
  const double position = (double)position_of(a, row);
  for (int64_t i = 0; i < count; i++) {
    const double angle = position * frequencies[i], sine = sin(angle);
    out->cosine[i] = (float)cos(angle);
    out->sine[i] = (float)(a->inverse ? -sine : sine);
  }
}

/* `count` pairs of one head whose first halves start at x and whose second halves start `apart` further on. */
SLK_HOT static void turn_halves(const float *x, float *y, int64_t apart, const turns *by, int64_t count) {
  SLK_SIMD for (int64_t i = 0; i < count; i++) {
    const float first = x[i], second = x[i + apart], c = by->cosine[i], s = by->sine[i];
    y[i] = first * c - second * s;
    y[i + apart] = second * c + first * s;
  }
}

SLK_HOT static void turn_neighbours(const float *x, float *y, const turns *by, int64_t count) {
  SLK_SIMD for (int64_t i = 0; i < count; i++) {
    const float first = x[2 * i], second = x[2 * i + 1], c = by->cosine[i], s = by->sine[i];
    y[2 * i] = first * c - second * s;
    y[2 * i + 1] = second * c + first * s;
  }
}

/* Pairs [from, from + count) of every head of one row. */
static void turn_row(const sl_rotary_args *a, int64_t row, int64_t from, int64_t count, const turns *by) {
  for (int64_t h = 0; h < a->heads; h++) {
    const int64_t at = h * a->head_dim + (a->adjacent ? 2 * from : from);
    const float *x = a->x + row * a->ld_x + at;
    float *y = a->y + row * a->ld_y + at;
    if (a->adjacent) turn_neighbours(x, y, by, count);
    else turn_halves(x, y, a->width / 2, by, count);
  }
}

static void copy_rest(const sl_rotary_args *a, int64_t row) {
  const size_t rest = (size_t)(a->head_dim - a->width);
  for (int64_t h = 0; h < a->heads && rest > 0; h++) {
    const int64_t at = h * a->head_dim + a->width;
    memcpy(a->y + row * a->ld_y + at, a->x + row * a->ld_x + at, rest * sizeof *a->y);
  }
}

static void rotate_piece(const sl_rotary_args *a, int64_t first, int64_t last) {
  double frequencies[pairs_at_once];
  turns by;
  for (int64_t from = 0; from < a->width / 2; from += pairs_at_once) {
    const int64_t count = slk_min(pairs_at_once, a->width / 2 - from);
    for (int64_t i = 0; i < count; i++) {
      frequencies[i] = a->frequencies != NULL ? (double)a->frequencies[from + i]
                                              : pow(a->base, -2.0 * (double)(from + i) / (double)a->width);
    }
    for (int64_t row = first; row < last; row++) {
      find_turns(a, row, frequencies, count, &by);
      turn_row(a, row, from, count, &by);
    }
  }
  if (a->x == a->y) return;
  for (int64_t row = first; row < last; row++) copy_rest(a, row);
}

sl_status slk_cpu_rotary(sl_device *device, const sl_rotary_args *args) {
  (void)device;
  const int64_t rows = args->batch * args->tokens;
#pragma omp parallel for schedule(static) if (rows * args->heads * args->head_dim >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < rows; from += row_piece)
    rotate_piece(args, from, slk_min(from + row_piece, rows));
  return SL_OK;
}
