"""A tiny real call, forward and backward, compared with the formula in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ringspan.contracts import (
    CAUSAL,
    Availability,
    DeviceInfo,
    Lengths,
    Mask,
    MaskCase,
    Problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor

    from ringspan.contracts import AttentionBackend

__all__ = ["trial"]

LENGTH, WIDTH = 16, 16
SCALE = 0.25
COARSE = 0.05
"""Far above rounding in 16 bits, far below what a wrong layout or mask gives."""


@dataclass(frozen=True, eq=False)
class Case:
    """A mask to be tried, and what it means."""

    mask: Mask
    seen: Bool[Tensor, "Lq Lk"]


def trial(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> Availability:
    """Whether `backend` really runs on `device`: usable, or which result was wrong.

    A causal square is tried, and bands (or intervals) and tiles of many lengths where they are
    declared and not refused on this device: kernels disagree on where a band lies when there are
    more keys than queries.

    An exception of the kernel is left to the caller, which records it as a fault.
    """
    for case in _cases(backend, device):
        if case.mask is not CAUSAL and _refused(backend, case.mask, device, dtype):
            continue
        if wrong := _wrong(backend, case, device, dtype):
            return Availability.no(
                f"a tiny call returned a wrong {wrong}",
                remedy="report it with the output of `ringspan doctor --json`",
                version=torch.__version__,
            )
    return Availability.yes(version=torch.__version__)


def _cases(backend: AttentionBackend, device: torch.device) -> Iterator[Case]:
    triangle = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    yield Case(CAUSAL, triangle)
    if backend.capabilities.takes(MaskCase.BAND):
        more, left, right = 8, 3, 10
        band = torch.ones(LENGTH, LENGTH + more, dtype=torch.bool).triu(-left).tril(right)
        mask = Mask(MaskCase.BAND, left=left, right=right)
        if MaskCase.BAND not in backend.capabilities.masks:
            mask = mask.as_interval(LENGTH, LENGTH + more, device)
        yield Case(mask, band)
    if backend.capabilities.ragged:
        cut = LENGTH // 4
        bounds = torch.tensor([0, cut, LENGTH], dtype=torch.int32, device=device)
        lengths = Lengths(bounds, bounds, LENGTH - cut, LENGTH - cut)
        tile = torch.arange(LENGTH) < cut
        own = tile[:, None] == tile
        yield Case(Mask(MaskCase.CAUSAL, lengths=lengths), triangle & own)


def _refused(
    backend: AttentionBackend, mask: Mask, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether such problems never reach the kernel here."""
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    problem = Problem(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        mask=mask.case,
        head_dim=WIDTH,
        value_head_dim=WIDTH,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        ragged=mask.lengths is not None,
        device_info=DeviceInfo(type=device.type, index=device.index, compute_capability=found),
    )
    return any(True for _ in backend.reasons_against(problem))


def _wrong(backend: AttentionBackend, case: Case, device: torch.device, dtype: torch.dtype) -> str:
    """The first result that is not the formula's; empty where all are."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = case.seen.shape
    q, k, v, grad_out = (
        torch.randn(1, length, 2, WIDTH, generator=generator).to(device, dtype)
        for length in (queries, keys, keys, queries)
    )
    out, lse = backend.forward(q, k, v, mask=case.mask, scale=SCALE)
    grads = backend.backward(grad_out, q, k, v, out, lse, mask=case.mask, scale=SCALE)
    expected = _formula(*(x.detach().double().cpu() for x in (q, k, v, grad_out)), seen=case.seen)
    names = ("out", "lse", "grad_query", "grad_key", "grad_value")
    for name, x, exact in zip(names, (out, lse, *grads), expected, strict=True):
        error = (x.double().cpu() - exact).abs().max().item()
        if not error <= COARSE * exact.abs().max().item():
            return f"{name}: off by {error:.2g} ({case.mask.case})"
    return ""


def _formula(
    q: Float[Tensor, "B Lq H D"],
    k: Float[Tensor, "B Lk H D"],
    v: Float[Tensor, "B Lk H D"],
    grad_out: Float[Tensor, "B Lq H D"],
    *,
    seen: Bool[Tensor, "Lq Lk"],
) -> tuple[Tensor, ...]:
    """Attention, its log-sum-exp and its gradients, written out."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE
    scores.masked_fill_(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    P = (scores - lse[..., None]).exp()
    out = torch.einsum("bhqk,bkhd->bqhd", P, v)
    delta = (grad_out * out).sum(-1).transpose(1, 2)[..., None]
    dS = P * (torch.einsum("bqhd,bkhd->bhqk", grad_out, v) - delta) * SCALE
    return (
        out,
        lse,
        torch.einsum("bhqk,bkhd->bqhd", dS, k),
        torch.einsum("bhqk,bqhd->bkhd", dS, q),
        torch.einsum("bhqk,bqhd->bkhd", P, grad_out),
    )
