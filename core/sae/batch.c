/* BatchTopK: the largest entries of a whole batch; see sl_sae_batch_request (sae_private.h).
 *
 * Each token offers its `room` largest pre-activations. A token of which all are kept is crowded: it may have more that
 * belong to the batch's largest. At most keep / room tokens can be, so they are encoded again with four times the room,
 * and so on; whatever joins raises the bound, so no other token becomes crowded by it. */
#include <string.h>

#include "sae_private.h"

int64_t sl__sae_batch_room(const sl_sae *sae, int64_t k) {
  int64_t latents = sae->config.d_sae;
  return k < latents / 4 ? 4 * k : latents;
}

static sl_status select_largest(sl_sae *sae, const sl_sae_batch_request *request, int64_t room) {
  const sl_codes *candidates = *request->candidates;
  sl_tensor *workspace = NULL;
  sl_sae_batch_select_args args = { .codes = sl_codes_rows(candidates, 0, candidates->rows),
                                    .most = candidates->values->shape[0],
                                    .out = sl_codes_rows(request->out, 0, candidates->rows),
                                    .keep = request->keep,
                                    .room = room < sae->config.d_sae ? room : 0,
                                    .smallest = request->smallest,
                                    .crowded = request->crowded };
  SAE_WORKSPACE(sae->device, sae_batch_select, &args, &workspace);
  sl_status status = SAE_RUN(sae->device, sae_batch_select, &args);
  sl_tensor_release(workspace);
  return status;
}

/* -- Crowded tokens: the host reads the codes, so this is for devices whose memory it may read -- */

static int64_t length_of(const sl_codes *codes, int64_t row) {
  const int64_t *offsets = sl_tensor_data(codes->offsets);
  return offsets[row + 1] - offsets[row];
}

static bool is_crowded(const sl_sae_batch_request *request, int64_t row, int64_t room) {
  return length_of(*request->candidates, row) == room && length_of(request->out, row) == room;
}

/* The crowded tokens' rows of x, one below the other. */
static sl_status gather_crowded(sl_sae *sae, const sl_sae_batch_request *request, int64_t room, sl_tensor **out) {
  int64_t shape[2] = { *request->crowded, sae->config.d_in }, at = 0;
  SL_TRY(sl_tensor_create(sae->device, SL_F32, 2, shape, out));
  for (int64_t r = 0; r < (*request->candidates)->rows; r++) {
    if (!is_crowded(request, r, room)) continue;
    memcpy(sl_tensor_f32(*out) + at++ * shape[1], request->x + r * shape[1], (size_t)shape[1] * sizeof(float));
  }
  return SL_OK;
}

/* A row of `from` becomes the next one of `to`. */
static void append_row(sl_codes *to, int64_t row, const sl_codes *from, int64_t from_row) {
  int64_t *offsets = sl_tensor_data(to->offsets), start = ((const int64_t *)sl_tensor_data(from->offsets))[from_row];
  size_t n = (size_t)length_of(from, from_row);
  memcpy((int32_t *)sl_tensor_data(to->ids) + offsets[row], (const int32_t *)sl_tensor_data(from->ids) + start,
         n * sizeof(int32_t));
  memcpy(sl_tensor_f32(to->values) + offsets[row], sl_tensor_f32(from->values) + start, n * sizeof(float));
  offsets[row + 1] = offsets[row] + (int64_t)n;
}

/* The candidates with `wider` in place of the crowded rows. */
static sl_status merge(const sl_sae_batch_request *request, int64_t room, const sl_codes *wider) {
  sl_codes *old = *request->candidates, *merged;
  int64_t entries = 0;
  SL_TRY(sl_codes_settle(old));
  for (int64_t r = 0; r < wider->rows; r++) entries += length_of(wider, r) - room;
  SL_TRY(sl_codes_create(sl_tensor_device(old->values), old->rows, old->n_latents, old->entries + entries, &merged));
  for (int64_t r = 0, w = 0; r < old->rows; r++) {
    if (is_crowded(request, r, room)) append_row(merged, r, wider, w++);
    else append_row(merged, r, old, r);
  }
  *request->candidates = merged;
  sl_codes_release(old);
  return SL_OK;
}

static sl_status widen(sl_sae *sae, const sl_sae_batch_request *request, int64_t room, int64_t wider_room) {
  sl_tensor *x = NULL, *counted = NULL;
  sl_codes *wider = NULL;
  int64_t rows = *request->crowded;
  sl_status status = gather_crowded(sae, request, room, &x);
  if (status == SL_OK) status = sl__sae_zeros(sae->device, sizeof(int64_t), &counted);
  if (status == SL_OK) status = sl_codes_create(sae->device, rows, sae->config.d_sae, rows * wider_room, &wider);
  if (status == SL_OK) {
    sl_sae_encode_request again = { .x = sl_tensor_f32(x), .rows = rows, .k = wider_room, .select = SL_SAE_TOPK,
                                    .dtype = request->dtype, .plain = request->plain, .codes = wider,
                                    .nonfinite = sl_tensor_data(counted) };
    status = sl__sae_encode_rows(sae, &again); /* tokens that are not finite have been counted before */
  }
  if (status == SL_OK) status = merge(request, room, wider);
  sl_tensor_release(x);
  sl_tensor_release(counted);
  sl_codes_release(wider);
  return status;
}

sl_status sl__sae_batch_select(sl_sae *sae, const sl_sae_batch_request *request) {
  int64_t room = request->room;
  SL_TRY(select_largest(sae, request, room));
  while (sae->device->host_memory && *request->crowded > 0) {
    int64_t wider = sl__sae_batch_room(sae, room);
    SL_TRY(sl_interrupt_check());
    SL_TRY(widen(sae, request, room, wider));
    room = wider;
    SL_TRY(select_largest(sae, request, room));
  }
  return SL_OK;
}
