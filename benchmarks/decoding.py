"""What a decoding step costs near a million tokens, and near a hundred thousand.

    python benchmarks/decoding.py [--pairs 31] [--device cuda] [--out FILE.json]

Both caches stand at the same phase of the segments, so that equally many rows are visible. Steps
of one and of the other run in turn; the figure is the median of the pairs' ratios. Beside it, what
a step costs above its two products and its softmax on the same rows, and what it would cost as one
call of `ringspan.attention` for each piece of history.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ringspan as rs
import torch
from measure import Pairs, interleaved, seconds
from overhead import environment
from ringspan.decoding import Cache, make_cache

HEADS, HEAD_DIM = 8, 64
PATTERN = rs.Dilated((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16))
PERIOD = 32768
NEAR, FAR = 3 * PERIOD - 17, 31 * PERIOD - 17
STEPS = 16
"""In one timing: all before the longest segment turns."""
LIMIT = 1.2
DTYPES = ("float32", "bfloat16")


def filled(length: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """A cache after `length` random tokens."""
    cache = make_cache(PATTERN, batch=1, heads=HEADS, head_dim=HEAD_DIM, dtype=dtype, device=device)
    key, value = (torch.randn(1, PERIOD, HEADS, HEAD_DIM).to(device, dtype) for _ in range(2))
    while cache.length < length:
        tokens = min(PERIOD, length - cache.length)
        cache.append(key[:, :tokens], value[:, :tokens])
    return cache


def steps(cache: Cache) -> Callable[[], None]:
    """The next `STEPS` steps, on a copy: the cache itself stays where it is."""
    ahead = copy.deepcopy(cache)
    sizes = cache.sizes
    token = torch.randn(3, 1, 1, HEADS, HEAD_DIM).to(sizes.device, sizes.dtype)

    def run() -> None:
        for _ in range(STEPS):
            ahead.attend(*token)

    return run


def in_turn(near: Cache, far: Cache, pairs: int) -> Pairs:
    """Seconds of the same steps far and near, pair by pair."""
    device = near.sizes.device
    times: dict[int, list[float]] = {near.length: [], far.length: []}
    for pair in range(pairs + 1):
        for cache in (far, near) if pair % 2 == 0 else (near, far):
            times[cache.length].append(seconds(steps(cache), device))
    # The first pair warms up.
    return Pairs(tuple(times[far.length][1:]), tuple(times[near.length][1:]))


def figure(dtype: str, device: torch.device, pairs: int) -> dict[str, Any]:
    """The ratio of a far to a near step, and the rows that both hold."""
    torch.manual_seed(0)
    near, far = (filled(length, getattr(torch, dtype), device) for length in (NEAR, FAR))
    times = in_turn(near, far, pairs)
    return {
        "dtype": dtype,
        "positions": [FAR, NEAR],
        "rows_per_head": [max(cache.rows_per_head) for cache in (far, near)],
        "row_limit": max(far.row_limit or ()),
        "megabytes": far.nbytes / 2**20,
        "microseconds": [
            1e6 * statistics.median(side) / STEPS for side in (times.first, times.second)
        ],
        "ratio": times.ratio,
        "ratio_limit": LIMIT,
        "met": times.ratio <= LIMIT,
    }


def alternatives(rows: int, dtype: str, device: torch.device, pairs: int) -> dict[str, Any]:
    """One step over `rows` rows: here, as bare products, and through the front door."""
    cache = make_cache(
        rs.Dense(),
        batch=1,
        heads=HEADS,
        head_dim=HEAD_DIM,
        dtype=getattr(torch, dtype),
        device=device,
    )
    history = torch.randn(2, 1, rows, HEADS, HEAD_DIM).to(device, cache.sizes.dtype)
    token = history[0][:, :1]
    cache.append(history[0][:, 1:], history[1][:, 1:])
    # Once for real, so that no timed step has to enlarge the buffers.
    cache.attend(token, token, token)
    wide = torch.float32
    query = token[0].transpose(0, 1).to(wide)
    key, value = (x[0].transpose(0, 1).contiguous() for x in history)

    def here() -> None:
        copy.copy(cache).attend(token, token, token)

    def bare() -> None:
        (query @ key.to(wide).mT).softmax(-1) @ value.to(wide)

    def front_door() -> None:
        rs.attention(token, *history)

    with torch.no_grad():
        times = {
            "bare": interleaved(here, bare, pairs, device),
            "front_door": interleaved(here, front_door, pairs, device),
        }
    return {
        "rows": rows,
        "dtype": dtype,
        "microseconds": {
            "here": 1e6 * statistics.median(times["bare"].first),
            **{name: 1e6 * statistics.median(pair.second) for name, pair in times.items()},
        },
    }


def line(result: dict[str, Any]) -> str:
    """One figure in words."""
    far, near = result["microseconds"]
    return (
        f"{result['dtype']:9} step at {FAR}: {far:.0f} us, at {NEAR}: {near:.0f} us, "
        f"ratio {result['ratio']:.3f} (limit {LIMIT}); "
        f"{result['rows_per_head'][0]} rows per head (limit {result['row_limit']})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results, compared = [], []
    for dtype in DTYPES:
        results.append(figure(dtype, options.device, options.pairs))
        print(line(results[-1]), flush=True)
    for dtype in DTYPES:
        for rows in (16, 2048, 32768):
            compared.append(alternatives(rows, dtype, options.device, options.pairs))
            times = compared[-1]["microseconds"]
            told = ", ".join(f"{name} {taken:.0f} us" for name, taken in times.items())
            print(f"{dtype:9} {rows} rows: {told}", flush=True)
    if options.out:
        record = {
            "environment": environment(options.device),
            "decoding": results,
            "alternatives": compared,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(result["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
