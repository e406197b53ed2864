/* Hooks of the transformer: what a replacement reaches, splices and their mask, gradients, removal, counts. */
#include "model_support.h"

static int site_of(int point, int layer) {
  int site = sl_model_site(model, point, layer);
  assert_true(site >= 0);
  return site;
}

/* The value at one site. */
static sl_tensor *value_at(int site) {
  sl_tensor *captured = NULL;
  sl_forward_options options = plain_options();
  options.capture = &site;
  options.n_capture = 1;
  assert_int_equal(sl_model_forward(model, &options, &captured, NULL), SL_OK);
  return captured;
}

/* -- Hook functions ------------------------------------------------------------------------------ */

typedef struct {
  int calls, released, seen_site;
  sl_status answer;
  int remove_id;
  float factor, bump;
  int64_t bump_at;
  sl_tensor *grad;
} probe;

/* Probes are static: a hook that a test leaves in place is released with the model, after the test has returned. */
static void count_release(void *context) { ((probe *)context)->released++; }

/* *value *= factor, and one element += bump. */
static sl_status change(void *context, const sl_hook_info *info, sl_tensor **value) {
  probe *p = context;
  p->calls++;
  p->seen_site = info->site;
  if (p->remove_id) sl_model_remove_hook((sl_model *)info->model, p->remove_id);
  if (p->answer != SL_OK) return sl_fail(p->answer, "the hook's own words");
  sl_tensor *changed = NULL;
  SL_TRY(sl_unary(SL_UNARY_MUL_SCALAR, *value, p->factor, &changed));
  if (p->bump != 0.0f) sl_tensor_f32(changed)[p->bump_at] += p->bump;
  sl_tensor_release(*value);
  *value = changed;
  return SL_OK;
}

static sl_status look(void *context, const sl_hook_info *info, sl_tensor **value) {
  probe *p = context;
  p->calls++;
  p->seen_site = info->site;
  (void)value;
  return SL_OK;
}

static sl_status keep_gradient(void *context, const sl_hook_info *info, sl_tensor **value) {
  probe *p = context;
  (void)info;
  p->calls++;
  sl_tensor_release(p->grad);
  p->grad = sl_tensor_retain(*value);
  return SL_OK;
}

static sl_status wrong_shape(void *context, const sl_hook_info *info, sl_tensor **value) {
  (void)context, (void)info;
  sl_tensor_release(*value);
  *value = NULL;
  return sl_tensor_zeros(sl_cpu_device(), SL_F32, 1, (int64_t[]){ 3 }, value);
}

static int add(int site, sl_hook_kind kind, sl_hook_fn fn, probe *p) {
  int id;
  assert_int_equal(sl_model_add_hook(model, site, kind, fn, p, count_release, &id), SL_OK);
  return id;
}

/* -- Forward hooks ------------------------------------------------------------------------------- */

static double effect(int hooked, int watched) {
  sl_tensor *before = value_at(watched), *after;
  static probe p;
  p = (probe){ .factor = 1.5f };
  int id = add(hooked, SL_HOOK_FORWARD, change, &p);
  after = value_at(watched);
  double difference = largest_difference(before, after);
  assert_int_equal(p.calls, 1);
  assert_int_equal(p.seen_site, hooked);
  sl_model_remove_hook(model, id);
  assert_int_equal(p.released, 1);
  sl_tensor_release(before);
  sl_tensor_release(after);
  return difference;
}

static void test_every_site_changes_what_follows(void **state) {
  (void)state;
  int n = sl_model_n_sites(model);
  for (int site = 0; site < n; site++) assert_true(effect(site, n - 1) > 1e-6);
}

static void test_replacements_reach_what_they_should(void **state) {
  (void)state;
  int q0 = site_of(SL_POINT_ATTN_Q, 0), mid0 = site_of(SL_POINT_RESID_MID, 0);
  assert_true(effect(site_of(SL_POINT_ATTN_IN, 0), q0) > 1e-3);
  assert_true(effect(site_of(SL_POINT_MLP_IN, 0), site_of(SL_POINT_MLP_PRE, 0)) > 1e-3);
  assert_true(effect(site_of(SL_POINT_MLP_IN, 0), mid0) == 0.0);      /* the stream itself is untouched */
  assert_true(effect(site_of(SL_POINT_RESID_POST, 0), mid0) == 0.0);  /* what lies behind does not act back */
  assert_true(effect(site_of(SL_POINT_ATTN_V, 0), site_of(SL_POINT_ATTN_PATTERN, 0)) == 0.0);
  assert_true(effect(site_of(SL_POINT_ATTN_SCORES, 0), site_of(SL_POINT_ATTN_PATTERN, 0)) > 1e-3);
  /* a scaled query is scaled scores; a norm takes the scale of its input back, up to eps */
  assert_true(effect(site_of(SL_POINT_RESID_MID_PRELN, 0), mid0) < 1e-4);
}

