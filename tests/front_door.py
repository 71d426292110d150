"""Cases of the testing kit, called through the front door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ringspan as rs
import torch
from ringspan.contracts import Coordinates, Tokens
from ringspan.plan.orders import order
from ringspan.testing import Yardstick, yardstick
from ringspan.testing.case import Case
from torch import Tensor

__all__ = ["BACKENDS", "computed", "computed_alone", "exact", "poisoned"]

BACKENDS = ("auto", "manual", "sdpa-cpu")


def exact(case: Case) -> Yardstick:
    """What the formula says, for the case as it is defined."""
    q, k, v, grad_out = case.inputs()
    return yardstick(
        q,
        k,
        v,
        case.multiplicity(order),
        scale=case.scale(),
        sink=case.sink_logits(),
        grad_out=grad_out,
        extras=case.extras(),
    )


def computed(case: Case, backend: str) -> dict[str, Tensor]:
    """Output, lse and all gradients. A backend that declares it cannot is replaced by `"auto"`."""
    options = case.arguments()
    tensors, sink = case.inputs(), options.pop("sink", None)
    pattern = case.pattern.built(rs)
    if case.stored is None:
        return _called(tensors, sink, pattern, backend, options)
    layout = rs.Layout(options.pop("tokens", case.N), ordering=case.stored)
    stored = [layout.shard(x) for x in tensors]
    found = _called(stored, sink, pattern, backend, {**options, "layout": layout})
    along = {"lse": 2, "grad_sink": None}
    return {
        name: x if (dim := along.get(name, 1)) is None else layout.gather(x, dim=dim)
        for name, x in found.items()
    }


def computed_alone(case: Case, backend: str) -> dict[str, Tensor]:
    """The same, each document in a call of its own."""
    assert case.documents is not None
    options, tensors = case.arguments(), case.inputs()
    sink, tokens = options.pop("sink", None), options.pop("tokens", None)
    padding = options.pop("key_padding", None)
    del options["documents"]
    parts, end = [], 0
    for length in case.documents:
        start, end = end, end + length
        if not length:
            continue
        some = slice(start, end)
        if padding is not None:
            options["key_padding"] = padding[:, some]
        options["tokens"] = _points(tokens, some)
        document = [x[:, some] for x in tensors]
        parts.append(_called(document, sink, case.pattern.built(rs), backend, options))
    joined = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: torch.stack(xs).sum(0)
        if name == "grad_sink"
        else torch.cat(xs, dim=2 if name == "lse" else 1)
        for name, xs in joined.items()
    }


def _points(tokens: Tokens | None, some: slice) -> Tokens | None:
    return Coordinates(tokens.coordinates[some]) if isinstance(tokens, Coordinates) else None


def _called(
    tensors: Any, sink: Tensor | None, pattern: Any, backend: str, options: dict[str, Any]
) -> dict[str, Tensor]:
    q, k, v, grad_out = tensors
    leaves = {"grad_query": q, "grad_key": k, "grad_value": v, "grad_sink": sink}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items() if x is not None}
    q, k, v, sink = (leaves.get(name) for name in _GRADS)
    options = {**options, "pattern": pattern, "sink": sink, "return_lse": True}
    try:
        out, lse = rs.attention(q, k, v, backend=backend, **options)
    except rs.errors.NoEligibleProvider as refusal:
        if backend == "auto" or "(supported: " not in str(refusal):
            raise
        out, lse = rs.attention(q, k, v, backend="auto", **options)
    grads = torch.autograd.grad(out, tuple(leaves.values()), grad_out)
    return {"out": out, "lse": lse, **dict(zip(leaves, grads, strict=True))}


_GRADS = ("grad_query", "grad_key", "grad_value", "grad_sink")


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written to is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
