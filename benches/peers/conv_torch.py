#!/usr/bin/env python3
"""oneDNN's convolutions through PyTorch, shape by shape: forward, data gradient, weight gradient. JSON lines.

Shapes come from benches/conv_shapes.json, which our own bench reads too: a list of {name, n, h, w, c, o, k, stride, pad, count},
h and w being the input's, count how often the network has it. The gradient of the image is left out: no training step computes it.
"""

import argparse
import json
import pathlib

import torch

from common import emit, measure

PASSES = ("forward", "backward_data", "backward_weights")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "conv_shapes.json")
    p.add_argument("--only", default="", help="shapes whose name contains this")
    p.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=0.3, help="a measurement, at least")
    p.add_argument("--nchw", action="store_true", help="torch's default layout instead of channels_last")
    a = p.parse_args()

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    layout = torch.contiguous_format if a.nchw else torch.channels_last
    for s in json.loads(a.shapes.read_text()):
        if a.only not in s["name"]:
            continue
        n, h, w, c, o, k, stride, pad = (s[key] for key in ("n", "h", "w", "c", "o", "k", "stride", "pad"))
        x = torch.randn(n, c, h, w).contiguous(memory_format=layout)
        weight = torch.randn(o, c, k, k).contiguous(memory_format=layout)
        with torch.no_grad():
            y = torch.conv2d(x, weight, None, stride, pad)
            dy = torch.randn(y.shape).contiguous(memory_format=layout)

            def backward(mask):
                return torch.ops.aten.convolution_backward(dy, x, weight, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1,
                                                           mask)

            run = {
                "forward": lambda: torch.conv2d(x, weight, None, stride, pad),
                "backward_data": lambda: backward([True, False, False]),
                "backward_weights": lambda: backward([False, True, False]),
            }
            gflop = 2e-9 * y.numel() * c * k * k
            for name in a.passes:
                if name == "backward_data" and c == 3:
                    continue
                times = measure(run[name], min_seconds=a.seconds)
                emit("conv", s["name"], "onednn", times, **{"pass": name}, gflops=gflop / sorted(times)[len(times) // 2],
                     count=s.get("count", 1), threads=a.threads)


if __name__ == "__main__":
    main()
