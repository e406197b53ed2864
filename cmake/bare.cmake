# The bare build (SAELUA_BARE): what a machine with a C compiler, CMake and nvcc alone can check. One program for each
# CUDA unit test (tests/unit/test_cuda_*), and the benches. `./dev gpu-check` builds the target gpu_check and runs it
# all; CTest is not used, because compute-sanitizer wants the programs themselves.
add_custom_target(gpu_check)
add_dependencies(gpu_check benches)

# Debian's cmocka where it is installed, else the few macros that the tests use.
find_path(CMOCKA_INCLUDE_DIR cmocka.h)
find_library(CMOCKA_LIBRARY cmocka)
if(SAELUA_BARE_CMOCKA STREQUAL "own" OR NOT CMOCKA_INCLUDE_DIR OR NOT CMOCKA_LIBRARY)
  message(STATUS "cmocka: not found, tests/support/small_cmocka stands in")
  set(CMOCKA_INCLUDE_DIR ${CMAKE_SOURCE_DIR}/tests/support/small_cmocka)
  set(CMOCKA_LIBRARY "")
endif()

file(GLOB CUDA_TESTS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/unit/test_cuda_*.c)
set(CUDA_TEST_NAMES "")
foreach(source ${CUDA_TESTS})
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} EXCLUDE_FROM_ALL ${source})
  target_link_libraries(${name} PRIVATE saelua_core ${CMOCKA_LIBRARY})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests ${CMOCKA_INCLUDE_DIR})
  target_compile_options(${name} PRIVATE -UNDEBUG)
  add_dependencies(gpu_check ${name})
  string(APPEND CUDA_TEST_NAMES "${name}\n")
endforeach()
# Which programs to run.
file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/gpu_tests.txt CONTENT "${CUDA_TEST_NAMES}")
