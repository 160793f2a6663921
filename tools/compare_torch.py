#!/usr/bin/env python3
"""Whether a detector finds the same here and, with its weights converted, in torchvision or mmdetection.

    python tools/compare_torch.py CASE...                          cases that come with it; `all` for all
    python tools/compare_torch.py --checkpoint FILE --to PROGRAM --pictures DIR    a checkpoint of yours, on pictures as large as its
                                                                   evaluation (so that nothing is resized), sides multiples of 128

A case makes weights that give many detections (the rule of tests/fixtures/README.md), takes them in with `convert --from`, detects,
writes them with `convert --to`, loads them strictly into the other program's own model and detects there. Prints one JSON line a case.
    pip install torch==2.11 torchvision==0.26 mmdet==3.3.0 mmcv-lite==2.1.0 mmengine safetensors pycocotools pillow
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image
from pycocotools import mask as rle

ROOT = Path(__file__).resolve().parent.parent
CLASSES = [f"c{i}" for i in range(80)]
SIZE = (256, 384)  # height, width of the pictures
COMMON = ["stage.finetune.resize.short=256", "stage.finetune.resize.long=384"]
FEW = ["model.rpn.test_max=200"]
AS_TORCHVISION = ["model.box_head.kind=shared_2fc", "model.box_head.aligned=false", "model.box_head.sampling_ratio=2", "model.rpn.anchor_rounding=true"]
MASKS = ["model.mask_head.aligned=false", "model.mask_head.sampling_ratio=2"]
RETINA = ["model.retina_head.selection=pairs"]
# Name: program, rules of the weights, recipe, settings.
CASES = {
    "torchvision_faster": ("torchvision", "faster_2fc", "faster_rcnn_r50_fpn", FEW + AS_TORCHVISION),
    "torchvision_mask": ("torchvision", "mask_2fc", "mask_rcnn_r50_fpn", FEW + AS_TORCHVISION + MASKS),
    "torchvision_retinanet": ("torchvision", "retinanet_p5", "retinanet_r50_fpn", RETINA + [
        "model.fpn.extra=conv_p5", "model.fpn.extra_relu=true", "model.retina_head.anchor_rounding=true", "model.backbone.norm_eps=0"]),
    "mmdetection_faster": ("mmdetection", "faster", "faster_rcnn_r50_fpn", FEW),
    "mmdetection_cascade": ("mmdetection", "cascade", "cascade_rcnn_r50_fpn", FEW),
    "mmdetection_mask": ("mmdetection", "mask", "mask_rcnn_r50_fpn", FEW),
    "mmdetection_mask_swin": ("mmdetection", "mask_swin", "mask_rcnn_swin_t_fpn", FEW),
    "mmdetection_retinanet": ("mmdetection", "retinanet", "retinanet_r50_fpn", RETINA),
}
BACKBONES = [f"imagenet_{kind}" for kind in ("resnet18", "resnet34", "resnet50", "resnet101", "swin_t", "swin_s", "swin_b")]


def hash_tensor(name, shape, scale, offset):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (2 * (z >> np.uint64(40)).astype(np.int64) + 1 - 2**24) / 2**24
    return (offset + scale * u).astype(np.float32).reshape(shape)


def rules(which):
    """mmdetection's names to shape, scale and offset."""
    read = lambda n: json.loads((ROOT / f"tests/fixtures/detectors/{n}_weights.json").read_text())
    if which.endswith("_2fc"):
        all = {k: v for k, v in read(which.removesuffix("_2fc")).items() if ".shared_" not in k}
        stage = "roi_head.bbox_head.0."
        all |= {k.replace(stage, "roi_head.bbox_head."): v for k, v in read("cascade").items() if k.startswith(stage) and "fc_reg" not in k}
        return all
    if which == "retinanet_p5":
        all = read("retinanet")
        p6 = all["neck.fpn_convs.3.conv.weight"]
        all["neck.fpn_convs.3.conv.weight"] = dict(p6, shape=[256, 256, 3, 3], scale=p6["scale"] * 8**0.5)
        return all
    return read(which)


