#!/bin/sh
# ./dev gpu-check: builds for the GPU that is here, holds every CUDA kernel against the CPU's, runs compute-sanitizer
# over them, measures, and writes gpu-check.json; a short table comes last.
#
# Needs nvcc, CMake and a C compiler and nothing else: no network, LuaJIT, oneDNN or cmocka. Where there is no GPU it
# builds and links for sm_80 and sm_90, says that nothing was run, and ends with status 3 (0 with --build-only).
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
prefix='' build_only='' parts='parity sanitize bench' grid=default json=$root/gpu-check.json seconds=120 bench_seconds=240
peers=''

usage() {
  cat <<'TEXT'
usage: ./dev gpu-check [OPTIONS]

  --prefix DIR       find tools and libraries (cmake, oneDNN, cmocka, compute-sanitizer) under DIR too
  --build-only       configure, build and link, run nothing
  --only PART        one of parity, sanitize, bench; may be repeated
  --grid NAME        cells that are measured: quick, default, full (default: default)
  --bench-limit S    seconds for the grid (240); cells that do not fit are named
  --limit S          seconds for one program under compute-sanitizer (120)
  --peers            also the Python packages that are here (tests/bench/peers.py --device cuda)
  --json FILE        where the results go (gpu-check.json)
TEXT
}

die() { echo "gpu-check: $*" >&2; exit 1; }

only=''
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --only | --grid | --bench-limit | --limit | --json)
      [ $# -ge 2 ] || die "$1 wants a value" ;;
  esac
  case $1 in
    --prefix) prefix=$2; shift ;;
    --only) only="$only $2"; shift ;;
    --grid) grid=$2; shift ;;
    --bench-limit) bench_seconds=$2; shift ;;
    --limit) seconds=$2; shift ;;
    --json) json=$2; shift ;;
    --build-only) build_only=1 ;;
    --peers) peers=1 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
parts=${only:-$parts}
for part in $parts; do
  case $part in parity | sanitize | bench) ;; *) die "no part '$part'; there are parity, sanitize, bench" ;; esac
done
wants() { case " $parts " in *" $1 "*) return 0 ;; esac; return 1; }

# -- Tools and device ----------------------------------------------------------------------------------------------

[ -z "$prefix" ] || PATH=$prefix/bin:$PATH
for place in "${CUDA_PATH:-}" "${CUDA_HOME:-}" /usr/local/cuda; do
  [ -z "$place" ] || PATH=$PATH:$place/bin:$place/compute-sanitizer
done
export PATH
command -v cmake >/dev/null 2>&1 || die "no cmake here; give its folder with --prefix DIR (DIR/bin/cmake)"
command -v nvcc >/dev/null 2>&1 || die "no nvcc here; set CUDA_PATH or give --prefix DIR (DIR/bin/nvcc)"
command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || die "no C compiler here"
sanitizer=$(command -v compute-sanitizer 2>/dev/null || true)

query() { nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits -i 0 2>/dev/null | head -n 1; }
device='' capability='' driver='' memory=''
if command -v nvidia-smi >/dev/null 2>&1 && capability=$(query compute_cap) && [ -n "$capability" ]; then
  device=$(query name) driver=$(query driver_version) memory=$(query memory.total)
  arch="$(echo "$capability" | tr -d .)-real"
else
  capability=''
  arch='80-real;90-real;90-virtual'
fi
cuda=$(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
compiler=$( (cc --version 2>/dev/null || gcc --version) | head -n 1)
revision=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ -n "$device" ]; then
  echo "gpu-check: $device (compute capability $capability, $memory MiB, driver $driver), CUDA $cuda; building for $arch"
else
  echo "gpu-check: NO GPU HERE (nvidia-smi names none): building for sm_80 and sm_90, nothing can be run"
fi

# -- Build ---------------------------------------------------------------------------------------------------------

