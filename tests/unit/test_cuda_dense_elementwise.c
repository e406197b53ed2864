/* The CUDA kernels that work element by element against the CPU's: casts, strided copies, unary and binary functions,
 * random numbers, optimisers. Exact where one rounding is all there is, else within a few units in the last place. */
#include <float.h>

#include "tests/support/device_pair.h"

static const int64_t sizes[] = { 0, 1, 3, 4, 5, 31, 64, 127, 1024, 4099, 20000 };

/* Random numbers, every fifth of them one that breaks things. */
static block *special_floats(pair *p, int64_t n, float scale, uint64_t seed, int shift) {
  static const float odd[] = { NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, -1e-42f, FLT_MAX, -FLT_MAX,
                               FLT_MIN, 1.0f, -1.0f, 65504.0f, 65520.0f, 3e9f, -3e9f, 1e19f, 255.5f, 6e-8f };
  float *x = make_numbers(n, scale, seed);
  for (int64_t i = 0; i < n; i += 5) x[i] = odd[(uint64_t)(i / 5) * 7 % LENGTH(odd)];
  block *b = pair_block_shifted(p, (size_t)n * sizeof *x, (size_t)shift * sizeof *x);
  pair_put(p, b, x);
  free(x);
  return b;
}

/* -- Casts -- */

/* n elements of a dtype with every kind of bit pattern. */
static block *special_elements(pair *p, sl_dtype dtype, int64_t n, int shift) {
  size_t size = sl_dtype_size(dtype);
  if (dtype == SL_F32) return special_floats(p, n, 300, 3, shift);
  unsigned char *x = malloc((size_t)n * size + 1);
  uint64_t state = (uint64_t)dtype * 77 + 1;
  assert_non_null(x);
  for (size_t i = 0; i < (size_t)n * size; i++) x[i] = (unsigned char)(int)(next_number(&state) * 127.0f + 128.0f);
  for (int64_t i = 0; i < n && dtype == SL_I64; i += 2) ((int64_t *)(void *)x)[i] %= 70000; /* small ones too */
  block *b = pair_block_shifted(p, (size_t)n * size, (size_t)shift * size);
  pair_put(p, b, x);
  free(x);
  return b;
}

static void test_cast(void **state) {
  (void)state;
  for (int from = 0; from < SL_DTYPE_COUNT; from++) {
    for (int to = 0; to < SL_DTYPE_COUNT; to++) {
      pair p = pair_open();
      for (size_t s = 0; s < LENGTH(sizes); s++) {
        for (int shift = 0; shift < 2; shift++) {
          block *x = special_elements(&p, (sl_dtype)from, sizes[s], shift);
          block *y = pair_block(&p, (size_t)sizes[s] * sl_dtype_size((sl_dtype)to));
          for (int side = 0; side < 2; side++) {
            sl_cast_args args = { AT(x, side), (sl_dtype)from, AT(y, side), (sl_dtype)to, sizes[s] };
            PAIR_RUN(&p, side, cast, &args);
          }
          pair_check_same(&p, sl_dtype_name((sl_dtype)to), y);
        }
      }
      pair_close(&p);
    }
  }
}

/* -- Unary -- */

static const char *const unary_names[] = {
#define X(id, name, f, df) name,
  SL_UNARY_LIST(X)
#undef X
};

/* powf and the tails of the normal distribution are the loosest of the library functions. */
static double unary_tolerance(int op) { return op == SL_UNARY_POW_SCALAR ? 4e-6 : 1e-6; }

static void check_unary(int op, int64_t n, int shift) {
  pair p = pair_open();
  block *x = special_floats(&p, n, 12, 5, shift), *y = pair_block_shifted(&p, (size_t)n * 4, (size_t)shift * 4);
  block *dy = pair_floats_shifted(&p, n, 1, 6, shift), *dx = pair_floats_shifted(&p, n, 1, 7, shift);
  block *fresh = pair_block_shifted(&p, (size_t)n * 4, (size_t)shift * 4);
  for (int side = 0; side < 2; side++) {
    sl_unary_args args = { (sl_unary_op)op, 2.5f, AT(x, side), AT(y, side), n };
    PAIR_RUN(&p, side, unary, &args);
  }
  pair_check_close(&p, unary_names[op], y, unary_tolerance(op));
  pair_put(&p, y, AT(y, PAIR_CPU)); /* the same y for both slopes */
  for (int side = 0; side < 2; side++) {
    sl_unary_backward_args args = { (sl_unary_op)op, 2.5f, AT(x, side), AT(y, side), AT(dy, side), AT(dx, side), n,
                                    true };
    PAIR_RUN(&p, side, unary_backward, &args);
    args.dx = AT(fresh, side);
    args.accumulate = false;
    PAIR_RUN(&p, side, unary_backward, &args);
  }
  pair_check_close(&p, unary_names[op], dx, 4e-6);
  pair_check_close(&p, unary_names[op], fresh, 4e-6);
  for (int side = 0; side < 2; side++) { /* in place */
    sl_unary_args args = { (sl_unary_op)op, -0.5f, AT(x, side), AT(x, side), n };
    PAIR_RUN(&p, side, unary, &args);
  }
  pair_check_close(&p, unary_names[op], x, unary_tolerance(op));
  pair_close(&p);
}

