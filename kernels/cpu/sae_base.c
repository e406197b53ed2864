/* The SAE kernel bodies for base; see sae_cpu.h. Any processor: the compiler's default target. */
#define SAE_LANES 4
#define SAE_ROWS 4
#define SAE_NATIVE_BF16 0

#include "sae_body_vector.h"

#include "sae_body_select.h"

#include "sae_body_groupmax.h"

#include "sae_body_encode.h"

#include "sae_body_sweep.h"

#include "sae_body_update.h"

#define OPS(title, bf16, encode)                                                                      \
  { .name = title, .panel_tokens = PANEL, .block_latents = ROWS, .native_bf16 = bf16,                 \
    .encode_tile = encode, .decode_row = decode_row, .decode_slab = decode_slab,                      \
    .backward_range = backward_range, .update_range = update_range, .update_vector = update_vector,   \
    .sum_squares = sum_squares, .add_scaled = add_scaled }

const sae_cpu_ops sae_ops_base = OPS("base", false, encode_tile);
