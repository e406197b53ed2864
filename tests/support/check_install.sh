#!/bin/sh
# Installs a build into a fresh prefix, moves the tree, and uses the program from its new place.
#   check_install.sh BUILD_FOLDER
set -eu
build=$1
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
fail() { echo "check_install: $*" >&2; exit 1; }

cmake --install "$build" --prefix "$place/first" >"$place/log" 2>&1 || { cat "$place/log" >&2; fail "cmake --install failed"; }
for file in bin/saelua share/saelua/lua/saelua/cli.lua share/doc/saelua/LICENSE; do
  [ -s "$place/first/$file" ] || fail "not installed: $file"
done
mkdir "$place/second folder" # a space, as users have them
mv "$place/first" "$place/second folder/tree"
tree="$place/second folder/tree"
cd "$place" # away from the source tree
unset SAELUA_HOME SAELUA_ROOT SAELUA_BIN

version=$("$tree/bin/saelua" -e 'io.write(sl.version)') || fail "saelua -e failed after the move"
case $version in [0-9]*.[0-9]*) ;; *) fail "sl.version is '$version'" ;; esac
share=$("$tree/bin/saelua" -e 'io.write(require("saelua.host").share_dir)')
[ "$share" = "$(cd "$tree/share/saelua" && pwd -P)" ] || fail "the moved program uses $share"
for recipe in "$tree"/share/saelua/recipes/*.lua; do
  [ -e "$recipe" ] || continue
  "$tree/bin/saelua" "$recipe" --help >"$place/log" 2>&1 || { cat "$place/log" >&2; fail "$(basename "$recipe") --help failed"; }
  grep -q -e '--' "$place/log" || fail "$(basename "$recipe") --help names no option"
done
echo "installed, moved and used: saelua $version"
