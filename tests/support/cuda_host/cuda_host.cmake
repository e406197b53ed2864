# CUDA sources as C++ programs that run on the CPU (README.md beside this file). Included by tests/CMakeLists.txt.
#
#   add_cuda_host_library(<name> [VARIANT plain|asan|tsan] SOURCES <.cu and .cpp files>)
#     a static library of these sources and the layer, for C programs of this build: target_link_libraries(test <name>)
#   add_cuda_host_program(<name> VARIANT <v> SOURCES <files> [LINK <libraries and flags>])
#     a program <build>/cuda_host/<name>, compiled and linked by the variant's own compiler
#
# Without VARIANT a library follows SAELUA_SANITIZE, compiled by the C compiler's sibling. The compilers are called by
# hand: each variant has its own (README.md says why), and CMake knows one per language. SAELUA_HAS_CUDA_HOST says
# whether any of this exists.
set(SAELUA_HAS_CUDA_HOST FALSE)
find_path(CUDA_HOST_INCLUDE cuda_bf16.h HINTS ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include)
find_program(CUDA_HOST_CLANG NAMES clang++ clang++-14 clang++-15 clang++-16)
find_program(CUDA_HOST_GCC NAMES g++-12 g++)
if(NOT CUDA_HOST_INCLUDE OR NOT (CUDA_HOST_CLANG OR CUDA_HOST_GCC))
  message(STATUS "CUDA kernels are not tested on the CPU: needs the toolkit's headers (${CUDA_HOST_INCLUDE}) and a C++ "
                 "compiler (${CUDA_HOST_CLANG}, ${CUDA_HOST_GCC})")
  return()
endif()
set(SAELUA_HAS_CUDA_HOST TRUE)
set(CUDA_HOST_DIR ${CMAKE_CURRENT_LIST_DIR})
set(CUDA_HOST_LAYER fiber.cpp block.cpp warp.cpp memory.cpp copy.cpp stream.cpp graph.cpp runtime.cpp)
list(TRANSFORM CUDA_HOST_LAYER PREPEND ${CUDA_HOST_DIR}/)

set(CUDA_HOST_FLAGS -std=c++17 -g -fPIC -Wall -Wextra -Wno-unused-function -Wno-unknown-pragmas
  -isystem ${CUDA_HOST_INCLUDE} -I${CUDA_HOST_DIR} -I${CMAKE_SOURCE_DIR} -I${CMAKE_SOURCE_DIR}/tests)
set(CUDA_HOST_KERNEL_FLAGS -DSLK_CUDA_HOST -x c++ -include ${CUDA_HOST_DIR}/cuda_host.h)
set(cuda_host_ub -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)

# Compiler, flags of kernels and tests, flags of the layer, flags of the linker. Optimisation stays at -O1 for kernels:
# it keeps fused multiply-adds and vectorised sums out, and sanitizer reports readable.
if(CUDA_HOST_CLANG)
  set(cuda_host_first ${CUDA_HOST_CLANG})
else()
  set(cuda_host_first ${CUDA_HOST_GCC})
endif()
set(CUDA_HOST_plain ${cuda_host_first} -O1)
set(CUDA_HOST_plain_layer -O2)
set(CUDA_HOST_asan ${cuda_host_first} -O1 ${cuda_host_ub})
set(CUDA_HOST_asan_layer -O1 ${cuda_host_ub})
set(CUDA_HOST_asan_link ${cuda_host_ub})
set(CUDA_HOST_tsan ${CUDA_HOST_GCC} -O1 -fsanitize=thread)
set(CUDA_HOST_tsan_layer -O2 -DCUDA_HOST_TSAN)
set(CUDA_HOST_tsan_link -fsanitize=thread)
set(CUDA_HOST_build ${cuda_host_first} -O1)
set(CUDA_HOST_build_layer -O2)
if(SAELUA_SANITIZE)
  if(CMAKE_C_COMPILER_ID MATCHES Clang)
    set(CUDA_HOST_build ${CUDA_HOST_CLANG})
  else()
    set(CUDA_HOST_build ${CUDA_HOST_GCC})
  endif()
  set(cuda_host_own -fsanitize=${SAELUA_SANITIZE} -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  list(APPEND CUDA_HOST_build -O1 ${cuda_host_own})
  set(CUDA_HOST_build_layer -O1 ${cuda_host_own})
endif()

# One object file; `extra`: further flags.
function(cuda_host_object out variant source extra)
  get_filename_component(base ${source} NAME)
  string(SHA1 key "${source}")
  string(SUBSTRING ${key} 0 8 key)
  set(object ${CMAKE_BINARY_DIR}/cuda_host/${variant}/${base}.${key}.o)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda_host/${variant})
  list(GET CUDA_HOST_${variant} 0 compiler)
  if(NOT TARGET cuda_host_object_${variant}_${key})
    add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d VERBATIM
      COMMAND ${compiler} ${CUDA_HOST_FLAGS} ${extra} -MD -MF ${object}.d -MT ${object} -c ${source} -o ${object}
      COMMENT "Compiling ${base} for the CPU (${variant})")
    # A target of its own, so that several programs may share the object.
    add_custom_target(cuda_host_object_${variant}_${key} DEPENDS ${object})
  endif()
  set(${out} ${object} PARENT_SCOPE)
