"""Hypothesis strategies for patterns as data, one function per kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ringspan.contracts.tokens import Grid
from ringspan.testing.curve import Curve
from ringspan.testing.named import Named, Near, Periodic

__all__ = ["KINDS", "branches", "named"]

KINDS = (
    "Dense",
    "Dilated",
    "Dilated.torchscale",
    "HeadGroups",
    "Consecutive",
    "Neighborhood",
    "BlockSparse.local",
    "BlockSparse.local_global",
    "BlockSparse.dilated_blocks",
    "BlockSparse.from_blocks",
    "BlockSparse.from_mask",
)
"""Every pattern of the library, by the name of what builds it."""


@st.composite
def branches(draw: st.DrawFn, N: int, most: int = 3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Segment lengths and dilation rates: shorter or longer than N, dividing or not."""
    drawn = draw(st.lists(_branch(N), min_size=1, max_size=most))
    return tuple(w for w, _ in drawn), tuple(r for _, r in drawn)


@st.composite
def _branch(draw: st.DrawFn, N: int) -> tuple[int, int]:
    w = draw(st.one_of(st.integers(1, N + 8), st.sampled_from((N, 2 * N, max(1, N // 2)))))
    r = draw(
        st.one_of(st.integers(1, min(w, 9)), st.integers(1, 9), st.sampled_from((1, w, w + 1)))
    )
    return w, r


@st.composite
def named(
    draw: st.DrawFn,
    /,
    kind: str,
    *,
    N: int,
    heads: int,
    kv_heads: int,
    documents: tuple[int, ...] | None,
    grid: tuple[int, ...],
    gaps: bool,
    orderings: Sequence[str],
    **_: Any,
) -> Named:
    """A pattern of one kind that serves such tokens."""
    if kind == "Neighborhood":
        return Named(kind, draw(_neighborhood(N, documents, grid, gaps)))
    if kind == "BlockSparse.from_mask":
        alone = N if documents is None else documents[0]
        on_grid = bool(grid) and not gaps and documents is None and draw(st.booleans())
        predicate = Near(draw(st.integers(0, 3))) if on_grid else draw(_periodic)
        size, tokens = draw(_block_size(alone)), Grid(*grid) if on_grid else alone
        return Named(kind, {"block_size": size, "predicate": predicate, "tokens": tokens})
    fields: dict[str, Any]
    if kind == "Dense":
        side = st.one_of(st.none(), st.integers(0, N + 3), st.integers(0, 7))
        fields = {"window": draw(st.one_of(st.none(), st.tuples(side, side)))}
    elif kind.startswith("BlockSparse"):
        fields = draw(_blocks(kind, N if documents is None else max(documents)))
    else:
        fields = draw(_branched(kind, N, heads, kv_heads))
    # Where there are no coordinates, a curve needs an invented grid.
    if _may_lie_along(kind, fields) and draw(st.integers(0, 2)) > (not grid):
        name = draw(st.sampled_from(list(orderings)))
        plain = bool(grid) and draw(st.booleans())
        fields["along"] = name if plain else draw(_curve(name, len(grid), N))
    return Named(kind, fields)


def _may_lie_along(kind: str, fields: dict[str, Any]) -> bool:
    return kind != "Dilated.torchscale" and (kind != "Dense" or fields["window"] is not None)


@st.composite
def _curve(draw: st.DrawFn, ordering: str, axes: int, N: int) -> Curve:
    """A curve that sees axes in another order, or begins anew more often than at documents."""
    turned = st.none() | st.permutations(range(axes or 2)).map(tuple)
    chunk = st.sampled_from((None, "segment", "segment")) | st.integers(1, N + 3)
    return Curve(ordering, fold=not axes, axes=draw(turned), chunk=draw(chunk))


@st.composite
def _branched(draw: st.DrawFn, kind: str, N: int, heads: int, kv_heads: int) -> dict[str, Any]:
    lengths, rates = draw(branches(N, most=kv_heads if kind == "HeadGroups" else 3))
    fields: dict[str, Any] = {"segment_lengths": lengths, "dilation_rates": rates}
    if kind == "Dilated":
        fields["head_offsets"] = draw(_head_offsets(heads, rates))
    return fields


@st.composite
def _head_offsets(draw: st.DrawFn, heads: int, rates: tuple[int, ...]) -> Any:
    def one_each(rate: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.tuples(*[st.integers(0, rate - 1)] * heads)

    return draw(
        st.one_of(
            st.sampled_from(("modulo", "query", "blocked")),
            one_each(max(rates)),
            st.tuples(*map(one_each, rates)),
        )
    )


@st.composite
def _neighborhood(
    draw: st.DrawFn, N: int, documents: tuple[int, ...] | None, grid: tuple[int, ...], gaps: bool
) -> dict[str, Any]:
    extents = grid or (min((n for n in documents or () if n), default=N),)
    # Windows that move inside need an inside of a known size.
    shift = not (grid and (gaps or documents is not None)) and draw(st.booleans())
    bounded = shift or bool(grid and not gaps)
    window, dilation, stride = [], [], []
    for extent in extents:
        window.append(draw(st.integers(1, min(extent, 9) if bounded else 9)))
        dilation.append(draw(st.integers(1, extent // window[-1] if bounded else 3)))
        stride.append(draw(st.integers(1, window[-1])))
    causal_axes = draw(st.sets(st.integers(0, len(extents) - 1))) if draw(st.booleans()) else ()
    return {
        "window": tuple(window),
        "dilation": tuple(dilation),
        "stride": tuple(stride),
        "edges": "shift" if shift else "clip",
        "causal_axes": tuple(sorted(causal_axes)),
    }


def _block_size(N: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, max(1, N // 2)), st.sampled_from((1, max(1, N), N + 5)))


_periodic = (
    st.integers(1, 5)
    .flatmap(
        lambda columns: st.lists(
            st.text("01", min_size=columns, max_size=columns), min_size=1, max_size=5
        )
    )
    .map(lambda rows: Periodic(tuple(rows)))
)


@st.composite
def _blocks(draw: st.DrawFn, kind: str, N: int) -> dict[str, Any]:
    few = st.integers(0, 3)
    fields: dict[str, Any] = {"block_size": draw(_block_size(N))}
    match kind:
        case "BlockSparse.local":
            return fields | {"left": draw(few), "right": draw(few)}
        case "BlockSparse.local_global":
            ends = {"left": draw(few), "right": draw(few)}
            return fields | ends | {"global_blocks": draw(few)}
        case "BlockSparse.dilated_blocks":
            return fields | {"reach": draw(few), "dilation": draw(st.integers(1, 4))}
    return fields | {"predicate": draw(_periodic), "N": N}
