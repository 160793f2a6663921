#!/usr/bin/env bash
# The paper's claim in small: two stages (recipes/shapes.toml) against one high-resolution stage from scratch
# (recipes/shapes_one_stage.toml) for the same time on the clock, a few seeds. Each pair runs side by side, one core each.
#   benches/claim.sh OUT [SEEDS] [--set ... for the two-stage runs -- --set ... for the one-stage runs]
# The last run's report.html holds the curves of all; a table is printed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 seeds=${2:-3}
shift 2 || shift 1
two=() one=()
while (($#)) && [[ $1 != -- ]]; do two+=("$1") && shift; done
(($#)) && shift
one=("$@")
cargo build --release --quiet
mkdir -p "$out"
common=(--set threads=1 --set data.workers=1)
for seed in $(seq 1 "$seeds"); do
    taskset -c 0 target/release/train recipes/shapes.toml "${common[@]}" "${two[@]}" --seed "$seed" --out "$out/two_stages-$seed" &
    taskset -c 1 target/release/train recipes/shapes_one_stage.toml "${common[@]}" "${one[@]}" --seed "$seed" \
        --out "$out/one_stage-$seed"
    wait
done
runs=()
for run in "$out"/two_stages-* "$out"/one_stage-*; do runs+=(--compare "$run"); done
# A finished run has nothing to do when it is resumed, and writes its report anew.
target/release/train --resume "$out/two_stages-1" "${runs[@]}" >"$out/compared.txt" 2>&1
for run in "$out"/two_stages-* "$out"/one_stage-*; do
    printf '%s ' "$(basename "$run")"
    python3 -c 'import json,sys; m=json.load(open(sys.argv[1])); print(round(m["time_s"]), "s", m["metrics"]["bbox_ap"], m["metrics"]["bbox_ap50"])' "$run/metrics.json"
done
