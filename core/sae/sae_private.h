/* Shared by core/sae only: running kernels, work memory, the gradient store, encoding a run of rows. */
#ifndef SL_SAE_PRIVATE_H
#define SL_SAE_PRIVATE_H

#include "core/base/interrupt.h"
#include "core/base/mem.h"
#include "sae.h"

sl_status sl__sae_no_kernel(const sl_device *device, const char *kernel);
/* Runs a kernel of the device; an empty slot fails by name. */
#define SAE_RUN(device, kernel, args)                                                                        \
  ((device)->kernels->kernel != NULL ? (device)->kernels->kernel(device, args)                               \
                                     : sl__sae_no_kernel(device, #kernel))

/* Queries what a kernel wants and makes it: args->need, workspace, workspace_bytes; release *holder
 * afterwards. */
#define SAE_WORKSPACE(device, kernel, args, holder)                                     \
  do {                                                                                  \
    size_t need_ = 0;                                                                   \
    (args)->need = &need_;                                                              \
    SL_TRY(SAE_RUN(device, kernel, args));                                              \
    (args)->need = NULL;                                                                \
    SL_TRY(sl__sae_workspace(device, need_, holder));                                   \
    (args)->workspace = sl_tensor_data(*(holder));                                      \
    (args)->workspace_bytes = need_;                                                    \
  } while (0)

/* Uninitialised bytes as a u8 tensor. */
sl_status sl__sae_bytes(sl_device *device, size_t bytes, sl_tensor **out);

/* The same under the label "workspace". */
sl_status sl__sae_workspace(sl_device *device, size_t bytes, sl_tensor **out);

/* Zeroed memory for numbers that kernels write and `sl_tensor_read` fetches. */
sl_status sl__sae_zeros(sl_device *device, size_t bytes, sl_tensor **out);

/* Releases and forgets. */
static inline void sl__drop(sl_tensor **tensor) {
  sl_tensor_release(*tensor);
  *tensor = NULL;
}

/* What the backward gathers until the optimiser takes it; see sl_sae_gradients (kernels/args_sae.h). */
typedef struct sl_sae_gradient_store {
  sl_tensor *parameters[SL_SAE_PARAMETERS];
  sl_tensor *touched, *dot_dec, *squares_enc, *squares_dec, *total_b_dec;
  bool pending;                    /* a backward has added something that no step has taken */
} sl_sae_gradient_store;

/* Latents first .. first + rows - 1 and their gradients: row 0 of every matrix there is latent `first`. */
typedef struct {
  int64_t first, rows;
  sl_sae_gradients gradients;
  float *total_b_dec;
} sl_sae_block;

/* A store for `latents` latents; its matrices are not zeroed, the rest is. */
sl_status sl__sae_store_create(sl_sae *sae, int64_t latents, sl_sae_gradient_store **out);
void sl__sae_store_release(sl_sae_gradient_store *store); /* NULL is allowed */
/* The store as gradients of the latents from `first` on. */
sl_sae_block sl__sae_store_block(const sl_sae_gradient_store *store, int64_t first, int64_t rows);
/* Nothing touched, biases zero (that of b_dec with `b_dec` only). */
sl_status sl__sae_store_clear(sl_sae_gradient_store *store, bool b_dec);

/* The dictionary's own store, made on first use, as a block of all latents. */
sl_status sl__sae_gradients(sl_sae *sae, sl_sae_block *out);
/* Fills total_b_dec; sum_squares (on the device): of the block's gradient, projected where the configuration says so.
 * `add` and `more` as in the kernel's arguments: false for a block of all latents. */
sl_status sl__sae_finish_gradients(sl_sae *sae, const sl_sae_block *block, bool add, bool more, double *sum_squares);

/* The parts of a backward that step.c puts together otherwise: checks, work memory for blocks up to the size of
 * `block`; the gradients of a block of latents; what follows when all are done. The batch must be one piece. */
struct sl_sae_loss;
sl_status sl__sae_loss_begin(struct sl_sae_loss *loss, const sl_sae_block *block);
sl_status sl__sae_loss_block(struct sl_sae_loss *loss, const sl_sae_block *block, double grad_scale);
sl_status sl__sae_loss_end(struct sl_sae_loss *loss);
sl_sae *sl__sae_loss_dictionary(const struct sl_sae_loss *loss);
int64_t sl__sae_loss_pieces(const struct sl_sae_loss *loss);

/* The kernel sae_update for a block; b_dec takes its step with the last one. */
struct sl_sae_optim;
sl_status sl__sae_optim_update(struct sl_sae_optim *optim, const sl_sae_block *block, double lr, bool last);

sl_sae_parameters sl__sae_parameters(sl_tensor *const tensors[SL_SAE_PARAMETERS]);

/* The encoder's weights in `dtype`, making the bf16 copy if it is missing. */
sl_status sl__sae_encoder(sl_sae *sae, sl_dtype dtype, const void **out);

/* The centre kernel with its workspace. */
sl_status sl__sae_center(sl_device *device, sl_sae_center_args *args);

/* Checks x [tokens, d_in] f32 and hands out a contiguous reference. */
sl_status sl__sae_input(const sl_sae *sae, const sl_tensor *x, const char *op, sl_tensor **out);
/* 0 becomes the configured k (jumprelu: stays); SL_EINVAL for one that the activation cannot take. */
sl_status sl__sae_choose_k(const sl_sae *sae, const char *op, int64_t *k);

/* topk: the k largest. groupmax: one of each of k groups. jumprelu: those above `threshold` [d_sae], at most the k
 * largest of them; `overflow` (on the device) counts the tokens that had more.
 * Encodes `rows` rows from x; they become rows first .. first + rows - 1 of codes (and dead_codes), the rows before
 * them being written. u, if not NULL, receives the slabs of x - b_dec. */
typedef struct {
  const float *x;
  int64_t first, rows, k;
  sl_sae_activation select;        /* batchtopk is no rule of a token: see sl_sae_batch_request */
  const float *threshold;
  int64_t *overflow;
  sl_dtype dtype;
  bool plain;
  sl_codes *codes;
  const sl_tensor *dead;           /* u8 [d_sae] or NULL */
  int64_t k_dead;
  sl_codes *dead_codes;
  float *u;
  int64_t *nonfinite;              /* on the device, added to */
  const uint16_t *screen;          /* filled on the way: W_enc in bf16, where the device screens with it */
} sl_sae_encode_request;
sl_status sl__sae_encode_rows(sl_sae *sae, sl_sae_encode_request *request);
/* Its last part: the kernel. */
sl_status sl__sae_run_encoder(sl_sae *sae, const sl_sae_encode_request *request, const void *panels,
                              const void *encoder, sl_tensor **workspace);

/* BatchTopK on the `room` largest of each token of x: out receives the `keep` largest of all. Where the host can look
 * without waiting, tokens whose `room` was too small are encoded again, and the result is exact; elsewhere *crowded
 * says how many there were. */
typedef struct {
  const float *x;
  sl_dtype dtype;
  bool plain;
  int64_t keep, room;
  sl_codes **candidates;           /* replaced by others where tokens need more room */
  sl_codes *out;                   /* room for `keep` */
  double *smallest;                /* on the device, as the next */
  int64_t *crowded;
} sl_sae_batch_request;
sl_status sl__sae_batch_select(sl_sae *sae, const sl_sae_batch_request *request);
/* Room that is nearly always enough: min(d_sae, 4k). */
int64_t sl__sae_batch_room(const sl_sae *sae, int64_t k);

/* Makes room for `capacity` entries behind the first `entries`, which stay. */
sl_status sl__codes_reserve(sl_codes *codes, int64_t entries, int64_t capacity);

/* Bytes of the slabs of [rows, d_in]; and x (- b_dec) laid out so. */
sl_status sl__sae_slab_bytes(const sl_sae *sae, int64_t rows, size_t *out);
sl_status sl__sae_pack_slabs(const sl_sae *sae, const float *x, int64_t rows, float *slabs);

#endif
