#!/usr/bin/env bash
# The one test command: every check that gates a change. Sets up what it needs, then runs
#
#   format, lints, dependency rules          (cargo fmt, clippy, deny)
#   unit, property and contract tests        (cargo test)
#   simulated networks                       (pilot-sim: four minutes of whole networks, 10,000 small worlds for the ways between
#                                             nodes, some broken builds of the product)
#   the demo, from a release build           (cargo run --release -- demo)
#   the demo, from a static binary in an empty chroot
#   interoperation with the reference 1.18.0 (its daemon, CLI and Python SDK, in network namespaces)
#
# Needs: Linux on x86-64, root (network namespaces, chroot), a Rust toolchain, and Debian's or Ubuntu's apt for what is
# missing of: a C compiler, iproute2, util-linux, python3-venv, nftables, miniupnpd-nftables, tinyproxy-bin. Everything
# else goes below target/.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'test.sh: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s (%s s so far)\n' "$*" "$SECONDS"; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "needs Linux on x86-64: the reference binaries exist for nothing else we can run"
[ "$(id -u)" = 0 ] || fail "needs root: the laboratories are network namespaces, and the static demo runs in a chroot"
command -v cargo >/dev/null || fail "needs a Rust toolchain (cargo): https://rustup.rs"

# What is built once is not built again: nothing to keep for the next time, and gigabytes of it.
export CARGO_INCREMENTAL=0

step "prerequisites"
missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v ip >/dev/null || missing+=(iproute2)
command -v unshare >/dev/null && command -v nsenter >/dev/null || missing+=(util-linux)
command -v nft >/dev/null || missing+=(nftables)
command -v miniupnpd >/dev/null || missing+=(miniupnpd-nftables)
command -v tinyproxy >/dev/null || missing+=(tinyproxy-bin)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || fail "install these first: ${missing[*]}"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${missing[@]}"
fi
unshare --net true || fail "cannot make network namespaces (CAP_SYS_ADMIN is missing)"
[ -c /dev/net/tun ] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; } || fail "cannot make /dev/net/tun"

target=${CARGO_TARGET_DIR:-$PWD/target}
venv=$target/reference-venv
if [ ! -x "$venv/bin/pip" ] || ! "$venv/bin/pip" show pilotprotocol 2>/dev/null | grep -qx 'Version: 1.18.0'; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q pilotprotocol==1.18.0
fi
deny=$target/tools/bin/cargo-deny
if [ ! -x "$deny" ]; then
    # Built for this one run: little optimisation.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install -q cargo-deny --locked --version 0.20.2 --no-default-features \
        --root "$target/tools" --target-dir "$target/tools/build"
    rm -rf "$target/tools/build"
fi

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --quiet --locked --workspace --all-targets --features pilotctl/interop,pilot-refmodel/interop -- -D warnings

step "dependencies"
"$deny" --log-level error check licenses bans sources

step "tests"
cargo test --quiet --locked --workspace

step "simulation, as many worlds as fit four minutes"
cargo run --quiet --locked --release -p pilot-sim --bin pilot-sim -- --for 240s --from 100 --jobs "$(nproc)"

step "simulation of the ways between nodes, 10,000 small worlds"
cargo run --quiet --locked --release -p pilot-sim --bin pilot-sim -- --paths --seeds 0..10000 --jobs "$(nproc)"

step "simulation of broken builds, three of them"
cargo run --quiet --locked --release -p pilot-sim --bin pilot-sim-mutants -- \
    pieces-misjoined fin-sent-once replays-accepted

step "demo, release build"
cargo run --quiet --locked --release -- demo

step "demo, static binary in an empty chroot"
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --quiet --locked --release --target x86_64-unknown-linux-gnu -p pilotctl
static=$target/x86_64-unknown-linux-gnu/release/pilotctl
jail=$(mktemp -d)
trap 'rm -rf "$jail"' EXIT
cp "$static" "$jail/pilotctl"
printf 'static binary: %s bytes\n' "$(stat -c %s "$static")"
chroot "$jail" /pilotctl demo
left=$(find "$jail" -mindepth 1 -type f ! -path "$jail/pilotctl")
[ -z "$left" ] || fail "the demo left files behind: $left"

step "interoperation with the reference 1.18.0"
PILOT_REFERENCE_VENV=$venv cargo test --locked --workspace --features pilotctl/interop,pilot-refmodel/interop --test interop -- --test-threads 4

step "all passed"
