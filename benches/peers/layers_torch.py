#!/usr/bin/env python3
"""torch's CPU layer_norm, gelu, drop path and block-to-channel copies, on the shapes of benches/layers.rs. JSON lines."""

import argparse
import time

import torch
import torch.nn.functional as F

from common import emit


def passes(shape, op):
    """Seconds of forward and backward passes for at least a second."""
    torch.manual_seed(0)
    x = (torch.rand(shape) * 4 - 2).requires_grad_()
    dy, forward, backward = None, [], []
    while len(forward) < 20 or sum(forward) + sum(backward) < 1:
        t0 = time.perf_counter()
        y = op(x)
        t1 = time.perf_counter()
        dy = torch.rand(y.shape) if dy is None else dy
        t2 = time.perf_counter()
        y.backward(dy)
        backward.append(time.perf_counter() - t2)
        forward.append(t1 - t0)
        x.grad = None
    return forward[3:], backward[3:]


def layer_norm(shape):
    gamma, beta = (torch.full((shape[-1],), v, requires_grad=True) for v in (1.1, 0.1))

    def op(x):
        gamma.grad = beta.grad = None
        return F.layer_norm(x, (shape[-1],), gamma, beta)

    return op


def drop_path(shape):
    branch = torch.rand(shape, requires_grad=True)

    def op(x):
        branch.grad = None
        keep = torch.floor(0.8 + torch.rand((shape[0],) + (1,) * (len(shape) - 1)))
        return x + branch / 0.8 * keep

    return op


def space_to_depth(k):
    def op(x):
        n, h, w, c = x.shape
        return x.view(n, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // k, w // k, k * k * c)

    return op


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = p.parse_args().threads
    torch.set_num_threads(threads)
    for name, shape, op in [
        ("layer_norm", (25088, 96), layer_norm((25088, 96))),
        ("layer_norm", (6272, 192), layer_norm((6272, 192))),
        ("layer_norm", (1568, 384), layer_norm((1568, 384))),
        ("layer_norm", (392, 3072), layer_norm((392, 3072))),
        ("gelu", (25088, 384), F.gelu),
        ("gelu", (6272, 768), F.gelu),
        ("drop_path", (2, 112, 112, 96), drop_path((2, 112, 112, 96))),
        ("space_to_depth", (2, 112, 112, 96), space_to_depth(2)),
        ("space_to_depth", (2, 448, 448, 3), space_to_depth(4)),
    ]:
        forward, backward = passes(shape, op)
        for which, times in (("forward", forward), ("backward", backward)):
            emit("layers", name + "_" + "x".join(map(str, shape)), "torch", times, **{"pass": which}, threads=threads)


if __name__ == "__main__":
    main()
