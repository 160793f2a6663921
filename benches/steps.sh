#!/usr/bin/env bash
# One training step of the paper's five detectors, 2 × 448², 8 objects an image, two threads: ours and the peers, one right after the other.
#
#     benches/steps.sh FILE [STEPS=5] [DETECTOR...]     appends one JSON line a program to FILE; detectors: faster cascade mask retinanet mask_swin
#
# Then benches/peers/make_table.py FILE. The same box head on all sides of a row; with torchvision's own, of two fully connected layers,
# Faster and Mask R-CNN have a row more. STEP names our program (default: built here, cargo bench); PYTHON has torch, torchvision and mmdet.
set -euo pipefail
(($# >= 1)) || {
    sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
}
out=$(realpath "$1")
steps=${2:-5}
detectors=("${@:3}")
((${#detectors[@]} > 0)) || detectors=(faster cascade mask retinanet mask_swin)
for detector in "${detectors[@]}"; do
    [[ " faster cascade mask retinanet mask_swin " == *" $detector "* ]] || {
        echo "benches/steps.sh: no detector $detector: faster, cascade, mask, retinanet or mask_swin" >&2
        exit 2
    }
done
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
threads=${THREADS:-2}
[[ -n ${STEP:-} ]] || cargo bench --bench step --no-run

line() { # COMMAND...: appends its JSON line, which it must print
    echo "== $*" >&2
    "$@" | { grep '^{' || {
        echo "benches/steps.sh: no result of $*" >&2
        exit 1
    }; } | tee -a "$out"
}
ours() { # ARGS...
    local program=(cargo bench --quiet --bench step --)
    [[ -z ${STEP:-} ]] || program=("$STEP")
    line "${program[@]}" --threads "$threads" --steps "$steps" "$@"
}
mmdetection() { line "$python" benches/peers/step_mmdetection.py --threads "$threads" --steps "$steps" "$@"; }
torchvision() { line "$python" benches/peers/step_torchvision.py --threads "$threads" --steps "$steps" "$@"; }

for detector in "${detectors[@]}"; do
    ours --detector "$detector"
    mmdetection --detector "$detector"
    case $detector in
    faster | mask)
        torchvision --model "$detector" --head 4conv1fc
        ours --detector "$detector" --head 2fc
        torchvision --model "$detector" --head 2fc
        ;;
    retinanet) torchvision --model retinanet ;;
    esac
done
