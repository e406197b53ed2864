/* The transformer: specs, weights, the forward pass against transformers, refusals, failing allocations. */
#include "model_support.h"

/* -- Specs and weights -------------------------------------------------------------------------- */

static void refused(sl_model_spec spec, sl_status code, const char *part) {
  sl_model *made = NULL;
  assert_int_equal(sl_model_create(&spec, sl_cpu_device(), &made), code);
  assert_message(part);
}

static void test_specs_are_checked(void **state) {
  (void)state;
  sl_model_spec spec = fixture_spec();
  spec.n_layers = 0;
  refused(spec, SL_EINVAL, "n_layers");
  spec.n_layers = 5000;
  refused(spec, SL_EINVAL, "5000 layers");
  spec = fixture_spec(), spec.norm = SL_NORM_RMS;
  refused(spec, SL_EUNSUPPORTED, "RMS");
  spec = fixture_spec(), spec.norm_place = SL_NORM_PRE;
  refused(spec, SL_EUNSUPPORTED, "pre-norm");
  spec = fixture_spec(), spec.position = SL_POSITION_ROTARY;
  refused(spec, SL_EUNSUPPORTED, "rotary");
  spec = fixture_spec(), spec.dtype = SL_F16;
  refused(spec, SL_EDTYPE, "f16");
  spec = fixture_spec(), spec.norm_eps = -1;
  refused(spec, SL_EINVAL, "norm_eps");
  spec = fixture_spec(), spec.activation = SL_ACT_NONE;
  refused(spec, SL_EINVAL, "activation");
}

static void test_weights_are_listed_once_each(void **state) {
  (void)state;
  bool seen[SL_SLOT_COUNT][2] = { { false } };
  int n = sl_model_n_weights(model), slot, layer;
  assert_int_equal(n, 5 + 2 * 16 + 5);
  for (int i = 0; i < n; i++) {
    assert_int_equal(sl_model_weight_at(model, i, &slot, &layer), SL_OK);
    assert_false(seen[slot][layer]);
    seen[slot][layer] = true;
    assert_non_null(sl_model_get(model, slot, layer));
  }
  assert_false(seen[SL_SLOT_DECODER_W][0]);
  assert_int_equal(sl_model_weight_at(model, n, &slot, &layer), SL_EINVAL);
  assert_int_equal(sl_model_weight_at(model, -1, &slot, &layer), SL_EINVAL);
}

static void test_wrong_weights_are_refused(void **state) {
  (void)state;
  sl_tensor *wrong, *integers;
  assert_int_equal(sl_tensor_zeros(sl_cpu_device(), SL_F32, 2, (int64_t[]){ 24, 23 }, &wrong), SL_OK);
  assert_int_equal(sl_tensor_zeros(sl_cpu_device(), SL_I32, 2, (int64_t[]){ 24, 24 }, &integers), SL_OK);
  assert_int_equal(sl_model_set(model, SL_SLOT_Q_W, 0, wrong), SL_ESHAPE);
  assert_message("'q.w' is [24 x 23], expected [24 x 24]");
  assert_int_equal(sl_model_set(model, SL_SLOT_Q_W, 0, integers), SL_EDTYPE);
  assert_message("i32");
  assert_int_equal(sl_model_set(model, SL_SLOT_Q_W, 2, wrong), SL_EINVAL);
  assert_message("layers are 0 to 1");
  assert_int_equal(sl_model_set(model, SL_SLOT_DECODER_W, 0, wrong), SL_EINVAL);
  assert_message("tied");
  assert_int_equal(sl_model_set(model, SL_SLOT_COUNT, 0, wrong), SL_EINVAL);
  sl_tensor_release(wrong);
  sl_tensor_release(integers);
}

