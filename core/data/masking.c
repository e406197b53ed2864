/* Masked-language-model examples; see masking.h. */
#include "masking.h"

#include "core/base/mem.h"

enum { STREAM_CHOICE = 21, STREAM_FATE = 22 };

static bool excluded(int32_t id, const sl_mask_options *o) {
  for (int64_t i = 0; i < o->n_excluded; i++)
    if (id == o->excluded[i]) return true;
  return false;
}

static sl_status draw(uint32_t stream, const sl_mask_options *o, int64_t n, sl_tensor **out) {
  sl_device *cpu = sl_cpu_device();
  SL_TRY(sl_tensor_create(cpu, SL_F32, 1, &n, out));
  sl_random_args args = { .kind = SL_RANDOM_UNIFORM, .seed = o->seed, .stream = stream, .step = o->step,
                          .low = 0, .high = 1, .y = sl_tensor_data(*out), .n = n };
  return cpu->kernels->random(cpu, &args);
}

/* A random id that is not excluded, from a number in [0, 1): the next allowed one from where it points. */
static int32_t random_id(double u, const sl_mask_options *o) {
  int32_t id = (int32_t)(u * o->vocab_size);
  if (id >= o->vocab_size) id = o->vocab_size - 1; /* u may have been rounded up to 1 */
  for (int32_t tries = 0; tries < o->vocab_size && excluded(id, o); tries++) id = (id + 1) % o->vocab_size;
  return id;
}

/* The arrays of a batch: what is read, and what is written. */
typedef struct {
  const int32_t *ids;
  const uint8_t *mask;        /* or NULL */
  const float *choice, *fate; /* a random number each for every token */
  int32_t *hidden, *positions, *targets;
  int64_t n;                  /* tokens chosen so far */
} masking;

/* Chooses among the tokens first .. first + T - 1, one context. */
static void mask_context(masking *m, int64_t first, int64_t T, const sl_mask_options *o) {
  int64_t best = -1;
  for (int64_t t = first; t < first + T; t++) {
    m->hidden[t] = m->ids[t];
    if ((m->mask && !m->mask[t]) || excluded(m->ids[t], o)) continue;
    if (best < 0 || m->choice[t] < m->choice[best]) best = t;
  }
  for (int64_t t = first; t < first + T && best >= 0; t++) {
    bool candidate = (!m->mask || m->mask[t]) && !excluded(m->ids[t], o);
    if (!candidate || (m->choice[t] >= (float)o->rate && t != best)) continue;
    m->targets[m->n] = m->ids[t];
    m->positions[m->n++] = (int32_t)t;
    double f = (double)m->fate[t];
    if (f < o->keep_share) continue;
    f -= o->keep_share;
    m->hidden[t] = f < o->random_share ? random_id(f / o->random_share, o) : o->mask_id;
  }
}

static sl_status check(const sl_tensor *ids, const sl_tensor *mask, const sl_mask_options *o) {
  SL_TRY(sl_tensor_expect(ids, "mask tokens", "ids", SL_I32, 2));
  if (mask) SL_TRY(sl_tensor_expect(mask, "mask tokens", "mask", SL_U8, 2));
  if (mask && !sl_tensor_same_shape(ids, mask)) return sl_fail(SL_ESHAPE, "mask tokens: ids and mask differ in shape");
  if (!sl_tensor_device(ids)->host_memory || !sl_tensor_is_contiguous(ids) ||
      (mask && (!sl_tensor_device(mask)->host_memory || !sl_tensor_is_contiguous(mask))))
    return sl_fail(SL_EDEVICE, "mask tokens: ids and mask must be contiguous on the CPU");
  if (!(o->rate > 0 && o->rate <= 1) || !(o->random_share >= 0) || !(o->keep_share >= 0) ||
      !(o->random_share + o->keep_share <= 1))
    return sl_fail(SL_EINVAL, "mask tokens: rate %g must be in (0, 1], random_share %g and keep_share %g must not be "
                              "negative or sum to more than 1", o->rate, o->random_share, o->keep_share);
  if (o->mask_id < 0 || o->mask_id >= o->vocab_size)
    return sl_fail(SL_EINVAL, "mask tokens: the [MASK] id %d is outside the vocabulary of %d", o->mask_id, o->vocab_size);
  return SL_OK;
}

sl_status sl_mask_tokens(const sl_tensor *ids, const sl_tensor *mask, const sl_mask_options *options,
                         sl_tensor **hidden, sl_tensor **positions, sl_tensor **targets) {
  SL_TRY(check(ids, mask, options));
  int64_t B = ids->shape[0], T = ids->shape[1], n = 0;
  sl_tensor *choice = NULL, *fate = NULL;
  *hidden = *positions = *targets = NULL;
  int32_t *chosen = NULL; /* positions, then targets */
  sl_status status = draw(STREAM_CHOICE, options, B * T, &choice);
  if (status == SL_OK) status = draw(STREAM_FATE, options, B * T, &fate);
  if (status == SL_OK) status = sl_mem_alloc((size_t)(2 * B * T) * sizeof *chosen, "masked positions", (void **)&chosen);
  if (status == SL_OK) status = sl_tensor_create_like(ids, SL_I32, hidden);
  if (status == SL_OK) {
    masking m = { sl_tensor_data(ids), mask ? sl_tensor_data(mask) : NULL, sl_tensor_f32(choice), sl_tensor_f32(fate),
                  sl_tensor_data(*hidden), chosen, chosen + B * T, 0 };
    for (int64_t b = 0; b < B; b++) mask_context(&m, b * T, T, options);
    n = m.n;
  }
  if (status == SL_OK) status = sl_tensor_create(sl_cpu_device(), SL_I32, 1, &n, positions);
  if (status == SL_OK) status = sl_tensor_create(sl_cpu_device(), SL_I32, 1, &n, targets);
  if (status == SL_OK) status = sl_tensor_write(*positions, chosen, (size_t)n * sizeof *chosen);
  if (status == SL_OK) status = sl_tensor_write(*targets, chosen + B * T, (size_t)n * sizeof *chosen);
  sl_mem_free(chosen);
  sl_tensor_release(fate);
  sl_tensor_release(choice);
  if (status != SL_OK) {
    sl_tensor **made[] = { hidden, positions, targets };
    for (int i = 0; i < 3; i++) {
      sl_tensor_release(*made[i]);
      *made[i] = NULL;
    }
  }
  return status;
}
