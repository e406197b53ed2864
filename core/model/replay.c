/* Forward passes that repeat: recorded once, replayed afterwards (core/tensor/recording.h).
 *
 * A small model's pass is a hundred short kernels, and launching them one by one takes longer than running them. So a
 * pass that only captures and gives logits, without hooks and without a recording tape, is remembered by its shape: the
 * first runs as ever (libraries set themselves up, the pool fills), the second is recorded, later ones are replayed: ids
 * and mask are written into the recording's own tensors, and what it leaves is copied out, so that no result changes
 * when the next pass runs. Devices without recordings (the CPU) take the ordinary way, and so does a pass whose
 * recording failed. */
#include <string.h>

#include "core/base/mem.h"
#include "core/ops/nn.h"
#include "core/tensor/memory.h"
#include "core/tensor/recording.h"
#include "core/tensor/tape.h"
#include "model_private.h"

enum { MOST_CAPTURES = 16, MOST_PASSES = 4 };

/* What makes two passes the same. Compared as bytes: made with memset. */
typedef struct {
  int64_t batch, tokens;
  int last_site, n_capture, capture[MOST_CAPTURES];
  bool mask, types, logits, tf32;
} pass_shape;

typedef struct {
  pass_shape shape;
  int64_t used;                    /* when, to find the oldest; 0 = a free place */
  int64_t seen;                    /* passes of this shape */
  bool refused;                    /* recording failed once: not tried again */
  sl_recording *recording;         /* NULL until the second pass */
  sl_tensor *known[SL_KNOWN_COUNT], *mask; /* what it reads */
  sl_tensor *captured[MOST_CAPTURES], *logits; /* what it leaves */
} known_pass;

typedef struct sl_replay {
  int64_t clock;
  known_pass passes[MOST_PASSES];
} replay_list;

/* Everything but its shape. */
static void empty(known_pass *pass) {
  sl_recording_release(pass->recording);
  for (int i = 0; i < SL_KNOWN_COUNT; i++) sl_tensor_release(pass->known[i]);
  for (int i = 0; i < MOST_CAPTURES; i++) sl_tensor_release(pass->captured[i]);
  sl_tensor_release(pass->mask);
  sl_tensor_release(pass->logits);
  *pass = (known_pass){ .shape = pass->shape, .used = pass->used };
}

void sl__replays_release(sl_model *model) {
  for (int i = 0; model->replays && i < MOST_PASSES; i++) empty(&model->replays->passes[i]);
  sl_mem_free(model->replays);
  model->replays = NULL;
}

/* -- Which passes -- */

static bool on_host(const sl_tensor *tensor) { return !tensor || sl_tensor_device(tensor)->host_memory; }

static bool can_replay(const sl_run *run) {
  const sl_forward_options *o = run->options;
  if (!sl_recording_possible(run->model->device) || sl_tape_active() || run->model->running > 1) return false;
  if (o->logit_rows || o->n_capture > MOST_CAPTURES) return false;
  if (!on_host(o->ids) || !on_host(o->mask) || !on_host(o->type_ids)) return false;
  for (int site = 0; site < sl_model_n_sites(run->model); site++)
    if (run->interest[site] & (SL_WANT_FORWARD | SL_WANT_BACKWARD)) return false;
  return true;
}

static pass_shape shape_of(const sl_run *run, bool logits) {
  const sl_forward_options *o = run->options;
  pass_shape shape;
  memset(&shape, 0, sizeof shape);
  shape.batch = run->batch, shape.tokens = run->tokens, shape.last_site = run->last_site;
  shape.n_capture = o->n_capture;
  for (int i = 0; i < o->n_capture; i++) shape.capture[i] = o->capture[i];
  shape.mask = o->mask != NULL, shape.types = o->type_ids != NULL, shape.logits = logits;
  shape.tf32 = run->model->device->tf32;
  return shape;
}

/* The pass of this shape, or a new one in the place that was used longest ago; NULL without memory. */
static known_pass *find(sl_model *model, const pass_shape *shape) {
  if (!model->replays && sl_mem_alloc(sizeof *model->replays, "recorded passes", (void **)&model->replays) != SL_OK)
    return NULL;
  replay_list *list = model->replays;
  known_pass *oldest = &list->passes[0];
  for (int i = 0; i < MOST_PASSES; i++) {
    known_pass *pass = &list->passes[i];
    if (pass->used > 0 && memcmp(&pass->shape, shape, sizeof *shape) == 0) {
      pass->used = ++list->clock;
      return pass;
    }
    if (pass->used < oldest->used) oldest = pass;
  }
  empty(oldest);
  oldest->shape = *shape;
  oldest->used = ++list->clock;
  return oldest;
}

