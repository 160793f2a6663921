#!/usr/bin/env python3
"""torchvision's CPU operators: batched_nms and roi_align. JSON lines.

The input follows from names by the hash rule (common.hash_uniform; tests/fixtures/README.md), so that ours is measured on the same:
u(name)[i] below is the i-th number of a name, in (-1, 1). `kept` and `checksum` show that both sides did the same work.

nms: image b (8), level l (5), box i (2000) has 5 numbers u = u("bench.nms.<b>.<l>")[5i..5i+5]. Its object is i mod 50, with
v = u("bench.nms.objects.<b>.<l>")[4j..4j+4]; side s = 32 * 2^l; object size = s * (1.25 + 0.75 v2, 1.25 + 0.75 v3), centre
(224 + 224 v0, 224 + 224 v1). Box: centre + 0.15 * size * (u0, u1), size * (1 + 0.2 u2, 1 + 0.2 u3), clipped to 448². Score u4.
NMS at IoU 0.7 within levels.

roi_align: levels of an R50-FPN at 448² (112, 56, 28, 14), 256 channels, values u("bench.roi.level<l>") in NHWC order, batch 2; 512 RoIs an image,
u = u("bench.roi.rois.<b>")[4i..4i+4]: size = 16 * 24^((1 + u2) / 2), 16 * 24^((1 + u3) / 2), x0 = (448 - w) * (1 + u0) / 2, y0 likewise.
Level floor(log2(sqrt(w h) / 56 + 1e-6)) in 0..3. The gradient that goes back is all ones. `checksum`: sum of output times
u("check"), forward in order [image 0's RoIs, image 1's], NCHW; backward the sum over levels of dx (NCHW) times u("check<l>").
"""

import argparse

import torch
import torchvision
from torchvision.ops import batched_nms

from common import emit, hash_uniform, measure

SIZE = 448


def u(name, *shape):
    return torch.from_numpy(hash_uniform(name, int(torch.tensor(shape).prod())).reshape(shape)).float()


def dot(name, t):
    return float((t.contiguous().double().flatten() * torch.from_numpy(hash_uniform(name, t.numel()))).sum())


def nms_input(image, levels=5, boxes=2000, objects=50):
    out = []
    for level in range(levels):
        side = 32 * 2**level
        v = u(f"bench.nms.objects.{image}.{level}", objects, 4)[torch.arange(boxes) % objects]
        r = u(f"bench.nms.{image}.{level}", boxes, 5)
        size = side * (1.25 + 0.75 * v[:, 2:])
        centre = SIZE / 2 * (1 + v[:, :2]) + 0.15 * size * r[:, :2]
        half = size * (1 + 0.2 * r[:, 2:4]) / 2
        xyxy = torch.cat([centre - half, centre + half], 1).clamp(0, SIZE)
        out.append((xyxy, r[:, 4].clone(), torch.full((boxes,), level)))
    return tuple(map(torch.cat, zip(*out)))


def bench_nms(threads):
    images = [nms_input(b) for b in range(8)]
    kept = [len(batched_nms(*image, 0.7)) for image in images]
    times = measure(lambda: [batched_nms(*image, 0.7) for image in images], min_reps=9)
    emit("ops", "nms_8x5x2000", "torchvision", times, threads=threads, kept=kept)


def bench_roi_align(threads):
    feats = [u(f"bench.roi.level{i}", 2, n, n, 256).permute(0, 3, 1, 2) for i, n in enumerate((112, 56, 28, 14))]
    rois = []
    for image in range(2):
        r = u(f"bench.roi.rois.{image}", 512, 4)
        wh = 16 * 24 ** ((1 + r[:, 2:]) / 2)
        xy = (SIZE - wh) * (1 + r[:, :2]) / 2
        rois.append(torch.cat([torch.full((512, 1), float(image)), xy, xy + wh], 1))
    rois = torch.cat(rois)
    scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (scale / 56 + 1e-6).log2().floor().clamp(0, 3).long()
    groups = [rois[level == i].contiguous() for i in range(4)]
    order = torch.cat([(level == i).nonzero()[:, 0] for i in range(4)]).argsort()
    forward_op, backward_op = torch.ops.torchvision.roi_align, torch.ops.torchvision._roi_align_backward
    for layout in ("contiguous", "channels_last"):
        fmt = torch.contiguous_format if layout == "contiguous" else torch.channels_last
        levels = [f.contiguous(memory_format=fmt) for f in feats]
        for out in (7, 14):
            for ratio, aligned in ((0, True), (2, False)):

                def forward():
                    return [forward_op(f, g, 0.25 / 2**i, out, out, ratio, aligned) for i, (f, g) in enumerate(zip(levels, groups))]

                ones = [torch.ones_like(y).contiguous(memory_format=fmt) for y in forward()]

                def backward():
                    return [backward_op(dy, g, 0.25 / 2**i, out, out, *f.shape, ratio, aligned)
                            for i, (dy, f, g) in enumerate(zip(ones, levels, groups))]

                kind = f"roi_align_1024_{out}x{out}_ratio{ratio}_aligned{int(aligned)}"
                impl = "torchvision" if layout == "contiguous" else "torchvision_channels_last"
                rows = [len(g) for g in groups]
                for name, run in (("forward", forward), ("backward", backward)):
                    if name == "forward":
                        check = dot("check", torch.cat(run())[order])
                    else:
                        check = sum(dot(f"check{i}", dx) for i, dx in enumerate(run()))
                    emit("ops", kind, impl, measure(run), **{"pass": name}, threads=threads, rois_by_level=rows, checksum=check)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--only", choices=("nms", "roi_align"))
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    assert torchvision.extension._has_ops(), "torchvision without its operators"
    with torch.no_grad():
        if a.only != "roi_align":
            bench_nms(a.threads)
        if a.only != "nms":
            bench_roi_align(a.threads)


if __name__ == "__main__":
    main()
