#!/usr/bin/env bash
# Builds everything that a check on a GPU needs and packs it into a folder of at most 60 MB, for a machine with a driver, CUDA 13's
# libraries and Python with PyTorch, but no Rust: tools/gpu_check.sh runs there, from the unpacked folder.
#
#     tools/gpu_pack.sh [DIR=target/gpu]          then, on the other machine:   DIR/tools/gpu_check.sh PART OUT
#
# UPRES_PACK_FEATURES=sim packs the simulated device instead: to rehearse gpu_check.sh where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-target/gpu}
features=${UPRES_PACK_FEATURES:-cuda}

fail() {
    echo "tools/gpu_pack.sh: $1" >&2
    exit 1
}

# The other machine has another processor: AVX2 and no more. Line tables are half of a binary.
export RUSTFLAGS="-C target-cpu=x86-64-v3" CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/pack}
[[ $features != cuda || -n ${NVCC:-}${CUDA_HOME:-} ]] || command -v nvcc >/dev/null || tools/cuda_toolkit.sh >/dev/null

rm -rf "$dir"
mkdir -p "$dir"/{bin,tests,benches,tools,recipes}
executables() { # KIND COMMAND...: names and paths of the executables that a cargo command makes
    cargo "${@:2}" --profile release --locked --features "$features" --message-format=json-render-diagnostics |
        grep -o '"target":{"kind":\["'"$1"'"\].*"name":"[^"]*".*"executable":"[^"]*"' |
        sed -E 's/.*"name":"([^"]*)".*"executable":"([^"]*)"/\1 \2/'
}
executables bin build --bins | while read -r name path; do
    [[ $name == train || $name == dataset ]] && cp "$path" "$dir/bin/$name"
done
# The tests of the ops and of whole steps: what runs kernels.
executables test test --no-run --test ops | while read -r name path; do cp "$path" "$dir/tests/$name"; done
executables bench bench --no-run --bench gpu --bench step | while read -r name path; do cp "$path" "$dir/benches/$name"; done
for file in bin/train bin/dataset tests/ops benches/gpu benches/step; do
    [[ -x $dir/$file ]] || fail "cargo made no $file"
done
cp -r benches/peers "$dir/benches/peers"
cp -r tests/fixtures "$dir/tests/fixtures"
cp recipes/*.toml "$dir/recipes/"
cp tools/gpu_check.sh tools/profile.sh "$dir/tools/"
git rev-parse HEAD >"$dir/COMMIT"
bytes=$(du -sb "$dir" | cut -f1)
((bytes <= 60000000)) || fail "$dir has $bytes bytes, more than 60 MB: $(du -ah "$dir" | sort -rh | head -5 | tr '\n' ' ')"
echo "$dir: $((bytes / 1000000)) MB"
