#!/bin/sh
# Open an HTML page in headless Chromium and fail if it is not clean.
#
#   open_page.sh [--dark] [--size WIDTHxHEIGHT] [--screenshot FILE.png] [--pdf FILE.pdf] PAGE
#
# Prints the document as it stands after all scripts ran. Every message on the page's console and every request
# other than the page itself is an error: it is named on standard error.
# Exit status: 0 clean, 1 not clean, 2 wrong use, 77 no Chromium here.
set -eu

usage() { sed -n '4p' "$0" | sed 's/^# *//' >&2; exit 2; }

size=1280x900
screenshot=
pdf=
dark=
while [ $# -gt 0 ]; do
  case $1 in
    --dark) dark=1; shift ;;
    --size) [ $# -ge 2 ] || usage; size=$2; shift 2 ;;
    --screenshot) [ $# -ge 2 ] || usage; screenshot=$2; shift 2 ;;
    --pdf) [ $# -ge 2 ] || usage; pdf=$2; shift 2 ;;
    -*) usage ;;
    *) break ;;
  esac
done
[ $# -eq 1 ] || usage
[ -r "$1" ] || { echo "open_page.sh: cannot read $1" >&2; exit 2; }
page=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")

browser=
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
  if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1; then browser=$name; break; fi
done
[ -n "$browser" ] || { echo "open_page.sh: no Chromium on this machine" >&2; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# A profile of its own; no name resolves, so nothing leaves the machine whatever the page or the browser wants.
open_with() {
  timeout "${OPEN_PAGE_TIMEOUT:-120}" "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
    --user-data-dir="$work/profile" --no-first-run --disable-background-networking --disable-component-update \
    --disable-default-apps --disable-extensions --disable-sync --disable-domain-reliability --metrics-recording-only \
    --window-size="$(echo "$size" | tr x ,)" --hide-scrollbars ${dark:+--blink-settings=preferredColorScheme=0} \
    --host-resolver-rules="MAP * ~NOTFOUND" --virtual-time-budget=10000 "$@" "file://$page"
}

status=0
open_with --enable-logging=stderr --log-net-log="$work/net.json" --dump-dom >"$work/dom" 2>"$work/log" || {
  echo "open_page.sh: the browser failed on $page:" >&2
  cat "$work/log" >&2
  exit 1
}
if grep -a 'CONSOLE' "$work/log" >"$work/console"; then
  echo "open_page.sh: messages on the console of $page:" >&2
  cat "$work/console" >&2
  status=1
fi
# Requests of a page name it (or "null" for file:) as initiator; the browser's own are "not an origin".
if grep -a '"initiator":"' "$work/net.json" | grep -a -v '"initiator":"not an origin"' |
    sed 's/.*"url":"\([^"]*\)".*/\1/' | sort -u | grep . >"$work/requests"; then
  echo "open_page.sh: requests made by $page:" >&2
  cat "$work/requests" >&2
  status=1
fi
if [ -n "$screenshot" ]; then open_with --screenshot="$screenshot" >/dev/null 2>"$work/log" || status=1; fi
if [ -n "$pdf" ]; then open_with --print-to-pdf="$pdf" --no-pdf-header-footer >/dev/null 2>"$work/log" || status=1; fi
cat "$work/dom"
exit $status
