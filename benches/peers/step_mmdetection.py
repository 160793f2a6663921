#!/usr/bin/env python3
"""One training step of one of the paper's five detectors by mmdetection, as the paper has them (box heads of four convolutions and one
fully connected layer, Cascade's of two fully connected layers; batch norm trained, nothing frozen): forward, backward, SGD, or AdamW
for Swin. Prints one JSON line.

Modules and losses are mmdetection's own; two operators of mmcv are torchvision's, see mmcv_ops.py.
    pip install mmdet==3.3.0 mmcv-lite==2.1.0 mmengine
"""

import argparse

import torch
import torchvision

import mmcv_ops
from common import emit, peak_rss_mib
from step_torchvision import batch, measure_steps, mean_of

NAMES = {"faster": "faster_rcnn_r50_fpn_4conv1fc", "cascade": "cascade_rcnn_r50_fpn_2fc", "mask": "mask_rcnn_r50_fpn_4conv1fc",
         "retinanet": "retinanet_r50_fpn", "mask_swin": "mask_rcnn_swin_t_fpn_4conv1fc"}
CLASSES = 80


def resnet50():
    return dict(type="ResNet", depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=-1, norm_cfg=dict(type="BN", requires_grad=True),
                norm_eval=False, style="pytorch", zero_init_residual=False)


def swin_t():
    return dict(type="SwinTransformer", embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, mlp_ratio=4, qkv_bias=True,
                qk_scale=None, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.2, patch_norm=True, out_indices=(0, 1, 2, 3), with_cp=False)


def coder(stds):
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds)


def assigner(pos, neg, least, low_quality=True):
    return dict(type="MaxIoUAssigner", pos_iou_thr=pos, neg_iou_thr=neg, min_pos_iou=least, match_low_quality=low_quality, ignore_iof_thr=-1)


def sampler(num, pos_fraction, add_gt):
    return dict(type="RandomSampler", num=num, pos_fraction=pos_fraction, neg_pos_ub=-1, add_gt_as_proposals=add_gt)


def smooth_l1(beta):
    return dict(type="SmoothL1Loss", beta=beta, loss_weight=1.0) if beta > 0 else dict(type="L1Loss", loss_weight=1.0)


def detector(kind, backbone, neck, **heads):
    channels = [96, 192, 384, 768] if backbone["type"] == "SwinTransformer" else [256, 512, 1024, 2048]
    return dict(type=kind, backbone=backbone, neck=dict(type="FPN", in_channels=channels, out_channels=256, num_outs=5, **neck),
                data_preprocessor=dict(type="DetDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                                       bgr_to_rgb=False, pad_size_divisor=1), **heads)


def retinanet():
    head = dict(type="RetinaHead", num_classes=CLASSES, in_channels=256, stacked_convs=4, feat_channels=256, bbox_coder=coder([1.0] * 4),
                anchor_generator=dict(type="AnchorGenerator", octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
                loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0), loss_bbox=smooth_l1(0))
    train = dict(assigner=assigner(0.5, 0.4, 0.0), sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1, debug=False)
    test = dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
    return detector("RetinaNet", resnet50(), dict(start_level=1, add_extra_convs="on_input"), bbox_head=head, train_cfg=train, test_cfg=test)


def two_stages(kind, backbone, roi_head, rcnn, rpn_beta=0.0, rpn_border=-1, proposals=1000):
    """A region proposal network and what the second stage of `kind` has of its own."""
    rpn_head = dict(type="RPNHead", in_channels=256, feat_channels=256, bbox_coder=coder([1.0] * 4), loss_bbox=smooth_l1(rpn_beta),
                    anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
                    loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0))
    nms = dict(type="nms", iou_threshold=0.7)
    train = dict(rpn=dict(assigner=assigner(0.7, 0.3, 0.3), sampler=sampler(256, 0.5, False), allowed_border=rpn_border, pos_weight=-1, debug=False),
                 rpn_proposal=dict(nms_pre=2000, max_per_img=proposals, nms=nms, min_bbox_size=0), rcnn=rcnn)
    test = dict(rpn=dict(nms_pre=1000, max_per_img=1000, nms=nms, min_bbox_size=0),
                rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5))
    return detector(kind, backbone, {}, rpn_head=rpn_head, roi_head=roi_head, train_cfg=train, test_cfg=test)


