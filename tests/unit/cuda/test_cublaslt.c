/* The cuBLASLt that builds with CUDA open at run time has every function that they call. Needs the library, no GPU. */
#include "tests/support/numbers.h"

sl_status slk_lib_gemm_open(void); /* kernels/cuda/lib.h, which is C++ */

static void test_every_function_is_there(void **state) {
  (void)state;
  sl_status status = slk_lib_gemm_open();
  if (status == SL_EUNSUPPORTED && strstr(sl_last_error(), "was not found") != NULL) skip();
  CHECK(status);
  CHECK(slk_lib_gemm_open());
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_function_is_there) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