static void test_missing_weights_are_named(void **state) {
  (void)state;
  sl_model_spec spec = fixture_spec();
  sl_model *empty;
  assert_int_equal(sl_model_create(&spec, sl_cpu_device(), &empty), SL_OK);
  assert_int_equal(sl_model_ready(empty), SL_ESTATE);
  assert_message("word_embed");
  sl_forward_options options = plain_options();
  assert_int_equal(sl_model_forward(empty, &options, NULL, NULL), SL_ESTATE);
  sl_model_release(empty);
}

static void test_weights_share_the_mapped_file(void **state) {
  (void)state;
  sl_tensor *weight = sl_model_get(model, SL_SLOT_UP_W, 1);
  assert_non_null(weight->storage->release);
  float before = sl_tensor_f32(weight)[0];
  sl_tensor_f32(weight)[0] = 5.0f; /* a private page: the file stays */
  sl_model *again;
  assert_int_equal(load_fixture(&again), SL_OK);
  assert_true(sl_tensor_f32(sl_model_get(again, SL_SLOT_UP_W, 1))[0] == before);
  assert_int_equal(sl_model_set_trainable(again, true), SL_OK);
  assert_null(sl_model_get(again, SL_SLOT_UP_W, 1)->storage->release);
  assert_true(sl_model_get(again, SL_SLOT_UP_W, 1)->requires_grad);
  assert_int_equal(sl_model_set_trainable(again, false), SL_OK);
  assert_false(sl_model_get(again, SL_SLOT_UP_W, 1)->requires_grad);
  sl_model_release(again);
}

static void test_initialisation(void **state) {
  (void)state;
  sl_model_spec spec = fixture_spec();
  sl_model *a, *b;
  assert_int_equal(sl_model_create(&spec, sl_cpu_device(), &a), SL_OK);
  assert_int_equal(sl_model_create(&spec, sl_cpu_device(), &b), SL_OK);
  assert_int_equal(sl_model_init(a, 1, 0.02f, 58), SL_EINVAL);
  assert_int_equal(sl_model_init(a, 1, 0.02f, 3), SL_OK);
  assert_int_equal(sl_model_init(b, 1, 0.02f, 3), SL_OK);
  double sum = 0, squares = 0;
  const sl_tensor *table = sl_model_get(a, SL_SLOT_WORD_EMBED, 0), *up0 = sl_model_get(a, SL_SLOT_UP_W, 0);
  for (int64_t i = 0; i < 24 * 40; i++) {
    double w = (double)sl_tensor_f32(up0)[i];
    sum += w;
    squares += w * w;
  }
  assert_true(fabs(sum / 960) < 0.003);
  assert_true(fabs(sqrt(squares / 960) - 0.02) < 0.002);
  for (int i = 0; i < 24; i++) assert_true(sl_tensor_f32(table)[3 * 24 + i] == 0.0f);
  assert_true(sl_tensor_f32(table)[2 * 24] != 0.0f);
  assert_true(sl_tensor_f32(sl_model_get(a, SL_SLOT_NORM1_W, 1))[7] == 1.0f);
  assert_true(sl_tensor_f32(sl_model_get(a, SL_SLOT_UP_B, 1))[7] == 0.0f);
  assert_true(largest_difference(up0, sl_model_get(b, SL_SLOT_UP_W, 0)) == 0.0);
  assert_true(largest_difference(up0, sl_model_get(a, SL_SLOT_UP_W, 1)) > 0.0);
  sl_model_release(a);
  sl_model_release(b);
}

/* -- Forward ------------------------------------------------------------------------------------ */

