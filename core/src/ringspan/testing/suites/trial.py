"""One backend on one device, put to the test tile by tile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from hypothesis import strategies as st

from ringspan.contracts import AttentionBackend, DeviceInfo, Mask, MaskCase
from ringspan.testing.accuracy import assert_exact
from ringspan.testing.suites.tiles import NAMES, STRIDES, Operands, Tile, wide

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.testing.pytest_plugin import Verdict

__all__ = [
    "DTYPES",
    "HEAD_DIMS",
    "Trial",
    "all_memory",
    "beside_huge_scores",
    "deterministic",
    "merged",
    "tiles",
]

DTYPES = ("float32", "float64", "bfloat16", "float16")
HEAD_DIMS = (1, 8, 16, 33, 64, 80, 96, 128, 192, 256, 512)


@dataclass(frozen=True, slots=True)
class Trial:
    """A backend, a device that it can use, and where it is recorded what was found."""

    backend: AttentionBackend
    device: DeviceInfo
    verdict: Verdict

    def reasons(self, tile: Tile, *, deterministic: bool = False) -> list[str]:
        """Why the backend does not serve `tile`, as selection would be told."""
        problem = tile.problem(self.device, needs_backward=self.backend.capabilities.backward)
        return list(self.backend.reasons_against(replace(problem, deterministic=deterministic)))

    def operands(self, tile: Tile, *, deterministic: bool = False) -> Operands | None:
        """What the engine would call the backend with; None for a refusal, which is recorded."""
        if reasons := self.reasons(tile, deterministic=deterministic):
            self.verdict.refused(*reasons)
            return None
        operands = tile.operands(self.device)
        return operands if self.backend.capabilities.strided else operands.contiguous()

    def exact_or_refused(self, tile: Tile) -> None:
        """Fails unless the backend refuses `tile` with reasons, or all its results are exact."""
        operands = self.operands(tile)
        if operands is not None:
            self.exact(operands, operands.results(self.backend))

    def exact(
        self, operands: Operands, results: dict[str, Tensor], *, padded: Tensor | None = None
    ) -> None:
        """Fails unless `results` are exact; `padded` is that of `Operands.exact`."""
        found = {name: result.cpu() for name, result in results.items()}
        assert_exact(found, operands.exact(padded=padded))
        self.verdict.served()

    def accepted(self) -> Tile | None:
        """A tile that the backend serves, near head dimension 16; None where it serves none."""
        wishes = (
            Tile(mask=mask, dtype=dtype, head_dim=head_dim, value_head_dim=head_dim)
            for head_dim in sorted(HEAD_DIMS, key=lambda head_dim: abs(head_dim - 16))
            for dtype in DTYPES
            for mask in MaskCase
        )
        return next((tile for tile in wishes if not self.reasons(tile)), None)


def merged(backend: AttentionBackend, operands: Operands) -> dict[str, Tensor]:
    """The results of all keys from those of each half: merged by lse, gradients summed."""
    out, lse = _merged_output(backend, operands)
    results = {"out": out, "lse": lse}
    if not backend.capabilities.backward:
        return results
    query, key, value = operands.query, operands.key, operands.value
    final_out = out.to(query.device, query.dtype)
    final_lse = lse.to(query.device, wide(query.dtype))
    sums = [torch.zeros(x.shape, dtype=torch.float64) for x in (query, key, value)]
    for rows, keys, part in operands.halves():
        grads = part.backward(backend, final_out[:, rows], final_lse[..., rows])
        for total, where, grad in zip(sums, (rows, keys, keys), grads, strict=True):
            total[:, where] += grad.cpu()
    return results | dict(zip(NAMES[2:], sums, strict=True))


def _merged_output(backend: AttentionBackend, operands: Operands) -> tuple[Tensor, Tensor]:
    """In float64 on the CPU."""
    batch, queries, heads, _ = operands.query.shape
    out = torch.zeros(operands.grad_out.shape, dtype=torch.float64)
    lse = out.new_full((batch, heads, queries), -torch.inf)
    for rows, _, part in operands.halves():
        new_out, new_lse = (x.cpu().double() for x in part.forward(backend))
        total = torch.logaddexp(lse[..., rows], new_lse)
        finite = total.masked_fill(total == -torch.inf, 0.0)
        before, added = (
            (x - finite).exp().transpose(1, 2)[..., None] for x in (lse[..., rows], new_lse)
        )
        out[:, rows] = out[:, rows] * before + new_out * added
        lse[..., rows] = total
    return out, lse


def beside_huge_scores(operands: Operands, case: MaskCase) -> Operands:
    """Each row sees one key of score about -10,000 beside hidden ones of 10,000."""
    key = torch.full_like(operands.key, 50.0)
    key[:, ::2] = -50.0
    count, device = key.shape[1], key.device
    row = torch.arange(operands.query.shape[1], device=device)
    query, even = torch.full_like(operands.query, 50.0), row // 2 * 2
    if case is MaskCase.BAND:
        mask = Mask(case)
        query[:, 1::2] = -50.0
    elif case is MaskCase.INTERVAL:
        mask = Mask(case, low=even, high=even + 1)
    else:
        mask = Mask(case, seen=torch.arange(count, device=device) == even[:, None])
    return replace(operands, query=query, key=key, mask=mask, scale=4 / query.shape[-1])


def all_memory(x: Tensor) -> Tensor:
    """The memory behind a tensor as bytes, what lies between its elements included."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


