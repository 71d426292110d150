"""Neighbourhood attention: each token sees a window around it, on one to three axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Domain, Part, Pattern, Runs, Windows
from ringspan.contracts.tokens import Grid, Sequence, Tokens
from ringspan.patterns.neighborhood_axes import Boxes
from ringspan.patterns.neighborhood_blocks import blocks
from ringspan.patterns.neighborhood_rule import AxisRule

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Neighborhood"]

_EDGES = ("clip", "shift")
_MOST_AXES = 3


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """Neighbourhood attention (NATTEN, arXiv 2204.07143; stride: arXiv 2504.16922).

    A key is seen where it is seen on every axis. On an axis, the query `c` sees coordinates of
    its own residue class modulo `dilation`. Let `x = c // dilation` number the `n` coordinates of
    that class. The class is cut into groups of `stride`, and the window is that of the group's
    leader, `l = min(x // stride * stride + stride // 2, n - 1)`: `window` keys from
    `l - window // 2` (an even window has one more key before the leader than behind it).

    - `edges="clip"`: keys beyond the border are cut off.
    - `edges="shift"`: the window is moved inside, so that every token sees `window` keys.
    - On a causal axis the leader is the *last* of its group, the window ends with it, and keys
      behind the query are cut off: with `stride=1`, `window` keys ending at the query.

    Coordinates count from the smallest of each axis to the largest; with gaps, keys that are not
    there are not seen. Documents restart: each has its own smallest and largest coordinates.
    `causal=True` of the call keeps `j <= i` in positions, whatever the axes.

    Args:
        window: keys on each axis: an integer for all axes, or a tuple of one per axis.
        dilation: distance between the keys of a window; likewise.
        stride: neighbours that share one window, at most `window`; likewise.
        edges: `"clip"` or `"shift"`. With `causal=True`, `"shift"` is refused.
        causal_axes: numbers of the axes that look back only, such as `(0,)` for time in
            `Grid(t, h, w)`.

    Raises:
        InvalidArgument: a value is out of range; when called, a tuple fits other tokens, or
            `window * dilation` is larger than the grid (with `"shift"`, also than the sequence,
            the extent of the coordinates or any document).

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 16 * 16, 4, 16)
        >>> pattern = rs.Neighborhood((7, 5), edges="shift")
        >>> rs.attention(q, k, v, pattern=pattern, tokens=rs.Grid(16, 16)).shape
        torch.Size([1, 256, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    window: int | tuple[int, ...]
    dilation: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    edges: str = "clip"
    causal_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("window", "dilation", "stride"):
            object.__setattr__(self, name, _per_axis(name, getattr(self, name)))
        if self.edges not in _EDGES:
            raise InvalidArgument("edges", expected="'clip' or 'shift'", got=repr(self.edges))
        object.__setattr__(self, "causal_axes", _axis_numbers(self.causal_axes))
        for axis in range(self._axes or 1):
            window, stride = _on_axis(self.window, axis), _on_axis(self.stride, axis)
            if stride > window:
                raise InvalidArgument(
                    "stride",
                    expected=f"at most the window ({window} on axis {axis})",
                    got=str(stride),
                    remedy="A larger stride would leave tokens outside their own window",
                )
        self._check_causal_axes(self._axes or _MOST_AXES)
        super().__post_init__()

    def _check_causal_axes(self, axes: int) -> None:
        if max(self.causal_axes, default=0) >= axes:
            raise InvalidArgument(
                "causal_axes",
                expected=f"numbers of axes, 0 .. {axes - 1}",
                got=repr(self.causal_axes),
            )

    @property
    def _axes(self) -> int | None:
        """How many axes the tuples are for; None: any number."""
        values: tuple[object, ...] = (self.window, self.dilation, self.stride)
        lengths = {len(value) for value in values if isinstance(value, tuple)}
        if len(lengths) > 1:
            raise InvalidArgument(
                "window",
                expected="as many axes as dilation and stride",
                got=f"window={self.window}, dilation={self.dilation}, stride={self.stride}",
            )
        return lengths.pop() if lengths else None

    def _rules(self, axes: int) -> tuple[AxisRule, ...]:
        return tuple(
            AxisRule(
                _on_axis(self.window, axis),
                _on_axis(self.dilation, axis),
                _on_axis(self.stride, axis),
                shift=self.edges == "shift",
                causal=axis in self.causal_axes,
            )
            for axis in range(axes)
        )

    def check(self, domain: Domain) -> None:
        """Raises `InvalidArgument` where axes or extents do not fit, or `causal` meets `shift`."""
        axes = _axes_of(domain.tokens)
        if self._axes not in (None, axes):
            raise InvalidArgument(
                "pattern",
                expected=f"an integer, or a tuple of {axes}, one per axis of {domain.tokens!r}",
                got=repr(self),
                remedy="Say what the tokens are: tokens=Grid(h, w) or Coordinates(points)"
                if isinstance(domain.tokens, Sequence)
                else "",
            )
        self._check_causal_axes(axes)
        if domain.causal and self.edges == "shift":
            raise InvalidArgument(
                "causal",
                expected="False with edges='shift', which moves windows into the future",
                got="True",
                remedy="Take edges='clip', or causal_axes in place of causal=True",
            )
        for what, extents in self._extents_to_fit(domain):
            _check_fit(self._rules(axes), what, extents)

    def _extents_to_fit(self, domain: Domain) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """What a window must fit into: its name, and its extents, `[count, axes]`."""
        tokens = domain.tokens
        if isinstance(tokens, Grid):
            yield repr(tokens), np.array([tokens.shape])
        if self.edges == "clip":
            return
        what = repr(tokens) if domain.documents is None else "a document"
        if isinstance(tokens, Sequence):
            yield what, domain.lengths[domain.lengths > 0, None]
        elif domain.documents is not None or not isinstance(tokens, Grid):
            yield what, Boxes.of(domain).extent

    def parts(self, domain: Domain) -> Iterable[Part]:
        """Windows on a sequence; on a grid or on coordinates, blocks of neighbouring tokens."""
        heads = tuple(range(domain.heads))
        rules = self._rules(_axes_of(domain.tokens))
        if not isinstance(domain.tokens, Sequence):
            yield blocks(heads, rules, domain)
            return
        (rule,) = rules
        sets = _classes(domain, rule.dilation)
        number = np.arange(sets.size) - np.repeat(np.cumsum(sets.length) - sets.length, sets.length)
        low, high = rule.keys(number, np.repeat(sets.length, sets.length))
        yield Windows(heads, sets, low, high)


def _classes(domain: Domain, dilation: int) -> Runs:
    """The residue classes of every document."""
    residue = np.arange(min(dilation, domain.N))
    counts = -(-(domain.lengths[:, None] - residue) // dilation)
    there = counts > 0
    return Runs((domain.starts[:, None] + residue)[there], counts[there], dilation)


def _check_fit(rules: tuple[AxisRule, ...], what: str, extents: npt.NDArray[np.int64]) -> None:
    if not len(extents):
        return
    for axis, (rule, extent) in enumerate(zip(rules, extents.min(axis=0).tolist(), strict=True)):
        if rule.window * rule.dilation > extent:
            raise InvalidArgument(
                "window",
                expected=f"window * dilation <= {extent}, the extent of {what} on axis {axis}",
                got=f"{rule.window} * {rule.dilation} = {rule.window * rule.dilation}",
            )


def _axes_of(tokens: Tokens) -> int:
    if isinstance(tokens, Sequence):
        return 1
    return len(tokens.shape) if isinstance(tokens, Grid) else tokens.coordinates.shape[1]


def _on_axis(value: int | tuple[int, ...], axis: int) -> int:
    return value[axis] if isinstance(value, tuple) else value


def _per_axis(name: str, value: Any) -> int | tuple[int, ...]:
    expected = "an integer in 1 .. 2**31 - 1, or a tuple of one for each of up to three axes"
    several = isinstance(value, (tuple, list))
    values = tuple(value) if several else (value,)
    if not 1 <= len(values) <= _MOST_AXES or not all(_is_integer(item, 1) for item in values):
        raise InvalidArgument(name, expected=expected, got=repr(value))
    # int(): an IntEnum is an integer, but its text is not.
    return tuple(int(item) for item in values) if several else int(value)


def _axis_numbers(value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, (tuple, list))
        or not all(_is_integer(item, 0) for item in value)
        or len(set(value)) < len(value)
    ):
        raise InvalidArgument(
            "causal_axes",
            expected="a tuple of different axis numbers, counted from 0, such as (0,)",
            got=repr(value),
        )
    return tuple(sorted(int(item) for item in value))


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31