def pictures(folder, count=2):
    """Filled rectangles on noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        r = np.random.default_rng(i)
        x = r.integers(90, 150, (*SIZE, 3))
        for _ in range(12):
            h, w = r.integers(12, 160, 2)
            y0, x0 = r.integers(0, SIZE[0] - h // 2), r.integers(0, SIZE[1] - w // 2)
            x[y0:y0 + h, x0:x0 + w] = r.integers(0, 256, 3) + r.integers(-9, 10, x[y0:y0 + h, x0:x0 + w].shape)
        Image.fromarray(np.clip(x, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, args))}\n{done.stderr}")
    return done.stderr


def recipe_of(checkpoint):
    with safetensors.safe_open(checkpoint, "np") as f:
        meta = json.loads(f.metadata()["upres"])
    return tomllib.loads(meta["recipe"]), meta["classes"], meta["category_ids"]


def torchvision_model(recipe, classes):
    from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    m, k = recipe["model"], len(classes) + 1
    norm = torch.nn.BatchNorm2d if m["backbone"]["norm_eps"] > 0 else FrozenBatchNorm2d  # the former takes no 0
    own = dict(weights=None, norm_layer=norm, trainable_layers=5)
    input = dict(min_size=SIZE[0], max_size=max(SIZE), image_mean=[v / 255 for v in recipe["data"]["mean"]], image_std=[v / 255 for v in recipe["data"]["std"]])
    if m["detector"] == "retinanet":
        h = m["retina_head"]
        n = h["scales_per_octave"]
        sizes = tuple(tuple(s * h["octave_scale"] * 2 ** (i / n) for i in range(n)) for s in h["strides"])
        anchors = AnchorGenerator(sizes, (tuple(h["anchor_ratios"]),) * len(sizes))
        p6 = LastLevelP6P7(256 if m["fpn"]["extra"] == "conv_p5" else 2048, 256)
        backbone = resnet_fpn_backbone(backbone_name=m["backbone"]["kind"], returned_layers=[2, 3, 4], extra_blocks=p6, **own)
        model = RetinaNet(backbone, k, anchor_generator=anchors, score_thresh=h["score_threshold"], nms_thresh=h["nms_iou"],
                          detections_per_img=h["max_detections"], topk_candidates=h["nms_pre"], **input)
    else:
        r, h = m["rpn"], m["box_head"]
        sizes = tuple(tuple(s * a for a in r["anchor_scales"]) for s in r["strides"])
        pool = lambda h: MultiScaleRoIAlign(["0", "1", "2", "3"], h["pool"], h["sampling_ratio"])
        kind, more = (MaskRCNN, dict(mask_roi_pool=pool(m["mask_head"]))) if m["detector"] == "mask_rcnn" else (FasterRCNN, {})
        model = kind(resnet_fpn_backbone(backbone_name=m["backbone"]["kind"], **own), k, box_roi_pool=pool(h),
                     rpn_anchor_generator=AnchorGenerator(sizes, (tuple(r["anchor_ratios"]),) * len(sizes)), rpn_pre_nms_top_n_test=r["test_nms_pre"],
                     rpn_post_nms_top_n_test=r["test_max"], rpn_nms_thresh=r["nms_iou"], box_score_thresh=h["score_threshold"], box_nms_thresh=h["nms_iou"],
                     box_detections_per_img=h["max_detections"], bbox_reg_weights=tuple(1 / s for s in h["stds"]), **more, **input)
    for module in model.modules():
        if isinstance(module, norm):
            module.eps = m["backbone"]["norm_eps"]

    model.transform.postprocess = lambda found, *_: found  # its way to draw a mask at the picture's size is another than mmdetection's and ours

    def detect(pixels):
        out = model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])[0]
        masks = []
        if len(out.get("masks", [])):
            peer()
            from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

            masks = list(_do_paste_mask(out["masks"], out["boxes"], *pixels.shape[:2], skip_empty=False)[0] >= m["mask_head"]["threshold"])
        return out["boxes"], out["scores"], out["labels"] - 1, masks

    return model, detect


def mmdetection_config(recipe, classes):
    m, k = recipe["model"], len(classes)
    b, retina = m["backbone"], m["detector"] == "retinanet"
    coder = lambda stds: dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=list(stds))
    l1, ce = dict(type="L1Loss"), lambda sigmoid: dict(type="CrossEntropyLoss", use_sigmoid=sigmoid)
    if b["kind"].startswith("swin"):
        depths = [2, 2, 6 if b["kind"] == "swin_t" else 18, 2]
        embed = 128 if b["kind"] == "swin_b" else 96
        backbone = dict(type="SwinTransformer", embed_dims=embed, depths=depths, num_heads=[embed // 32 * 2**i for i in range(4)], window_size=b["window"],
                        drop_path_rate=b["drop_path"], out_indices=(0, 1, 2, 3))
        widths = [embed * 2**i for i in range(4)]
    else:
        depth = int(b["kind"].removeprefix("resnet"))
        backbone = dict(type="ResNet", depth=depth, num_stages=4, out_indices=(0, 1, 2, 3), norm_cfg=dict(type="BN", eps=b["norm_eps"]), norm_eval=True, style="pytorch")
        widths = [c * (4 if depth >= 50 else 1) for c in (64, 128, 256, 512)]
    extra = {"subsample": False, "conv_c5": "on_input", "conv_p5": "on_output"}[m["fpn"]["extra"]]
    neck = dict(type="FPN", in_channels=widths, out_channels=m["fpn"]["channels"], start_level=m["fpn"]["start"] - 2, add_extra_convs=extra,
                relu_before_extra_convs=m["fpn"]["extra_relu"], num_outs=m["fpn"]["levels"])
    pixels = dict(type="DetDataPreprocessor", mean=recipe["data"]["mean"], std=recipe["data"]["std"], bgr_to_rgb=False, pad_size_divisor=32)
    nms = lambda iou: dict(type="nms", iou_threshold=iou)
    if retina:
        h = m["retina_head"]
        anchors = dict(type="AnchorGenerator", octave_base_scale=h["octave_scale"], scales_per_octave=h["scales_per_octave"], ratios=h["anchor_ratios"], strides=h["strides"])
        head = dict(type="RetinaHead", num_classes=k, in_channels=m["fpn"]["channels"], stacked_convs=h["convs"], feat_channels=h["channels"], anchor_generator=anchors,
                    bbox_coder=coder(h["stds"]), loss_cls=dict(type="FocalLoss", use_sigmoid=True), loss_bbox=l1)
        test = dict(nms_pre=h["nms_pre"], min_bbox_size=0, score_thr=h["score_threshold"], nms=nms(h["nms_iou"]), max_per_img=h["max_detections"])
        return dict(type="RetinaNet", data_preprocessor=pixels, backbone=backbone, neck=neck, bbox_head=head, test_cfg=test)
    r, h, c = m["rpn"], m["box_head"], m["fpn"]["channels"]
    cascade, masks = m["detector"] == "cascade_rcnn", m["detector"] == "mask_rcnn"
    anchors = dict(type="AnchorGenerator", scales=r["anchor_scales"], ratios=r["anchor_ratios"], strides=r["strides"])
    rpn = dict(type="RPNHead", in_channels=c, feat_channels=r["channels"], anchor_generator=anchors, bbox_coder=coder(r["stds"]), loss_cls=ce(True), loss_bbox=l1)
    convs = dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=h["conv_channels"]) if h["kind"] == "shared_4conv_1fc" else dict(type="Shared2FCBBoxHead")
    box = lambda stds: dict(convs, in_channels=c, fc_out_channels=h["fc_channels"], roi_feat_size=h["pool"], num_classes=k, bbox_coder=coder(stds),
                            reg_class_agnostic=h["class_agnostic"], loss_cls=ce(False), loss_bbox=l1)
    extractor = lambda h: dict(type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=h["pool"], sampling_ratio=h["sampling_ratio"], aligned=h["aligned"]),
                               out_channels=c, featmap_strides=r["strides"][:4])
    roi = dict(type="StandardRoIHead", bbox_roi_extractor=extractor(h), bbox_head=box(h["stds"]))
    if cascade:
        stds = m["cascade"]["stds"]
        roi |= dict(type="CascadeRoIHead", num_stages=3, stage_loss_weights=m["cascade"]["loss_weights"], bbox_head=[box(stds[4 * i:4 * i + 4]) for i in range(3)])
    rcnn = dict(score_thr=h["score_threshold"], nms=nms(h["nms_iou"]), max_per_img=h["max_detections"])
    if masks:
        h = m["mask_head"]
        head = dict(type="FCNMaskHead", num_convs=h["convs"], in_channels=c, conv_out_channels=h["channels"], num_classes=k, loss_mask=dict(type="CrossEntropyLoss", use_mask=True))
        roi |= dict(mask_roi_extractor=extractor(h), mask_head=head)
        rcnn["mask_thr_binary"] = h["threshold"]
    proposals = dict(nms_pre=r["test_nms_pre"], max_per_img=r["test_max"], nms=nms(r["nms_iou"]), min_bbox_size=0)
    kind = "CascadeRCNN" if cascade else "MaskRCNN" if masks else "FasterRCNN"
    return dict(type=kind, data_preprocessor=pixels, backbone=backbone, neck=neck, rpn_head=rpn, roi_head=roi, train_cfg=None, test_cfg=dict(rpn=proposals, rcnn=rcnn))


def peer():
    """mmdetection with mmcv's compiled operators by torchvision."""
    sys.path.insert(0, str(ROOT / "benches/peers"))
    import mmcv_ops

    return mmcv_ops


