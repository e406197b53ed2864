#!/bin/sh
# Every check of the sources that needs no build; ./dev lint runs it from the root of the tree.
# All checks run, then the exit status says whether one of them failed. Needs Debian's luajit and lua-check,
# and uses shellcheck and codespell where they are installed.
set -u
failed=

# check NAME COMMAND...: silent when it passes
check() {
  name=$1
  shift
  if output=$("$@" 2>&1); then
    return
  fi
  failed="$failed $name"
  printf -- '-- %s\n%s\n' "$name" "$output"
}

# The LuaJIT of Debian compiles every file: newer syntax, which luacheck may let pass, stops here.
compile_lua() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  find lua recipes tests -name '*.lua' -exec sh -c '
    status=0
    for file; do luajit -bl "$file" /dev/null || status=1; done
    exit $status' sh {} +
}

shell_scripts() { echo dev .ci/run; find tests -name '*.sh'; }

check self-test luajit tests/lint/self_test.lua
check layers luajit tests/lint/run.lua
check luajit compile_lua
check luacheck luacheck -q --no-color lua recipes tests .luacheckrc
if command -v shellcheck >/dev/null 2>&1; then
  # shellcheck disable=SC2046 # a list of files
  check shellcheck shellcheck $(shell_scripts)
fi
if command -v codespell >/dev/null 2>&1; then
  # Vocabularies, model files and the corpus' word lists are data, not prose.
  check codespell codespell -q 3 --ignore-words tests/lint/codespell_ignore.txt \
    --skip '*.safetensors,*/vocab.txt,*tokenizer*.json,*/wordpiece_tables.h,*/fixtures/*,*/storyworld/*' \
    kernels core lua recipes tests docs cmake dev CMakeLists.txt ./*.md
fi

if [ -n "$failed" ]; then
  echo "lint failed:$failed"
  exit 1
fi
echo "  layers, budgets, luacheck, luajit, shellcheck, codespell: clean"