dir=${SAELUA_GPU_CHECK_DIR:-$root/build/gpu-check}
log=$dir/logs
mkdir -p "$log"
if [ -f "$dir/CMakeCache.txt" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$dir/CMakeCache.txt"; then
  rm -rf "$dir" && mkdir -p "$log"
fi
generator=
if [ ! -f "$dir/CMakeCache.txt" ] && command -v ninja >/dev/null 2>&1; then generator=-GNinja; fi
cores=$(nproc 2>/dev/null || echo 2)
start=$(date +%s)
cmake -S "$root" -B "$dir" $generator -DSAELUA_BARE=ON -DSAELUA_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$arch" \
  -DCMAKE_BUILD_TYPE=Release ${prefix:+"-DCMAKE_PREFIX_PATH=$prefix"} >"$log/configure.log" 2>&1 ||
  { tail -n 40 "$log/configure.log" >&2; die "could not configure; all of it: $log/configure.log"; }
cmake --build "$dir" --target gpu_check -j "$cores" >"$log/build.log" 2>&1 ||
  { grep -n -i -A6 -E 'error|undefined reference|FAILED' "$log/build.log" | head -n 60 >&2; die "the build failed; all of it: $log/build.log"; }
built=$(($(date +%s) - start))
tests=$(cat "$dir/gpu_tests.txt")
echo "gpu-check: built in $built s: $(echo "$tests" | wc -w) test programs, sae_step_bench, model_bench"

# -- Results: one line of JSON and one of the table for each thing that was run --------------------------------------

rows=$dir/rows.json
table=$dir/table.txt
: >"$rows"
: >"$table"
failures=0 passed=0 skipped=0

# result PART NAME OUTCOME TEXT: OUTCOME is passed, failed or skipped
result() {
  case $3 in passed) passed=$((passed + 1)) ;; failed) failures=$((failures + 1)) ;; *) skipped=$((skipped + 1)) ;; esac
  [ ! -s "$rows" ] || printf ',\n' >>"$rows"
  printf '  {"part": "%s", "name": "%s", "outcome": "%s", "text": "%s"}' "$1" "$2" "$3" \
    "$(printf '%s' "$4" | tr '\n\t' '  ' | sed 's/[\\"]/\\&/g')" >>"$rows"
  printf '%-10s %-34s %-8s %s\n' "$1" "$2" "$3" "$4" >>"$table"
  [ "$3" = passed ] || printf '%-10s %-34s %-8s %s\n' "$1" "$2" "$3" "$4"
}

# count WORD FILE: lines of cmocka's "[ WORD ]", without those of its summary
count() { sed -n '/\] .*(s)\.$/!p' "$2" | grep -c "^\[ *$1 *\]" || true; }

run_parity() {
  for name in $tests; do
    file=$log/$name.log
    status=0
    SAELUA_REQUIRE_CUDA=1 timeout "$seconds" "$dir/$name" >"$file" 2>&1 || status=$?
    ok=$(count OK "$file") left=$(count SKIPPED "$file")
    if [ "$status" -ne 0 ]; then
      result parity "$name" failed "status $status after $ok tests: $(grep -v '^\[' "$file" | head -n 2 | tr '\n' ' ')"
    elif [ "$ok" -eq 0 ]; then
      result parity "$name" failed "no test ran"
    else
      result parity "$name" passed "$ok tests$([ "$left" -eq 0 ] || echo ", $left skipped")"
    fi
  done
}

run_sanitizer() {
  tool=$1
  if [ -z "$sanitizer" ]; then
    result "$tool" all skipped "compute-sanitizer is not here"
    return
  fi
  for name in $tests; do
    file=$log/$name.$tool.log
    status=0
    SAELUA_REQUIRE_CUDA=1 timeout "$seconds" "$sanitizer" --tool "$tool" --error-exitcode 99 "$dir/$name" \
      >"$file" 2>&1 || status=$?
    if grep -q 'Device not supported' "$file"; then
      result "$tool" "$name" skipped "compute-sanitizer refuses this device"
    elif [ "$status" -eq 124 ]; then
      result "$tool" "$name" failed "not done after $seconds s (--limit)"
    elif [ "$status" -ne 0 ]; then
      result "$tool" "$name" failed "status $status: $(grep -m 1 -E 'Invalid|Race|hazard|ERROR SUMMARY' "$file" || true)"
    else
      result "$tool" "$name" passed "$(sed -n 's/^========= \(.*SUMMARY.*\)/\1/p' "$file" | head -n 1)"
    fi
  done
}

