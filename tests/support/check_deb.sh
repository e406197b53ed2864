#!/bin/sh
# Builds the Debian package and looks into it; installs nothing.
#   check_deb.sh BUILD_FOLDER
set -eu
build=$1
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
fail() { echo "check_deb: $*" >&2; exit 1; }

(cd "$build" && cpack -G DEB -B "$place/out") >"$place/log" 2>&1 || { cat "$place/log" >&2; fail "cpack failed"; }
deb=$(echo "$place"/out/saelua_*.deb)
[ -f "$deb" ] || fail "no package, or more than one: $deb"
depends=$(dpkg-deb -f "$deb" Depends)
for package in libluajit-5.1-2 libdnnl2 libjansson4 libutf8proc2 libedit2 lua-cjson libjs-chart.js; do
  case $depends in *"$package"*) ;; *) fail "Depends lacks $package: $depends" ;; esac
done
dpkg-deb -c "$deb" >"$place/contents"
for file in /usr/bin/saelua /usr/share/saelua/lua/saelua/cli.lua /usr/share/doc/saelua/LICENSE; do
  grep -q -F ".$file" "$place/contents" || fail "the package lacks $file"
done
if grep -q 'chart\.min\.js' "$place/contents"; then fail "the package brings its own Chart.js"; fi
echo "built $(basename "$deb")"
