/* The SAE kernel bodies for avx512; see sae_cpu.h. Built with the flags that CMakeLists.txt sets for this
 * file. */
#if defined(__x86_64__)
#define SAE_LANES 16
#define SAE_ROWS 12
#define SAE_NATIVE_BF16 1

#include "sae_body_vector.h"

#include "sae_body_select.h"

#include "sae_body_groupmax.h"

#include "sae_body_encode.h"

#include "sae_body_sweep.h"

#include "sae_body_update.h"

#include "sae_body_screen.h"

#define OPS(title, bf16, encode, ...)                                                                 \
  { .name = title, .panel_tokens = PANEL, .block_latents = ROWS, .native_bf16 = bf16,                 \
    .encode_tile = encode, .decode_row = decode_row, .decode_slab = decode_slab,                      \
    .backward_range = backward_range, .update_range = update_range, .update_vector = update_vector,   \
    .sum_squares = sum_squares, .add_scaled = add_scaled, __VA_ARGS__ }

const sae_cpu_ops sae_ops_avx512 = OPS("avx512", false, encode_tile, .screen_tile = NULL);
const sae_cpu_ops sae_ops_avx512_bf16 = OPS("avx512 bf16", true, encode_tile_bf16, .bound_block = bound_block,
                                            .screen_tile = screen_tile, .rescore_range = rescore_range,
                                            .choose_row = choose_row);
#endif
