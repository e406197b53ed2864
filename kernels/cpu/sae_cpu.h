/* What the CPU's SAE kernels share: layouts, the per-instruction-set function table, small helpers.
 *
 * The inner loops are written once (sae_body_*.h) and compiled for three instruction sets (sae_base.c,
 * sae_avx2.c, sae_avx512.c); the table is picked at run time. Threads and argument handling live in the
 * sae_<family>.c files; nothing in the tables starts a thread. Private to kernels/cpu and its tests. */
#ifndef SLK_SAE_CPU_H
#define SLK_SAE_CPU_H

#include <math.h>

#include "cpu.h"
#include "kernels/dynamic_map.h"

/* -- Layouts --
 * panels: tokens in groups of `panel_tokens`, [group][input][token]; zero padding in the last group. For a
 * native bf16 product [group][input pair][token][2] of bf16, else float32 (rounded to bf16 where asked).
 * slabs:  columns in groups of slab_width(d), [slab][token][slab_width]; zero padding in the last slab. A
 * slab of some thousand tokens stays in a core's second-level cache while a sweep walks the latents. */
enum { SLAB_MAX = 48, SLAB_STEP = 16 };

static inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
static inline int64_t slab_width(int64_t d) {
  int64_t slabs = (d + SLAB_MAX - 1) / SLAB_MAX;
  return round_up((d + slabs - 1) / slabs, SLAB_STEP);
}
static inline int64_t slab_count(int64_t d) { return (d + slab_width(d) - 1) / slab_width(d); }

/* The running selection of a tile's tokens: values above `threshold`, latents ascending. */
typedef struct {
  int64_t k, capacity;           /* capacity: entries a token, a multiple of 16 */
  float *values, *threshold;     /* [tokens, capacity], [tokens] */
  int32_t *ids, *count;          /* [tokens, capacity], [tokens] */
  int32_t *best;                 /* [tokens]: with groups, the latent whose value `threshold` is */
} token_lists;

/* How a token's live entries are chosen; all zero: the k largest. */
typedef struct {
  int64_t group;                 /* latents of a group, of which the largest is chosen; or 0 */
  const float *floor;            /* [m]: only what lies above it; or NULL */
  int64_t *overflow;             /* added to: tokens that had more than k; or NULL */
} encode_rule;

typedef struct {
  const sl_sae_encode_topk_args *args;
  encode_rule rule;
  int64_t capacity, dead_capacity;
  int64_t tile_tokens;           /* a multiple of the panel */
  const int32_t *rows;           /* [tokens]: where their codes go; NULL = token t to row t */
} encode_job;

/* -- Screening (sae_screen.c, sae_body_screen.h; docs/decisions/013-bf16-screening.md) --
 * Panels with `screen`: the bf16 panels, then three floats a token, zero beyond the last. */
typedef struct {
  const uint16_t *pairs;
  const float *along, *across;   /* |float32 - screened pre-activation| <= along weight + across rest + bias */
  const float *size;             /* |x| */
} screen_panels;

/* For a block of latents, the largest |w|, |w - w_screen|, and error due to the bias; all rounded up. */
typedef struct { float weight, rest, bias, unused; } screen_bounds;

/* What a tile's tokens may select from: latents, ascending. */
typedef struct {
  int64_t k, capacity;           /* capacity: entries a token while screening, a multiple of 16 */
  int64_t room;                  /* entries a token afterwards */
  const uint8_t *wanted;         /* [m]: latents that take part; NULL = all */
  int32_t *ids, *count;          /* [batch, room], [batch] */
  float *values;                 /* [batch, room]: the bits of where `sums` has their values; then these values */
  int32_t *offsets;              /* by latent: [m + 1] */
  uint16_t *tokens;              /* [entries], of the batch */
  float *sums;                   /* [entries]: float32 pre-activations */
} screen_survivors;

enum { SCREEN_LISTS = 2,         /* of all latents, of the dead ones */
       SCREEN_PAD = 16 };        /* tokens behind the last entry, so that vectors may be read whole */
typedef struct {
  const sl_sae_encode_topk_args *args;
  screen_panels panels;
  const screen_bounds *bounds;   /* [blocks of latents] */
  float largest, offset;         /* tokens with |x| largest + offset not below SCREEN_MOST are refused */
  int64_t first, tile_tokens;    /* of the batch; a multiple of the panel */
  screen_survivors lists[SCREEN_LISTS];
  int n_lists;
  uint8_t *refused;              /* [batch]: encode these without a screen */
} screen_job;

/* Far from overflow, so that every sum on the way is finite in either product. */
#define SCREEN_MOST 1e36f
#define SCREEN_SLACK (1 + 0x1p-20f) /* above the rounding of the bound's own arithmetic */

