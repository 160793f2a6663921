#!/usr/bin/env bash
# Installs what the scripts of benches/peers run on, pinned, into ./.venv (or the folder given). Python 3.10 to 3.13.
#   tools/peer_env.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "peer_env: $("$python" --version) will not do: torch 2.11 wants Python 3.10 to 3.13; set PYTHON" >&2
    exit 1
}
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r benches/peers/requirements.txt
"$venv/bin/python" -c '
import torch, torchvision, pycocotools.cocoeval
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, threads {torch.get_num_threads()}")'
