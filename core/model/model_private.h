/* Shared by the files of core/model; not for others. */
#ifndef SL_MODEL_PRIVATE_H
#define SL_MODEL_PRIVATE_H

#include "model.h"

/* Points by scope: the table lists them in this order. */
enum {
  SL_FIRST_LAYER_POINT = SL_POINT_RESID_PRE,
  SL_FIRST_HEAD_POINT = SL_POINT_HEAD_PRE,
  SL_N_EMBED_POINTS = SL_FIRST_LAYER_POINT,
  SL_N_LAYER_POINTS = SL_FIRST_HEAD_POINT - SL_FIRST_LAYER_POINT,
  SL_N_HEAD_POINTS = SL_POINT_COUNT - SL_FIRST_HEAD_POINT
};

/* Refcounted: the model's list holds one reference, a tape that will call it another. */
typedef struct sl_hook {
  int references;
  sl_hook_stats stats;
  bool removed;
  sl_hook_fn fn;
  void *context;
  void (*release)(void *);
  struct sl_hook *next;
} sl_hook;

struct sl_model {
  int references;
  sl_model_spec spec;
  sl_device *device;
  sl_tensor **weights;   /* [SL_SLOT_COUNT * n_layers]: slot-major; slots of the whole model use layer 0 */
  sl_hook *hooks;        /* in order of addition */
  struct sl_replay *replays; /* recorded passes, or NULL (replay.c) */
  int next_hook_id;
  int running;           /* forward passes under way: removed hooks are swept when it falls to 0 */
};

/* What anybody wants at a site: bits in sl_run.interest. */
enum { SL_WANT_CAPTURE = 1, SL_WANT_FORWARD = 2, SL_WANT_BACKWARD = 4, SL_WANT_STOP = 8 };

/* A forward pass under way. */
typedef struct {
  sl_model *model;
  const sl_forward_options *options;
  uint8_t *interest;      /* [n_sites] */
  int last_site;          /* the pass ends once this site was visited; n_sites = never */
  int64_t batch, tokens;
  sl_tensor **captured;
  sl_tensor *mask;        /* the options' mask on the model's device, or NULL */
  sl_tensor *const *known_ids; /* while a pass is recorded: ids, types, positions on the device (SL_KNOWN_*), else NULL */
  sl_tensor *splice_keep; /* f32 [B * T, 1], 1 where splices apply; made at the first splice; NULL = everywhere */
} sl_run;

/* Inside the pass: "stop here, all is well"; sl_model_forward turns it into SL_OK. */
#define SL_RUN_STOPPED ((sl_status)1)

static inline bool sl_run_wants(const sl_run *run, int site) { return run->interest[site] != 0; }
static inline bool sl_run_wants_any(const sl_run *run, int site, int bits) { return (run->interest[site] & bits) != 0; }

enum { SL_KNOWN_IDS, SL_KNOWN_TYPES, SL_KNOWN_POSITIONS, SL_KNOWN_COUNT };

/* The planned pass itself; *logits if not NULL. */
sl_status sl__run_pass(sl_run *run, sl_tensor **logits);
/* The same, replayed where such a pass was recorded before, recorded where it is worth it. */
sl_status sl__run_or_replay(sl_run *run, sl_tensor **logits);
/* Forgets recorded passes: weights have moved. */
void sl__replays_release(sl_model *model);

/* Runs what is registered at a site on *value and returns SL_RUN_STOPPED after the last one. */
sl_status sl__visit(sl_run *run, int site, sl_tensor **value);
/* Marks the interest of the registered hooks and starts their per-pass counters. */
void sl__hooks_begin(sl_run *run);
/* Frees removed hooks once no pass runs. */
void sl__hooks_sweep(sl_model *model);
void sl__hooks_release(sl_model *model);

#endif