static void test_open_attention_equals_the_kernel(void **state) {
  (void)state;
  int post = site_of(SL_POINT_RESID_POST, 1), pattern = site_of(SL_POINT_ATTN_PATTERN, 1);
  sl_tensor *before = value_at(post), *kernel_pattern = value_at(pattern), *after, *open_pattern;
  static probe p;
  p = (probe){ .factor = 1.0f };
  int id = add(site_of(SL_POINT_ATTN_SCORES, 1), SL_HOOK_FORWARD, look, &p);
  after = value_at(post);
  open_pattern = value_at(pattern);
  assert_int_equal(p.calls, 2);
  assert_true(largest_difference(before, after) < 1e-5);
  assert_true(largest_difference(kernel_pattern, open_pattern) < 1e-6);
  sl_model_remove_hook(model, id);
  sl_tensor_release(before);
  sl_tensor_release(after);
  sl_tensor_release(kernel_pattern);
  sl_tensor_release(open_pattern);
}

static void test_hooks_run_in_order_and_captures_come_after(void **state) {
  (void)state;
  int site = site_of(SL_POINT_RESID_POST, 0);
  sl_tensor *before = value_at(site), *after;
  static probe doubled, bumped;
  doubled = (probe){ .factor = 2.0f };
  bumped = (probe){ .factor = 1.0f, .bump = 3.0f };
  add(site, SL_HOOK_FORWARD, change, &doubled);
  add(site, SL_HOOK_FORWARD, change, &bumped);
  after = value_at(site);
  assert_true(sl_tensor_f32(after)[0] == 2.0f * sl_tensor_f32(before)[0] + 3.0f);
  assert_true(sl_tensor_f32(after)[1] == 2.0f * sl_tensor_f32(before)[1]);
  assert_int_equal(sl_model_n_hooks(model), 2);
  sl_tensor_release(before);
  sl_tensor_release(after);
}

static sl_status forward_status(int stop_at, bool skip) {
  sl_forward_options options = plain_options();
  options.stop_at = stop_at;
  options.skip_hooks = skip;
  return sl_model_forward(model, &options, NULL, NULL);
}

static void test_failures_of_hooks(void **state) {
  (void)state;
  int site = site_of(SL_POINT_MLP_OUT, 1), id;
  static probe p;
  p = (probe){ .answer = SL_EIO };
  id = add(site, SL_HOOK_FORWARD, change, &p);
  assert_int_equal(forward_status(-1, false), SL_EIO);
  assert_message("the hook's own words");
  assert_int_equal(forward_status(-1, true), SL_OK);
  sl_model_remove_hook(model, id);
  id = add(site, SL_HOOK_FORWARD, wrong_shape, &p);
  assert_int_equal(forward_status(-1, false), SL_EHOOK);
  assert_message("layers.1.mlp_out: the replacement is f32 [3] on cpu, expected f32 [3 x 7 x 24]");
  sl_model_remove_hook(model, id);
  assert_int_equal(sl_model_add_hook(model, sl_model_n_sites(model), SL_HOOK_FORWARD, look, &p, count_release, &id),
                   SL_EINVAL);
  assert_int_equal(p.released, 3);
}

static void test_counts_tell_which_hook_did_not_run(void **state) {
  (void)state;
  static probe early, late;
  early = (probe){ .factor = 1 };
  late = (probe){ .factor = 1 };
  add(site_of(SL_POINT_EMBED, 0), SL_HOOK_FORWARD, look, &early);
  add(site_of(SL_POINT_RESID_POST, 1), SL_HOOK_FORWARD, look, &late);
  assert_int_equal(forward_status(-1, false), SL_OK);
  assert_int_equal(forward_status(site_of(SL_POINT_RESID_POST, 0), false), SL_OK);
  sl_hook_stats a = sl_model_hook_stats(model, 0), b = sl_model_hook_stats(model, 1);
  assert_int_equal(a.calls, 2);
  assert_int_equal(a.last_calls, 1);
  assert_int_equal(b.calls, 1);
  assert_int_equal(b.last_calls, 0);
  assert_int_equal(sl_model_hook_stats(model, 2).id, -1);
}

static void test_hooks_may_remove_hooks(void **state) {
  (void)state;
  static probe p, q;
  p = (probe){ .factor = 1 };
  q = (probe){ .factor = 1 };
  int id = add(site_of(SL_POINT_EMBED, 0), SL_HOOK_FORWARD, change, &p);
  p.remove_id = id; /* itself */
  q.remove_id = id;
  add(site_of(SL_POINT_RESID_POST, 0), SL_HOOK_FORWARD, change, &q);
  assert_int_equal(forward_status(-1, false), SL_OK);
  assert_int_equal(forward_status(-1, false), SL_OK);
  assert_int_equal(p.calls, 1);
  assert_int_equal(p.released, 1);
  assert_int_equal(q.calls, 2);
  assert_int_equal(sl_model_n_hooks(model), 1);
}

