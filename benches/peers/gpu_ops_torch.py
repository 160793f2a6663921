#!/usr/bin/env python3
"""The ops of benches/gpu.rs in torch and torchvision on a GPU: same names, same sizes. One JSON line each.

Replays of CUDA graphs, one a set of inputs, on more sets than the L2 cache holds; torchvision's RoIAlign is not aligned (ours is); what a graph cannot hold (batched_nms reads from the
device) is timed as it runs, the host waiting once at the end.
"""

import argparse
import statistics
import time

import torch
import torchvision

from common import emit, note

FLUSH_BYTES = 512 << 20


def measure(name, nbytes, make, run, graph=True):
    """Median of seven means over at least 0.2 s."""
    sets = max(1, min(64, FLUSH_BYTES // max(1, nbytes)))
    inputs = [make() for _ in range(sets)]

    def all_sets():
        for x in inputs:
            run(*x)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            all_sets()
    torch.cuda.synchronize()
    replay = all_sets
    if graph:
        # One graph a set, as ours: a launch of a graph costs the same on both sides.
        graphs = []
        for x in inputs:
            g = torch.cuda.CUDAGraph()
            with torch.cuda.graph(g):
                run(*x)
            graphs.append(g)

        def replay():
            for g in graphs:
                g.replay()

    replay()
    torch.cuda.synchronize()
    start = time.perf_counter()
    replay()
    torch.cuda.synchronize()
    times = max(1, min(200, int(0.2 / max(1e-6, time.perf_counter() - start))))
    samples = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(times):
            replay()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) / (times * sets))
    seconds = statistics.median(samples)
    emit("gpu_ops", name, "torch", median_us=1e6 * seconds, min_us=1e6 * min(samples), bytes=nbytes, gb_s=nbytes / seconds / 1e9,
         graph=graph, torch=torch.__version__, torchvision=torchvision.__version__, device=torch.cuda.get_device_name())
    note(f"{name:<44} {1e6 * seconds:10.1f} us {nbytes / seconds / 1e9:8.1f} GB/s")


def uniform(*shape, dtype=torch.float32):
    return torch.empty(shape, device="cuda").uniform_(-1, 1).to(dtype)


def batch_norms():
    for n, h, w, c in [(8, 224, 224, 64), (8, 112, 112, 64), (8, 112, 112, 256), (8, 56, 56, 512), (8, 28, 28, 1024), (8, 14, 14, 2048)]:
        for dtype, label in [(torch.float32, "f32"), (torch.float16, "f16")]:
            nbytes = n * h * w * c * dtype.itemsize
            norm = torch.nn.BatchNorm2d(c, device="cuda")
            norm.num_batches_tracked = None  # a launch that ours has not

            def make():
                x = uniform(n, c, h, w, dtype=dtype).to(memory_format=torch.channels_last)
                return x.requires_grad_(), torch.randn_like(x)

            def forward(x, _):
                with torch.no_grad():
                    return torch.relu_(norm(x))

            def both(x, dy):
                torch.autograd.grad(torch.relu(norm(x)), [x, norm.weight, norm.bias], dy)

            shape = f"{n}x{h}x{w}x{c} {label}"
            norm.train()
            measure(f"batch_norm_relu train fwd {shape}", 3 * nbytes, make, forward)
            measure(f"batch_norm_relu train fwd+bwd {shape}", 10 * nbytes, make, both)
            norm.eval()
            measure(f"batch_norm_relu frozen fwd {shape}", 2 * nbytes, make, forward)