static void test_forward_equals_transformers(void **state) {
  (void)state;
  static const char *const names[3] = { "hidden.0", "hidden.1", "hidden.2" };
  int sites[3] = { sl_model_site(model, SL_POINT_EMBED, -1), sl_model_site(model, SL_POINT_RESID_POST, 0),
                   sl_model_site(model, SL_POINT_RESID_POST, 1) };
  sl_tensor *captured[3] = { NULL }, *logits = NULL, *want;
  sl_forward_options options = plain_options();
  options.capture = sites;
  options.n_capture = 3;
  options.logits = true;
  assert_int_equal(sl_model_forward(model, &options, captured, &logits), SL_OK);
  for (int i = 0; i < 3; i++) {
    want = expected(names[i]);
    assert_true(largest_difference(captured[i], want) < 2e-5);
    sl_tensor_release(want);
    sl_tensor_release(captured[i]);
  }
  want = expected("logits");
  assert_true(largest_difference(logits, want) < 2e-5);
  sl_tensor_release(want);
  sl_tensor_release(logits);
}

static void test_logits_at_rows(void **state) {
  (void)state;
  static const int32_t rows[3] = { 20, 0, 8 };
  sl_tensor *all = NULL, *some = NULL, *at;
  assert_int_equal(sl_tensor_create(sl_cpu_device(), SL_I32, 1, (int64_t[]){ 3 }, &at), SL_OK);
  assert_int_equal(sl_tensor_write(at, rows, sizeof rows), SL_OK);
  sl_forward_options options = plain_options();
  options.logits = true;
  assert_int_equal(sl_model_forward(model, &options, NULL, &all), SL_OK);
  options.logit_rows = at;
  assert_int_equal(sl_model_forward(model, &options, NULL, &some), SL_OK);
  assert_int_equal(some->shape[0], 3);
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 58; j++)
      assert_true(fabsf(sl_tensor_f32(some)[i * 58 + j] - sl_tensor_f32(all)[rows[i] * 58 + j]) < 1e-5f);
  static const int32_t outside[3] = { 21, 0, 0 };
  assert_int_equal(sl_tensor_write(at, outside, sizeof outside), SL_OK);
  sl_tensor *none = NULL;
  assert_int_not_equal(sl_model_forward(model, &options, NULL, &none), SL_OK);
  assert_message("logit_rows");
  assert_null(none);
  sl_tensor_release(all);
  sl_tensor_release(some);
  sl_tensor_release(at);
}

/* How many operations a pass records is how far it went. */
static int64_t recorded(sl_tape *tape, int site) {
  sl_tensor *captured = NULL;
  sl_forward_options options = plain_options();
  options.capture = &site;
  options.n_capture = 1;
  sl_tape_start(tape);
  assert_int_equal(sl_model_forward(model, &options, &captured, NULL), SL_OK);
  int64_t length = sl_tape_length(tape);
  sl_tape_reset(tape);
  sl_tape_stop();
  sl_tensor_release(captured);
  return length;
}

static void test_the_pass_stops_behind_the_deepest_capture(void **state) {
  (void)state;
  sl_tape *tape;
  assert_int_equal(sl_tape_create(&tape), SL_OK);
  assert_int_equal(sl_model_set_trainable(model, true), SL_OK);
  int64_t before = 0;
  for (int site = 0; site < sl_model_n_sites(model); site++) {
    int point, layer;
    sl_model_site_point(model, site, &point, &layer);
    if (point != SL_POINT_EMBED && point != SL_POINT_ATTN_Z && point != SL_POINT_MLP_POST &&
        point != SL_POINT_RESID_POST && point != SL_POINT_LOGITS)
      continue;
    int64_t now = recorded(tape, site);
    assert_true(now > before);
    before = now;
  }
  sl_tape_release(tape);
}

static void test_every_site_can_be_captured(void **state) {
  (void)state;
  enum { MOST = 64 };
  int sites[MOST], n = sl_model_n_sites(model);
  sl_tensor *captured[MOST] = { NULL };
  assert_int_equal(n, 5 + 2 * 17 + 3);
  for (int i = 0; i < n; i++) sites[i] = i;
  sl_forward_options options = plain_options();
  options.capture = sites;
  options.n_capture = n;
  assert_int_equal(sl_model_forward(model, &options, captured, NULL), SL_OK);
  for (int i = 0; i < n; i++) {
    int64_t width = sl_model_site_width(model, i);
    assert_non_null(captured[i]);
    assert_int_equal(captured[i]->shape[captured[i]->rank - 1], width ? width : 7);
    assert_int_equal(captured[i]->shape[0], 3);
    assert_true(sl_tensor_is_contiguous(captured[i]));
    sl_tensor_release(captured[i]);
  }
}

