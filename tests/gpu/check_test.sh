#!/bin/sh
# What tests/gpu/check.sh makes of what it finds, with tools that only pretend: a passing, a failing and a skipping test
# program, a sanitizer that finds a race, benches that print a result. Checks exit status, table and JSON. Real devices
# are for ./dev gpu-check itself. Needs $SAELUA_BIN to read JSON.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
build=$work/build

# tool NAME: a program with this name, its text on standard input
tool() { { echo '#!/bin/sh' && cat; } >"$work/bin/$1" && chmod +x "$work/bin/$1"; }
tool nvcc <<'X'
echo "Cuda compilation tools, release 13.0, V13.0.88"
X
tool nvidia-smi <<'X'
[ -z "${NO_GPU:-}" ] || exit 9
case $1 in
  *compute_cap) echo 9.0 ;; *name) echo 'Pretended "GPU"' ;; *driver_version) echo 580.1 ;; *memory.total) echo 1000 ;;
esac
X
# Configures and builds: the programs are scripts.
tool cmake <<'X'
case $1 in
  -S)
    while [ $# -gt 0 ]; do [ "$1" != -B ] || dir=$2; echo "$1" >>"$ARGUMENTS"; shift; done
    printf 'test_cuda_one\ntest_cuda_two\n' >"$dir/gpu_tests.txt" ;;
  --build)
    for name in one two; do
      { echo '#!/bin/sh'; echo 'echo "[       OK ] first" >&2; echo "[  SKIPPED ] second" >&2'; } >"$2/test_cuda_$name"
      chmod +x "$2/test_cuda_$name"
    done
    [ -z "${BROKEN:-}" ] || { echo 'echo "  wrong by 1" >&2; exit 1' >>"$2/test_cuda_two"; }
    printf '#!/bin/sh\necho "a table"; while [ $# -gt 1 ]; do shift; done; echo "[{\\"step_ms\\": 1}]" >"$1"\n' >"$2/sae_step_bench"
    printf '#!/bin/sh\necho "{\\"ratio\\": 1.25}"\n' >"$2/model_bench"
    chmod +x "$2/sae_step_bench" "$2/model_bench" ;;
esac
X
tool compute-sanitizer <<'X'
echo "========= ERROR SUMMARY: 0 errors"
[ "$2" != racecheck ] || [ -z "${RACE:-}" ] || { echo "========= Error: Race reported"; exit 99; }
X

# expect STATUS NAME [VARIABLE=VALUE...] [-- ARGUMENTS...]
expect() {
  want=$1 name=$2
  shift 2
  settings=''
  while [ $# -gt 0 ] && [ "$1" != -- ]; do settings="$settings $1"; shift; done
  [ $# -eq 0 ] || shift
  status=0
  # shellcheck disable=SC2086 # settings are words
  env PATH="$work/bin:$PATH" ARGUMENTS="$work/arguments" SAELUA_GPU_CHECK_DIR="$build" $settings \
    sh "$root/tests/gpu/check.sh" --json "$work/out.json" "$@" >"$work/out.txt" 2>&1 || status=$?
  if [ "$status" -ne "$want" ]; then
    echo "$name: status $status, expected $want"
    cat "$work/out.txt"
    exit 1
  fi
}
# holds NAME LUA: an expression about the JSON `r`
holds() {
  "$SAELUA_BIN" -e "local f = assert(io.open('$work/out.json')); local r = require('saelua').json.decode(f:read('*a'))
    if not ($2) then io.stderr:write([[$1: $2]], '\n') os.exit(1) end" || { cat "$work/out.json"; exit 1; }
}

expect 0 "all is well"
holds "all is well" "r.ran and r.passed == 9 and r.failed == 0 and r.device == 'Pretended \"GPU\"'"
holds "all is well" "r.model.ratio == 1.25 and r.grid[1].step_ms == 1 and #r.results == 9"
grep -q -- '-DCMAKE_CUDA_ARCHITECTURES=90-real' "$work/arguments" || { echo "not built for the device"; exit 1; }
tail -n 1 "$work/out.txt" | grep -q '9 passed, 0 failed' || { cat "$work/out.txt"; exit 1; }

expect 1 "a kernel is wrong" BROKEN=1 -- --only parity
holds "a kernel is wrong" "r.failed == 1 and r.passed == 1 and r.results[2].text:find('wrong by 1', 1, true)"

expect 1 "a race" RACE=1 -- --only sanitize
holds "a race" "r.failed == 2 and r.passed == 2"

expect 3 "no GPU" NO_GPU=1
holds "no GPU" "r.ran == false and #r.results == 0"
grep -q 'NO GPU HERE' "$work/out.txt" || { cat "$work/out.txt"; exit 1; }
grep -q -- '-DCMAKE_CUDA_ARCHITECTURES=80-real;90-real;90-virtual' "$work/arguments" || { echo "no list of devices"; exit 1; }
expect 0 "no GPU, build only" NO_GPU=1 -- --build-only
expect 1 "an unknown option" -- --nonsense
expect 1 "an unknown part" -- --only everything
