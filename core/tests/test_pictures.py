"""Pictures of patterns, orderings and blocks: what they count, what they say, what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan import BlockSparse, Coordinates, Dense, Dilated, Grid, Neighborhood, pictures
from ringspan.contracts import (
    Availability,
    DeviceInfo,
    Ordering,
    Pattern,
    Permutation,
    Sequence,
    Tokens,
)
from ringspan.contracts.tokens import axes_of
from ringspan.errors import InvalidArgument
from ringspan.pictures.coverage import coverage
from ringspan.pictures.orderings import jumps
from ringspan.pictures.sheet import named
from ringspan.plan.orders import order
from ringspan.testing import multiplicity


def literal_mask(pattern: Dilated, N: int, head: int, causal: bool) -> np.ndarray:
    i, j = np.indices((N, N))
    mask = np.zeros((N, N), dtype=np.int64)
    for w, r in zip(pattern.segment_lengths, pattern.dilation_rates, strict=True):
        mask += (i // w == j // w) & (i % w % r == head % r) & (j % w % r == head % r)
    return np.tril(mask) if causal else mask


@given(
    N=st.integers(1, 60),
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    head=st.integers(0, 2),
    causal=st.booleans(),
    data=st.data(),
)
def test_every_pixel_counts_the_pairs_that_fall_in_it(
    N: int, lengths: list[int], head: int, causal: bool, data: st.DataObject
) -> None:
    rates = tuple(data.draw(st.integers(1, length)) for length in lengths)
    pixels = data.draw(st.integers(1, N))
    pattern = Dilated(tuple(lengths), rates)
    mask = literal_mask(pattern, N, head, causal)
    pixel = np.arange(N) * pixels // N
    expected = np.zeros((pixels, pixels), dtype=np.int64)
    np.add.at(expected, (pixel[:, None], pixel[None]), mask)
    counts = pictures.pairs_per_pixel(
        pattern, Sequence(N), kv_heads=3, head=head, causal=causal, pixels=pixels
    )
    assert np.array_equal(counts, expected)


FAR = Coordinates([[i * 7 % 40, i * 3 % 40] for i in range(60)])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pixels", [1, 7, 60])
@pytest.mark.parametrize(
    ("pattern", "tokens", "defined"),
    [
        (Dense(), Sequence(60), multiplicity.dense(60)),
        (Dense(window=(5, 2)), Sequence(60), multiplicity.dense(60, window=(5, 2))),
        (
            Neighborhood(3, 2),
            Grid(10, 6),
            multiplicity.neighborhood(
                torch.tensor(Grid(10, 6).coordinates), [3, 3], [2, 2], [1, 1]
            ),
        ),
        (
            Neighborhood(9),
            FAR,
            multiplicity.neighborhood(torch.tensor(FAR.coordinates), [9, 9], [1, 1], [1, 1]),
        ),
        (
            BlockSparse.from_mask(8, lambda i, j: (i * j) % 7 < 3, 60),
            Sequence(60),
            multiplicity.block_sparse(60, 1, lambda i, j: (i * j) % 7 < 3),
        ),
        (
            BlockSparse.dilated_blocks(8, 1, 2),
            Sequence(60),
            multiplicity.block_sparse(60, 8, lambda i, j: abs(i - j) in (0, 2)),
        ),
    ],
)
def test_every_kind_of_part_is_counted(
    pattern: Pattern, tokens: Tokens, defined: torch.Tensor, pixels: int, causal: bool
) -> None:
    mask = multiplicity.causal_part(defined) if causal else defined
    pixel = np.arange(60) * pixels // 60
    expected = np.zeros((pixels, pixels), dtype=np.int64)
    np.add.at(expected, (pixel[:, None], pixel[None]), mask[0].numpy())
    counts = pictures.pairs_per_pixel(
        pattern, tokens, kv_heads=1, head=0, causal=causal, pixels=pixels
    )
    assert np.array_equal(counts, expected)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.pattern_picture(Dilated((8, 32), (1, 4)), Sequence(64), causal=True)
    path = tmp_path / f"picture{suffix}"
    pictures.save(figure, path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["picture.gif", "picture", "no/such/folder.png"])
def test_a_file_that_cannot_hold_a_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^out: expected"):
        pictures.check_out(tmp_path / name)


@pytest.mark.parametrize("N", [0, 2**20 + 1])
def test_a_pattern_over_too_few_or_too_many_tokens_is_not_drawn(N: int) -> None:
    with pytest.raises(InvalidArgument, match=r"1 \.\. 1,048,576 tokens"):
        pictures.pattern_picture(Dense(), Sequence(N))


def test_an_ordering_of_too_many_points_is_refused_before_they_are_laid_out() -> None:
    with pytest.raises(InvalidArgument, match=r"1 \.\. 262,144 tokens to draw, got 10,000,000,000"):
        pictures.ordering_picture("row-major", Grid(100_000, 100_000))


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("kv_heads", {"kv_heads": 0}),
        ("head", {"kv_heads": 2, "head": 2}),
        ("head", {"head": -1}),
    ],
)
def test_a_head_that_is_not_there_is_refused(argument: str, options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        pictures.pattern_picture(Dense(), Sequence(4), **options)
    assert refusal.value.argument == argument


def test_an_ordering_needs_coordinates() -> None:
    with pytest.raises(InvalidArgument, match="coordinates"):
        pictures.ordering_picture("hilbert", Sequence(4))


class _ByPosition(Ordering):
    """Orders tokens of any kind by their positions."""

    def __init__(self, name: str, *, backwards: bool = False) -> None:
        self.name = name
        self._backwards = backwards

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def places(self, tokens: Tokens, **_: object) -> Permutation:
        forwards = torch.arange(tokens.N)
        return Permutation.from_tokens(forwards.flip(0) if self._backwards else forwards)


class _Columns(_ByPosition):
    """Goes down the columns, one after the other."""

    def places(self, tokens: Tokens, **_: object) -> Permutation:
        row, column = axes_of(tokens, ordering=self.name)
        return Permutation.from_tokens(torch.argsort(column * tokens.N + row, stable=True))


@pytest.fixture
def orderings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three orderings are installed, one of which needs coordinates."""
    offered = {
        one.name: one
        for one in (
            _ByPosition("backwards", backwards=True),
            _Columns("columns"),
            _ByPosition("row-major"),
        )
    }

    class Catalogue:
        def names(self, kind: str) -> list[str]:
            return sorted(offered)

        def provider(self, kind: str, name: str) -> Ordering:
            return offered[name]

    monkeypatch.setattr("ringspan.plan.orders.catalogue", Catalogue)
    monkeypatch.setattr("ringspan.plan.best.catalogue", Catalogue)
    order.cache_clear()
    yield
    order.cache_clear()


