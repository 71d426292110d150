"""Random tiles in the shape of a problem, for measuring backends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ringspan_registry import detect

from ringspan.contracts.blocks import ActiveBlocks
from ringspan.contracts.branch import Branch, BranchDropout
from ringspan.contracts.dropout import Dropout
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.masks import Lengths, Mask, MaskCase
from ringspan.contracts.selection import Selection
from ringspan.contracts.work import Affine

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts.backend import Problem

__all__ = [
    "Sample",
    "Tensors",
    "branch_of",
    "device_of",
    "dropout_of",
    "fitted",
    "mask_of",
    "tensors_of",
]

_MOST_ELEMENTS = 2**28
_MOST_ELEMENTS_ON_CPU = 2**24
_SHARE_OF_FREE_MEMORY = 4
_SHORTEST = 64
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """The shape of one launch: what times depend on beside the problem.

    Example:
        >>> Sample(tiles=4, query_length=2048, key_length=2048, heads=8).heads
        8
    """

    tiles: int
    query_length: int
    key_length: int
    heads: int
    """Query heads of a tile."""
    step: int = 1
    """How far apart the rows of a tile lie in memory: the rate of a dilated branch."""

    def __post_init__(self) -> None:
        for name in ("tiles", "query_length", "key_length", "heads", "step"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidArgument(name, expected="an integer >= 1", got=str(value))


class Tensors(NamedTuple):
    """The inputs of a launch, `[tiles, L, heads, D]`; ragged ones `[1, tiles * L, heads, D]`."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor


def device_of(problem: Problem) -> torch.device:
    """Where the problem is computed."""
    info = problem.device_info
    if info.type != problem.device or info.index is None:
        return torch.device(problem.device)
    return torch.device(problem.device, info.index)