static void forward_fails(sl_forward_options options, sl_status code, const char *part) {
  sl_tensor *captured[2] = { NULL }, *logits = NULL;
  assert_int_equal(sl_model_forward(model, &options, captured, &logits), code);
  assert_message(part);
  assert_null(captured[0]);
  assert_null(logits);
}

static void test_bad_inputs_are_refused(void **state) {
  (void)state;
  sl_tensor *long_ids, *floats;
  int site = 0, outside = 1000, deep = sl_model_site(model, SL_POINT_RESID_POST, 1);
  assert_int_equal(sl_tensor_zeros(sl_cpu_device(), SL_I32, 2, (int64_t[]){ 1, 17 }, &long_ids), SL_OK);
  assert_int_equal(sl_tensor_zeros(sl_cpu_device(), SL_F32, 2, (int64_t[]){ 3, 7 }, &floats), SL_OK);
  sl_forward_options o = plain_options();
  o.ids = NULL;
  forward_fails(o, SL_EINVAL, "no token ids");
  o.ids = floats;
  forward_fails(o, SL_EDTYPE, "ids");
  o = plain_options(), o.mask = floats;
  forward_fails(o, SL_EDTYPE, "mask");
  o = plain_options(), o.ids = long_ids;
  forward_fails(o, SL_ESHAPE, "mask is [3 x 7], the ids are [1 x 17]");
  o.mask = o.type_ids = NULL;
  forward_fails(o, SL_ESHAPE, "at most 16");
  o = plain_options(), o.capture = &outside, o.n_capture = 1;
  forward_fails(o, SL_EINVAL, "no site has number 1000");
  o.capture = &deep, o.stop_at = site;
  forward_fails(o, SL_EINVAL, "capture of layers.1.resid_post, but the pass stops at embed_tokens");
  o = plain_options(), o.logits = true, o.stop_at = deep;
  forward_fails(o, SL_EINVAL, "logits");
  sl_tensor_release(long_ids);
  assert_int_equal(sl_tensor_clone(ids, &long_ids), SL_OK);
  ((int32_t *)sl_tensor_data(long_ids))[4] = 58;
  o = plain_options(), o.ids = long_ids;
  forward_fails(o, SL_EINVAL, "58");
  sl_tensor_release(long_ids);
  sl_tensor_release(floats);
}

static void test_a_model_without_head_gives_no_logits(void **state) {
  (void)state;
  sl_model_spec spec = fixture_spec();
  spec.head = SL_HEAD_NONE;
  sl_model *plain;
  sl_tensor *logits = NULL;
  assert_int_equal(sl_model_create(&spec, sl_cpu_device(), &plain), SL_OK);
  assert_int_equal(sl_model_init(plain, 0, 0.02f, -1), SL_OK);
  assert_int_equal(sl_model_site(plain, SL_POINT_LOGITS, -1), -1);
  assert_int_equal(sl_model_n_sites(plain), 5 + 2 * 17);
  sl_forward_options options = plain_options();
  options.logits = true;
  assert_int_equal(sl_model_forward(plain, &options, NULL, &logits), SL_EINVAL);
  assert_message("no MLM head");
  options.logits = false;
  assert_int_equal(sl_model_forward(plain, &options, NULL, NULL), SL_OK);
  sl_model_release(plain);
}

/* -- Failing allocations ------------------------------------------------------------------------ */