TALL = Grid(12, 5)
LINES = BlockSparse.from_mask(6, lambda q, k: q[1] == k[1], TALL)
"""A token sees its column."""


@pytest.mark.usefixtures("orderings")
@pytest.mark.parametrize("causal", [False, True])
def test_active_blocks_are_counted_in_order_of_place(causal: bool) -> None:
    column = TALL.coordinates[:, 1]
    m = column[:, None] == column
    m = np.tril(m) if causal else m
    found = pictures.active_blocks(LINES, TALL, block_size=6, causal=causal)
    assert {one.ordering for one in found} == {"row-major", "backwards", "columns"}
    for one in found:
        block = np.empty(60, np.int64)
        block[order(one.ordering, TALL)] = np.arange(60) // 6
        table = np.zeros((10, 10))
        np.maximum.at(table, (block[:, None], block[None]), m)
        assert one.blocks == 10
        assert one.count == table.sum()
        assert np.array_equal(one.shares, table)


@pytest.mark.usefixtures("orderings")
def test_row_major_comes_first_and_then_the_others_down_to_the_fewest_blocks() -> None:
    found = pictures.active_blocks(LINES, TALL, block_size=6)
    # Columns of 12 are two blocks, which see each other and no others.
    assert [(one.ordering, one.count) for one in found][::2] == [
        ("row-major", 100),
        ("columns", 20),
    ]
    assert found[0].alike == ("identity",)
    chosen = pictures.active_blocks(LINES, TALL, block_size=6, orderings=("columns", "row-major"))
    assert [one.ordering for one in chosen] == ["columns", "row-major"]


