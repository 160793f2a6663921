"""What the peers' benchmarks share: reproducible numbers, timing, and one JSON object a line."""

import json
import math
import resource
import statistics
import sys
import time

import numpy as np


def hash_uniform(name, n):
    """n numbers in (-1, 1) that follow from a name: the rule of tests/fixtures/README.md, so that ours use the same input."""
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) % 2**64
    z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (2 * (z >> np.uint64(40)).astype(np.float64) + 1 - 2**24) / 2**24


def measure(run, min_reps=5, min_seconds=0.3, max_reps=1000, warmup=2):
    """Seconds of each repetition, after warming up."""
    for _ in range(warmup):
        run()
    times = []
    while len(times) < min_reps or (sum(times) < min_seconds and len(times) < max_reps):
        t = time.perf_counter()
        run()
        times.append(time.perf_counter() - t)
    return times


def peak_rss_mib():
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def emit(bench, name, impl, times=None, **more):
    """Prints the result line. `bench`, `name` and `pass` (if any) are what make_table.py joins on."""
    line = {"bench": bench, "name": name, "impl": impl}
    if times is not None:
        line |= {"median_ms": 1e3 * statistics.median(times), "min_ms": 1e3 * min(times), "reps": len(times)}
    line |= more
    line = {k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in line.items()}
    print(json.dumps(line), flush=True)
    return line


def note(text):
    """Progress, kept apart from the result lines."""
    print(text, file=sys.stderr, flush=True)