def maps():
    n = 64 << 20
    measure("copy", 8 * n, lambda: (uniform(n), uniform(n)), lambda y, x: y.copy_(x))
    measure("add_assign", 12 * n, lambda: (uniform(n), uniform(n)), lambda y, x: y.add_(x))
    measure("fill", 4 * n, lambda: (uniform(n),), lambda y: y.fill_(1.0))
    n, h, w, c = 8, 112, 112, 256
    size = n * h * w * c * 4

    def channels_last(*shape):
        return uniform(*shape).to(memory_format=torch.channels_last)

    measure("upsample_add fwd", 2 * size + size // 4, lambda: (channels_last(n, c, h // 2, w // 2), channels_last(n, c, h, w)),
            lambda top, lateral: lateral + torch.nn.functional.interpolate(top, size=(h, w), mode="nearest"))
    n, h, w, c = 8, 224, 224, 64
    size = n * h * w * c * 4
    measure("max_pool fwd", size + size // 4, lambda: (channels_last(n, c, h, w),),
            lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1))
    n, h, w = 8, 448, 448
    mean, std = (torch.tensor(v, device="cuda") for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    measure("image_normalize", n * h * w * 15, lambda: (torch.zeros(n, h, w, 3, dtype=torch.uint8, device="cuda"),),
            lambda x: (x.float() - mean) / std)


def optimizers():
    sizes = [s for i in range(53) for s in (64 * 64 * (1 + i % 9) * 4, 256, 256)] + [12_845_056, 1024, 1_048_576, 1024, 331_776, 81 * 5]
    total = sum(sizes)

    def make(kind, **options):
        params = [torch.nn.Parameter(uniform(s)) for s in sizes]
        for p in params:
            p.grad = torch.zeros_like(p)
        return (kind(params, lr=0.1, fused=True, **options),)

    measure("sgd", 20 * total, lambda: make(torch.optim.SGD, momentum=0.9, weight_decay=1e-4), lambda o: o.step())
    measure("adamw", 28 * total, lambda: make(torch.optim.AdamW, weight_decay=0.05, capturable=True), lambda o: o.step())
    measure("grad_norm", 4 * total, lambda: ([uniform(s) for s in sizes],), lambda g: torch.nn.utils.get_total_norm(g))


def detection():
    images, rois, c = 2, 512, 256
    sides = [(200, 272), (100, 136), (50, 68), (25, 34)]
    extent = 4 * sides[0][1]
    pool = torchvision.ops.MultiScaleRoIAlign([str(i) for i in range(4)], 7, 0)
    names = [str(i) for i in range(4)]

    def make():
        levels = {k: uniform(images, c, h, w).to(memory_format=torch.channels_last).requires_grad_() for k, (h, w) in zip(names, sides)}
        boxes = []
        for _ in range(images):
            wh = 16 * 25 ** torch.rand(rois, 2, device="cuda")
            xy = torch.rand(rois, 2, device="cuda") * torch.tensor([extent - 16.0, 0.7 * extent], device="cuda")
            boxes.append(torch.cat([xy, xy + wh], 1))
        return levels, boxes, uniform(images * rois, c, 7, 7)

    shapes = [(4 * sides[0][0], extent)] * images
    out = images * rois * 49 * c * 4
    size = sum(images * h * w * c * 4 for h, w in sides)

    def forward(levels, boxes, _):
        with torch.no_grad():
            return pool(levels, boxes, shapes)

    def both(levels, boxes, dy):
        torch.autograd.grad(pool(levels, boxes, shapes), list(levels.values()), dy)

    measure("roi_align fwd 7x7", out, make, forward, graph=False)
    measure("roi_align fwd+bwd 7x7", 2 * out + size, make, both, graph=False)

    images, n = 8, 2000

    def boxes():
        xy, wh = 400 * torch.rand(images, 5 * n, 2, device="cuda"), 8 + 72 * torch.rand(images, 5 * n, 2, device="cuda")
        group = (torch.arange(5 * n, device="cuda") // n)
        return torch.cat([xy, xy + wh], 2), torch.rand(images, 5 * n, device="cuda"), group

    def nms(b, s, group):
        for i in range(images):
            torchvision.ops.batched_nms(b[i], s[i], group, 0.7)[:1000]

    measure(f"nms {images}x5x{n}", images * 5 * n * 24, boxes, nms, graph=False)
    segments = [163_200, 40_800, 10_200, 2_550, 663]

    def top_k(scores):
        for part in scores.split(segments, 1):
            part.topk(min(2000, part.shape[1]), dim=1)

    measure("top_k 8 images, 5 levels, 2000", 8 * sum(segments) * 4, lambda: (uniform(8, sum(segments)),), top_k)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    maps()
    batch_norms()
    optimizers()
    detection()


if __name__ == "__main__":
    main()