def box_head(kind, stds, class_agnostic, beta):
    convs = dict(conv_out_channels=256) if kind == "Shared4Conv1FCBBoxHead" else {}
    return dict(type=kind, in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=CLASSES, bbox_coder=coder(stds),
                reg_class_agnostic=class_agnostic, loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=smooth_l1(beta), **convs)


def rois(size):
    return dict(type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=size, sampling_ratio=0), out_channels=256,
                featmap_strides=[4, 8, 16, 32])


def second_stage(iou, low_quality, **more):
    return dict(assigner=assigner(iou, iou, iou, low_quality), sampler=sampler(512, 0.25, True), pos_weight=-1, debug=False, **more)


def faster():
    head = box_head("Shared4Conv1FCBBoxHead", [0.1, 0.1, 0.2, 0.2], False, 0.0)
    return two_stages("FasterRCNN", resnet50(), dict(type="StandardRoIHead", bbox_roi_extractor=rois(7), bbox_head=head), second_stage(0.5, False))


def cascade():
    stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
    heads = [box_head("Shared2FCBBoxHead", s, True, 1.0) for s in stds]
    roi_head = dict(type="CascadeRoIHead", num_stages=3, stage_loss_weights=[1, 0.5, 0.25], bbox_roi_extractor=rois(7), bbox_head=heads)
    return two_stages("CascadeRCNN", resnet50(), roi_head, [second_stage(iou, False) for iou in (0.5, 0.6, 0.7)], 1 / 9, 0, 2000)


def mask(backbone):
    head = box_head("Shared4Conv1FCBBoxHead", [0.1, 0.1, 0.2, 0.2], False, 0.0)
    mask_head = dict(type="FCNMaskHead", num_convs=4, in_channels=256, conv_out_channels=256, num_classes=CLASSES,
                     loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0))
    roi_head = dict(type="StandardRoIHead", bbox_roi_extractor=rois(7), bbox_head=head, mask_roi_extractor=rois(14), mask_head=mask_head)
    return two_stages("MaskRCNN", backbone, roi_head, second_stage(0.5, True, mask_size=28))


CONFIGS = {"faster": faster, "cascade": cascade, "mask": lambda: mask(resnet50()), "retinanet": retinanet, "mask_swin": lambda: mask(swin_t())}


def samples_of(a, targets):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = (a.height, a.width)
    for target in targets:
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), pad_shape=size))
        sample.gt_instances = InstanceData(bboxes=target["boxes"], labels=target["labels"] - 1)
        if a.detector.startswith("mask"):
            sample.gt_instances.masks = BitmapMasks(target["masks"].numpy(), *size)
        yield sample


def count_samples(model, counts):
    """Notes (positives, samples) of each image and stage of the second stage."""
    samplers = getattr(getattr(model, "roi_head", None), "bbox_sampler", None) or []
    for each in samplers if isinstance(samplers, list) else [samplers]:
        def sample(*args, draw=each.sample, **more):
            drawn = draw(*args, **more)
            counts.append((drawn.num_pos, drawn.num_pos + drawn.num_neg))
            return drawn
        each.sample = sample


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--detector", choices=tuple(NAMES), default="faster")
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
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict
    register_all_modules()
    if MODELS.get("RoIAlign") is None:
        MODELS.register_module(module=mmcv_ops.RoIAlign)

    base = peak_rss_mib()
    model = MODELS.build(ConfigDict(CONFIGS[a.detector]()))
    model.init_weights()
    if a.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    if a.detector == "mask_swin":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    inputs, targets = batch(a.images, a.height, a.width, a.objects, CLASSES + 1, masks=a.detector.startswith("mask"))
    samples, counts = list(samples_of(a, targets)), []
    count_samples(model, counts)

    def loss_of_batch():
        data = model.data_preprocessor(dict(inputs=[(x * 255).byte() for x in inputs], data_samples=samples), True)
        loss, _ = model.parse_losses(model(data["inputs"], data["data_samples"], mode="loss"))
        return loss

    times = measure_steps(loss_of_batch, optimizer, a.steps)
    emit("step", f"{NAMES[a.detector]}_{a.images}x{a.height}x{a.width}", "mmdetection", times, detector=a.detector,
         images_per_s=a.images * len(times) / sum(times), peak_rss_mib=peak_rss_mib(), rss_before_model_mib=base, **mean_of(counts),
         threads=a.threads, channels_last=a.channels_last, torch=torch.__version__, mmdet=mmdet.__version__, ops=f"torchvision {torchvision.__version__}")


if __name__ == "__main__":
    main()
