# What can be tested of ./dev gpu-check without a GPU or nvcc: its script with pretended tools, the stand-in for cmocka.
# (The plain matrix product is unit/test_gemm_plain.c.) That everything compiles and links for sm_80 and sm_90 is seen
# by `./dev gpu-check --build-only`, minutes on two cores, so not part of ./dev test.
add_executable(small_cmocka_test gpu/small_cmocka_test.c)
target_include_directories(small_cmocka_test PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/support/small_cmocka)
target_link_libraries(small_cmocka_test PRIVATE saelua_flags m)
saelua_test(unit.small_cmocka unit small_cmocka_test)
saelua_test(unit.gpu_check unit sh tests/gpu/check_test.sh)