model_json=null job_json=null grid_json='[]' peers_json=null
# measured NAME FILE COMMAND...: a program that prints one JSON object
measured() {
  name=$1 file=$2
  shift 2
  if timeout 300 "$@" >"$file" 2>"$file.err"; then
    result bench "$name" passed "$(sed -n 's/.*"\(ratio\|tokens_per_s\)": \([0-9.]*\).*/\1 \2/p' "$file")"
    return 0
  fi
  result bench "$name" failed "$(tail -n 1 "$file.err")"
  return 1
}

run_bench() {
  if timeout $((bench_seconds + 60)) "$dir/sae_step_bench" --device cuda --grid "$grid" --limit "$bench_seconds" \
    --json "$dir/grid.json" >"$log/grid.txt" 2>&1; then
    result bench "step, grid $grid" passed "$(grep -c '"step_ms"' "$dir/grid.json") cells, table below"
  else
    result bench "step, grid $grid" failed "$(grep -m 1 -E 'FAILED|SL_E|error' "$log/grid.txt" || tail -n 1 "$log/grid.txt")"
  fi
  [ ! -s "$dir/grid.json" ] || grid_json=$(cat "$dir/grid.json")
  if measured "model forward, bf16 / products" "$dir/model.json" \
    "$dir/model_bench" --device cuda --dtype bf16 --batch 64 --json; then
    model_json=$(cat "$dir/model.json")
  fi
  if measured "whole job, bf16" "$dir/job.json" \
    "$dir/model_bench" --device cuda --dtype bf16 --sae-dtype bf16 --layers 6 --batch 64 --job --json; then
    job_json=$(cat "$dir/job.json")
  fi
  [ -n "$peers" ] || return 0
  if SAELUA_BENCH_DIR=$dir timeout 900 python3 "$root/tests/bench/peers.py" --device cuda --json "$dir/peers.json" \
    >"$log/peers.txt" 2>&1; then
    result bench peers passed "table below"
  else
    result bench peers failed "$(tail -n 1 "$log/peers.txt")"
  fi
  [ ! -s "$dir/peers.json" ] || peers_json=$(cat "$dir/peers.json")
}

ran=false
if [ -n "$device" ] && [ -z "$build_only" ]; then
  ran=true
  [ -n "$tests" ] || result parity all failed "no CUDA tests were found"
  if wants parity; then run_parity; fi
  if wants sanitize; then
    run_sanitizer memcheck
    run_sanitizer racecheck
  fi
  if wants bench; then run_bench; fi
fi

quoted() { [ -z "$1" ] && printf null || printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g')"; }
{
  printf '{"date": "%s", "revision": "%s", "ran": %s, "build_seconds": %s,\n' "$(date -u +%Y-%m-%d)" "$revision" "$ran" "$built"
  printf ' "device": %s, "compute_capability": %s, "driver": %s, "memory_mib": %s, "cuda": "%s", "compiler": %s,\n' \
    "$(quoted "$device")" "$(quoted "$capability")" "$(quoted "$driver")" "$(quoted "$memory")" "$cuda" "$(quoted "$compiler")"
  printf ' "passed": %s, "failed": %s, "skipped": %s,\n "results": [\n' "$passed" "$failures" "$skipped"
  cat "$rows"
  printf '\n ],\n "model": %s,\n "job": %s,\n "grid": %s,\n "peers": %s}\n' "$model_json" "$job_json" "$grid_json" "$peers_json"
} >"$json"

if [ "$ran" = true ]; then
  echo
  cat "$table"
  if wants bench; then
    echo && cat "$log/grid.txt"
    [ -z "$peers" ] || { echo && cat "$log/peers.txt"; }
  fi
  echo
  echo "gpu-check: $passed passed, $failures failed, $skipped skipped on $device; $json"
  [ "$failures" -eq 0 ]
else
  echo "gpu-check: built and linked for $arch; nothing was run on a GPU; $json"
  [ -n "$build_only" ] || exit 3
fi