static void test_unary(void **state) {
  (void)state;
  for (int op = 0; op < SL_UNARY_COUNT; op++) {
    for (size_t s = 0; s < LENGTH(sizes); s++) check_unary(op, sizes[s], (int)(s % 4));
    check_unary(op, 1027, 0);
  }
}

/* Activations over their whole range, where cancellation would show. */
static void test_activation_tails(void **state) {
  (void)state;
  static const sl_unary_op ops[] = { SL_UNARY_EXP, SL_UNARY_GELU, SL_UNARY_GELU_TANH, SL_UNARY_TANH, SL_UNARY_SIGMOID };
  enum { n = 40000 };
  float *x = malloc(n * sizeof *x);
  for (int i = 0; i < n; i++) x[i] = (float)(i - n / 2) * 0.001f;
  for (size_t k = 0; k < LENGTH(ops); k++) {
    pair p = pair_open();
    block *in = pair_of(&p, x, n * sizeof *x), *y = pair_block(&p, n * sizeof *x);
    for (int side = 0; side < 2; side++)
      PAIR_RUN(&p, side, unary, (&(sl_unary_args){ ops[k], 0, AT(in, side), AT(y, side), n }));
    pair_check_close(&p, unary_names[ops[k]], y, 1e-6);
    const float *got = pair_fetch(&p, y), *want = AT(y, PAIR_CPU);
    for (int i = 0; i < n; i++) { /* and relative to the value in the lower tail */
      if (ops[k] == SL_UNARY_GELU_TANH || fabsf(x[i]) > 5) continue;
      if (fabsf(got[i] - want[i]) > 4e-6f * fabsf(want[i]) + 1e-38f)
        fail_msg("%s(%g): got %.9g, expected %.9g", unary_names[ops[k]], (double)x[i], (double)got[i], (double)want[i]);
    }
    pair_close(&p);
  }
  free(x);
}

/* -- Binary -- */

typedef struct {
  int rank;
  int64_t shape[4], a[4], b[4];
  int shift;
} binary_case;

static const binary_case binary_cases[] = {
  { 1, { 0 }, { 1 }, { 1 }, 0 },
  { 1, { 1 }, { 1 }, { 0 }, 0 },
  { 1, { 4099 }, { 1 }, { 1 }, 0 },
  { 1, { 4099 }, { 1 }, { 1 }, 1 },
  { 1, { 1030 }, { 0 }, { 1 }, 0 },
  { 1, { 1031 }, { 1 }, { 0 }, 2 },
  { 1, { 77 }, { 3 }, { 2 }, 0 },
  { 2, { 33, 64 }, { 64, 1 }, { 0, 1 }, 0 },   /* + bias */
  { 2, { 33, 64 }, { 64, 1 }, { 1, 0 }, 0 },   /* * column */
  { 2, { 33, 63 }, { 63, 1 }, { 0, 1 }, 0 },
  { 2, { 33, 64 }, { 1, 33 }, { 64, 1 }, 0 },  /* a transposed */
  { 2, { 5, 64 }, { 66, 1 }, { 64, 1 }, 0 },   /* rows that start unaligned */
  { 3, { 7, 3, 20 }, { 60, 20, 1 }, { 20, 0, 1 }, 0 },
  { 3, { 4, 5, 6 }, { 6, 0, 1 }, { 0, 6, 0 }, 1 },
  { 4, { 2, 3, 4, 8 }, { 96, 32, 8, 1 }, { 0, 8, 24, 1 }, 0 },
  { 4, { 2, 3, 1, 5 }, { 0, 5, 1000, 1 }, { 5, 10, 0, 1 }, 0 },
};

static void test_binary(void **state) {
  (void)state;
  for (size_t c = 0; c < LENGTH(binary_cases); c++) {
    const binary_case *k = &binary_cases[c];
    int64_t total = 1;
    for (int i = 0; i < k->rank; i++) total *= k->shape[i];
    for (int op = 0; op < SL_BINARY_COUNT; op++) {
      pair p = pair_open();
      block *a = special_floats(&p, 5000, 3, 1, k->shift), *b = special_floats(&p, 4999, 2, 2, k->shift);
      block *y = pair_block_shifted(&p, (size_t)total * 4, (size_t)k->shift * 4);
      for (int side = 0; side < 2; side++) {
        sl_binary_args args = {
          .op = (sl_binary_op)op, .rank = k->rank, .a = AT(a, side), .b = AT(b, side), .y = AT(y, side)
        };
        memcpy(args.shape, k->shape, sizeof k->shape);
        memcpy(args.strides_a, k->a, sizeof k->a);
        memcpy(args.strides_b, k->b, sizeof k->b);
        PAIR_RUN(&p, side, binary, &args);
      }
      pair_check_close(&p, "binary", y, 0);
      pair_close(&p);
    }
  }
}

