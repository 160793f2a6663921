#!/usr/bin/env python3
"""Joins our benchmarks' JSON lines with the peers' into a markdown table of ratios.

    make_table.py ours.jsonl peers.jsonl ... > table.md

A line: {"bench", "name", "pass" (may be absent), "impl", "median_ms", "min_ms", …}. Lines that agree in bench, name and pass are one row;
"impl": "upres" is ours, and so is a line without "impl"; without "bench" it is a convolution, and "ms" is the best time. Where one side has
no median, best times are compared, and the table says so. The ratio of times is peer / ours (2.00 = ours is twice as fast), of memory ours / peer (0.60 = ours needs 60 %).
A bench with several peers gets one table more: each row beside the faster of its peers, ratios ours / that peer.
Where lines carry `count` (how often the network has this shape) each pass gets a total, weighted by it. A row that one side lacks is
listed below the table, never dropped silently. Repeated lines for the same row: the last one counts. Non-JSON lines are ignored.
"""

import argparse
import json
import math
import pathlib
import sys

OURS = "upres"
METRICS = ("AP", "AP50", "AP75")


def read(paths):
    """{(bench, name, pass): {impl: line}}, in order of appearance."""
    rows = {}
    for path in paths:
        for number, text in enumerate(path.read_text().splitlines(), 1):
            if not text.lstrip().startswith("{"):
                continue
            try:
                line = {"bench": "conv", "impl": OURS} | json.loads(text)
                if "ms" in line:
                    line["min_ms"] = line.pop("ms")
                key = (line["bench"], line["name"], line.get("pass", ""))
                rows.setdefault(key, {})[line["impl"]] = line
            except (json.JSONDecodeError, KeyError) as e:
                sys.exit(f"{path}:{number}: not a result line ({e!r}): {text[:100]}")
    return rows


def cell(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def ratio(a, b):
    return None if a is None or not b else a / b


def time_table(bench, rows, peer, field):
    """Rows of one bench against one peer, with weighted totals."""
    gflops = any("gflops" in line for row in rows.values() for line in row.values())
    head = ["name", "pass", f"{OURS} ms", f"{peer} ms", "ratio"] + ([f"{OURS} GFLOP/s", f"{peer} GFLOP/s"] if gflops else [])
    out = [f"### {bench}: {OURS} beside {peer} ({'median' if field == 'median_ms' else 'best'} of each)", "", "| " + " | ".join(head) + " |",
           "|---|---|" + "---:|" * (len(head) - 2)]
    totals = {}  # pass to [ours, theirs, ratios, GFLOP]
    for (_, name, step), row in rows.items():
        ours, theirs = row[OURS], row[peer]
        cells = [name, step, cell(ours[field]), cell(theirs[field]), cell(ratio(theirs[field], ours[field]))]
        if gflops:
            work = next((x["gflops"] * x.get("median_ms", x["min_ms"]) for x in (theirs, ours) if "gflops" in x), 0)  # MFLOP
            cells += [cell(work / x[field], 0) for x in (ours, theirs)]
        out.append("| " + " | ".join(cells) + " |")
        if count := ours.get("count", theirs.get("count")):
            total = totals.setdefault(step, [0.0, 0.0, [], 0.0])
            total[0] += count * ours[field]
            total[1] += count * theirs[field]
            total[2] += [theirs[field] / ours[field]]
            total[3] += count * work if gflops else 0
    for step, (ours, theirs, ratios, work) in totals.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        out.append(f"| **whole network** (geometric mean of shapes {mean:.2f}) | {step} | {ours:.1f} | {theirs:.1f} | **{theirs / ours:.2f}** |"
                   + f" {work / ours:.0f} | {work / theirs:.0f} |" * gflops)
    return out + [""]


def fastest_table(bench, rows, impls):
    """Each row beside the faster of its peers: time and memory, ours / theirs. The peer's memory is that of the same run."""
    peers = [i for i in impls if i != OURS]
    field = "median_ms" if all("median_ms" in line for row in rows.values() for line in row.values()) else "min_ms"
    head = ["name", *(f"{i} ms" for i in (OURS, *peers)), "faster peer", "time, ours / theirs", f"{OURS} MiB", "its MiB", "memory, ours / theirs"]
    out = [f"### {bench}: {OURS} beside the faster peer ({'median' if field == 'median_ms' else 'best'} of each)", "", "| " + " | ".join(head) + " |",
           "|---|" + "---:|" * (1 + len(peers)) + "---|" + "---:|" * 4]
    for (_, name, step), row in rows.items():
        best = min((i for i in peers if i in row), key=lambda i: row[i][field])
        ours, theirs = row[OURS], row[best]
        memory = [x.get("peak_rss_mib") for x in (ours, theirs)]
        cells = [f"{name} {step}".rstrip(), *(cell(row.get(i, {}).get(field), 0) for i in (OURS, *peers)), best, cell(ratio(ours[field], theirs[field])),
                 *(cell(m, 0) for m in memory), cell(ratio(*memory))]
        out.append("| " + " | ".join(cells) + " |")
    return out + [""]


def extra_table(bench, rows, impls):
    """Memory and metrics, where lines have them."""
    fields = [f for f in ("peak_rss_mib", "images_per_s", "train_s", "epochs", *METRICS)
              if any(f in line for row in rows.values() for line in row.values())]
    if not fields:
        return []
    out = [f"### {bench}: memory and metrics", "", "| name | " + " | ".join(f"{f} ({i})" for f in fields for i in impls) + " | memory |",
           "|---|" + "---:|" * (len(fields) * len(impls) + 1)]
    for (_, name, step), row in rows.items():
        cells = [cell(row.get(i, {}).get(f), 3 if f in METRICS else 2) for f in fields for i in impls]
        peaks = [row[i]["peak_rss_mib"] for i in impls if i != OURS and "peak_rss_mib" in row.get(i, {})]
        memory = ratio(row.get(OURS, {}).get("peak_rss_mib"), min(peaks, default=None))
        out.append(f"| {name} {step}".rstrip() + " | " + " | ".join([*cells, cell(memory)]) + " |")
    return out + [""]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="+", type=pathlib.Path)
    p.add_argument("--time", choices=("median", "min"), default="median")
    a = p.parse_args()
    rows, out, lacking = read(a.files), [], []
    for bench in dict.fromkeys(key[0] for key in rows):
        here = {k: v for k, v in rows.items() if k[0] == bench}
        impls = list(dict.fromkeys(i for row in here.values() for i in row))
        matched = {k: v for k, v in here.items() if OURS in v and len(v) > 1 and all("min_ms" in line for line in v.values())}
        if len(impls) > 2 and OURS in impls and matched:
            out += fastest_table(bench, matched, impls)
        for peer in (i for i in impls if i != OURS):
            both = {k: v for k, v in here.items() if all("min_ms" in v.get(i, {}) for i in (OURS, peer))}
            medians = all("median_ms" in v[i] for v in both.values() for i in (OURS, peer))
            field = "median_ms" if medians and a.time == "median" else "min_ms"
            if both:
                out += time_table(bench, both, peer, field)
        out += extra_table(bench, here, [i for i in (OURS, *(i for i in impls if i != OURS)) if i in impls])
        lacking += [f"{' '.join(k).rstrip()}: only {', '.join(v)}" for k, v in here.items() if OURS not in v or len(v) == 1]
    if lacking:
        out += ["Without a counterpart:", "", *(f"* {text}" for text in lacking), ""]
    print("\n".join(out))


if __name__ == "__main__":
    main()
