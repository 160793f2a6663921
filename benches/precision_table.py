#!/usr/bin/env python3
"""What benches/precision.sh has trained: one JSON line a run, then a markdown table of means over the seeds that every precision has.

    precision_table.py OUT NAME
"""

import json
import pathlib
import re
import statistics
import sys

PRECISIONS = ("f32", "f16", "bf16")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    out, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    runs = {}
    for path in sorted(out.glob(f"{name}-*/metrics.json")):
        match = re.fullmatch(rf"{re.escape(name)}-(f32|f16|bf16)-(\d+)", path.parent.name)
        if not match:
            continue
        precision, seed = match[1], int(match[2])
        found = json.loads(path.read_text())
        skipped = 0
        for line in (path.parent / "log.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "train":
                # Counted within a stage: the last line of each says how many.
                skipped = max(skipped, event.get("skipped_steps", 0))
        ap, ap50 = (100 * found["metrics"][key] for key in ("bbox_ap", "bbox_ap50"))
        runs[precision, seed] = (ap, ap50)
        line = {"bench": "precision", "name": name, "precision": precision, "seed": seed, "split": found["split"],
                "bbox_ap": round(ap, 2), "bbox_ap50": round(ap50, 2), "most_skipped_steps": skipped,
                "time_s": round(found["time_s"])}
        print(json.dumps(line))
    seeds = sorted(s for s in {s for _, s in runs} if all((p, s) in runs for p in PRECISIONS))
    if not seeds:
        sys.exit(f"{out}: no seed of {name} is done in every precision")
    print(f"\n| {name}, seeds {', '.join(map(str, seeds))} | AP | AP50 of each seed | AP50 | beside f32 |\n|---|---:|---|---:|---:|")
    mean = {p: [statistics.mean(runs[p, s][i] for s in seeds) for i in (0, 1)] for p in PRECISIONS}
    for p in PRECISIONS:
        each = ", ".join(f"{runs[p, s][1]:.1f}" for s in seeds)
        print(f"| {p} | {mean[p][0]:.2f} | {each} | {mean[p][1]:.2f} | {mean[p][1] - mean['f32'][1]:+.2f} |")


if __name__ == "__main__":
    main()
