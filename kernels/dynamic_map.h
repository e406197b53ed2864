/* The dynamic maps of 8-bit optimiser states: which 256 values a code can stand for.
 *
 * Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, section 1.3, in the form that
 * bitsandbytes builds (functional.create_dynamic_map with 7 exponent bits): seven decades 10^-6 .. 1; decade i is cut
 * into n equal parts of [0.1, 1] 10^(i-6), n = 2^i (signed, with both signs) or 2^(i+1) (unsigned), and the middles of
 * the parts are values; besides them 0 and 1. Relative to a block's absmax: precise near 1, small values keep their
 * order of magnitude. Shared by core (which hands the maps to the kernels) and the kernels (which round). */
#ifndef SL_DYNAMIC_MAP_H
#define SL_DYNAMIC_MAP_H

#include <stdbool.h>

enum { SL_MAP_SIZE = 256, SL_MAP_DECADES = 7 };

/* Parts of decade i. */
static inline int sl_map_parts(bool is_signed, int i) { return 1 << (is_signed ? i : i + 1); }

/* The values in ascending order; signed: code 127 is 0, unsigned: code 0. */
static inline void sl_dynamic_map(bool is_signed, float map[SL_MAP_SIZE]) {
  int code = is_signed ? 128 : 1; /* the first above zero */
  double scale = 1e-6;
  map[code - 1] = 0;
  for (int i = 0; i < SL_MAP_DECADES; i++, scale *= 10) {
    int parts = sl_map_parts(is_signed, i);
    for (int part = 0; part < parts; part++, code++) {
      map[code] = (float)(scale * (0.1 + 0.9 * (part + 0.5) / parts));
      if (is_signed) map[254 - code] = -map[code];
    }
  }
  map[255] = 1;
}

#endif
