"""A pattern of the library as data, with its definition; this package imports no pattern."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.testing import multiplicity
from ringspan.testing.curve import Curve

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from ringspan.contracts.tokens import Tokens
    from ringspan.testing.curve import Order

__all__ = ["Named", "Near", "Periodic"]

_COUNTED = {"Dilated": "dilated", "HeadGroups": "head_groups"}
"""Patterns of which each branch has places of its own."""


@dataclass(frozen=True)
class Periodic:
    """A predicate of two numbers: a table of `"1"` and `"0"`, repeated without end."""

    table: tuple[str, ...]

    def __call__(self, i: Any, j: Any) -> Any:
        """True where the table has a 1. Takes numbers or arrays."""
        table = np.array([[character == "1" for character in row] for row in self.table])
        return table[np.asarray(i) % table.shape[0], np.asarray(j) % table.shape[1]]


@dataclass(frozen=True)
class Near:
    """A predicate of two points, axes first: their coordinates differ by at most `radius`."""

    radius: int

    def __call__(self, query: Any, key: Any) -> Any:
        """True where all axes are near."""
        return (abs(np.asarray(query) - np.asarray(key)) <= self.radius).all(0)


@dataclass(frozen=True)
class Named:
    """A pattern as data: the attribute `kind` of `ringspan`, called with `fields`.

    Example:
        >>> Named("Dense", {"window": (1, 0)}).kind
        'Dense'
    """

    kind: str
    """Such as `"Dense"`, `"Dilated.torchscale"` or `"BlockSparse.local"`."""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def built(self, module: object) -> Any:
        """The pattern itself; `module` is `ringspan`."""
        made: Any = module
        for part in self.kind.split("."):
            made = getattr(made, part)
        built = {
            name: value.built(module) if isinstance(value, Curve) else value
            for name, value in self.fields.items()
        }
        return made(**built)

    @property
    def along(self) -> Curve | None:
        """The ordering in whose places the pattern is taken."""
        along: Curve | str | None = self.fields.get("along")
        return Curve(along) if isinstance(along, str) else along

    @property
    def reaches_beyond(self) -> bool:
        """Whether queries may stand anywhere, also beyond the keys, and several at one place."""
        return self.kind == "Dense" and self.along is None

    def in_positions(
        self, tokens: Tokens, heads: int, kv_heads: int, order: Order
    ) -> Int[Tensor, "H N N"]:
        """`m_h(i, j)` over one document; `order` is as for `Curve.places`."""
        curve = self.along
        if curve is None or tokens.N == 0:
            return self.multiplicity(tokens, heads, kv_heads)
        given = {name: value for name, value in self.fields.items() if name != "along"}
        lengths = self.fields.get("segment_lengths", ())
        if self.kind in ("Dilated", "HeadGroups"):
            given["places"] = [curve.places(tokens, order, itertools.repeat(w)) for w in lengths]
            counted = getattr(multiplicity, _COUNTED[self.kind])
            m: Tensor = counted(tokens.N, heads, kv_heads, **given)
            return m
        # Segments of other lengths, one after the other; or none.
        segments = itertools.cycle(lengths) if lengths else None
        m = self.multiplicity(tokens, heads, kv_heads)
        return multiplicity.in_places(m, curve.places(tokens, order, segments))

    def multiplicity(self, tokens: Tokens, heads: int, kv_heads: int) -> Int[Tensor, "H N N"]:
        """`m_h(i, j)` over one document, in the places of its ordering if it has one."""
        N = tokens.N
        given = {name: value for name, value in self.fields.items() if name != "along"}
        match self.kind:
            case "Dense":
                return multiplicity.dense(N, **given)
            case "Dilated":
                return multiplicity.dilated(N, heads, kv_heads, **given)
            case "Dilated.torchscale":
                return multiplicity.torchscale(N, heads, kv_heads, **given)
            case "HeadGroups":
                return multiplicity.head_groups(N, heads, kv_heads, **given)
            case "Consecutive":
                return multiplicity.consecutive(N, **given)
            case "Neighborhood":
                return multiplicity.neighborhood(_points(tokens), **given)
            case _:
                return self._blocks(tokens)

    def _blocks(self, tokens: Tokens) -> Int[Tensor, "1 N N"]:
        N, given = tokens.N, self.fields
        match self.kind:
            case "BlockSparse.local":
                left, right = given["left"], given["right"]
                return multiplicity.block_sparse(
                    N, given["block_size"], lambda i, j: i - left <= j <= i + right
                )
            case "BlockSparse.local_global":
                left, right, first = given["left"], given["right"], given["global_blocks"]
                return multiplicity.block_sparse(
                    N,
                    given["block_size"],
                    lambda i, j: i - left <= j <= i + right or min(i, j) < first,
                )
            case "BlockSparse.dilated_blocks":
                reach, dilation = given["reach"], given["dilation"]
                return multiplicity.block_sparse(
                    N,
                    given["block_size"],
                    lambda i, j: (j - i) % dilation == 0 and abs(j - i) <= dilation * reach,
                )
            case "BlockSparse.from_blocks":
                return multiplicity.block_sparse(N, given["block_size"], given["predicate"])
            case "BlockSparse.from_mask" if isinstance(given["tokens"], int):
                return multiplicity.block_sparse(N, 1, given["predicate"])
            case "BlockSparse.from_mask":
                points = _points(tokens)
                return multiplicity.block_sparse(
                    N, 1, lambda i, j: given["predicate"](points[i], points[j])
                )
        raise InvalidArgument("kind", expected="a pattern of the library", got=repr(self.kind))

    def null_keys(self, N: int, heads: int, kv_heads: int) -> Int[Tensor, "H N"] | None:
        """Keys of score 0 and value 0 that each token of one document also sees."""
        if self.kind != "Dilated.torchscale":
            return None
        return multiplicity.torchscale_null_keys(N, heads, kv_heads, **self.fields)


def _points(tokens: Tokens) -> Int[Tensor, "N axes"]:
    """Coordinates; those of a sequence are its positions."""
    if tokens.coordinates is None:
        return torch.arange(tokens.N)[:, None]
    return torch.tensor(tokens.coordinates)