/* -- Strided copies -- */

typedef struct {
  int rank;
  int64_t shape[5], strides[5];
} view_case;

static const view_case view_cases[] = {
  { 0, { 0 }, { 0 } },
  { 1, { 0 }, { 1 } },
  { 1, { 1 }, { 7 } },
  { 1, { 513 }, { 1 } },
  { 1, { 200 }, { 3 } },
  { 2, { 40, 33 }, { 1, 40 } },                      /* transposes */
  { 2, { 64, 64 }, { 1, 64 } },
  { 2, { 7, 100 }, { 1, 7 } },
  { 2, { 9, 8 }, { 1, 11 } },
  { 2, { 20, 16 }, { 24, 1 } },                      /* rows of a wider matrix: units of 8 elements */
  { 2, { 20, 15 }, { 25, 1 } },
  { 3, { 3, 33, 34 }, { 1200, 1, 33 } },
  { 3, { 33, 3, 40 }, { 1, 33, 99 } },
  { 4, { 2, 3, 5, 8 }, { 120, 8, 24, 1 } },          /* heads apart */
  { 5, { 2, 3, 2, 3, 4 }, { 72, 4, 36, 12, 1 } },
};

static size_t extent(const view_case *v) {
  int64_t last = 0;
  for (int i = 0; i < v->rank; i++) last += (v->shape[i] - 1) * v->strides[i];
  return last < 0 ? 0 : (size_t)last + 1;
}

static void check_view(const view_case *v, size_t size, size_t shift) {
  pair p = pair_open();
  size_t total = 1;
  for (int i = 0; i < v->rank; i++) total *= (size_t)v->shape[i];
  unsigned char *bytes = malloc((extent(v) + total) * size + 1);
  for (size_t i = 0; i < (extent(v) + total) * size; i++) bytes[i] = (unsigned char)(i * 131 + i / 251);
  block *strided = pair_block_shifted(&p, extent(v) * size, shift * size), *packed = pair_block(&p, total * size);
  block *back = pair_block_shifted(&p, extent(v) * size, shift * size);
  pair_put(&p, strided, bytes);
  pair_put(&p, back, bytes + total * size);
  for (int side = 0; side < 2; side++) {
    sl_gather_strided_args args = {
      .rank = v->rank, .x = AT(strided, side), .y = AT(packed, side), .element_size = size
    };
    sl_scatter_strided_args inverse = {
      .rank = v->rank, .x = AT(packed, side), .y = AT(back, side),
      .dtype = size == 1 ? SL_U8 : size == 2 ? SL_BF16 : size == 4 ? SL_F32 : SL_I64
    };
    memcpy(args.shape, v->shape, sizeof v->shape);
    memcpy(args.strides, v->strides, sizeof v->strides);
    memcpy(inverse.shape, v->shape, sizeof v->shape);
    memcpy(inverse.strides, v->strides, sizeof v->strides);
    PAIR_RUN(&p, side, gather_strided, &args);
    PAIR_RUN(&p, side, scatter_strided, &inverse);
  }
  pair_check_same(&p, "gather_strided", packed);
  pair_check_same(&p, "scatter_strided", back);
  pair_close(&p);
  free(bytes);
}

static void test_views(void **state) {
  (void)state;
  for (size_t c = 0; c < LENGTH(view_cases); c++)
    for (size_t size = 1; size <= 8; size *= 2)
      for (size_t shift = 0; shift < 2; shift++) check_view(&view_cases[c], size, shift);
}

