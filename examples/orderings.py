"""The orderings that the examples compare."""

__all__ = ["ORDERINGS"]

ORDERINGS = ("row-major", "snake", "tiles", "morton", "hilbert", "gilbert")
"""The first is the order in which a grid's tokens come."""
