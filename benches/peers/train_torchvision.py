#!/usr/bin/env python3
"""torchvision's Faster or Mask R-CNN on a small ResNet-FPN, trained from scratch for a given time, then evaluated with pycocotools.

Batch norm is trained, as one must without pre-trained weights; everything else is torchvision's default but the input size. With `--small`
the network is like that of recipes/nuclei_mask.toml: a ResNet-18 of half width, 64 channels, small heads, its anchors and numbers of samples;
its RPN has 64 channels instead of 32, because torchvision's keeps the pyramid's.
Pictures are mirrored half the time (with `--vertical-flip` top to bottom too). The schedule follows the clock: a linear warm-up in steps, then a cosine or steps at 8/12 and
11/12 of the budget (the usual 1x). The clock counts training only, reading included. Progress goes to stderr, one JSON line to stdout.
"""

import argparse
import contextlib
import io
import json
import math
import pathlib
import random
import time

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import MultiScaleRoIAlign

from common import emit, note, peak_rss_mib

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class HalfResNet18(ResNet):
    """torchvision's ResNet-18 with half of the channels."""

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.inplanes = 32
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 32, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(32)
        for i in range(4):
            setattr(self, f"layer{i + 1}", self._make_layer(BasicBlock, 32 << i, 2, stride=1 if i == 0 else 2))
        for m in self.modules():
            if isinstance(m, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def small(classes, masks, **size):
    """The detector of recipes/nuclei_mask.toml, but for the RPN's width."""
    backbone = BackboneWithFPN(HalfResNet18(), {f"layer{i + 1}": str(i) for i in range(4)}, [32, 64, 128, 256], 64)
    levels = ["0", "1", "2", "3"]
    parts = dict(
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=1000, rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_train=500, rpn_post_nms_top_n_test=500,
        box_batch_size_per_image=256, box_roi_pool=MultiScaleRoIAlign(levels, 5, 2), box_head=TwoMLPHead(64 * 5 * 5, 256),
        box_predictor=FastRCNNPredictor(256, classes),
    )
    if not masks:
        return FasterRCNN(backbone, **parts, **size)
    return MaskRCNN(backbone, **parts, **size, mask_roi_pool=MultiScaleRoIAlign(levels, 10, 2), mask_head=MaskRCNNHeads(64, (64, 64), 1),
                    mask_predictor=MaskRCNNPredictor(64, 64, classes))


class CocoImages(torch.utils.data.Dataset):
    """Pictures in [0, 1], boxes and masks of a COCO file; classes 1 … n in the order of its categories, 0 is background."""

    def __init__(self, images, annotations, flip, vertical=False, masks=False):
        self.masks = masks
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(annotations))
        self.folder, self.flip, self.vertical = pathlib.Path(images), flip, vertical
        self.label = {c: i + 1 for i, c in enumerate(sorted(self.coco.getCatIds()))}
        self.ids = sorted(i for i in self.coco.getImgIds() if not flip or self.boxes_of(i))

    def boxes_of(self, image_id):
        anns = self.coco.loadAnns(self.coco.getAnnIds(image_id, iscrowd=False))
        return [a for a in anns if a["bbox"][2] >= 1 and a["bbox"][3] >= 1]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        image_id = self.ids[index]
        path = self.folder / self.coco.imgs[image_id]["file_name"]
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
        anns = self.boxes_of(image_id)
        boxes = torch.tensor([a["bbox"] for a in anns], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if self.masks and self.flip:  # only training needs them
            masks = torch.zeros(len(anns), *image.shape[1:], dtype=torch.uint8)
            for i, a in enumerate(anns):
                masks[i] = torch.from_numpy(self.coco.annToMask(a))
        if self.flip and random.random() < 0.5:
            image, width = image.flip(-1), image.shape[-1]
            masks = masks if masks is None else masks.flip(-1)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        if self.vertical and random.random() < 0.5:
            image, height = image.flip(-2), image.shape[-2]
            masks = masks if masks is None else masks.flip(-2)
            boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
        labels = torch.tensor([self.label[a["category_id"]] for a in anns], dtype=torch.int64)
        target = {"boxes": boxes, "labels": labels, "image_id": image_id}
        return image, target if masks is None else target | {"masks": masks}


def rate(progress, step, a):
    """Factor of the learning rate at a share of the budget."""
    warm = min(1.0, (step + 1) / max(a.warmup, 1))
    if a.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    if a.schedule == "step":
        return warm * 0.1 ** sum(progress >= m for m in (8 / 12, 11 / 12))
    return warm


def train(model, data, a):
    groups = [p for p in model.parameters() if p.requires_grad]
    if a.optimizer == "adamw":  # norms and biases do not decay
        decayed, others = [q for q in groups if q.ndim > 1], [q for q in groups if q.ndim == 1]
        parts = [{"params": decayed, "weight_decay": a.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(parts, lr=a.lr)
    else:
        optimizer = torch.optim.SGD(groups, lr=a.lr, momentum=0.9, weight_decay=a.weight_decay)
    loader = torch.utils.data.DataLoader(data, a.batch, shuffle=True, drop_last=True, collate_fn=lambda b: tuple(zip(*b)))
    model.train()
    start, step, seen, epoch, recent = time.perf_counter(), 0, 0, 0, []
    while True:
        for images, targets in loader:
            elapsed = time.perf_counter() - start
            if elapsed >= 60 * a.minutes or step == a.max_steps:
                return step, seen, elapsed
            for group in optimizer.param_groups:
                group["lr"] = a.lr * rate(elapsed / (60 * a.minutes), step, a)
            losses = model(images, targets)
            loss = sum(losses.values())
            if not torch.isfinite(loss):
                raise SystemExit(f"step {step}: loss is {loss.item()}: {losses}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if a.clip:
                torch.nn.utils.clip_grad_norm_(groups, a.clip)
            optimizer.step()
            recent.append(loss.item())
            step, seen = step + 1, seen + len(images)
            if step % 20 == 0:
                done, recent = sum(recent) / len(recent), []
                note(f"epoch {epoch} step {step} {elapsed:.0f} s loss {done:.3f} lr {optimizer.param_groups[0]['lr']:.4g} {seen / elapsed:.2f} images/s")
        epoch += 1


def evaluate(model, data):
    category = {label: c for c, label in data.label.items()}
    model.eval()
    found = []
    with torch.no_grad():
        for image, target in (data[i] for i in range(len(data))):
            out = model([image])[0]
            boxes = out["boxes"].clone()
            boxes[:, 2:] -= boxes[:, :2]
            results = [{"image_id": target["image_id"], "category_id": category[int(c)], "bbox": b, "score": s}
                       for b, c, s in zip(boxes.tolist(), out["labels"], out["scores"].tolist())]
            for result, mask in zip(results, out.get("masks", ())):
                result["segmentation"] = rle.encode(np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8)))
            found += results
    if not found:
        return dict.fromkeys(NAMES, 0.0)
    metrics = {}
    for kind, prefix in [("bbox", "")] + [("segm", "mask_")] * data.masks:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            # loadRes of results with a box takes areas and masks from it: of masks it must not see the box.
            shown = found if kind == "bbox" else [{k: v for k, v in f.items() if k != "bbox"} for f in found]
            coco = COCOeval(data.coco, data.coco.loadRes(shown), kind)
            coco.evaluate()
            coco.accumulate()
            coco.summarize()
        note(f"{kind}\n{text.getvalue()}")
        metrics |= {prefix + name: float(value) for name, value in zip(NAMES, coco.stats)}
    return metrics


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=pathlib.Path, required=True, help="folder of the pictures")
    p.add_argument("--train", type=pathlib.Path, required=True, help="COCO file to train on")
    p.add_argument("--test", type=pathlib.Path, required=True, help="COCO file to evaluate on")
    p.add_argument("--minutes", type=float, default=21)
    p.add_argument("--max-steps", type=int, default=-1, help="end earlier, whatever the clock says")
    p.add_argument("--bench", default="bccd", help="name of the result")
    p.add_argument("--masks", action="store_true", help="Mask R-CNN")
    p.add_argument("--small", action="store_true", help="about the size of recipes/nuclei_mask.toml; --backbone is not used")
    p.add_argument("--backbone", default="resnet18")
    p.add_argument("--height", type=int, default=240)
    p.add_argument("--width", type=int, default=320)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    p.add_argument("--vertical-flip", action="store_true")
    p.add_argument("--lr", type=float, default=0.01)
    p.add_argument("--weight-decay", type=float, default=1e-4)
    p.add_argument("--warmup", type=int, default=50, help="steps")
    p.add_argument("--schedule", choices=("cosine", "step", "constant"), default="cosine")
    p.add_argument("--clip", type=float, default=0, help="largest gradient norm, 0: no clipping")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--nchw", action="store_true", help="torch's default layout instead of channels_last")
    p.add_argument("--out", type=pathlib.Path, help="write the result there too")
    a = p.parse_args()

    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    random.seed(a.seed)
    data = CocoImages(a.images, a.train, flip=True, vertical=a.vertical_flip, masks=a.masks)
    test = CocoImages(a.images, a.test, flip=False, masks=a.masks)
    short, long = sorted((a.height, a.width))
    if a.small:
        model = small(len(data.label) + 1, a.masks, min_size=short, max_size=long)
    else:
        backbone = resnet_fpn_backbone(backbone_name=a.backbone, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5)
        model = (MaskRCNN if a.masks else FasterRCNN)(backbone, num_classes=len(data.label) + 1, min_size=short, max_size=long)
    if not a.nchw:
        model = model.to(memory_format=torch.channels_last)
    note(f"{len(data)} pictures to train on, {len(test)} to test, {sum(q.numel() for q in model.parameters()) / 1e6:.1f} M parameters")
    steps, seen, seconds = train(model, data, a)
    peak = peak_rss_mib()
    t = time.perf_counter()
    metrics = evaluate(model, test)
    detector, network = "mask" if a.masks else "faster", "half_resnet18" if a.small else a.backbone
    line = emit(a.bench, f"{detector}_rcnn_{network}_fpn_{a.width}x{a.height}", "torchvision", train_s=seconds, steps=steps,
                epochs=seen / len(data), images_per_s=seen / seconds, eval_s=time.perf_counter() - t, peak_rss_mib=peak, threads=a.threads,
                batch=a.batch, optimizer=a.optimizer, lr=a.lr, schedule=a.schedule, seed=a.seed, torch=torch.__version__, torchvision=torchvision.__version__,
                **metrics)
    if a.out:
        a.out.write_text(json.dumps(line, indent=1) + "\n")


if __name__ == "__main__":
    main()