@contextlib.contextmanager
def deterministic(backend: AttentionBackend, *, poisoned: bool) -> Iterator[None]:
    """Requires deterministic algorithms of a backend that declares them.

    Args:
        backend: of another one they are merely asked for.
        poisoned: whether new memory is full of NaN; torch fills it only in this mode.
    """
    utils: Any = torch.utils.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = utils.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=not backend.capabilities.deterministic)
    utils.fill_uninitialized_memory = poisoned
    try:
        # Without it torch refuses cuBLAS in this mode.
        with mock.patch.dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8"):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        utils.fill_uninitialized_memory = filled


@st.composite
def tiles(draw: st.DrawFn, backend: AttentionBackend) -> Tile:
    """Tiles of the kinds that a backend declares, everything varied at once."""
    declared = backend.capabilities
    masks = sorted(mask for mask in MaskCase if declared.takes(mask))
    dims = [dim for dim in range(1, 97) if dim in declared.head_dims]
    head_dim = draw(st.sampled_from(dims or [declared.head_dims.minimum]))
    other = draw(st.sampled_from(dims or [head_dim]))
    whole = declared.blocks and MaskCase.FULL in masks and draw(st.booleans())
    ragged = declared.ragged and not whole and draw(st.booleans())
    if ragged:
        masks = sorted({MaskCase.FULL, MaskCase.CAUSAL} & set(masks))
    length = st.integers(1, 20)
    return Tile(
        batch=draw(st.integers(1, 3)),
        query_length=draw(st.integers(1, 70)),
        key_length=draw(st.integers(1, 70)),
        kv_heads=draw(st.integers(1, 3)),
        group_size=draw(st.integers(1, 3)) if declared.gqa else 1,
        head_dim=head_dim,
        value_head_dim=other if declared.value_head_dim_differs else head_dim,
        mask=MaskCase.FULL if whole else draw(st.sampled_from(masks)),
        blocks=whole,
        ragged=tuple(
            draw(st.lists(st.tuples(length, length), min_size=ragged, max_size=4 * ragged))
        ),
        mask_axes=draw(st.sampled_from(("", "L", "B", "BL", "HL", "BHL"))),
        dtype=draw(st.sampled_from([x for x in DTYPES if x in declared.dtypes])),
        strides=draw(st.sampled_from(STRIDES)),
        key_padding=declared.key_padding and draw(st.booleans()),
        dropout_p=draw(st.sampled_from((0.0, 0.1, 0.7))) if declared.dropout else 0.0,
        largest_score=draw(st.sampled_from((1.0, 10.0, 1e4))),
        seed=draw(st.integers(0, 2**31)),
    )
