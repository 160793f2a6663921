#!/usr/bin/env python3
"""Writes tests/fixtures/weights/torchvision.json: names and shapes of the weights of torchvision's models, a list of "name shape"
for each. Counters and tables of constants are left out.

    pip install torch==2.11 torchvision==0.26
    python tools/torchvision_names.py > tests/fixtures/weights/torchvision.json
"""

import json

import torchvision

DETECTORS = ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"]
CLASSIFIERS = ["resnet18", "resnet50", "swin_t"]
LEFT_OUT = ("num_batches_tracked", "relative_position_index")


def main():
    models = {n: getattr(torchvision.models.detection, n)(weights=None, weights_backbone=None) for n in DETECTORS}
    models |= {n: getattr(torchvision.models, n)(weights=None) for n in CLASSIFIERS}
    rows = {n: [f"{k} {'x'.join(map(str, v.shape))}" for k, v in m.state_dict().items() if not k.endswith(LEFT_OUT)] for n, m in models.items()}
    print(json.dumps(rows, indent=0))


if __name__ == "__main__":
    main()
