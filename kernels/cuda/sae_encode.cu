/* SAE kernels: packing, encoder product with selection.
 *
 * The product is taken a tile of tokens x latents at a time, small enough that its pre-activations are still in the
 * second-level cache when the selection reads them (sae_select.h); the matrix of all pre-activations never exists. Codes
 * are staged as [tokens, k] and then closed up behind offsets[0]: how long a row is only the device knows. */
#include <cuda_bf16.h>

#include "lib.h"
#include "sae_cuda.h"
#include "sae_rows.h"
#include "sae_select_kernel.h"

/* -- Packing -- */

enum { PACK_THREADS = 256 };

template <int WIDTH> static __global__ void __launch_bounds__(PACK_THREADS) pack_kernel(sl_sae_pack_args a) {
  int64_t row = blockIdx.x;
  bool halves = a.dtype == SL_BF16 || a.screen;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * WIDTH; column < a.d; column += blockDim.x * WIDTH) {
    int64_t at = row * a.d + column;
    slk_pack<float, WIDTH> x = sae_load<WIDTH>(a.x, at), shift = {};
    if (a.shift != nullptr) shift = sae_load<WIDTH>(a.shift, column);
    slk_pack<unsigned short, WIDTH> rounded;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      x.at[i] -= shift.at[i];
      rounded.at[i] = sae_to_bf16(x.at[i]);
    }
    if (a.slabs != nullptr) sae_store<WIDTH>(a.slabs, at, x);
    if (a.panels == nullptr) continue;
    if (!halves) sae_store<WIDTH>(static_cast<float *>(a.panels), at, x);
    else *reinterpret_cast<slk_pack<unsigned short, WIDTH> *>(static_cast<unsigned short *>(a.panels) + at) = rounded;
  }
}

