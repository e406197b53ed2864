#!/bin/sh
# Runs every fuzz target for a bounded time: tests/fuzz/run.sh [SECONDS [BUILD_FOLDER]]
# New inputs go to a temporary folder; a crash is kept in BUILD_FOLDER and its path printed.
set -eu
seconds=${1:-10}
here=$(cd "$(dirname "$0")" && pwd)
build=${2:-$here/../../build/fuzz}
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for source in "$here"/fuzz_*.c; do
  name=$(basename "$source" .c)
  target=$build/tests/fuzz/$name
  [ -x "$target" ] || { echo "$target is missing: cmake --preset fuzz && cmake --build --preset fuzz" >&2; exit 1; }
  mkdir -p "$found/$name"
  echo "== $name, $seconds s"
  "$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$build/$name-" "$found/$name" "$here/corpus/$name" 2>"$found/log" ||
    { tail -n 60 "$found/log" >&2; exit 1; }
  grep -E 'number_of_executed_units|peak_rss' "$found/log"
done
# Checkpoints are read by Lua: the sanitized program itself runs the damage.
echo "== checkpoint, $seconds s"
(cd "$here/../.." &&
  OMP_NUM_THREADS=1 ASAN_OPTIONS=allocator_may_return_null=1 \
    LSAN_OPTIONS="suppressions=$here/../support/lsan.supp:print_suppressions=0" \
    timeout $((seconds + 120)) "$build/saelua" tests/fuzz/fuzz_checkpoint.lua "$seconds")