def mmdetection_model(recipe, classes):
    roi_align = peer().RoIAlign
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict
    register_all_modules()
    if MODELS.get("RoIAlign") is None:
        MODELS.register_module(module=roi_align)
    model = MODELS.build(ConfigDict(mmdetection_config(recipe, classes)))

    def detect(pixels):
        h, w = pixels.shape[:2]
        sample = DetDataSample(metainfo=dict(img_shape=(h, w), ori_shape=(h, w), pad_shape=(h, w), scale_factor=(1.0, 1.0)))
        data = model.data_preprocessor(dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)], data_samples=[sample]), False)
        found = model(data["inputs"], data["data_samples"], mode="predict")[0].pred_instances
        return found.bboxes, found.scores, found.labels, list(found.masks) if "masks" in found else []

    return model, detect


def iou(a, b):
    lt, rb = np.maximum(a[:2], b[:, :2]), np.minimum(a[2:], b[:, 2:])
    inter = np.clip(rb - lt, 0, None).prod(1)
    area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])
    return inter / np.maximum(area(a) + area(b) - inter, 1e-9)


def compare(ours, theirs, edge):
    """Each of theirs against the one of ours of its class that overlaps most. Where a picture has as many detections as there may be,
    those with nearly the last one's score may differ: `edge`."""
    boxes, scores, labels, masks = (x if isinstance(x, list) else x.numpy() for x in theirs)
    row = dict(here=len(ours), there=len(scores), unmatched=0, score=0.0, box_px=0.0, mask_pixels=0)
    own = np.array([[*o["bbox"][:2], o["bbox"][0] + o["bbox"][2], o["bbox"][1] + o["bbox"][3]] for o in ours]).reshape(-1, 4)
    kind, score = np.array([o["class"] for o in ours]), np.array([o["score"] for o in ours])
    last = scores.min() if edge and len(scores) else 0.0
    for i, (b, s, c) in enumerate(zip(boxes, scores, labels)):
        if s <= last + 1e-4:
            continue
        same = np.where(kind == c)[0]
        at = same[iou(b, own[same]).argmax()] if len(same) else None
        if at is None or np.abs(own[at] - b).max() > 1.0:
            row["unmatched"] += 1
            continue
        row["score"] = max(row["score"], float(abs(score[at] - s)))
        row["box_px"] = max(row["box_px"], float(np.abs(own[at] - b).max()))
        if masks:
            seg = ours[at]["segmentation"]
            row["mask_pixels"] = max(row["mask_pixels"], int((rle.decode(seg) != np.asarray(masks[i])).sum()))
    return row


