#!/usr/bin/env python3
"""Makes a safetensors file of a PyTorch file: the weights only, under the names that they have there.

    pip install torch safetensors
    python tools/pth_to_safetensors.py FILE.pth FILE.safetensors

Files of mmdetection hold objects beside the weights, which torch reads by running code of the file: `--trust` allows it. Do so only
with files whose maker you trust.
"""

import argparse
import sys

import safetensors.torch
import torch


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("input")
    p.add_argument("output")
    p.add_argument("--trust", action="store_true", help="run code that the file brings along")
    a = p.parse_args()
    try:
        state = torch.load(a.input, map_location="cpu", weights_only=not a.trust)
    except Exception as e:
        sys.exit(f"error: {a.input}: {str(e).splitlines()[0]}" + ("" if a.trust else " (--trust, if you trust its maker)"))
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        sys.exit(f"error: {a.input}: holds a {type(state).__name__}, want a dictionary of tensors (a state_dict)")
    tensors = {k.removeprefix("module."): v.detach().contiguous().clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        sys.exit(f"error: {a.input}: no tensors in it")
    safetensors.torch.save_file(tensors, a.output, metadata={"format": "pt"})
    print(f"{a.output}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
