#!/usr/bin/env bash
# Profiles a training run on a GPU.
#
#     tools/profile.sh systems RECIPE [train's options]     a timeline by Nsight Systems: runs/profile.nsys-rep
#     tools/profile.sh compute KERNEL RECIPE [options]      one kernel by Nsight Compute: runs/profile.ncu-rep
#
# TRAIN names the program (default: target/release/train, built with --features cuda,nvtx: then ranges are named after stages and ops).
# Steps are launched kernel by kernel; UPRES_GRAPHS=1 shows them as they run in training, as one graph.
set -euo pipefail

usage() {
    sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
}
need() {
    command -v "$1" >/dev/null || {
        echo "tools/profile.sh: no $1: install $2 and put it into PATH" >&2
        exit 1
    }
}

train=${TRAIN:-target/release/train}
[[ -x $train || ! -x bin/train ]] || train=bin/train # in a folder of tools/gpu_pack.sh
(($# >= 2)) || usage
kind=$1
shift
[[ -x $train ]] || {
    echo "tools/profile.sh: no $train: cargo build --release --features cuda,nvtx, or set TRAIN" >&2
    exit 1
}
mkdir -p runs
out=runs/profile
case $kind in
systems)
    need nsys "NVIDIA Nsight Systems"
    # Kernel by kernel: then NVTX ranges lie around the kernels of their op.
    UPRES_GRAPHS=${UPRES_GRAPHS:-0} nsys profile --force-overwrite true --trace cuda,nvtx,cudnn,cublas --output "$out" \
        "$train" "$@" --device cuda --out "runs/profiled-$$" --stop-after 50
    nsys stats --report cuda_gpu_kern_sum --format table "$out.nsys-rep" | head -n 40
    ;;
compute)
    (($# >= 2)) || usage
    need ncu "NVIDIA Nsight Compute"
    kernel=$1
    shift
    UPRES_GRAPHS=0 ncu --force-overwrite --set full --kernel-name "$kernel" --launch-skip 5 --launch-count 3 --export "$out" \
        "$train" "$@" --device cuda --out "runs/profiled-$$" --stop-after 5
    ncu --import "$out.ncu-rep" --page details | head -n 120
    ;;
*) usage ;;
esac
ls "$out".*-rep