/* Load, forward, loss, backward: one attempt. (Opening the file is tortured in test_safetensors.c.) */
static sl_status whole_story(sl_weights *weights, const sl_tensor *targets) {
  sl_model *m = NULL;
  sl_tape *tape = NULL;
  sl_tensor *logits = NULL, *captured[2] = { NULL }, *flat = NULL, *loss = NULL;
  sl_status status = fill_fixture(weights, &m);
  if (status == SL_OK) status = sl_model_set_trainable(m, true);
  if (status == SL_OK) status = sl_tape_create(&tape);
  if (status == SL_OK) {
    int sites[2] = { 0, 0 };
    sites[0] = sl_model_site(m, SL_POINT_ATTN_PATTERN, 0);
    sites[1] = sl_model_site(m, SL_POINT_RESID_POST, 1);
    sl_forward_options options = plain_options();
    options.capture = sites;
    options.n_capture = 2;
    options.logits = true;
    sl_tape_start(tape);
    status = sl_model_forward(m, &options, captured, &logits);
  }
  if (status == SL_OK) status = sl_reshape(logits, 2, (int64_t[]){ 21, 58 }, &flat);
  if (status == SL_OK) status = sl_cross_entropy(flat, targets, NULL, &loss);
  if (status == SL_OK) status = sl_tape_backward(tape, loss, NULL);
  sl_tape_release(tape);
  sl_tensor_release(captured[0]);
  sl_tensor_release(captured[1]);
  sl_tensor_release(logits);
  sl_tensor_release(flat);
  sl_tensor_release(loss);
  sl_model_release(m);
  return status;
}

static void test_failing_allocations(void **state) {
  (void)state;
  sl_tensor *targets = expected("targets"), *flat;
  sl_weights *weights;
  assert_int_equal(sl_weights_open(FIXTURES "bert_mlm_tied", &weights), SL_OK);
  assert_int_equal(sl_tensor_view(targets, 1, (int64_t[]){ 21 }, &flat), SL_OK);
  assert_int_equal(whole_story(weights, flat), SL_OK);
  sl_pool_trim();
  int64_t blocks = sl_mem_get_stats().blocks, storages = sl_storage_get_stats().live_storages;
  int failures = 0;
  for (int64_t n = 1; n < 100000; n += n < 200 ? 1 : 7) {
    sl_mem_fail_at(n);
    sl_status status = whole_story(weights, flat);
    sl_mem_fail_at(0);
    sl_pool_trim();
    assert_int_equal(sl_mem_get_stats().blocks, blocks);
    assert_int_equal(sl_storage_get_stats().live_storages, storages);
    if (status == SL_OK && n > 1500) break;
    if (status != SL_OK) {
      assert_int_equal(status, SL_ENOMEM);
      failures++;
    }
  }
  assert_true(failures > 100);
  sl_tensor_release(flat);
  sl_tensor_release(targets);
  sl_weights_release(weights);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_specs_are_checked),
    cmocka_unit_test_setup_teardown(test_weights_are_listed_once_each, setup, teardown),
    cmocka_unit_test_setup_teardown(test_wrong_weights_are_refused, setup, teardown),
    cmocka_unit_test_setup_teardown(test_missing_weights_are_named, setup, teardown),
    cmocka_unit_test_setup_teardown(test_weights_share_the_mapped_file, setup, teardown),
    cmocka_unit_test(test_initialisation),
    cmocka_unit_test_setup_teardown(test_forward_equals_transformers, setup, teardown),
    cmocka_unit_test_setup_teardown(test_logits_at_rows, setup, teardown),
    cmocka_unit_test_setup_teardown(test_the_pass_stops_behind_the_deepest_capture, setup, teardown),
    cmocka_unit_test_setup_teardown(test_every_site_can_be_captured, setup, teardown),
    cmocka_unit_test_setup_teardown(test_bad_inputs_are_refused, setup, teardown),
    cmocka_unit_test_setup_teardown(test_a_model_without_head_gives_no_logits, setup, teardown),
    cmocka_unit_test_setup_teardown(test_failing_allocations, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
