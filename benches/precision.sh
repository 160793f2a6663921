#!/usr/bin/env bash
# How well half precision trains: whole runs of a recipe in f32, f16 and bf16 from the same seeds, and their final metrics side by side.
#
#     benches/precision.sh OUT RECIPE [SEEDS=3] [--set …]      one job after the other, on one core each: CORES="0 1" takes two
#
# Every stage is trained in the precision; a run is OUT/NAME-PRECISION-SEED. Runs that are there and done are kept, so that a bench that was
# stopped goes on. Prints one JSON line a run, and then the mean of each precision and its difference from f32's, in points of AP.
set -euo pipefail
(($# >= 2)) || {
    sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
}
out=$(realpath -m "$1") recipe=$(realpath "$2")
shift 2
seeds=3
if (($#)) && [[ $1 != --* ]]; then
    seeds=$1
    shift
fi
more=("$@")
read -ra cores <<<"${CORES:-0}"
train=${TRAIN:-}
if [[ -z $train ]]; then
    (cd "$(dirname "$0")/.." && cargo build --release --quiet --bin train)
    train=$(realpath "$(dirname "$0")/../target/release/train")
fi
name=$(basename "$recipe" .toml)
mapfile -t stages < <(grep -A1 '^\[\[stage\]\]' "$recipe" | sed -n 's/^name = "\(.*\)"/\1/p')
mkdir -p "$out"

job() { # CORE PRECISION SEED
    local dir=$out/$name-$2-$3 sets=(--set threads=1 --set data.workers=1)
    [[ ! -f $dir/metrics.json ]] || return 0
    local stage
    for stage in "${stages[@]}"; do sets+=(--set "stage.$stage.precision=$2"); done
    if [[ -f $dir/checkpoints/last.safetensors ]]; then
        taskset -c "$1" "$train" --resume "$dir" >>"$dir.log" 2>&1
    else
        rm -rf "$dir"
        taskset -c "$1" "$train" "$recipe" --out "$dir" --seed "$3" "${sets[@]}" "${more[@]}" >"$dir.log" 2>&1
    fi || {
        echo "benches/precision.sh: $dir failed: see $dir.log" >&2
        return 1
    }
}

# Core i takes every n-th job, so that no two take the same.
pids=()
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # where one core's job fails, the others end too
for i in "${!cores[@]}"; do
    (
        n=0
        for seed in $(seq 0 $((seeds - 1))); do
            for precision in f32 f16 bf16; do
                ((n++ % ${#cores[@]} != i)) || job "${cores[$i]}" "$precision" "$seed"
            done
        done
    ) &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done

python3 "$(dirname "$0")/precision_table.py" "$out" "$name"
