/* Choosing rows: seeded permutations and the positions of a token batch that count.
 *
 * The results are int32 tensors on the CPU, to be given to sl_gather_rows. */
#ifndef SL_DATA_ROWS_H
#define SL_DATA_ROWS_H

#include "core/tensor/tensor.h"

/* 0 .. n-1 in an order that depends on (seed, stream, step) alone: Fisher-Yates over Philox numbers. [n] i32. */
sl_status sl_random_permutation(int64_t n, uint64_t seed, uint32_t stream, uint64_t step, sl_tensor **out);

/* Flat positions of ids (i32, any shape, contiguous, CPU) whose id is none of `excluded` and, where mask (u8, same
 * shape) is given, whose mask is not 0. [count] i32, ascending. */
sl_status sl_kept_positions(const sl_tensor *ids, const sl_tensor *mask, const int32_t *excluded, int64_t n_excluded,
                            sl_tensor **out);

/* The same choice as a mask: u8 of the ids' shape, 1 = kept. */
sl_status sl_kept_mask(const sl_tensor *ids, const sl_tensor *mask, const int32_t *excluded, int64_t n_excluded,
                       sl_tensor **out);

/* Rows of a contiguous CPU matrix of any dtype, by i32 row numbers: [n, m], rows [k] -> [k, m]. Not recorded. */
sl_status sl_pick_rows(const sl_tensor *matrix, const sl_tensor *rows, sl_tensor **out);

#endif