sl_status slk_cuda_sae_pack(sl_device *device, const sl_sae_pack_args *args) {
  slk_cuda_enter(device);
  size_t elements = static_cast<size_t>(args->n * args->d);
  if (args->need_panels != nullptr || args->need_slabs != nullptr) {
    if (args->need_panels != nullptr) *args->need_panels = elements * (args->screen ? 2 : sl_dtype_size(args->dtype));
    if (args->need_slabs != nullptr) *args->need_slabs = elements * sizeof(float);
    return SL_OK;
  }
  if (elements == 0) return SL_OK;
  int width = sae_width(args->d, args->x, args->shift, args->slabs, args->panels);
  int threads = sae_threads(args->d / width, PACK_THREADS);
  unsigned blocks = static_cast<unsigned>(args->n);
  if (width == 4) LAUNCH((pack_kernel<4>), blocks, threads, 0, slk_cuda_stream(device), *args);
  else LAUNCH((pack_kernel<1>), blocks, threads, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_pack");
}

/* -- Encoding: how the work is cut -- */

/* Bytes of pre-activations in flight: what the second-level caches of these GPUs (40 to 60 MB) hold most of, while a
 * product still has several waves of blocks. */
static const int64_t TILE_BYTES = 48 << 20;
static const int64_t STAGED_BYTES = 64 << 20, BUFFER_BYTES = 256 << 20;

struct encode_plan {
  int64_t rows, columns, ld;     /* of a tile */
  int64_t batch;                 /* rows that are staged before they are placed, a multiple of `rows` */
  int lists, keep[2], capacity[2];
  bool in_shared[2];
  size_t shared;                 /* bytes of dynamic shared memory */
  int64_t exact;                 /* more of it where refused rows are computed */
};

/* What is selected: the k largest of a token unless one of these says otherwise. */
struct encode_rule {
  const char *kernel;
  int64_t group;                 /* GroupMax: latents to a group, else 0 */
  const float *floor;            /* JumpReLU: [m], else NULL */
  int64_t *overflow;
};

static int64_t list_k(const sl_sae_encode_topk_args *args, int list) { return list == 0 ? args->k : args->k_dead; }

/* Rows of W are read once for each row of tiles, so those are tall where W is large: up to 1024 tokens, more where there
 * are few latents. `shift` halves the tile so many times, for small workspaces. */
static encode_plan make_plan(const sl_device *device, const sl_sae_encode_topk_args *args, const encode_rule &rule,
                             int shift) {
  enum { TALL = 1024, TALLEST = 8192, NARROW = 4096, ROWS_STEP = 128 };
  encode_plan plan = {};
  int64_t tile = TILE_BYTES / 4 >> shift, left = static_cast<int64_t>(slk_cuda_get(device)->shared_limit) - 1024;
  int64_t staged = 0;
  if (args->w_screen != nullptr) plan.exact = SELECT_SEGMENT * sizeof(float), left -= plan.exact;
  plan.lists = args->dead != nullptr ? 2 : 1;
  plan.rows = TALL >> (shift / 2);
  if (args->m * plan.rows < tile) plan.rows = slk_least(tile / args->m / ROWS_STEP * ROWS_STEP, TALLEST);
  for (int l = 0; l < plan.lists; l++) {
    int64_t k = list_k(args, l), keep = k + (k / 2 > 512 ? k / 2 : 512), bytes = (keep + SELECT_SEGMENT) * 8;
    staged += k * 8;
    if (l == 0 && rule.group > 0) { /* groups need no candidates */
      plan.in_shared[l] = true;
      continue;
    }
    plan.keep[l] = static_cast<int>(keep);
    plan.capacity[l] = static_cast<int>(keep + SELECT_SEGMENT);
    plan.in_shared[l] = bytes <= left;
    if (plan.in_shared[l]) left -= bytes, plan.shared += static_cast<size_t>(bytes);
    else plan.rows = slk_least(plan.rows, BUFFER_BYTES / bytes);
  }
  plan.rows = slk_least(plan.rows, args->n);
  if (plan.rows < 1) plan.rows = 1;
  plan.columns = tile / plan.rows / NARROW * NARROW;
  if (plan.columns < (NARROW >> (shift < 6 ? shift : 6))) plan.columns = NARROW >> (shift < 6 ? shift : 6);
  plan.columns = slk_least(plan.columns, args->m);
  plan.ld = (plan.columns + 3) / 4 * 4;
  int64_t tiles = STAGED_BYTES / (staged * plan.rows);
  plan.batch = slk_least((tiles < 1 ? 1 : tiles) * plan.rows, args->n);
  return plan;
}

struct encode_room {
  float *pre;
  int32_t *bad, *above_floor, *refused;
  screen_row *screen_rows;
  screen_block *screen_blocks;
  select_list lists[2];
};

/* Cuts the workspace; returns the bytes. */
static size_t cut_room(const sl_sae_encode_topk_args *args, const encode_plan *plan, void *workspace, encode_room *room) {
  sae_cutter cutter = { static_cast<char *>(workspace), 0 };
  bool pieces = plan->columns < args->m;
  room->pre = cutter.cut<float>(plan->rows * plan->ld);
  room->bad = cutter.cut<int32_t>(plan->rows);
  room->above_floor = cutter.cut<int32_t>(plan->rows);
  room->refused = cutter.cut<int32_t>(plan->rows);
  room->screen_rows = cutter.cut<screen_row>(args->w_screen != nullptr ? args->n : 0);
  room->screen_blocks = cutter.cut<screen_block>(
      args->w_screen != nullptr ? slk_ceil_div<int64_t>(args->m, SCREEN_BLOCK) : 0);
  for (int l = 0; l < plan->lists; l++) {
    int64_t k = list_k(args, l), states = pieces ? plan->rows : 0, buffers = plan->in_shared[l] ? 0 : plan->rows;
    select_list list = {};
    list.k = static_cast<int>(k), list.keep = plan->keep[l], list.capacity = plan->capacity[l];
    list.mask = l == 0 ? nullptr : args->dead;
    list.state_values = cutter.cut<float>(states * list.keep);
    list.state_ids = cutter.cut<int32_t>(states * list.keep);
    list.state_count = cutter.cut<int32_t>(states);
    list.state_threshold = cutter.cut<float>(states);
    list.buffer_values = cutter.cut<float>(buffers * list.capacity);
    list.buffer_ids = cutter.cut<int32_t>(buffers * list.capacity);
    if (plan->in_shared[l]) list.buffer_values = nullptr, list.buffer_ids = nullptr;
    list.out_values = cutter.cut<float>(plan->batch * k);
    list.out_ids = cutter.cut<int32_t>(plan->batch * k);
    list.lengths = cutter.cut<int64_t>(plan->batch);
    room->lists[l] = list;
  }
  return cutter.used;
}

/* -- Encoding: a tile, a batch -- */

/* Pre-activations of rows x columns; *biased says whether the bias is in them. */
static sl_status tile_product(sl_device *device, const sl_sae_encode_topk_args *args, const encode_plan *plan,
                              int64_t row, int64_t rows, int64_t column, int64_t columns, float *pre, bool *biased) {
  bool screen = args->w_screen != nullptr;
  sl_dtype dtype = screen ? SL_BF16 : args->dtype;
  size_t element = sl_dtype_size(dtype);
  const void *w = screen ? args->w_screen : args->w;
  sl_gemm_args gemm = {};
  gemm.m = rows, gemm.n = columns, gemm.k = args->d, gemm.batch = 1;
  gemm.transpose_b = true;
  gemm.a = static_cast<const char *>(args->panels) + static_cast<size_t>(row * args->d) * element;
  gemm.b = static_cast<const char *>(w) + static_cast<size_t>(column * args->d) * element;
  gemm.c = pre;
  gemm.lda = args->d, gemm.ldb = args->d, gemm.ldc = plan->ld;
  gemm.dtype_ab = dtype, gemm.dtype_c = SL_F32;
  gemm.bias = args->bias != nullptr ? args->bias + column : nullptr;
  if (gemm.bias != nullptr && slk_lib_gemm_fuses(&gemm)) {
    *biased = true;
    sl_status status = slk_lib_gemm(device, &gemm, device->tf32);
    if (status != SL_EUNSUPPORTED) return status;
  }
  *biased = false; /* the selection adds it */
  gemm.bias = nullptr;
  return slk_lib_gemm(device, &gemm, device->tf32);
}

template <select_mode MODE> static void launch_lists(int lists, const select_job &job, int64_t rows, size_t shared,
                                                     cudaStream_t stream) {
  unsigned blocks = static_cast<unsigned>(rows);
  if (lists == 1) LAUNCH((select_kernel<1, MODE>), blocks, SELECT_THREADS, shared, stream, job);
  else LAUNCH((select_kernel<2, MODE>), blocks, SELECT_THREADS, shared, stream, job);
}

static void launch_selection(const encode_rule &rule, const encode_plan *plan, select_job job, int64_t rows,
                             cudaStream_t stream) {
  if (rule.group > 0) {
    LAUNCH((group_kernel), static_cast<unsigned>(rows), SELECT_THREADS, 0, stream, job);
    if (plan->lists == 1) return;
    job.lists[0] = job.lists[1]; /* the dead by themselves */
    job.nonfinite = nullptr;
    launch_lists<SELECT_PLAIN>(1, job, rows, plan->shared, stream);
  } else if (rule.floor != nullptr) {
    LAUNCH((select_kernel<1, SELECT_FLOOR>), static_cast<unsigned>(rows), SELECT_THREADS, plan->shared, stream, job);
  } else if (job.screen_rows == nullptr) {
    launch_lists<SELECT_PLAIN>(plan->lists, job, rows, plan->shared, stream);
  } else {
    launch_lists<SELECT_SCREEN>(plan->lists, job, rows, plan->shared, stream);
    if (!job.ends) return;
    job.width += job.first, job.first = 0, job.begins = true; /* refused rows: all latents at once */
    launch_lists<SELECT_EXACT>(plan->lists, job, rows, plan->shared + static_cast<size_t>(plan->exact), stream);
  }
}

/* The error bounds of tokens and latents. */
static void bound_screens(sl_device *device, const sl_sae_encode_topk_args *args, const encode_room *room) {
  screen_job job = {};
  job.n = args->n, job.m = args->m, job.d = args->d;
  job.u = args->slabs, job.w = static_cast<const float *>(args->w), job.bias = args->bias;
  job.rounded = static_cast<const unsigned short *>(args->panels), job.screen = args->w_screen;
  job.rows = room->screen_rows, job.blocks = room->screen_blocks;
  cudaStream_t stream = slk_cuda_stream(device);
  unsigned blocks = static_cast<unsigned>(slk_ceil_div<int64_t>(args->n, SCREEN_WARPS));
  LAUNCH((screen_rows_kernel), blocks, SCREEN_THREADS, 0, stream, job);
  blocks = static_cast<unsigned>(slk_ceil_div<int64_t>(args->m, SCREEN_BLOCK));
  LAUNCH((screen_blocks_kernel), blocks, SCREEN_THREADS, 0, stream, job);
}

static void fill_screen(const sl_sae_encode_topk_args *args, const encode_room *room, int64_t row, select_job *job) {
  job->u = args->slabs + row * args->d, job->w = static_cast<const float *>(args->w), job->d = args->d;
  job->w_bias = args->bias;
  job->packed = sae_width(args->d, args->slabs, args->w) == 4;
  job->rounding = static_cast<float>(args->d + 16) * 0x1p-21f;
  job->screen_rows = room->screen_rows + row, job->screen_blocks = room->screen_blocks;
  job->refused = room->refused;
}

/* One tile of rows through all latents, into the staging rows from `staged` on. */
static sl_status encode_rows(sl_device *device, const sl_sae_encode_topk_args *args, const encode_rule &rule,
                             const encode_plan *plan, const encode_room *room, int64_t row, int64_t staged) {
  int64_t rows = slk_least(args->n - row, plan->rows);
  rows = slk_least(rows, plan->batch - staged);
  for (int64_t column = 0; column < args->m; column += plan->columns) {
    int64_t columns = slk_least(args->m - column, plan->columns);
    bool biased;
    SL_TRY(tile_product(device, args, plan, row, rows, column, columns, room->pre, &biased));
    select_job job = {};
    job.pre = room->pre, job.ld = plan->ld;
    job.width = static_cast<int>(columns), job.first = static_cast<int>(column);
    job.bias = biased ? nullptr : args->bias;
    job.begins = column == 0, job.ends = column + columns == args->m;
    job.bad = room->bad, job.nonfinite = args->nonfinite;
    job.floor = rule.floor, job.above_floor = room->above_floor, job.overflow = rule.overflow;
    job.group = rule.group;
    if (args->w_screen != nullptr) fill_screen(args, room, row, &job);
    for (int l = 0; l < plan->lists; l++) {
      job.lists[l] = room->lists[l];
      job.lists[l].out_values += staged * job.lists[l].k;
      job.lists[l].out_ids += staged * job.lists[l].k;
      job.lists[l].lengths += staged;
    }
    launch_selection(rule, plan, job, rows, slk_cuda_stream(device));
  }
  return SL_OK;
}

/* Staged rows become rows `first` .. of the codes. */
static void place_batch(sl_device *device, const sl_sae_encode_topk_args *args, const encode_plan *plan,
                        const encode_room *room, int64_t first, int64_t rows) {
  enum { PLACE_THREADS = 256, ROWS_A_BLOCK = PLACE_THREADS / SLK_WARP };
  sae_rows_out out[2] = {};
  for (int l = 0; l < plan->lists; l++) {
    const sl_codes_view *codes = l == 0 ? &args->codes : &args->dead_codes;
    const select_list *list = &room->lists[l];
    out[l].lengths = list->lengths, out[l].k = list->k;
    out[l].staged_values = list->out_values, out[l].staged_ids = list->out_ids;
    out[l].offsets = codes->offsets + first, out[l].values = codes->values, out[l].ids = codes->ids;
  }
  cudaStream_t stream = slk_cuda_stream(device);
  unsigned lists = static_cast<unsigned>(plan->lists);
  LAUNCH((sae_offsets_kernel), lists, SAE_OFFSETS_THREADS, 0, stream, out[0], out[1], rows);
  dim3 grid(static_cast<unsigned>(slk_ceil_div<int64_t>(rows, ROWS_A_BLOCK)), lists);
  LAUNCH((sae_place_kernel), grid, PLACE_THREADS, 0, stream, out[0], out[1], rows);
}

/* Dynamic shared memory above 48 KiB must be asked for. */
template <select_mode MODE> static sl_status allow_shared(sl_device *device, size_t shared, const char *kernel) {
  SL_TRY(slk_cuda_allow_shared(device, select_kernel<1, MODE>, shared, kernel));
  return slk_cuda_allow_shared(device, select_kernel<2, MODE>, shared, kernel);
}

static sl_status allow_all_shared(sl_device *device, const encode_plan *plan, const encode_rule &rule, bool screen) {
  if (screen) {
    SL_TRY(allow_shared<SELECT_SCREEN>(device, plan->shared, rule.kernel));
    return allow_shared<SELECT_EXACT>(device, plan->shared + static_cast<size_t>(plan->exact), rule.kernel);
  }
  if (rule.floor != nullptr) return slk_cuda_allow_shared(device, select_kernel<1, SELECT_FLOOR>, plan->shared, rule.kernel);
  return allow_shared<SELECT_PLAIN>(device, plan->shared, rule.kernel);
}

static sl_status encode(sl_device *device, const sl_sae_encode_topk_args *args, const encode_rule &rule) {
  enum { SMALLEST = 16 };        /* halvings of the tile: a workspace given may be smaller than the one asked for */
  slk_cuda_enter(device);
  encode_plan plan = make_plan(device, args, rule, 0);
  encode_room room = {};
  size_t want = cut_room(args, &plan, nullptr, &room);
  if (args->need != nullptr) {
    *args->need = want;
    return SL_OK;
  }
  for (int shift = 1; want > args->workspace_bytes && shift <= SMALLEST; shift++) {
    plan = make_plan(device, args, rule, shift);
    want = cut_room(args, &plan, nullptr, &room);
  }
  if (want > args->workspace_bytes) return sae_short_workspace(rule.kernel, args->workspace_bytes, want);
  cut_room(args, &plan, args->workspace, &room);
  SL_TRY(allow_all_shared(device, &plan, rule, args->w_screen != nullptr));
  if (args->w_screen != nullptr && args->n > 0) bound_screens(device, args, &room);
  for (int64_t first = 0; first < args->n; first += plan.batch) {
    int64_t rows = slk_least(args->n - first, plan.batch);
    for (int64_t row = 0; row < rows; row += plan.rows)
      SL_TRY(encode_rows(device, args, rule, &plan, &room, first + row, row));
    place_batch(device, args, &plan, &room, first, rows);
  }
  return slk_cuda_launched(device, rule.kernel);
}

/* A float32 product without TF32 runs at a tenth of the tensor cores' bf16 speed; bounds and rescoring must cost less
 * than that. With TF32 the caller has asked for less than float32 already. */
static bool wants_screen(const sl_device *device, const sl_sae_encode_topk_args *args) {
  enum { FEWEST_TOKENS = 128, FEWEST_INPUTS = 64, SHARE = 16, MOST_CHOSEN = 1024 };
  int64_t chosen = args->k + (args->dead != nullptr ? args->k_dead : 0);
  return args->dtype == SL_F32 && !device->tf32 && args->n >= FEWEST_TOKENS && args->d >= FEWEST_INPUTS &&
         chosen <= MOST_CHOSEN && SHARE * chosen <= args->m;
}

sl_status slk_cuda_sae_encode_topk(sl_device *device, const sl_sae_encode_topk_args *args) {
  if (args->wants_screen != nullptr) {
    *args->wants_screen = wants_screen(device, args);
    return SL_OK;
  }
  return encode(device, args, { "sae_encode_topk", 0, nullptr, nullptr });
}

sl_status slk_cuda_sae_encode_groupmax(sl_device *device, const sl_sae_encode_groupmax_args *args) {
  sl_sae_encode_topk_args as = {};
  as.n = args->n, as.d = args->d, as.m = args->m, as.k = args->k;
  as.panels = args->panels, as.w = args->w, as.dtype = args->dtype, as.bias = args->bias;
  as.codes = args->codes, as.dead = args->dead, as.k_dead = args->k_dead, as.dead_codes = args->dead_codes;
  as.nonfinite = args->nonfinite;
  as.workspace = args->workspace, as.workspace_bytes = args->workspace_bytes, as.need = args->need;
  return encode(device, &as, { "sae_encode_groupmax", args->m / args->k, nullptr, nullptr });
}

sl_status slk_cuda_sae_encode_jumprelu(sl_device *device, const sl_sae_encode_jumprelu_args *args) {
  sl_sae_encode_topk_args as = {};
  as.n = args->n, as.d = args->d, as.m = args->m, as.k = args->room;
  as.panels = args->panels, as.w = args->w, as.dtype = args->dtype, as.bias = args->bias;
  as.codes = args->codes, as.nonfinite = args->nonfinite;
  as.workspace = args->workspace, as.workspace_bytes = args->workspace_bytes, as.need = args->need;
  return encode(device, &as, { "sae_encode_jumprelu", 0, args->threshold, args->overflow });
}