def measure(name, checkpoint, program, folder, a):
    recipe, classes, ids = recipe_of(checkpoint)
    weights = a.work / f"{name}.out.safetensors"
    weights.unlink(missing_ok=True)  # of an earlier call: `convert` replaces nothing
    notes = run(a.bin / "convert", checkpoint, "--to", program, weights)
    found = a.work / f"{name}.found"
    run(a.bin / "detect", checkpoint, folder, "--out", found, "--score-threshold", "0.05", "--device", "cpu")
    ours = json.loads((found / "detections.json").read_text())
    for o in ours:
        o["class"] = ids.index(o["category_id"])
    model, detect = (torchvision_model if program == "torchvision" else mmdetection_model)(recipe, classes)
    model.load_state_dict(safetensors.torch.load_file(weights), strict=True)
    model.eval()
    most = recipe["model"]["retina_head" if recipe["model"]["detector"] == "retinanet" else "box_head"]["max_detections"]
    total = {}
    for file in sorted(folder.iterdir()):
        mine = [o for o in ours if Path(o["file_name"]).name == file.name]
        with torch.no_grad():
            theirs = detect(np.array(Image.open(file).convert("RGB")))
        for key, v in compare(mine, theirs, len(theirs[1]) == most).items():
            total[key] = total.get(key, 0) + v if key in ("here", "there", "unmatched") else max(total.get(key, 0), v)
    print(json.dumps(dict(case=name, **{k: float(f"{v:.2g}") if isinstance(v, float) else v for k, v in total.items()},
                          notes=[n.removeprefix("note: ") for n in notes.splitlines()])), flush=True)


