"""A slide encoder on real tissue: irregular tiles with gaps, row by row against Hilbert.

python -m examples.slide [--layers 2] [--embed-dim 192] [--quick]
"""

from examples.slide.problem import Problem
from examples.slide.report import reported
from examples.tables import Table

__all__ = ["Problem", "tables"]


def tables(quick: bool = False) -> list[Table]:
    """Everything that the example finds, as `(title, header, rows)` of text.

    Args:
        quick: run a small part, in a few seconds.
    """
    return reported(Problem.quick() if quick else Problem())
