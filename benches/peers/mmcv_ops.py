"""mmcv.ops by torchvision, for mmdetection on mmcv-lite: import this before mmdet.

mmcv with compiled operators has no wheel for current torch. The paper's detectors use three of them: RoIAlign (of features and of
masks) and NMS, which torchvision has, faster than mmcv's on a CPU; and the focal loss, for which mmdetection has its own on a CPU, as
mmcv's is for GPUs alone.
"""

import sys
import types

import torch
import torchvision


def roi_align(x, rois, output_size, spatial_scale=1.0, sampling_ratio=0, pool_mode="avg", aligned=True):
    """mmcv.ops.roi_align by torchvision."""
    assert pool_mode == "avg", pool_mode
    return torchvision.ops.roi_align(x, rois, output_size, spatial_scale, sampling_ratio if sampling_ratio > 0 else -1, aligned)


class RoIAlign(torch.nn.Module):
    """mmcv.ops.RoIAlign by torchvision."""

    def __init__(self, output_size, spatial_scale=1.0, sampling_ratio=0, pool_mode="avg", aligned=True, use_torchvision=False):
        super().__init__()
        size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned = size, spatial_scale, sampling_ratio, aligned

    def forward(self, x, rois):
        return roi_align(x, rois, self.output_size, self.spatial_scale, self.sampling_ratio, "avg", self.aligned)


def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
    """mmcv.ops.batched_nms by torchvision."""
    threshold = nms_cfg.get("iou_threshold", 0.5)
    offsets = 0 if class_agnostic else idxs.to(boxes) * (boxes.max() + 1)
    keep = torchvision.ops.nms(boxes if class_agnostic else boxes + offsets[:, None], scores, threshold)
    keep = keep[: nms_cfg.get("max_num", len(keep))] if nms_cfg.get("max_num", -1) > 0 else keep
    return torch.cat([boxes[keep], scores[keep, None]], -1), keep


class Ops(types.ModuleType):
    """mmcv.ops: what the models use, and names that other models of the library import."""

    RoIAlign, roi_align, batched_nms = RoIAlign, staticmethod(roi_align), staticmethod(batched_nms)

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
