#!/bin/sh
# Checks the model of the session upgrade with Verifpal 1.6.7:
#   cargo +nightly install verifpal --version 1.6.7 --ignore-rust-version
# Three runs: the model as it is; with the X25519 statics of both nodes known to the attacker from the start; and without
# the checks of the signatures, which must break it (a model that cannot fail shows nothing).
# $1: concurrent sessions per principal (default 1, seconds; 2 takes many minutes).
set -eu
model=$(dirname "$0")/session-upgrade.vp
sessions=${1:-1}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
awk '{ print } /gstatic_[lh] = PUBKEY/ { sub(/.*\(/, ""); sub(/\).*/, ""); print "\tleaks " $0 }' "$model" >"$dir/statics-known.vp"
sed 's/\(SIGNVERIF(.*)\)?/\1/' "$model" >"$dir/unsigned.vp"
run() { verifpal verify "$1" --sessions "$2" --quiet --result-code | tail -1; }
want=c0c0a0a0a0a0f0f0e0e0
for file in "$model" "$dir/statics-known.vp"; do
    got=$(run "$file" "$sessions")
    echo "$(basename "$file"), $sessions session(s): $got"
    [ "$got" = "$want" ] || { echo "expected $want" >&2; exit 1; }
done
got=$(run "$dir/unsigned.vp" 1)
echo "without signatures: $got"
case $got in c1c1a1a1a1a1*) ;; *) echo "expected attacks on every confidentiality and authentication query" >&2; exit 1 ;; esac
