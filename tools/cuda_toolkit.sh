#!/usr/bin/env bash
# Installs nvcc without root, from NVIDIA's wheels on PyPI, and prints its folder (the only line on stdout): about 300 MB, 20 s.
# build.rs finds it there by itself; UPRES_CUDA_DIR chooses another folder. Needs Python 3 with pip and a C++ compiler.
#
#     tools/cuda_toolkit.sh && cargo build --release --features cuda
set -euo pipefail

version=13.0
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)
dir=${UPRES_CUDA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/upres/cuda-$version}

fail() {
    echo "tools/cuda_toolkit.sh: $1" >&2
    exit 1
}

[[ $(uname -sm) == "Linux x86_64" ]] || fail "these wheels are for Linux on x86_64, this is $(uname -sm): install NVIDIA's CUDA toolkit"
if [[ ! -x $dir/bin/nvcc ]]; then
    command -v python3 >/dev/null || fail "no python3: install Python 3 with pip, or NVIDIA's CUDA toolkit"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip (Debian: apt install python3-pip)"
    command -v g++ >/dev/null || fail "no g++: nvcc needs a host compiler (Debian: apt install g++)"
    mkdir -p "$(dirname "$dir")"
    # Made beside the target and moved at the end: an installation that was broken off is never found.
    new=$(mktemp -d "$dir.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-warn-script-location --root-user-action=ignore \
        --target "$new/wheels" "${packages[@]}" >&2 || fail "pip could not install ${packages[*]}"
    home=$new/wheels/nvidia/cu13
    [[ -x $home/bin/nvcc ]] || fail "the wheels have no nvidia/cu13/bin/nvcc: have the packages changed?"
    # The wheels have lib/, nvcc looks for lib64/.
    [[ -e $home/lib64 ]] || ln -s lib "$home/lib64"
    rm -rf "$dir"
    mv "$home" "$dir"
fi
"$dir/bin/nvcc" --version >/dev/null || fail "$dir/bin/nvcc does not run"
echo "$dir"
