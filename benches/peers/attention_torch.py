#!/usr/bin/env python3
"""PyTorch's shifted-window attention on the CPU at the stages of Swin-T, 2 images of 448², forward and backward. JSON lines.

What window_attention does in one op: roll, partition, attention with relative position bias and mask, reverse, roll. Two ways are timed:
`torch_sdpa` by scaled_dot_product_attention, `torch_math` by matmul and softmax, as mmdetection does it.

The input follows from names by the hash rule (common.hash_uniform; tests/fixtures/README.md): qkv [2,H,H,3C] of
"bench.attention.qkv.<H>", the table [169,heads] of "bench.attention.table", the gradient of y [2,H,H,C] of "bench.attention.dy.<H>".
`checksum` is the sum of the gradient of qkv times u("check"). Maps are multiples of the window, so nothing is padded.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from common import emit, hash_uniform

IMAGES, WINDOW = 2, 7
STAGES = [(112, 96, 3), (56, 192, 6), (28, 384, 12), (14, 768, 24)]


def u(name, *shape):
    return torch.from_numpy(hash_uniform(name, int(torch.tensor(shape).prod())).reshape(shape)).float()


def relative_index(w):
    at = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")).flatten(1)
    d = at[:, :, None] - at[:, None, :] + w - 1
    return (d[0] * (2 * w - 1) + d[1]).flatten()


def shift_mask(side, w, shift):
    regions = torch.zeros(side, side)
    ends = (slice(0, -w), slice(-w, -shift), slice(-shift, None))
    for i, rows in enumerate(ends):
        for j, columns in enumerate(ends):
            regions[rows, columns] = 3 * i + j
    regions = regions.view(side // w, w, side // w, w).transpose(1, 2).reshape(-1, w * w)
    return torch.where(regions[:, None] != regions[:, :, None], -100.0, 0.0)


def attention(qkv, table, index, mask, heads, shift, sdpa):
    n, h, w, c3 = qkv.shape
    t, d, s = WINDOW, c3 // 3 // heads, shift
    x = torch.roll(qkv, (-s, -s), (1, 2)) if s else qkv
    x = x.view(n, h // t, t, w // t, t, 3, heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, heads, t * t, d)
    bias = table[index].view(t * t, t * t, heads).permute(2, 0, 1)[None]
    if s:
        bias = (bias + mask[:, None]).repeat(n, 1, 1, 1)
    if sdpa:
        y = F.scaled_dot_product_attention(x[0], x[1], x[2], attn_mask=bias)
    else:
        y = ((x[0] * d**-0.5) @ x[1].transpose(-2, -1) + bias).softmax(-1) @ x[2]
    y = y.view(n, h // t, w // t, heads, t, t, d).permute(0, 1, 4, 2, 5, 3, 6).reshape(n, h, w, c3 // 3)
    return torch.roll(y, (s, s), (1, 2)) if s else y


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    index = relative_index(WINDOW)
    for side, c, heads in STAGES:
        qkv = u(f"bench.attention.qkv.{side}", IMAGES, side, side, 3 * c).requires_grad_()
        table = u("bench.attention.table", (2 * WINDOW - 1) ** 2, heads).requires_grad_()
        dy = u(f"bench.attention.dy.{side}", IMAGES, side, side, c)
        check = torch.from_numpy(hash_uniform("check", qkv.numel()))
        for shift in (0, WINDOW // 2):
            mask = shift_mask(side, WINDOW, shift) if shift else None
            for sdpa in (True, False):
                times, forward = [], []
                while len(times) < 13 or sum(times) < 2:
                    qkv.grad = table.grad = None
                    start = time.perf_counter()
                    y = attention(qkv, table, index, mask, heads, shift, sdpa)
                    forward.append(time.perf_counter() - start)
                    y.backward(dy)
                    times.append(time.perf_counter() - start)
                checksum = float((qkv.grad.double().flatten() * check).sum())
                emit(
                    "ops",
                    f"window_attention_{side}x{side}x{c}_shift{shift}",
                    "torch_sdpa" if sdpa else "torch_math",
                    times[2:],
                    **{"pass": "forward and backward"},
                    forward_ms=1e3 * statistics.median(forward[2:]),
                    threads=a.threads,
                    checksum=round(checksum, 3),
                )


if __name__ == "__main__":
    main()