endfunction()

# The objects of sources and layer.
function(cuda_host_objects out variant)
  set(objects)
  set(kernel_flags ${CUDA_HOST_${variant}})
  list(REMOVE_AT kernel_flags 0)
  foreach(source ${CUDA_HOST_LAYER})
    cuda_host_object(object ${variant} ${source} "${CUDA_HOST_${variant}_layer}")
    list(APPEND objects ${object})
  endforeach()
  foreach(source ${ARGN})
    cuda_host_object(object ${variant} ${source} "${kernel_flags};${CUDA_HOST_KERNEL_FLAGS}")
    list(APPEND objects ${object})
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

function(cuda_host_depend name variant)
  foreach(source ${ARGN})
    string(SHA1 key "${source}")
    string(SUBSTRING ${key} 0 8 key)
    add_dependencies(${name} cuda_host_object_${variant}_${key})
  endforeach()
endfunction()

function(add_cuda_host_library name)
  cmake_parse_arguments(arg "" "VARIANT" "SOURCES" ${ARGN})
  if(NOT arg_VARIANT)
    set(arg_VARIANT build)
  endif()
  cuda_host_objects(objects ${arg_VARIANT} ${arg_SOURCES})
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_library(${name} STATIC ${objects})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C)
  find_package(Threads REQUIRED)
  target_link_libraries(${name} INTERFACE stdc++ m Threads::Threads)
  target_include_directories(${name} SYSTEM INTERFACE ${CUDA_HOST_INCLUDE})
  target_include_directories(${name} INTERFACE ${CUDA_HOST_DIR})
  cuda_host_depend(${name} ${arg_VARIANT} ${CUDA_HOST_LAYER} ${arg_SOURCES})
endfunction()

function(add_cuda_host_program name)
  cmake_parse_arguments(arg "" "VARIANT" "SOURCES;LINK" ${ARGN})
  cuda_host_objects(objects ${arg_VARIANT} ${arg_SOURCES})
  list(GET CUDA_HOST_${arg_VARIANT} 0 compiler)
  set(program ${CMAKE_BINARY_DIR}/cuda_host/${name})
  add_custom_command(OUTPUT ${program} DEPENDS ${objects} VERBATIM COMMAND_EXPAND_LISTS
    COMMAND ${compiler} ${CUDA_HOST_${arg_VARIANT}_link} -o ${program} ${objects} ${arg_LINK} -lm -pthread)
  add_custom_target(${name} ALL DEPENDS ${program})
  cuda_host_depend(${name} ${arg_VARIANT} ${CUDA_HOST_LAYER} ${arg_SOURCES})
endfunction()

# The layer's own test, in every variant that this machine can build, whatever the build around it.
set(cuda_host_variants plain asan)
if(CUDA_HOST_GCC AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|aarch64")
  list(APPEND cuda_host_variants tsan)
endif()
foreach(variant ${cuda_host_variants})
  add_cuda_host_program(test_cuda_host_${variant} VARIANT ${variant}
    SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/test_cuda_host.cpp LINK ${CMOCKA_LINK_LIBRARIES})
  saelua_test(unit.test_cuda_host.${variant} unit ${CMAKE_BINARY_DIR}/cuda_host/test_cuda_host_${variant})
endforeach()