def fitted(sample: Sample, problem: Problem, device: torch.device) -> Sample:
    """The sample, or a smaller one: all tensors take at most a quarter of the free memory.

    Tiles are halved first, then heads; lengths only where a single head is too large.
    """
    most = _MOST_ELEMENTS_ON_CPU if device.type == "cpu" else _MOST_ELEMENTS
    free = _free_bytes(device)
    if free is not None:
        most = min(most, free // _SHARE_OF_FREE_MEMORY // _widest(problem))
    while _elements(sample, problem) > most:
        smaller = _halved(sample, problem)
        if smaller == sample:
            break
        sample = smaller
    return sample


def tensors_of(sample: Sample, problem: Problem, device: torch.device) -> Tensors:
    """Normal random tensors, the same ones each time; rows lie as the sample says."""
    draw = torch.Generator(device).manual_seed(0)
    kv_heads = _kv_heads(sample, problem)
    heads = kv_heads * problem.group_size
    sizes = (
        (sample.query_length, heads, problem.head_dim),
        (sample.key_length, kv_heads, problem.head_dim),
        (sample.key_length, kv_heads, problem.value_head_dim),
        (sample.query_length, heads, problem.value_head_dim),
    )
    tensors = (
        torch.randn(
            (sample.tiles, length * sample.step, heads, width),
            generator=draw,
            device=device,
            dtype=getattr(torch, problem.dtype),
        )[:, :: sample.step]
        for length, heads, width in sizes
    )
    return Tensors(*(x.flatten(0, 1)[None] if problem.ragged else x for x in tensors))


def mask_of(sample: Sample, problem: Problem, device: torch.device, *, bands: bool) -> Mask:
    """A mask of the problem's case: a triangle where the case can say one, a window for a band.

    Args:
        sample: for its lengths.
        problem: for its case, its padding, its blocks and whether it is ragged.
        device: of the tensors.
        bands: whether bands may be said as such, else as an interval.

    Raises:
        InvalidArgument: a causal or block-sparse tile that is not square.
    """
    queries, keys = sample.query_length, sample.key_length
    if (problem.mask is MaskCase.CAUSAL or problem.blocks) and queries != keys:
        raise InvalidArgument("sample", expected="a square tile", got=f"{queries} x {keys}")
    mask = _of_case(problem.mask, queries, keys, device)
    if mask.case is MaskCase.BAND and not bands:
        mask = mask.as_interval(queries, keys, device)
    return replace(
        mask,
        key_seen=_padding(keys, device) if problem.key_padding else None,
        blocks=_diagonal(keys) if problem.blocks else None,
        lengths=_lengths(sample, device) if problem.ragged else None,
    )


def dropout_of(sample: Sample, problem: Problem, device: torch.device) -> Dropout:
    """A tenth of all probabilities."""
    heads = _kv_heads(sample, problem) * problem.group_size
    return Dropout(
        p=0.1,
        seed=0,
        batch=torch.arange(1 if problem.ragged else sample.tiles, device=device),
        heads=torch.arange(heads, device=device),
        query_positions=_positions(sample, sample.query_length, problem, device),
        key_positions=_positions(sample, sample.key_length, problem, device),
    )


def branch_of(sample: Sample, problem: Problem, device: torch.device) -> Branch:
    """The same tiles in place, in one tensor that holds all of them one after the other."""
    mask = mask_of(sample, problem, device, bands=True)
    queries, keys, kv_heads = sample.query_length, sample.key_length, _kv_heads(sample, problem)
    group, step = problem.group_size, sample.step
    query, key = (
        Selection(Affine(0, length * step, 0, step), tuple(heads), sample.tiles, length, size)
        for length, heads, size in (
            (queries, range(0, kv_heads * group, group), group),
            (keys, range(kv_heads), 1),
        )
    )
    low, high = (
        None if bound is None else bound.expand(sample.tiles, 1, queries)
        for bound in (mask.low, mask.high)
    )
    rows = torch.arange(sample.tiles * keys * step, device=device)
    return Branch(
        query,
        key,
        mask.case,
        problem.head_dim**-0.5,
        low,
        high,
        mask.left,
        mask.right,
        None if mask.seen is None else mask.seen.reshape(1, queries, keys),
        None if mask.seen is None else torch.zeros_like(rows[: sample.tiles]),
        (rows % 8 != 0)[None] if problem.key_padding else None,
        _branch_dropout(sample, rows) if problem.dropout else None,
    )


def _branch_dropout(sample: Sample, keys: Tensor) -> BranchDropout:
    queries = sample.tiles * sample.query_length * sample.step
    return BranchDropout(0.1, 0, torch.arange(queries, device=keys.device), keys)


def _of_case(case: MaskCase, queries: int, keys: int, device: torch.device) -> Mask:
    longer = keys - queries
    if case is MaskCase.BAND:
        return Mask(case, left=max(keys // 4, -longer), right=max(0, longer))
    high = (torch.arange(1, queries + 1, device=device) + longer).clamp(0, keys)[None, None]
    if case is MaskCase.INTERVAL:
        return Mask(case, torch.zeros_like(high), high)
    if case is MaskCase.BITMAP:
        return Mask(case, seen=torch.arange(keys, device=device) < high[..., None])
    return Mask(case)


def _padding(keys: int, device: torch.device) -> Tensor:
    """The last eighth."""
    return (torch.arange(keys, device=device) < keys - keys // 8)[None, None]


def _diagonal(length: int) -> ActiveBlocks:
    """Each block sees itself and its neighbours."""
    bounds = np.append(np.arange(0, length, _BLOCK), length)
    count = len(bounds) - 1
    near = np.abs(np.arange(count)[:, None] - np.arange(count)) <= 1
    return ActiveBlocks(
        bounds=bounds,
        indptr=np.append(0, near.sum(axis=1).cumsum()),
        indices=np.nonzero(near)[1],
        bitmap=np.full(int(near.sum()), -1, dtype=np.int64),
        bitmaps=np.zeros((0, _BLOCK, _BLOCK), dtype=np.bool_),
    )


def _lengths(sample: Sample, device: torch.device) -> Lengths:
    tile = torch.arange(sample.tiles + 1, dtype=torch.int32, device=device)
    return Lengths(
        tile * sample.query_length,
        tile * sample.key_length,
        sample.query_length,
        sample.key_length,
    )


def _positions(sample: Sample, length: int, problem: Problem, device: torch.device) -> Tensor:
    rows = length * sample.tiles if problem.ragged else length
    return torch.arange(rows, device=device)[None, None]


def _kv_heads(sample: Sample, problem: Problem) -> int:
    return max(1, sample.heads // problem.group_size)


def _elements(sample: Sample, problem: Problem) -> int:
    """Of all inputs, results and masks; gradients double the rows."""
    kv_heads = _kv_heads(sample, problem)
    rows = sample.query_length * kv_heads * problem.group_size + sample.key_length * kv_heads
    width = problem.head_dim + problem.value_head_dim
    passes = 2 if problem.needs_backward else 1
    bitmap = problem.mask is MaskCase.BITMAP
    rows *= sample.step
    return passes * sample.tiles * rows * width + bitmap * sample.query_length * sample.key_length


def _free_bytes(device: torch.device) -> int | None:
    """What the device has left, with what torch holds of it for later tensors."""
    free = detect(device).memory_free
    if free is None or device.type != "cuda":
        return free
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _widest(problem: Problem) -> int:
    """Bytes of an element, in the dtype of gradients."""
    dtype: torch.dtype = getattr(torch, problem.dtype)
    return max(4, dtype.itemsize)


def _halved(sample: Sample, problem: Problem) -> Sample:
    if sample.tiles > 1:
        return replace(sample, tiles=sample.tiles // 2)
    kv_heads = _kv_heads(sample, problem)
    if kv_heads > 1:
        return replace(sample, heads=kv_heads // 2 * problem.group_size)
    if max(sample.query_length, sample.key_length) <= _SHORTEST:
        return sample
    return replace(
        sample,
        query_length=max(1, sample.query_length // 2),
        key_length=max(1, sample.key_length // 2),
    )
