#!/usr/bin/env python3
"""One training step of mmdetection's Faster R-CNN R50-FPN as the paper has it (Shared4Conv1FC head, batch norm trained, nothing
frozen): forward, backward, SGD. Prints one JSON line.

mmcv with compiled operators has no wheel for current torch, so mmcv-lite is used, and its RoIAlign and NMS are torchvision's: the
only two compiled operators of this model, and faster than mmcv's on a CPU. Everything else is mmdetection's own.
    pip install mmdet==3.3.0 mmcv-lite==2.1.0 mmengine
"""

import argparse
import sys
import types

import torch
import torchvision
from torchvision.ops import nms as tv_nms, roi_align

from common import emit, peak_rss_mib
from step_torchvision import batch, measure_steps


class RoIAlign(torch.nn.Module):
    """mmcv.ops.RoIAlign by torchvision."""

    def __init__(self, output_size, spatial_scale=1.0, sampling_ratio=0, pool_mode="avg", aligned=True, use_torchvision=False):
        super().__init__()
        size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned = size, spatial_scale, sampling_ratio, aligned

    def forward(self, x, rois):
        ratio = self.sampling_ratio if self.sampling_ratio > 0 else -1
        return roi_align(x, rois, self.output_size, self.spatial_scale, ratio, self.aligned)


def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
    """mmcv.ops.batched_nms by torchvision."""
    threshold = nms_cfg.get("iou_threshold", 0.5)
    offsets = 0 if class_agnostic else idxs.to(boxes) * (boxes.max() + 1)
    keep = tv_nms(boxes if class_agnostic else boxes + offsets[:, None], scores, threshold)
    keep = keep[: nms_cfg.get("max_num", len(keep))] if nms_cfg.get("max_num", -1) > 0 else keep
    return torch.cat([boxes[keep], scores[keep, None]], -1), keep


class Ops(types.ModuleType):
    """mmcv.ops: what the model uses, and names that other models of the library import."""

    RoIAlign, batched_nms = RoIAlign, staticmethod(batched_nms)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (torch.nn.Module,), {}) if name[0].isupper() else lambda *_, **__: (_ for _ in ()).throw(NotImplementedError(name))
        setattr(self, name, made)
        return made


ops = Ops("mmcv.ops")
ops.__path__ = []
sys.modules["mmcv.ops"] = ops
for sub in ("nms", "roi_align", "carafe", "deform_conv", "modulated_deform_conv", "merge_cells", "point_sample", "multi_scale_deform_attn", "roi_pool"):
    sys.modules[f"mmcv.ops.{sub}"] = ops


def config(classes):
    from mmengine.config import ConfigDict

    pad = dict(type="DetDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False, pad_size_divisor=1)
    coder = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4)
    loss = dict(type="L1Loss", loss_weight=1.0)
    assigner = dict(type="MaxIoUAssigner", ignore_iof_thr=-1)
    sampler = dict(type="RandomSampler", neg_pos_ub=-1)
    return ConfigDict(
        type="FasterRCNN", data_preprocessor=pad,
        backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=-1, norm_cfg=dict(type="BN", requires_grad=True),
                      norm_eval=False, style="pytorch", zero_init_residual=False),
        neck=dict(type="FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
        rpn_head=dict(type="RPNHead", in_channels=256, feat_channels=256, bbox_coder=dict(coder, target_stds=[1.0] * 4), loss_bbox=loss,
                      anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
                      loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)),
        roi_head=dict(
            type="StandardRoIHead",
            bbox_roi_extractor=dict(type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0), out_channels=256,
                                    featmap_strides=[4, 8, 16, 32]),
            bbox_head=dict(type="Shared4Conv1FCBBoxHead", in_channels=256, conv_out_channels=256, fc_out_channels=1024, roi_feat_size=7,
                           num_classes=classes, bbox_coder=dict(coder, target_stds=[0.1, 0.1, 0.2, 0.2]), reg_class_agnostic=False, loss_bbox=loss,
                           loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0))),
        train_cfg=dict(
            rpn=dict(assigner=dict(assigner, pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True),
                     sampler=dict(sampler, num=256, pos_fraction=0.5, add_gt_as_proposals=False), allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(assigner=dict(assigner, pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False),
                      sampler=dict(sampler, num=512, pos_fraction=0.25, add_gt_as_proposals=True), pos_weight=-1, debug=False)),
        test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
                      rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=int, default=2)
    p.add_argument("--height", type=int, default=448)
    p.add_argument("--width", type=int, default=448)
    p.add_argument("--objects", type=int, default=8, help="a picture")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=3, help="measured, after one to warm up")
    p.add_argument("--channels-last", action="store_true", help="instead of mmdetection's NCHW")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)

    import mmdet
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.structures import InstanceData
    register_all_modules()
    if MODELS.get("RoIAlign") is None:
        MODELS.register_module(module=RoIAlign)

    base = peak_rss_mib()
    model = MODELS.build(config(80))
    model.init_weights()
    if a.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    inputs, targets = batch(a.images, a.height, a.width, a.objects, 81)
    samples = []
    for target in targets:
        sample = DetDataSample(metainfo=dict(img_shape=(a.height, a.width), ori_shape=(a.height, a.width), scale_factor=(1.0, 1.0), pad_shape=(a.height, a.width)))
        sample.gt_instances = InstanceData(bboxes=target["boxes"], labels=target["labels"] - 1)
        samples.append(sample)

    def loss_of_batch():
        data = model.data_preprocessor(dict(inputs=[(x * 255).byte() for x in inputs], data_samples=samples), True)
        loss, _ = model.parse_losses(model(data["inputs"], data["data_samples"], mode="loss"))
        return loss

    times = measure_steps(loss_of_batch, sgd, a.steps)
    emit("step", f"faster_rcnn_r50_fpn_4conv1fc_{a.images}x{a.height}x{a.width}", "mmdetection", times, images_per_s=a.images * len(times) / sum(times),
         peak_rss_mib=peak_rss_mib(), rss_before_model_mib=base, threads=a.threads, channels_last=a.channels_last, torch=torch.__version__,
         mmdet=mmdet.__version__, ops=f"torchvision {torchvision.__version__}")


if __name__ == "__main__":
    main()
