# The CUDA backend. SAELUA_CUDA: AUTO builds it where a toolkit (nvcc) is found and no sanitizer, coverage or fuzz
# build is asked for; ON insists; OFF leaves it out, and kernels/cuda_absent.c answers in its place.
#
# After this file SAELUA_HAS_CUDA says what was decided, and saelua_cuda exists where it is true. The program gains no
# shared library: cudart is linked statically and opens the driver when a device is first asked for, cuBLASLt is opened
# at the first product.
set(SAELUA_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set_property(CACHE SAELUA_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SAELUA_HAS_CUDA FALSE)

if(SAELUA_CUDA STREQUAL "AUTO" AND (SAELUA_SANITIZE OR SAELUA_FUZZ OR CMAKE_C_FLAGS MATCHES "--coverage"))
  message(STATUS "CUDA: left out of an instrumented build (SAELUA_CUDA=ON insists)")
  return()
elseif(NOT SAELUA_CUDA)
  message(STATUS "CUDA: off (SAELUA_CUDA=${SAELUA_CUDA})")
  return()
endif()

find_program(NVCC nvcc HINTS ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NOT NVCC)
  if(NOT SAELUA_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "SAELUA_CUDA=ON, but no nvcc was found: put it on the PATH or set CUDA_PATH")
  endif()
  message(STATUS "CUDA: no toolkit (nvcc) found, this build is CPU only")
  return()
endif()

# nvcc without a C++ compiler that it accepts is no toolkit either.
include(CheckLanguage)
set(ENV{CUDACXX} ${NVCC})
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NOT SAELUA_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "SAELUA_CUDA=ON, but ${NVCC} does not compile (it needs a C++ compiler that it supports)")
  endif()
  message(STATUS "CUDA: ${NVCC} does not compile here, this build is CPU only")
  return()
endif()
# A100 and H100/H200 as machine code; what comes later compiles the PTX.
set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING "GPU architectures to build for")
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(SAELUA_HAS_CUDA TRUE)
message(STATUS "CUDA: ${NVCC} ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)
add_library(saelua_cuda OBJECT ${CUDA_SOURCES})
set_target_properties(saelua_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_SEPARABLE_COMPILATION OFF POSITION_INDEPENDENT_CODE ON)
target_include_directories(saelua_cuda PRIVATE ${CMAKE_SOURCE_DIR})
# The toolkit's headers are system headers to the host compiler; -Wconversion would still see the code that nvcc
# generates around each kernel.
target_compile_options(saelua_cuda PRIVATE
  -Xcompiler=-Wall,-Wextra,-Werror,-Wno-unused-function -Werror=all-warnings -Xfatbin=-compress-all --threads=2
  --expt-relaxed-constexpr -diag-suppress=177)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O2 -g -lineinfo")

# What a C link needs for it.
get_filename_component(cuda_root ${NVCC} REALPATH)
get_filename_component(cuda_root ${cuda_root}/../.. ABSOLUTE)
find_library(CUDART_STATIC cudart_static REQUIRED
  HINTS ${cuda_root} PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib targets/sbsa-linux/lib)
find_package(Threads REQUIRED)