/* -- Splices ------------------------------------------------------------------------------------- */

static void check_spliced(const sl_tensor *before, const sl_tensor *after, const uint8_t *where) {
  for (int64_t i = 0; i < 21; i++)
    for (int64_t j = 0; j < 24; j++) {
      float want = sl_tensor_f32(before)[i * 24 + j] * (where && !where[i] ? 1.0f : 4.0f);
      assert_true(sl_tensor_f32(after)[i * 24 + j] == want);
    }
}

static void test_a_splice_acts_at_its_mask(void **state) {
  (void)state;
  int site = site_of(SL_POINT_RESID_POST, 0);
  sl_tensor *before = value_at(site), *after = NULL, *own;
  static probe p;
  p = (probe){ .factor = 4.0f };
  add(site, SL_HOOK_SPLICE, change, &p);
  after = value_at(site);
  check_spliced(before, after, sl_tensor_data(mask));
  sl_tensor_release(after);

  assert_int_equal(sl_tensor_zeros(sl_cpu_device(), SL_U8, 2, (int64_t[]){ 3, 7 }, &own), SL_OK);
  ((uint8_t *)sl_tensor_data(own))[9] = 1;
  sl_forward_options options = plain_options();
  options.capture = &site;
  options.n_capture = 1;
  options.splice_mask = own;
  after = NULL;
  assert_int_equal(sl_model_forward(model, &options, &after, NULL), SL_OK);
  check_spliced(before, after, sl_tensor_data(own));
  sl_tensor_release(after);
  sl_tensor_release(own);
  sl_tensor_release(before);
}

static void test_a_splice_needs_rows(void **state) {
  (void)state;
  static probe p;
  p = (probe){ .factor = 1.0f };
  add(site_of(SL_POINT_ATTN_PATTERN, 0), SL_HOOK_SPLICE, change, &p);
  assert_int_equal(forward_status(-1, false), SL_EHOOK);
  assert_message("attn_pattern");
}

/* -- Backward hooks ------------------------------------------------------------------------------ */

/* The MLM loss of the fixture; recorded when a tape runs. */
static sl_tensor *loss_of(void) {
  sl_tensor *logits = NULL, *flat = NULL, *loss = NULL, *targets = expected("targets"), *rows;
  sl_forward_options options = plain_options();
  options.logits = true;
  assert_int_equal(sl_model_forward(model, &options, NULL, &logits), SL_OK);
  assert_int_equal(sl_reshape(logits, 2, (int64_t[]){ 21, 58 }, &flat), SL_OK);
  assert_int_equal(sl_tensor_view(targets, 1, (int64_t[]){ 21 }, &rows), SL_OK);
  assert_int_equal(sl_cross_entropy(flat, rows, NULL, &loss), SL_OK);
  sl_tensor_release(logits);
  sl_tensor_release(flat);
  sl_tensor_release(targets);
  sl_tensor_release(rows);
  return loss;
}

static double bumped_loss(int site, int64_t at, float bump) {
  static probe p;
  p = (probe){ .factor = 1.0f, .bump = bump, .bump_at = at };
  int id = add(site, SL_HOOK_FORWARD, change, &p);
  sl_tensor *loss = loss_of();
  double value;
  assert_int_equal(sl_tensor_item(loss, &value), SL_OK);
  sl_tensor_release(loss);
  sl_model_remove_hook(model, id);
  return value;
}

static void check_gradient(int site) {
  sl_tape *tape;
  static probe p;
  p = (probe){ .factor = 1.0f };
  assert_int_equal(sl_tape_create(&tape), SL_OK);
  int id = add(site, SL_HOOK_BACKWARD, keep_gradient, &p);
  sl_tape_start(tape);
  sl_tensor *loss = loss_of();
  assert_int_equal(sl_tape_backward(tape, loss, NULL), SL_OK);
  sl_tensor_release(loss);
  sl_model_remove_hook(model, id);
  sl_tape_release(tape);
  assert_int_equal(p.released, 1);
  assert_int_equal(p.calls, 1);
  int64_t largest = 0, n = sl_tensor_count(p.grad);
  for (int64_t i = 1; i < n; i++)
    if (fabsf(sl_tensor_f32(p.grad)[i]) > fabsf(sl_tensor_f32(p.grad)[largest])) largest = i;
  float step = 0.01f;
  double slope = (bumped_loss(site, largest, step) - bumped_loss(site, largest, -step)) / (2 * (double)step);
  double got = (double)sl_tensor_f32(p.grad)[largest];
  assert_true(fabs(got) > 1e-4);
  assert_true(fabs(slope - got) < 0.02 * fabs(got) + 2e-4);
  sl_tensor_release(p.grad);
}

