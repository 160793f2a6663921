#!/usr/bin/env python3
"""One training step of torchvision's Faster R-CNN, Mask R-CNN or RetinaNet, R50-FPN: forward, backward, SGD. Prints one JSON line.

The paper's pre-training: no weights, so torchvision builds BatchNorm2d (batch statistics) and trains all 5 backbone stages.
Images come in the size of the network input: nothing is resized. The box head of Faster and Mask R-CNN is torchvision's own, two fully
connected layers, or the paper's: four convolutions and one fully connected layer, no norm.
"""

import argparse
import time

import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor

from common import emit, hash_uniform, measure, note, peak_rss_mib


MODELS = {"faster": fasterrcnn_resnet50_fpn, "mask": maskrcnn_resnet50_fpn, "retinanet": retinanet_resnet50_fpn}
NAMES = {"faster": "faster_rcnn_r50_fpn", "mask": "mask_rcnn_r50_fpn", "retinanet": "retinanet_r50_fpn"}


def ellipses(boxes, height, width):
    """Masks of the pixels with their centre in each box's ellipse."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    x0, y0, x1, y1 = (c[:, None, None] for c in boxes.unbind(1))
    dx, dy = (x - (x0 + x1) / 2) / ((x1 - x0) / 2), (y - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return (dx * dx + dy * dy <= 1).to(torch.uint8)


def batch(images, height, width, objects, classes, masks=False):
    """Noise with `objects` boxes an image, 16 px to half the image, the same in every run, and in benches/step/inputs.rs."""
    inputs, targets = [], []
    for i in range(images):
        noise = hash_uniform(f"bench.step.image{i}", 3 * height * width).reshape(3, height, width)
        inputs.append(torch.from_numpy((0.5 + 0.5 * noise).astype("float32")))
        u = torch.from_numpy(0.5 + 0.5 * hash_uniform(f"bench.step.boxes{i}", 4 * objects)).float().view(objects, 4)
        wh = 16 + u[:, 2:] * (torch.tensor([width, height]) / 2 - 16)
        x0y0 = u[:, :2] * (torch.tensor([width, height]) - wh)
        labels = 1 + torch.arange(i * objects, (i + 1) * objects) % (classes - 1)
        boxes = torch.cat([x0y0, x0y0 + wh], 1)
        targets.append({"boxes": boxes, "labels": labels} | ({"masks": ellipses(boxes, height, width)} if masks else {}))
    return inputs, targets


def measure_steps(loss_of_batch, optimizer, steps):
    """Seconds of forward, backward and update, after one to warm up."""
    losses = []

    def step():
        loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        note(f"loss {losses[-1]:.4f}")

    times = measure(step, min_reps=steps, min_seconds=0, warmup=1)
    assert all(map(torch.isfinite, torch.tensor(losses))), losses
    return times


def mean_of(counts):
    """Of the second stage's (positives, samples), one pair for an image (and a stage of a cascade) of each step."""
    if not counts:
        return {}
    return {"positives": sum(p for p, _ in counts) / len(counts), "samples": sum(n for _, n in counts) / len(counts)}


def count_samples(model, counts):
    """Notes (positives, samples) of each image of the second stage."""
    if not hasattr(model, "roi_heads"):
        return
    select = model.roi_heads.select_training_samples

    def wrapped(*args):
        result = select(*args)
        counts.extend((int((labels > 0).sum()), len(labels)) for labels in result[2])
        return result
    model.roi_heads.select_training_samples = wrapped


def name_of(a):
    head = "" if a.model == "retinanet" else f"_{a.head}"
    return f"{NAMES[a.model]}{head}_{a.images}x{a.height}x{a.width}"


def on_gpu(a, model, sgd, inputs, targets):
    """Mean over all steps, waiting once at the end, as a training loop would; images come from pinned memory each step."""
    dtype = {"none": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[a.amp]
    scaler = torch.amp.GradScaler("cuda", enabled=a.amp == "f16")
    inputs = [x.pin_memory() for x in inputs]
    targets = [{k: v.to(a.device) for k, v in t.items()} for t in targets]

    def step():
        on_device = [x.to(a.device, non_blocking=True) for x in inputs]
        with torch.autocast("cuda", dtype=dtype, enabled=a.amp != "none"):
            loss = sum(model(on_device, targets).values())
        sgd.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        return loss

    torch.backends.cudnn.benchmark = True
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(a.steps):
        loss = step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / a.steps
    assert torch.isfinite(loss), loss
    emit("step", name_of(a), "torchvision", [seconds], detector=a.model,
         images_per_s=a.images / seconds, amp=a.amp, device=torch.cuda.get_device_name(), peak_allocated_mib=torch.cuda.max_memory_allocated() / 2**20,
         peak_reserved_mib=torch.cuda.max_memory_reserved() / 2**20)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=tuple(MODELS), default="faster")
    p.add_argument("--images", type=int, default=2)
    p.add_argument("--height", type=int, default=448)
    p.add_argument("--width", type=int, default=448)
    p.add_argument("--objects", type=int, default=8, help="a picture")
    p.add_argument("--classes", type=int, default=81, help="with background")
    p.add_argument("--head", choices=("2fc", "4conv1fc"), default="2fc", help="of Faster and Mask R-CNN")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=5, help="measured, after one to warm up")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--amp", choices=("none", "f16", "bf16"), default="none", help="autocast, f16 with a gradient scaler")
    p.add_argument("--nchw", action="store_true", help="torch's default layout instead of channels_last")
    a = p.parse_args()

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    base = peak_rss_mib()
    # _skip_resize: without it the transform would resample 448² to 448².
    retina = a.model == "retinanet"
    model = MODELS[a.model](weights=None, weights_backbone=None, num_classes=a.classes - retina,
                            min_size=a.height, max_size=a.width, _skip_resize=True)
    if a.head == "4conv1fc" and not retina:
        model.roi_heads.box_head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024])
        model.roi_heads.box_predictor = FastRCNNPredictor(1024, a.classes)
    if not a.nchw:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(a.device)
    model.train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 53 and all(q.requires_grad for q in model.parameters()), "batch norm and every stage must train"
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    inputs, targets = batch(a.images, a.height, a.width, a.objects, a.classes, masks=a.model == "mask")
    if retina:  # its sigmoids have no background
        targets = [t | {"labels": t["labels"] - 1} for t in targets]
    if a.device != "cpu":
        return on_gpu(a, model, sgd, inputs, targets)
    counts = []
    count_samples(model, counts)
    times = measure_steps(lambda: sum(model(inputs, targets).values()), sgd, a.steps)
    emit("step", name_of(a), "torchvision", times, detector=a.model,
         images_per_s=a.images * len(times) / sum(times), peak_rss_mib=peak_rss_mib(), rss_before_model_mib=base, **mean_of(counts),
         threads=a.threads, torch=torch.__version__, torchvision=torchvision.__version__)


if __name__ == "__main__":
    main()