static void test_scatter_sums(void **state) {
  (void)state;
  static const view_case cases[] = {
    { 1, { 100 }, { 1 } },
    { 1, { 0 }, { 1 } },
    { 1, { 5000 }, { 0 } },                          /* everything into one */
    { 2, { 70, 33 }, { 0, 1 } },
    { 2, { 33, 300 }, { 1, 0 } },
    { 2, { 1500, 40 }, { 1, 0 } },
    { 3, { 4, 50, 6 }, { 0, 6, 1 } },
    { 3, { 40, 5, 60 }, { 0, 1, 0 } },
    { 3, { 6, 7, 8 }, { 8, 0, 1 } },
    { 4, { 3, 2, 4, 5 }, { 0, 4, 1, 0 } },
  };
  for (size_t c = 0; c < LENGTH(cases); c++) {
    pair p = pair_open();
    int64_t total = 1;
    for (int i = 0; i < cases[c].rank; i++) total *= cases[c].shape[i];
    block *x = pair_floats(&p, total, 1, c), *y = pair_floats(&p, (int64_t)extent(&cases[c]), 1, 50 + c);
    for (int side = 0; side < 2; side++) {
      sl_scatter_strided_args args = { .rank = cases[c].rank, .x = AT(x, side), .y = AT(y, side), .dtype = SL_F32,
                                       .accumulate = true };
      memcpy(args.shape, cases[c].shape, sizeof cases[c].shape);
      memcpy(args.strides, cases[c].strides, sizeof cases[c].strides);
      PAIR_RUN(&p, side, scatter_strided, &args);
    }
    pair_check_close(&p, "scatter_strided, adding", y, 5e-6); /* the CPU adds some in float32 */
    pair_close(&p);
  }
}

/* -- Random numbers -- */

static void test_random(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    for (int kind = SL_RANDOM_UNIFORM; kind <= SL_RANDOM_INT; kind++) {
      pair p = pair_open();
      block *y = pair_block(&p, (size_t)sizes[s] * 4);
      for (int side = 0; side < 2; side++) {
        sl_random_args args = { .kind = (sl_random_kind)kind, .seed = 0x123456789abcdef0u, .stream = 7,
                                .step = 0x500000003u, .low = -0.3f, .high = 1.7f, .bound = 30522, .y = AT(y, side),
                                .n = sizes[s] };
        PAIR_RUN(&p, side, random, &args);
      }
      /* Words are the same bits everywhere; a logarithm and a cosine in float64 are not, quite. */
      if (kind == SL_RANDOM_NORMAL) pair_check_close(&p, "normal", y, 2e-7);
      else pair_check_same(&p, kind == SL_RANDOM_INT ? "int" : "uniform", y);
      pair_close(&p);
    }
  }
}

/* -- Optimisers -- */

static void check_adam(int64_t n, int shift, float decay, float l2) {
  pair p = pair_open();
  block *w = pair_floats_shifted(&p, n, 1, 1, shift), *g = pair_floats_shifted(&p, n, 0.1f, 2, shift);
  float *zeros = make_numbers(n, 0, 0);
  block *m = pair_block_shifted(&p, (size_t)n * 4, (size_t)shift * 4), *v = pair_block(&p, (size_t)n * 4);
  pair_put(&p, m, zeros);
  pair_put(&p, v, zeros);
  for (int side = 0; side < 2; side++) {
    for (int64_t step = 1; step <= 3; step++) {
      sl_adam_dense_args args = { .w = AT(w, side), .m = AT(m, side), .v = AT(v, side), .g = AT(g, side), .n = n,
                                  .lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = decay,
                                  .l2 = l2, .grad_scale = 0.7f, .step = step };
      PAIR_RUN(&p, side, adam_dense, &args);
    }
  }
  pair_check_close(&p, "adam w", w, 2e-6);
  pair_check_close(&p, "adam m", m, 1e-6);
  pair_check_close(&p, "adam v", v, 1e-6);
  free(zeros);
  pair_close(&p);
}

static void check_sgd(int64_t n, int shift, bool with_momentum) {
  pair p = pair_open();
  block *w = pair_floats_shifted(&p, n, 1, 1, shift), *g = pair_floats_shifted(&p, n, 0.1f, 2, shift);
  block *v = pair_floats(&p, n, 0.1f, 3);
  for (int side = 0; side < 2; side++) {
    sl_sgd_dense_args args = { .w = AT(w, side), .v = with_momentum ? AT(v, side) : NULL, .g = AT(g, side), .n = n,
                               .lr = 0.1f, .momentum = with_momentum ? 0.9f : 0, .weight_decay = 0.01f,
                               .grad_scale = 2 };
    PAIR_RUN(&p, side, sgd_dense, &args);
  }
  pair_check_close(&p, "sgd w", w, 1e-6);
  pair_check_close(&p, "sgd v", v, 1e-6);
  pair_close(&p);
}

static void test_optimisers(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    for (int shift = 0; shift < 2; shift++) {
      check_adam(sizes[s], shift, 0, 0.02f);
      check_adam(sizes[s], shift, 0.1f, 0);
      check_sgd(sizes[s], shift, false);
      check_sgd(sizes[s], shift, true);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cast),         cmocka_unit_test(test_unary),
    cmocka_unit_test(test_activation_tails), cmocka_unit_test(test_binary),
    cmocka_unit_test(test_views),        cmocka_unit_test(test_scatter_sums),
    cmocka_unit_test(test_random),       cmocka_unit_test(test_optimisers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
