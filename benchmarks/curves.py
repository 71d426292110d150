"""How long the curves of `ringspan-hilbert` take to order a million points.

    python -m benchmarks.curves [--points 1000000] [--repeats 5] [--threads 2] [--device cpu]

Prints, for grids and for random points of 20 and 31 bits, the median of the repeats of whole
`places()` calls, the sort and the check of the permutation included, after one call that makes
the tables of a new shape of box. Writes nothing.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from ringspan.contracts import Coordinates, Grid
from ringspan_hilbert import Curve, Gilbert, Hilbert, Morton

from benchmarks.measure import seconds

__all__ = ["measured"]

CURVES = (Hilbert(), Morton(), Gilbert())


def token_sets(points: int) -> dict[str, Grid | Coordinates]:
    """Grids of about so many cells, and random points."""
    generator = torch.Generator().manual_seed(0)

    def scattered(axes: int, bits: int) -> Coordinates:
        return Coordinates(torch.randint(0, 2**bits, (points, axes), generator=generator))

    side, edge = round(points ** (1 / 2)), round(points ** (1 / 3))
    return {
        f"Grid({side}, {side})": Grid(side, side),
        f"Grid({edge}, {edge}, {edge})": Grid(edge, edge, edge),
        **{f"{axes}-D, {bits} bits": scattered(axes, bits) for axes in (2, 3) for bits in (20, 31)},
    }


def measured(points: int, repeats: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Median seconds by tokens and curve, and of the first call of `gilbert`."""
    figures: dict[str, dict[str, float]] = {}
    for name, tokens in token_sets(points).items():
        figures[name] = {}
        for curve in CURVES:

            def order(curve: Curve = curve, tokens: Grid | Coordinates = tokens) -> object:
                return curve.places(tokens, device=device)

            first = seconds(order, device)
            times = [seconds(order, device) for _ in range(repeats)]
            figures[name][curve.name] = statistics.median(times)
        figures[name]["gilbert, first call"] = first
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = measured(options.points, options.repeats, options.device)
    columns = list(next(iter(figures.values())))
    print("| tokens | " + " | ".join(f"{name} [s]" for name in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, row in figures.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
