/* A training step that never holds the whole gradient; see sl_sae_step (optim.h).
 *
 * Rows of the two matrices are independent once the codes and residuals of the batch are there: so the latents are taken
 * in blocks, and each block's gradient feeds the update at once and makes room for the next. What crosses blocks is
 * b_dec (a running sum, its update comes last) and the norm for the clip, which needs a pass of its own before. */
#include <math.h>

#include "loss.h"
#include "optim.h"
#include "sae_private.h"

typedef struct {
  sl_sae_loss *loss;
  sl_sae_optim *optim;
  double lr;
  sl_sae_gradient_store *store;
  int64_t block_rows;
  sl_tensor *scratch;              /* a sum of squares that nobody reads: of the second pass */
} step_state;

/* Sixteen blocks: their gradients are a fiftieth of weights and moments; whole groups of rows. */
static int64_t choose_block_rows(int64_t latents) {
  enum { BLOCKS = 16, GROUP = 64 };
  int64_t rows = (latents + BLOCKS - 1) / BLOCKS;
  rows = (rows + GROUP - 1) / GROUP * GROUP;
  return rows < latents ? rows : latents;
}

/* One pass over all blocks: gradients and their squares; with `update`, the step as well. */
static sl_status run_pass(step_state *s, double *sum_squares, bool update) {
  sl_sae *sae = s->optim->sae;
  int64_t latents = sae->config.d_sae;
  for (int64_t first = 0; first < latents; first += s->block_rows) {
    int64_t rows = latents - first < s->block_rows ? latents - first : s->block_rows;
    bool last = first + rows == latents;
    sl_sae_block block = sl__sae_store_block(s->store, first, rows);
    SL_TRY(sl__sae_store_clear(s->store, first == 0));
    SL_TRY(sl__sae_loss_block(s->loss, &block, 1));
    SL_TRY(sl__sae_finish_gradients(sae, &block, first > 0, !last, sum_squares));
    if (update) SL_TRY(sl__sae_optim_update(s->optim, &block, s->lr, last));
  }
  return SL_OK;
}

/* Only where looking costs nothing. */
static sl_status refuse_nonfinite(const sl_sae_optim *optim, const char *what) {
  if (!optim->sae->device->host_memory || isfinite(*(const double *)sl_tensor_data(optim->sum_squares))) return SL_OK;
  return sl_fail(SL_EINVAL, "step: the gradient is not finite; %s", what);
}

static sl_status run_step(step_state *s) {
  sl_sae_optim *optim = s->optim;
  double *squares = sl_tensor_data(optim->sum_squares);
  sl_sae_block largest = sl__sae_store_block(s->store, 0, s->block_rows);
  /* Of an empty gradient: its work memory then is in the pool, and no block can fail for the lack of it. */
  SL_TRY(sl__sae_finish_gradients(optim->sae, &largest, false, false, sl_tensor_data(s->scratch)));
  SL_TRY(sl__sae_loss_begin(s->loss, &largest));
  optim->stepped = true;
  if (optim->config.clip_norm > 0) {
    SL_TRY(run_pass(s, squares, false));
    SL_TRY(refuse_nonfinite(optim, "weights and moments were left alone"));
    SL_TRY(run_pass(s, sl_tensor_data(s->scratch), true));
  } else {
    SL_TRY(run_pass(s, squares, true));
    SL_TRY(refuse_nonfinite(optim, "the latents before the first such one have taken the step, the others not"));
  }
  optim->step++;
  return sl__sae_loss_end(s->loss);
}

static sl_status check_step(const sl_sae_loss *loss, const sl_sae_optim *optim, double lr) {
  SL_TRY(sl_interrupt_check());
  if (!isfinite(lr)) return sl_fail(SL_EINVAL, "step: the learning rate is not finite");
  if (sl__sae_loss_dictionary(loss) != optim->sae)
    return sl_fail(SL_EINVAL, "step: the loss is of one dictionary, the optimiser of another");
  if (sl__sae_loss_pieces(loss) > 1)
    return sl_fail(SL_EINVAL, "step: this loss was taken in %lld pieces (micro_acc_steps), whose residuals are not kept; "
                   "use backward and the optimiser's step, or micro_acc_steps 1", (long long)sl__sae_loss_pieces(loss));
  if (optim->sae->gradients && optim->sae->gradients->pending)
    return sl_fail(SL_ESTATE, "step: gradients of an earlier backward wait for the optimiser's own step");
  return SL_OK;
}

sl_status sl_sae_step(sl_sae_loss *loss, sl_sae_optim *optim, double lr) {
  sl_sae *sae = optim->sae;
  SL_TRY(check_step(loss, optim, lr));
  sl__sae_store_release(sae->gradients); /* the whole gradient's, if there was one, is what this step does without */
  sae->gradients = NULL;
  step_state s = { .loss = loss, .optim = optim, .lr = lr, .block_rows = choose_block_rows(sae->config.d_sae) };
  sl_status status = sl__sae_store_create(sae, s.block_rows, &s.store);
  if (status == SL_OK) status = sl__sae_zeros(sae->device, sizeof(double), &s.scratch);
  if (status == SL_OK) status = run_step(&s);
  sl_tensor_release(s.scratch);
  sl__sae_store_release(s.store);
  return status;
}
