#!/usr/bin/env bash
# On a machine with a GPU, in a folder of tools/gpu_pack.sh: one part of the check, each within ten minutes.
#
#     tools/gpu_check.sh PART [OUT]       PART: tests | sanitizer | ops | step | train | all; OUT: folder of the results
#
#   tests      every op against the CPU, whole training steps against the CPU, the same twice to the bit
#   sanitizer  compute-sanitizer (memcheck, racecheck, synccheck, initcheck) over the smallest cases
#   ops        bandwidth of the ops, beside torch and torchvision
#   step       a training step of the five detectors in f32, f16 and bf16, beside torchvision's three with and without autocast
#   train      a short two-stage training on the built-in data set of shapes, and its report
#
# Prints one table; OUT/*.jsonl has the raw lines. DEVICE=sim and PYTHON=none rehearse without a GPU and without torch;
# DETECTORS="faster cascade mask retinanet mask_swin" names those of part step.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
part=${1:-all}
out=$(mkdir -p "${2:-gpu-check}" && cd "${2:-gpu-check}" && pwd)
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
small=()
[[ $device == sim ]] && small=(--small)

# cuDNN and cuBLAS as PyTorch's wheels have them.
if [[ $python != none ]]; then
    python=$("$python" -c 'import sys; print(sys.executable)') || exit 1
fi
if [[ $python != none && $device != sim ]]; then
    site=$("$python" -c 'import importlib.util, os; print(os.path.dirname(os.path.dirname(importlib.util.find_spec("torch").origin)))')
    mkdir -p "$out/lib"
    for lib in "$site"/nvidia/*/lib; do
        [[ -d $lib ]] || continue
        LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        # A library without a number is taken first: let it be this one, whatever the system has.
        for file in "$lib"/lib{cudnn,cublasLt}.so.*; do
            [[ -e $file ]] && ln -sf "$file" "$out/lib/$(basename "${file%%.so.*}").so"
        done
    done
    export LD_LIBRARY_PATH=$out/lib:${LD_LIBRARY_PATH:-}
    export UPRES_REQUIRE_GPU=1 # a skipped test is a failure here
fi
failed=()
rows=()

run() { # NAME COMMAND...: its output goes to OUT/NAME.log, its verdict into the table
    local name=$1 start=$SECONDS status=0
    shift
    echo "== $name: $*"
    "$@" >"$out/$name.log" 2>&1 || status=$?
    rows+=("$(printf '%-28s %-8s %5d s' "$name" "$([[ $status == 0 ]] && echo ok || echo "FAILED")" $((SECONDS - start)))")
    if [[ $status != 0 ]]; then
        failed+=("$name")
        tail -n 25 "$out/$name.log"
    fi
    return 0
}

peer() { # NAME SCRIPT ARGS...: torch's side; its lines go to OUT/NAME.jsonl
    local name=$1
    shift
    [[ $python == none ]] && return 0
    run "$name" bash -c 'cd "$1/benches/peers" && shift && out=$1 && shift && "$@" >"$out"' _ "$root" "$out/$name.jsonl" "$python" "$@"
}

tests() {
    cd "$root"
    run doctor bin/train --doctor
    # Convolutions in full f32: the tests' tolerance is that of f32, TF32 has 10 bits.
    run tests_ops env NVIDIA_TF32_OVERRIDE=0 tests/ops cases:: --test-threads 1
    run tests_gpu_f32 env NVIDIA_TF32_OVERRIDE=0 tests/ops gpu:: --test-threads 1 --nocapture
    run tests_gpu tests/ops gpu:: --test-threads 1 --nocapture
}

sanitizer() {
    cd "$root"
    if ! command -v compute-sanitizer >/dev/null; then
        rows+=("sanitizer                    skipped: no compute-sanitizer")
        return
    fi
    # A small step runs every kernel. cuDNN's own are left out: they are not ours, and racecheck takes very long on them.
    local skip=(--kernel-name-exclude regex:cudnn --kernel-name-exclude regex:cutlass --kernel-name-exclude regex:xmma)
    for tool in memcheck racecheck synccheck initcheck; do
        run "sanitizer_$tool" timeout 140 compute-sanitizer --tool "$tool" "${skip[@]}" --error-exitcode 9 tests/ops --exact gpu::one_small_step
    done
}

ops() {
    cd "$root"
    run ops benches/gpu --device "$device" "${small[@]}" --json "$out/ops.jsonl"
    peer ops_torch gpu_ops_torch.py
}

step() {
    cd "$root"
    local sizes=("8 448 448" "2 800 1088")
    [[ $device == sim ]] && sizes=("1 64 64")
    for size in "${sizes[@]}"; do
        read -r n h w <<<"$size"
        for detector in ${DETECTORS:-faster cascade mask retinanet mask_swin}; do
            local name=${detector}_${n}x${h}x${w}
            local shape=(--images "$n" --height "$h" --width "$w" --steps "$([[ $device == sim ]] && echo 1 || echo 20)")
            for precision in f32 f16 bf16; do
                run "step_${name}_$precision" benches/step --device "$device" --detector "$detector" --precision "$precision" \
                    "${shape[@]}" --json "$out/step.jsonl"
            done
            # The same box head on both sides; torchvision has no Cascade R-CNN and no Swin Mask R-CNN.
            [[ $detector == cascade || $detector == mask_swin ]] && continue
            for amp in none f16 bf16; do
                peer "step_torchvision_${name}_$amp" step_torchvision.py --device cuda --amp "$amp" --model "$detector" --head 4conv1fc "${shape[@]}"
            done
        done
    done
}

train() {
    cd "$root"
    local more=()
    [[ $device == sim ]] && more=(--set data.workers=1 --stop-after 1)
    run train bin/train --device "$device" --out "$out/run-$$" "${more[@]}"
    grep -E "AP|images/s" "$out/train.log" | tail -n 6
}

case $part in
tests | sanitizer | ops | step | train) $part ;;
all) for each in tests sanitizer ops step train; do $each; done ;;
*)
    echo "tools/gpu_check.sh: no part $part: tests, sanitizer, ops, step, train or all" >&2
    exit 2
    ;;
esac

echo
printf '%s\n' "${rows[@]}"
for file in ops ops_torch step; do
    [[ -s $out/$file.jsonl || -s $out/$file.log ]] && echo && echo "-- $file" && (grep -v '^==' "$out/$file.log" 2>/dev/null || cat "$out/$file.jsonl") | tail -n 60
done
cat "$out"/step_{faster,cascade,mask,retinanet}_*.log "$out"/step_torchvision_*.jsonl 2>/dev/null | grep '^{' || true
if ((${#failed[@]} > 0)); then
    echo "tools/gpu_check.sh: failed: ${failed[*]}" >&2
    exit 1
fi
