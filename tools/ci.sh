#!/usr/bin/env bash
# What must hold besides `cargo test --release`: format, lints for every feature, documentation, and the programs as a user runs them.
# Stops at the first check that fails and names it. Needs a Rust toolchain, a C++ compiler, and Python with pip for nvcc's wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

check() { # NAME COMMAND...
    local name=$1 start=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    if ((status != 0)); then
        echo "tools/ci.sh: check failed: $name (exit status $status: $*)" >&2
        exit 1
    fi
    echo "   $name: ok, $((SECONDS - start)) s"
}

# Names of the package's features, one a line. In cargo's JSON only a package has `"features":{`; dependencies have a list there.
features() {
    cargo metadata --no-deps --format-version 1 --locked | grep -o '"features":{[^}]*}' | grep -o '"[^"]*":\[' | tr -d '":[' |
        grep -vxE 'features|default|cuda-driver' || true # cuda-driver is what cuda and cuda12 share: not a feature by itself
}

# Warnings and spilled registers are errors of build.rs. A folder of its own: CUDA's wheels come anew on a new machine.
kernels() {
    tools/cuda_toolkit.sh >/dev/null && cargo check --release --locked --features cuda --lib
}

check "scripts: syntax" bash -n .ci/run tools/*.sh
check "format: cargo fmt" cargo fmt --check
check "lints: clippy" cargo clippy --release --locked --all-targets -- -D warnings
# UPRES_STUB_KERNELS: lints need no CUDA compiler.
for feature in $(features); do
    check "lints: clippy, feature $feature" \
        env UPRES_STUB_KERNELS=1 cargo clippy --release --locked --all-targets --features "$feature" -- -D warnings
done
check "documentation: cargo doc" env RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps
check "build: the programs" cargo build --release --locked --bins
check "smoke: the programs as a user runs them" bash tools/smoke.sh
# Left out: rooms that launch no kernel by themselves, and the CPU's convolutions (`plan::` would match device::plan too).
check "kernels: on the simulated device" cargo test --release --locked --features sim --lib --test ops -- \
    --skip data:: --skip format:: --skip recipe:: --skip engine:: --skip run:: --skip detect:: --skip train:: \
    --skip plan::budget --skip plan::rates --skip plan::report --skip cpu_conv::
check "kernels: nvcc for every architecture" kernels
echo "tools/ci.sh: all checks passed in $SECONDS s"
