"""Block-sparse work taken whole: blocks longer than those of the kernels, cut into pieces."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from ringspan.contracts import ActiveBlocks, DeviceInfo
from ringspan.testing import assert_exact
from ringspan.testing.suites.tiles import Tile
from ringspan_triton import Triton, sparse

torch.set_num_threads(1)

TRITON = Triton()
HERE = DeviceInfo(type="cuda", index=0) if torch.cuda.is_available() else DeviceInfo(type="cpu")


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    "modes",
    [{}, {"group_size": 2, "value_head_dim": 40}, {"key_padding": True, "dropout_p": 0.3}],
    ids=str,
)
def test_blocks_longer_than_those_of_the_kernels_are_exact(
    modes: dict[str, Any], seed: int
) -> None:
    tile = Tile(batch=1, query_length=300, kv_heads=1, blocks=True, seed=seed, **modes)
    operands = tile.operands(HERE)
    found = {name: x.cpu() for name, x in operands.results(TRITON).items()}
    assert_exact(found, operands.exact())


def uneven() -> ActiveBlocks:
    """Blocks of 5, 20 and 7 rows; the first and the last see the second, in part and whole."""
    return ActiveBlocks(
        bounds=np.array([0, 5, 25, 32]),
        indptr=np.array([0, 2, 2, 3]),
        indices=np.array([0, 1, 1]),
        bitmap=np.array([-1, 0, -1]),
        bitmaps=np.ones((1, 20, 20), dtype=bool),
    )


def test_programs_walk_through_whole_pieces_first() -> None:
    made = sparse.tables(uneven(), torch.device("cpu"), 16, 8, by_key=False)
    # Row, last + 1, first of the block; entries: first, first that needs a mask, last + 1.
    assert made.programs.tolist() == [
        [0, 5, 0, 0, 0, 4],
        [25, 32, 25, 4, 6, 7],
        [5, 21, 5, 4, 4, 4],
        [21, 25, 5, 4, 4, 4],
    ]
    assert made.entries.tolist() == [
        [0, 5, 0, -1],
        [5, 13, 5, 0],
        [13, 21, 5, 0],
        [21, 25, 5, 0],
        [5, 13, 5, -1],
        [13, 21, 5, -1],
        [21, 25, 5, -1],
    ]


def test_keys_walk_through_the_queries_that_see_them() -> None:
    made = sparse.tables(uneven(), torch.device("cpu"), 32, 32, by_key=True)
    assert made.programs.tolist() == [
        [5, 25, 5, 1, 2, 3],
        [0, 5, 0, 0, 1, 1],
        [25, 32, 25, 3, 3, 3],
    ]
    # A piece of the queries needs no mask where it ends.
    assert made.entries.tolist() == [[0, 5, 0, -1], [25, 32, 25, -1], [0, 5, 0, 0]]


def test_tables_are_made_once_and_go_with_their_blocks() -> None:
    blocks, device = uneven(), torch.device("cpu")
    before = len(sparse._tables)
    first = sparse.tables(blocks, device, 16, 16, by_key=False)
    assert sparse.tables(blocks, device, 16, 16, by_key=False) is first
    del blocks, first
    gc.collect()
    assert len(sparse._tables) == before
