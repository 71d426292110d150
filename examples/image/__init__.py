"""A real photograph under each ordering: the same operations, and what they see.

python -m examples.image [--out FOLDER] [--size 128] [--quick]
"""

from examples.image.problem import Problem
from examples.image.report import reported
from examples.tables import Table

__all__ = ["Problem", "tables"]


def tables(quick: bool = False) -> list[Table]:
    """Everything that the example finds, as `(title, header, rows)` of text.

    Args:
        quick: run a small part, in a few seconds.
    """
    return reported(Problem.quick() if quick else Problem())