@pytest.mark.usefixtures("orderings")
def test_an_ordering_that_does_not_serve_the_tokens_is_left_out_unless_it_is_asked_for() -> None:
    found = pictures.active_blocks(Dense(), Sequence(60))
    assert [one.ordering for one in found] == ["row-major", "backwards"]
    with pytest.raises(InvalidArgument, match="'columns'"):
        pictures.active_blocks(Dense(), Sequence(60), orderings=["columns"])


def test_many_blocks_share_pixels_without_being_lost() -> None:
    (one,) = (
        one
        for one in pictures.active_blocks(Dense(window=(3, 3)), Sequence(1000), block_size=2)
        if "identity" in (one.ordering, *one.alike)
    )
    assert one.blocks == 500
    assert one.shares.shape == (256, 256)
    starts = -(-np.arange(256) * 500 // 256)
    sizes = np.diff(starts, append=500)
    assert (one.shares * sizes[:, None] * sizes).sum() == pytest.approx(one.count)
    assert one.count == sum(min(i + 2, 499) - max(i - 2, 0) + 1 for i in range(500))


@pytest.mark.parametrize(
    ("argument", "N", "options"),
    [
        ("tokens", 0, {}),
        ("tokens", 2**21 + 1, {}),
        ("block_size", 8, {"block_size": 0}),
        ("heads", 8, {"heads": 0}),
        ("orderings", 8, {"orderings": ()}),
        ("orderings", 8, {"orderings": ("identity", "identity")}),
    ],
)
def test_blocks_that_cannot_be_drawn_are_refused(
    argument: str, N: int, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        pictures.active_blocks(Dense(), Sequence(N), **options)
    assert refusal.value.argument == argument


@pytest.mark.usefixtures("orderings")
def test_every_panel_of_blocks_says_how_many_and_how_many_times_the_first() -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.blocks_picture(LINES, TALL, block_size=6)
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert titles == [
        "row-major (also identity)\n100 active pairs of 100",
        "backwards\n100 active pairs, 1.000 of row-major",
        "columns\n20 active pairs, 0.200 of row-major",
    ]
    # Laying out panels of a fixed aspect once, as a file does, puts titles over other panels.
    assert {panel.get_aspect() for panel in figure.axes} == {"auto"}


@pytest.mark.usefixtures("orderings")
@pytest.mark.parametrize("causal", [False, True])
def test_coverage_is_the_query_s_row_of_the_definition(causal: bool) -> None:
    pattern = Dilated((8, 60), (1, 3))
    for name in ("row-major", "columns"):
        places = torch.empty(60, dtype=torch.int64)
        places[torch.tensor(order(name, TALL))] = torch.arange(60)
        m = multiplicity.dilated(60, 4, 4, (8, 60), (1, 3), causal=causal, places=places).numpy()
        for row, column in ((0, 0), (7, 3), (11, 4)):
            position = row * 5 + column
            for head in (0, 3, None):
                (one,) = coverage(
                    pattern,
                    TALL,
                    (row, column),
                    heads=4,
                    head=head,
                    causal=causal,
                    orderings=[name],
                )
                expected = m[:, position].sum(0) if head is None else m[head, position]
                assert np.array_equal(one.times, expected)
                assert one.seen == np.count_nonzero(expected)


@pytest.mark.usefixtures("orderings")
def test_orderings_take_the_place_of_the_pattern_s_own() -> None:
    own = coverage(Dilated((12,), (1,), along="columns"), TALL, (0, 2))
    others = coverage(
        Dilated((12,), (1,), along="columns"), TALL, (0, 2), orderings=("row-major", "columns")
    )
    assert [one.name for one in others] == ["along row-major", "along columns"]
    assert np.array_equal(own[0].times, others[1].times)
    assert np.flatnonzero(own[0].times).tolist() == list(range(2, 60, 5))
    assert np.flatnonzero(others[0].times).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("argument", "tokens", "query", "options"),
    [
        ("tokens", Sequence(60), (0,), {}),
        ("query", TALL, (0, 0, 0), {}),
        ("query", TALL, (12, 0), {}),
        ("query", Coordinates([[1, 1], [5, 5]]), (1, 5), {}),
        ("heads", TALL, (0, 0), {"heads": 0}),
        ("head", TALL, (0, 0), {"heads": 2, "head": 2}),
        ("orderings", TALL, (0, 0), {"orderings": []}),
        ("orderings", TALL, (0, 0), {"pattern": Neighborhood(3), "orderings": ["columns"]}),
        ("image", TALL, (0, 0), {"image": np.zeros(5)}),
        ("image", Grid(3, 4, 5), (0, 0, 0), {"image": np.zeros((5, 5))}),
    ],
)
def test_a_coverage_that_cannot_be_drawn_is_refused(
    argument: str, tokens: Tokens, query: tuple[int, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        pictures.coverage_picture(**{"pattern": Dense(), **options}, tokens=tokens, query=query)
    assert refusal.value.argument == argument


def slices_drawn(figure: Any) -> list[int]:
    titles = [panel.get_title() for panel in figure.axes]
    return [int(title.removeprefix("slice ")) for title in titles if title]


def headings(figure: Any) -> list[str]:
    titles = [panel.get_title(loc="left").strip() for panel in figure.axes]
    return [title for title in titles if title]


@pytest.mark.parametrize("depth", [3, 8, 13, 16])
def test_a_volume_of_few_slices_is_drawn_whole(depth: int) -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.coverage_picture(Neighborhood(3), Grid(depth, 4, 5), (depth - 1, 1, 1))
    assert slices_drawn(figure) == list(range(depth))
    assert headings(figure) == [f"18 of {20 * depth} keys"]
    assert "slices" not in figure.get_suptitle()


@pytest.mark.parametrize(
    ("pattern", "query", "first", "seen"),
    [
        (Neighborhood(3), (12, 1, 1), 4, "27 of 500 keys"),
        (Neighborhood(3), (24, 1, 1), 9, "18 of 500 keys"),
        (Dense(), (2, 1, 1), 0, "500 of 500 keys, 180 (36.0%) in slices that are not drawn"),
        # Slices 5 to 9 and not one more: any that are drawn with the query's own show them all.
        (Dilated((100,), (1,)), (9, 0, 0), 1, "100 of 500 keys"),
        # Slices 0 to 19, all of them full: the query's own is in the middle of what is drawn.
        (Dilated((400,), (1,)), (10, 0, 0), 2,
         "400 of 500 keys, 80 (20.0%) in slices that are not drawn"),
        # Slices 0 to 19, and the query in the last: those behind it have nothing.
        (Dilated((400,), (1,)), (19, 0, 0), 4,
         "400 of 500 keys, 80 (20.0%) in slices that are not drawn"),
    ],
)  # fmt: skip
def test_of_many_slices_those_with_the_most_keys_are_drawn_and_the_rest_is_counted(
    pattern: Pattern, query: tuple[int, ...], first: int, seen: str
) -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.coverage_picture(pattern, Grid(25, 4, 5), query)
    assert slices_drawn(figure) == list(range(first, first + 16))
    assert headings(figure) == [seen]
    assert figure.get_suptitle().endswith(f"\nslices {first} .. {first + 15}, 16 of 25")


@pytest.mark.usefixtures("orderings")
def test_each_ordering_of_a_volume_has_rows_and_a_count_of_its_own() -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.coverage_picture(
        Dilated((60,), (1,)), Grid(12, 5, 1), (3, 1, 0), orderings=["row-major", "backwards"]
    )
    assert slices_drawn(figure) == [*range(12), *range(12)]
    assert headings(figure) == [
        "along row-major: 60 of 60 keys",
        "along backwards: 60 of 60 keys",
    ]


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 3), (6, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_lies_under_the_whole_grid(shape: tuple[int, ...], dtype: type) -> None:
    pytest.importorskip("matplotlib")
    white = np.ones(shape, dtype) * (255 if dtype is np.uint8 else 1)
    figure = pictures.coverage_picture(Neighborhood(3), TALL, (2, 2), image=white.astype(dtype))
    below, above = figure.axes[0].get_images()
    assert np.allclose(below.get_array(), 1.0)
    assert tuple(below.get_extent()) == tuple(above.get_extent()) == (-0.5, 4.5, 11.5, -0.5)


def test_a_jump_is_a_step_to_no_neighbour() -> None:
    assert np.flatnonzero(jumps(TALL.coordinates, TALL)).tolist() == list(range(4, 59, 5))
    # Most of these points are 3 apart, which is no jump among them.
    scattered = np.array([[0, 0], [3, 0], [6, 3], [9, 3], [9, 40], [12, 40]])
    assert jumps(scattered, Coordinates(scattered)).tolist() == [False] * 3 + [True, False]


def test_a_single_token_is_an_ordering_without_steps() -> None:
    pytest.importorskip("matplotlib")
    alone = Coordinates([[3, 4]])
    assert jumps(alone.coordinates, alone).tolist() == []


@pytest.mark.usefixtures("orderings")
@pytest.mark.parametrize("tokens", [TALL, Grid(1, 1), Coordinates([[3, 4], [900, 5]])])
def test_orderings_of_grids_and_of_points_are_drawn(tokens: Tokens) -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.ordering_picture("columns", tokens)
    steps = sum(len(lines.get_segments()) for lines in figure.axes[0].collections)
    assert steps == tokens.N - 1
    assert pictures.png(figure).startswith(b"\x89PNG")


@pytest.mark.usefixtures("orderings")
@pytest.mark.parametrize("tokens", [Grid(5, 4), Grid(2, 3), Grid(3, 8, 40), Grid(8, 8, 8)])
def test_axes_of_an_ordering_have_few_ticks_and_all_at_integers(tokens: Grid) -> None:
    pytest.importorskip("matplotlib")
    space, bar = pictures.ordering_picture("columns" if len(tokens.shape) == 2 else "row-major",
                                           tokens).axes  # fmt: skip
    for letter in "xyz"[: len(tokens.shape)]:
        low, high = sorted(getattr(space, f"get_{letter}lim")())
        ticks = getattr(space, f"get_{letter}ticks")()
        inside = [tick for tick in ticks if low <= tick <= high]
        assert 1 <= len(inside) <= (10 if letter != "z" and len(tokens.shape) == 2 else 5)
        assert all(tick == round(tick) for tick in inside)
    assert all(tick == round(tick) for tick in bar.get_yticks())


class _Dealt(_ByPosition):
    """Deals tokens to ranks one by one."""

    def places(self, tokens: Tokens, *, shards: int = 1, **_: object) -> Permutation:
        return Permutation.from_tokens(
            torch.cat([torch.arange(rank, tokens.N, shards) for rank in range(shards)])
        )


@pytest.mark.parametrize("dealt", [False, True])
def test_an_ordering_that_goes_by_ranks_is_drawn_as_that_of_one(
    dealt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    offered = _Dealt("here") if dealt else _ByPosition("here")

    class Catalogue:
        def names(self, kind: str) -> list[str]:
            return ["here"]

        def provider(self, kind: str, name: str) -> Ordering:
            return offered

    monkeypatch.setattr("ringspan.plan.orders.catalogue", Catalogue)
    order.cache_clear()
    said = pictures.ordering_picture("here", TALL).get_suptitle()
    order.cache_clear()
    assert ("all on one rank" in said) == dealt


@pytest.mark.parametrize(
    ("pattern", "N", "labels"),
    [
        (Dilated((4, 8), (1, 2)), 8, ["1", "2"]),
        (Dense(), 1000, ["1"]),
        (Dense(window=(0, 0)), 1024, ["0.5"]),
    ],
)
def test_few_values_have_a_colour_and_a_label_each(
    pattern: Pattern, N: int, labels: list[str]
) -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.pattern_picture(pattern, Sequence(N))
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == labels


def test_a_pattern_that_sees_nothing_is_a_blank_picture() -> None:
    pytest.importorskip("matplotlib")
    pattern = BlockSparse.from_blocks(4, lambda i, j: i < -1, 8)
    assert len(pictures.pattern_picture(pattern, Sequence(8)).axes) == 1


def test_a_pattern_is_named_by_what_is_not_so_by_default() -> None:
    assert named(Dense()) == "Dense()"
    assert named(Dilated((4,), (1,), along="columns")) == (
        "Dilated(segment_lengths=(4,), dilation_rates=(1,), along='columns')"
    )