/* What rounding can make of a unit of |x| |w| + |bias| in d inputs, with either product; d <= 65536. */
static inline float screen_rounding(int64_t d) { return (float)(d + 16) * (0x1p-23f + 0x1p-29f); }
/* At or above the root of a sum of d squares that was itself rounded, with what underflow may have lost. */
static inline float screen_norm(float sum_squares, int64_t d) {
  return sqrtf(sum_squares) * (1 + (float)(d + 16) * 0x1p-23f) + 0x1p-50f;
}

typedef struct {
  const sl_sae_decode_residual_args *args;
  float *row_squares, *row_products,
      *row_targets; /* [slab, token]: e.e, x.e, x.x; the last two may be NULL */
} decode_job;

typedef struct {
  const sl_sae_backward_args *args;
  float scale;                   /* args->scale times the term's factor */
  bool stream;                   /* gradient rows bypass the cache */
} backward_job;

typedef struct {
  const sl_sae_update_args *args;
  float clip;                    /* factor of every gradient */
  float step_size, inverse_root2; /* lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t) */
  sl_sae_rule vector_rule;       /* of the biases: adam8 keeps theirs in float32 */
} update_job;

typedef struct {
  const char *name;
  int panel_tokens, block_latents;
  bool native_bf16;
  void (*encode_tile)(const encode_job *job, int64_t first, int64_t tokens, char *scratch);
  /* NULL where there is no faster product to screen with. A variant for other matrix units (AMX) fills these. */
  void (*bound_block)(const sl_sae_encode_topk_args *args, int64_t latent, int64_t rows, screen_bounds *out);
  void (*screen_tile)(const screen_job *job, int64_t first, int64_t tokens, char *scratch);
  void (*rescore_range)(const screen_job *job, const screen_survivors *list, int64_t first, int64_t last);
  void (*choose_row)(const screen_job *job, const screen_survivors *list, const sl_codes_view *codes, int64_t row);
  void (*decode_row)(const sl_sae_decode_args *args, int64_t row);
  void (*decode_slab)(const decode_job *job, int64_t slab);
  void (*backward_range)(const backward_job *job, int64_t first, int64_t last);
  void (*update_range)(const update_job *job, int64_t first, int64_t last);
  void (*update_vector)(const update_job *job, float *w, float *m1, float *m2, const float *g, int64_t n);
  float (*sum_squares)(const float *x, const float *shift, int64_t n);  /* of x - shift */
  void (*add_scaled)(float *y, float a, const float *x, int64_t n);
} sae_cpu_ops;

extern const sae_cpu_ops sae_ops_base;
#if defined(__x86_64__)
extern const sae_cpu_ops sae_ops_avx2, sae_ops_avx512, sae_ops_avx512_bf16;
#endif

/* The best table for this processor, or a lesser one that tests asked for. */
const sae_cpu_ops *sae_cpu_get_ops(void);
enum { SAE_ISA_BASE, SAE_ISA_AVX2, SAE_ISA_AVX512, SAE_ISA_BEST };
void sae_cpu_limit_isa(int isa);

/* sae_encode_topk with another rule. */
sl_status sae_cpu_encode(const sl_sae_encode_topk_args *args, encode_rule rule);

/* Bytes of scratch that encode_tile wants; how it divides them (sae_body_encode.h) is its own business. */
static inline size_t encode_scratch_bytes(const sl_sae_encode_topk_args *args, const encode_job *job) {
  size_t tile = (size_t)job->tile_tokens;
  size_t block = (size_t)round_up(args->d, 32) * 4 * 12;
  size_t lists = tile * (size_t)(job->capacity + job->dead_capacity) * 8 + tile * 6 * 4;
  return (block + lists + 1024 + 63) / 64 * 64;
}

/* -- Between sae_encode.c and sae_screen.c -- */

static inline bool sae_cpu_uses_pairs(const sae_cpu_ops *ops, sl_dtype dtype) {
  return dtype == SL_BF16 && ops->native_bf16;
}
encode_job sae_cpu_plan(const sl_sae_encode_topk_args *args, encode_rule rule, const sae_cpu_ops *ops);
void sae_cpu_close_gaps(const sl_codes_view *codes, int64_t k);

/* Whether a screen would pay, and whether this call has one that the processor can use. */
bool sae_cpu_wants_screen(const sae_cpu_ops *ops, const sl_sae_encode_topk_args *args);
bool sae_cpu_screens(const sae_cpu_ops *ops, const sl_sae_encode_topk_args *args);
size_t sae_cpu_screen_panel_bytes(const sae_cpu_ops *ops, int64_t n, int64_t d);
/* Writes what follows the bf16 panels. */
void sae_cpu_pack_bounds(const sl_sae_pack_args *args, const sae_cpu_ops *ops);
sl_status sae_cpu_encode_screened(const sl_sae_encode_topk_args *args, const sae_cpu_ops *ops);
/* For tests: survivors a token has room for, and entries while screening; 0 = what the kernel chooses. */
void sae_cpu_limit_survivors(int64_t room, int64_t capacity);

#endif