/* -- Recording -- */

static sl_status upload(sl_device *device, int64_t rows, int64_t columns, const int32_t *ids, sl_tensor **out) {
  int64_t shape[2] = { rows, columns };
  SL_TRY(sl_tensor_create(device, SL_I32, 2, shape, out));
  return sl_tensor_write(*out, ids, (size_t)(rows * columns) * sizeof *ids);
}

static sl_status make_inputs(const sl_run *run, known_pass *pass) {
  const sl_forward_options *o = run->options;
  sl_device *device = run->model->device;
  int32_t zero = 0, *positions;
  SL_TRY(upload(device, run->batch, run->tokens, sl_tensor_data(o->ids), &pass->known[SL_KNOWN_IDS]));
  if (o->type_ids)
    SL_TRY(upload(device, run->batch, run->tokens, sl_tensor_data(o->type_ids), &pass->known[SL_KNOWN_TYPES]));
  else SL_TRY(upload(device, 1, 1, &zero, &pass->known[SL_KNOWN_TYPES]));
  if (o->mask) SL_TRY(sl_tensor_to_device(o->mask, device, &pass->mask));
  SL_TRY(sl_mem_alloc((size_t)run->tokens * sizeof *positions, "position ids", (void **)&positions));
  for (int64_t i = 0; i < run->tokens; i++) positions[i] = (int32_t)i;
  sl_status status = upload(device, 1, run->tokens, positions, &pass->known[SL_KNOWN_POSITIONS]);
  sl_mem_free(positions);
  return status;
}

static sl_status record(const sl_run *run, known_pass *pass) {
  SL_TRY(make_inputs(run, pass));
  sl_run recorded = *run;
  recorded.captured = pass->captured;
  recorded.known_ids = pass->known;
  recorded.mask = pass->mask;
  SL_TRY(sl_recording_begin(run->model->device, &pass->recording));
  return sl_recording_end(pass->recording, sl__run_pass(&recorded, pass->shape.logits ? &pass->logits : NULL));
}

/* -- Replaying -- */

static sl_status write_inputs(const sl_run *run, known_pass *pass) {
  const sl_forward_options *o = run->options;
  size_t n = (size_t)(run->batch * run->tokens);
  SL_TRY(sl_tensor_write(pass->known[SL_KNOWN_IDS], sl_tensor_data(o->ids), n * sizeof(int32_t)));
  if (o->type_ids)
    SL_TRY(sl_tensor_write(pass->known[SL_KNOWN_TYPES], sl_tensor_data(o->type_ids), n * sizeof(int32_t)));
  return o->mask ? sl_tensor_write(pass->mask, sl_tensor_data(o->mask), n) : SL_OK;
}

static sl_status copy_out(const sl_run *run, const known_pass *pass, sl_tensor **logits) {
  for (int i = 0; i < pass->shape.n_capture; i++) SL_TRY(sl_tensor_clone(pass->captured[i], &run->captured[i]));
  return pass->shape.logits ? sl_tensor_clone(pass->logits, logits) : SL_OK;
}

static sl_status check_ids(const sl_run *run) {
  const sl_model_spec *spec = &run->model->spec;
  SL_TRY(sl_check_ids("model forward, ids", run->options->ids, spec->vocab_size));
  if (!run->options->type_ids) return SL_OK;
  return sl_check_ids("model forward, type_ids", run->options->type_ids, spec->n_types);
}

/* The recording of a pass; false where there is none yet, or none can be made. */
static sl_status ready(const sl_run *run, known_pass *pass, bool *yes) {
  *yes = false;
  if (!pass || pass->refused || pass->seen++ == 0) return SL_OK;
  if (!pass->recording) {
    sl_status status = record(run, pass);
    if (status == SL_EINTERRUPT) {
      empty(pass);
      return status;
    }
    if (status != SL_OK) {
      empty(pass);
      pass->refused = true;
      return SL_OK;
    }
  }
  *yes = true;
  return SL_OK;
}

sl_status sl__run_or_replay(sl_run *run, sl_tensor **logits) {
  if (!can_replay(run)) return sl__run_pass(run, logits);
  pass_shape shape = shape_of(run, logits != NULL);
  known_pass *pass = find(run->model, &shape);
  bool recorded;
  SL_TRY(check_ids(run));
  SL_TRY(ready(run, pass, &recorded));
  if (!recorded) return sl__run_pass(run, logits);
  SL_TRY(write_inputs(run, pass));
  SL_TRY(sl_recording_replay(pass->recording));
  return copy_out(run, pass, logits);
}