def measure_backbone(kind, a):
    """torchvision's classifier, taken in as a backbone and written for mmdetection: its maps there against torchvision's own."""
    torch.manual_seed(0)
    import torchvision

    net = getattr(torchvision.models, kind)(weights=None).eval()
    for name, t in net.state_dict().items():
        if name.endswith("running_var") or (t.dim() == 1 and name.endswith("weight")):
            t.uniform_(0.5, 1.5)  # so that no two channels of a norm are alike
        elif t.dim() == 1 and t.is_floating_point():
            t.normal_(0, 0.1)
    file, checkpoint, out = (a.work / f"{kind}{end}.safetensors" for end in ("", ".ours", ".out"))
    for old in (checkpoint, out):
        old.unlink(missing_ok=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
    recipe = ROOT / f"recipes/{'mask_rcnn_swin_t' if kind.startswith('swin') else 'faster_rcnn_r50'}_fpn.toml"
    run(a.bin / "convert", file, "--from", "torchvision", "--recipe", recipe, "--set", f"model.backbone.kind={kind}", "--classes", ",".join(CLASSES), checkpoint)
    run(a.bin / "convert", checkpoint, "--to", "mmdetection", out)
    config, classes, _ = recipe_of(checkpoint)
    model, _ = mmdetection_model(config, classes)
    model.load_state_dict(safetensors.torch.load_file(out), strict=True)
    x, theirs, worst = torch.randn(1, 3, *SIZE), [], 0.0
    with torch.no_grad():
        ours = model.eval().backbone(x)
        if kind.startswith("swin"):
            for i, layer in enumerate(net.features):
                x = layer(x)
                if i % 2:  # a detector's norm of each output is its own, and fresh
                    theirs.append(torch.nn.functional.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
        else:
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
                x = layer(x)
                theirs.append(x)
    for o, t in zip(ours, theirs, strict=True):
        worst = max(worst, float((o - t).abs().max() / t.abs().max()))
    print(json.dumps(dict(case=f"imagenet_{kind}", maps=len(theirs), relative=float(f"{worst:.2g}"))), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cases", nargs="*", metavar="CASE", help=", ".join([*CASES, *BACKBONES]))
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--to", choices=["torchvision", "mmdetection"])
    p.add_argument("--pictures", type=Path)
    p.add_argument("--bin", type=Path, default=ROOT / "target/release")
    p.add_argument("--work", type=Path, default=ROOT / "target/compare")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    if a.checkpoint:
        return measure(a.checkpoint.stem, a.checkpoint, a.to, a.pictures, a)
    folder = pictures(a.work / "pictures")
    for name in [*CASES, *BACKBONES] if a.cases == ["all"] else a.cases:
        if name in BACKBONES:
            measure_backbone(name.removeprefix("imagenet_"), a)
            continue
        program, weights, recipe, settings = CASES[name]
        made, checkpoint = a.work / f"{name}.in.safetensors", a.work / f"{name}.safetensors"
        tensors = {k: hash_tensor(k, v["shape"], v["scale"], v["offset"]) for k, v in rules(weights).items()}
        if weights.endswith("_2fc"):  # the rule has the cascade's, of all classes
            tensors |= {k: hash_tensor(k, s, 0.003, 0.0) for k, s in [("roi_head.bbox_head.fc_reg.weight", [320, 1024]), ("roi_head.bbox_head.fc_reg.bias", [320])]}
        safetensors.numpy.save_file(tensors, made)
        sets = [x for s in COMMON + settings for x in ("--set", s)]
        run(a.bin / "convert", made, "--from", "mmdetection", "--recipe", ROOT / f"recipes/{recipe}.toml", *sets, "--classes", ",".join(CLASSES), checkpoint)
        measure(name, checkpoint, program, folder, a)


if __name__ == "__main__":
    main()
