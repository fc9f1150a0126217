#!/bin/sh
# Runs every fuzz target for a time and prints how often each was executed.
#
#   scripts/fuzz.sh [SECONDS] [JOBS] [TARGET...]
#
# SECONDS per target (default 600; 3600 for the long proof), JOBS targets at a time (default 2), all targets by default.
# Needs a nightly toolchain and `cargo install cargo-fuzz`. Exit status 1 and the failing input if a target finds something.
set -eu
cd "$(dirname "$0")/../fuzz"

seconds=${1:-600}
jobs=${2:-2}
[ $# -le 2 ] && set -- "$seconds" "$jobs" $(cargo +nightly fuzz list)
shift 2

cargo +nightly fuzz build
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

export SECONDS_EACH="$seconds" OUT="$out"
printf '%s\n' "$@" | xargs -P "$jobs" -I{} sh -c '
    corpus=$OUT/corpus-{}
    mkdir "$corpus"
    cargo +nightly fuzz run {} "$corpus" corpus/{} -- \
        -max_total_time="$SECONDS_EACH" -max_len=4096 -rss_limit_mb=2048 -timeout=20 >"$OUT/{}.log" 2>&1 ||
        touch "$OUT/{}.failed"
    printf "%-18s %s\n" {} "$(grep -E "^Done|SUMMARY" "$OUT/{}.log" | tail -1)"
    [ ! -e "$OUT/{}.failed" ] || tail -30 "$OUT/{}.log"
'
for failed in "$out"/*.failed; do
    [ ! -e "$failed" ] || exit 1
done
