"""One rule says whether a result is exact for its dtype. No test writes a tolerance by hand.

In root mean square over each tensor, against the formula `F` in float64:

    rms(x - F)  <=  2 rms(ref - F)  +  2 (u + e max|s|) rms(C)

`ref` is the plain kernel of the same dtype, `u` the dtype's unit roundoff, `C` the formula over
absolute values, `max|s|` the largest score that any query sees. `e` is the unit roundoff of
the accumulating dtype, 2**-24 (2**-53 for float64): what any kernel owes to `exp(s - LSE)`,
since a score of size `s` is itself rounded by `e |s|`.

`lse` may err by as much as a score, so its `C` is 1; a score's terms may cancel and leave their
rounding, so `max |scale| |q| |k|` takes the place of `max|s|`, and where it is larger `max|LSE|`.
Its `u` is the dtype's, as for every tensor: kernels for 16-bit inputs take exponentials to no more
than that. Its -inf must stand exactly where the formula has them.

Where the pattern leaves nothing to sum (a row without keys, a key that nobody sees) a result must
be exactly zero. Where terms are there and merely cancel or underflow, it need not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.testing.formula import (
    NOTHING,
    Extras,
    ReferenceResult,
    absolute,
    reference,
    spread_heads,
)
from ringspan.testing.plain import plain

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["Measurement", "Yardstick", "assert_exact", "measure", "yardstick"]


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """All that the rule compares a result with, for one problem."""

    formula: ReferenceResult
    plain: ReferenceResult
    absolute: ReferenceResult
    terms: ReferenceResult
    """Positive where the pattern leaves anything to sum: `absolute` of ones."""
    dtype: torch.dtype
    largest_score: float
    largest_product: float
    """Of the lengths of a query and a key that it sees, times the scale: at least every score."""

    def limit(self, name: str) -> float:
        """The largest error that the rule allows the tensor `name`, in root mean square."""
        F, ref, C = (result.tensors()[name] for result in (self.formula, self.plain, self.absolute))
        seen = ~F.isneginf()
        e = _unit_roundoff(torch.promote_types(self.dtype, torch.float32))
        u, size = _unit_roundoff(self.dtype), self.largest_score
        if name == "lse":
            size = max(self.largest_product, _largest(F[seen]))
        return 2 * _rms((ref - F)[seen]) + 2 * (u + e * size) * _rms(C[seen])


def yardstick(
    q: Float[Tensor, "B Nq H D"],
    k: Float[Tensor, "B Nk Hkv D"],
    v: Float[Tensor, "B Nk Hkv Dv"],
    multiplicity: Int[Tensor, "H Nq Nk"],
    *,
    scale: float | None = None,
    sink: Float[Tensor, " H"] | Float[Tensor, "H Nq"] | None = None,
    grad_out: Float[Tensor, "B Nq H Dv"] | None = None,
    extras: Extras = NOTHING,
) -> Yardstick:
    """What exact results are for these inputs, in their dtype. Arguments are those of `reference`.

    Example:
        >>> q, k, v, grad_out = torch.randn(4, 1, 8, 2, 4).unbind()
        >>> exact = yardstick(q, k, v, torch.ones(8, 8, dtype=torch.int64), grad_out=grad_out)
        >>> assert_exact({"out": exact.plain.out, "lse": exact.plain.lse}, exact)
    """
    m = multiplicity
    q1, k1, v1 = (torch.ones_like(x) for x in (q, k, v))
    sink1, grad1 = (None if x is None else torch.ones_like(x) for x in (sink, grad_out))
    if sink is not None and sink1 is not None:
        sink1 = sink1.masked_fill(sink.isneginf(), -torch.inf)
    given: dict[str, Any] = {"scale": scale, "sink": sink, "grad_out": grad_out, "extras": extras}
    return Yardstick(
        formula=reference(q, k, v, m, **given),
        plain=plain(q, k, v, m, **given),
        absolute=absolute(q, k, v, m, **given),
        terms=absolute(q1, k1, v1, m, sink=sink1, grad_out=grad1, extras=extras),
        dtype=q.dtype,
        largest_score=_largest_score(q, k, m, scale, sink),
        largest_product=_largest_product(q, k, m, scale),
    )


@dataclass(frozen=True, slots=True)
class Measurement:
    """How far one tensor is from the formula, and how far it may be."""

    name: str
    error: float
    limit: float
    fault: str = ""
    """What is wrong beside the size of the error; empty if nothing is."""

    @property
    def ratio(self) -> float:
        """Error over limit; at most 1 is exact."""
        return self.error / self.limit if self.limit else (0.0 if self.error == 0 else torch.inf)

    @property
    def exact(self) -> bool:
        """Whether the rule holds. An error that is NaN does not."""
        return not self.fault and self.error <= self.limit

    def __str__(self) -> str:
        text = (
            f"{self.name}: error {self.error:.3g}, limit {self.limit:.3g}, ratio {self.ratio:.3g}"
        )
        return f"{text}; {self.fault}" if self.fault else text


def measure(actual: Mapping[str, Tensor], exact: Yardstick) -> dict[str, Measurement]:
    """Error and limit of each tensor in `actual`, named as in `ReferenceResult`."""
    known = exact.formula.tensors()
    for name, tensor in actual.items():
        if name not in known or tensor.shape != known[name].shape:
            raise InvalidArgument(
                f"actual[{name!r}]",
                expected=", ".join(f"{n} {list(t.shape)}" for n, t in known.items()),
                got=str(list(tensor.shape)),
            )
    return {name: _measurement(name, tensor, exact) for name, tensor in actual.items()}


def assert_exact(actual: Mapping[str, Tensor], exact: Yardstick) -> None:
    """Fails unless the rule holds for every tensor in `actual`, named as in `ReferenceResult`.

    Errors:
        AssertionError: names each tensor that is not exact, with its error, limit and ratio.
        InvalidArgument: a tensor of unknown name or another shape.
    """
    found = measure(actual, exact)
    inexact = [str(each) for each in found.values() if not each.exact]
    if inexact:
        raise AssertionError(f"not exact in {exact.dtype}:\n  " + "\n  ".join(inexact))


def _measurement(name: str, actual: Tensor, exact: Yardstick) -> Measurement:
    F, terms = exact.formula.tensors()[name], exact.terms.tensors()[name]
    x = actual.detach().to(F)
    seen = ~F.isneginf()
    return Measurement(name, _rms((x - F)[seen]), exact.limit(name), _fault(x, F, terms))


def _fault(x: Tensor, F: Tensor, terms: Tensor) -> str:
    unseen = F.isneginf()
    if (wrong := x.isneginf() != unseen).any():
        return f"-inf in the wrong place at {int(wrong.sum())} of {x.numel()} elements"
    if (wrong := (terms == 0) & ~unseen & (x != 0)).any():
        return f"not exactly zero at {int(wrong.sum())} elements where there is nothing to sum"
    return ""


def _largest_score(
    q: Tensor, k: Tensor, multiplicity: Tensor, scale: float | None, sink: Tensor | None
) -> float:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    K = spread_heads(k.double(), q.shape[2])
    scores = scale * torch.einsum("bihd,bjhd->bhij", q.double(), K)
    largest = _largest(scores.masked_fill(multiplicity == 0, 0.0))
    return largest if sink is None else max(largest, _largest(sink.double()[sink.isfinite()]))


def _largest_product(q: Tensor, k: Tensor, multiplicity: Tensor, scale: float | None) -> float:
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    lengths = spread_heads(k.double().norm(dim=-1, keepdim=True), q.shape[2])
    products = torch.einsum("bihd,bjhd->bhij", q.double().norm(dim=-1, keepdim=True), lengths)
    return abs(scale) * _largest(products.masked_fill(multiplicity == 0, 0.0))


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