static void test_gradients_at_sites_of_a_frozen_model(void **state) {
  (void)state;
  check_gradient(site_of(SL_POINT_EMBED, 0));
  check_gradient(site_of(SL_POINT_ATTN_Z, 0));
  check_gradient(site_of(SL_POINT_ATTN_SCORES, 1));
  check_gradient(site_of(SL_POINT_MLP_POST, 1));
  check_gradient(site_of(SL_POINT_RESID_POST, 0));
  check_gradient(site_of(SL_POINT_RESID_PRE, 1));
}

static void test_gradients_at_two_sites_of_one_value(void **state) {
  (void)state;
  sl_tape *tape;
  static probe p, q, r;
  p = (probe){ .factor = 1 };
  q = (probe){ .factor = 1 };
  r = (probe){ .factor = 1 };
  assert_int_equal(sl_tape_create(&tape), SL_OK);
  assert_int_equal(sl_model_set_trainable(model, true), SL_OK);
  add(site_of(SL_POINT_RESID_POST, 0), SL_HOOK_BACKWARD, keep_gradient, &p);
  add(site_of(SL_POINT_RESID_PRE, 1), SL_HOOK_BACKWARD, keep_gradient, &q);
  add(site_of(SL_POINT_RESID_PRE, 1), SL_HOOK_BACKWARD, keep_gradient, &r);
  sl_tape_start(tape);
  sl_tensor *loss = loss_of();
  assert_int_equal(sl_tape_backward(tape, loss, NULL), SL_OK);
  assert_int_equal(p.calls + q.calls + r.calls, 3);
  assert_true(largest_difference(p.grad, q.grad) == 0.0);
  assert_true(largest_difference(p.grad, r.grad) == 0.0);
  sl_tensor_release(loss);
  sl_tensor_release(p.grad);
  sl_tensor_release(q.grad);
  sl_tensor_release(r.grad);
  sl_tape_release(tape);
}

static void test_a_backward_hook_rests_without_a_tape(void **state) {
  (void)state;
  static probe p;
  p = (probe){ .factor = 1 };
  add(site_of(SL_POINT_EMBED, 0), SL_HOOK_BACKWARD, keep_gradient, &p);
  assert_int_equal(forward_status(-1, false), SL_OK);
  assert_int_equal(p.calls, 0);
  assert_int_equal(sl_model_hook_stats(model, 0).calls, 0);
}

static void test_bf16_refuses_hooks_under_a_tape(void **state) {
  (void)state;
  sl_model_spec spec = fixture_spec();
  spec.dtype = SL_BF16;
  sl_model *half;
  sl_tape *tape;
  static probe p;
  p = (probe){ .factor = 1 };
  int id;
  assert_int_equal(sl_model_create(&spec, sl_cpu_device(), &half), SL_OK);
  assert_int_equal(sl_model_init(half, 0, 0.02f, -1), SL_OK);
  assert_int_equal(sl_model_get(half, SL_SLOT_Q_W, 0)->dtype, SL_BF16);
  assert_int_equal(sl_model_get(half, SL_SLOT_Q_B, 0)->dtype, SL_F32);
  assert_int_equal(sl_model_set_trainable(half, true), SL_EDTYPE);
  assert_int_equal(sl_model_add_hook(half, 0, SL_HOOK_FORWARD, look, &p, count_release, &id), SL_OK);
  assert_int_equal(sl_tape_create(&tape), SL_OK);
  sl_forward_options options = plain_options();
  assert_int_equal(sl_model_forward(half, &options, NULL, NULL), SL_OK);
  sl_tape_start(tape);
  assert_int_equal(sl_model_forward(half, &options, NULL, NULL), SL_EDTYPE);
  assert_message("f32");
  sl_tape_release(tape);
  sl_model_release(half);
  assert_int_equal(p.released, 1);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
    CASE(test_every_site_changes_what_follows), CASE(test_replacements_reach_what_they_should),
    CASE(test_open_attention_equals_the_kernel), CASE(test_hooks_run_in_order_and_captures_come_after),
    CASE(test_failures_of_hooks), CASE(test_counts_tell_which_hook_did_not_run),
    CASE(test_hooks_may_remove_hooks), CASE(test_a_splice_acts_at_its_mask), CASE(test_a_splice_needs_rows),
    CASE(test_gradients_at_sites_of_a_frozen_model), CASE(test_gradients_at_two_sites_of_one_value),
    CASE(test_a_backward_hook_rests_without_a_tape), CASE(test_bf16_refuses_hooks_under_a_tape),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
