#!/usr/bin/env bash
# Runs the five programs one after the other as a user would, on the built-in data set, in a folder of its own: two training steps,
# evaluation and detection with the checkpoint, a look at the data. Then the errors a user meets first: exit status, one line, no panic.
#   tools/smoke.sh [FOLDER WITH THE PROGRAMS]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "${1:-target/release}" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

run() { # PROGRAM ARGUMENTS...: must succeed
    echo "   \$ $*"
    "$bin/$1" "${@:2}" >out.txt 2>err.txt </dev/null || {
        echo "smoke: exit status $?: $*" >&2
        tail -n 20 out.txt err.txt >&2
        exit 1
    }
}

fails() { # STATUS PROGRAM ARGUMENTS...: must end with this status and words on stderr, without a panic
    local want=$1 status=0
    shift
    echo "   \$ $* (must fail with $want)"
    "$bin/$1" "${@:2}" >out.txt 2>err.txt </dev/null || status=$?
    if ((status != want)) || [[ ! -s err.txt ]] || grep -q 'panicked at' err.txt; then
        echo "smoke: want exit status $want and a message, got $status: $*" >&2
        tail -n 20 err.txt >&2
        exit 1
    fi
    if ((want == 1)) && (($(wc -l <err.txt) != 1)); then
        echo "smoke: want one line on stderr: $*" >&2
        cat err.txt >&2
        exit 1
    fi
}

exists() { # FILE...
    local file
    for file; do
        [[ -s $file ]] || { echo "smoke: $file is missing or empty" >&2; find . -maxdepth 4 | sort | head -50 >&2; exit 1; }
    done
}

for program in train evaluate detect convert dataset; do
    run "$program" --help
    exists out.txt
done

run dataset shapes --out shapes
run dataset check shapes/annotations/val.json --images shapes/images/val
run dataset stats shapes/annotations/val.json --images shapes/images/val
run train --out run --stop-after 2
exists run/recipe.toml run/log.jsonl
checkpoint=$(find run/checkpoints -name '*.safetensors' | sort | tail -n 1)
exists "$checkpoint"
run evaluate "$checkpoint" --annotations shapes/annotations/val.json --images shapes/images/val --detections detections.json
exists out.txt
image=$(find shapes/images/val -name '*.png' | sort | sed -n 1p)
run detect "$checkpoint" "$image" --out detected
exists "$(find detected -name '*.json' | sed -n 1p)"
run convert "$checkpoint" --to mmdetection foreign.safetensors
run train --out tuned --stop-after 1 --set init.weights=foreign.safetensors

fails 2 train --no-such-option
fails 1 train missing.toml
fails 2 train --out other --resume nothing-here
fails 1 train --resume nothing-here
fails 1 train --out run --stop-after 2
fails 1 evaluate missing.safetensors --annotations shapes/annotations/val.json --images shapes/images/val
head -c 1000 "$checkpoint" >truncated.safetensors
fails 1 detect truncated.safetensors "$image"
fails 1 convert truncated.safetensors --to torchvision out.safetensors
fails 1 dataset check missing.json --images shapes/images/val
