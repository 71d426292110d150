"""The formula, in float64, evaluated literally: every score of every pair, no plan, no pieces.

With `s_ij = scale <q_i, k_j>`, multiplicities `m_ij`, an optional sink logit `z_i`, null keys `n_i`
(keys of score 0 and value 0) and weights of dropout `w_ij` (`1 / (1 - p)` where a probability is
kept, 0 where it is dropped; 1 without dropout):

    Z_i = exp(z_i) + n_i + sum_j m_ij exp(s_ij)    LSE_i = log Z_i    P_ij = m_ij exp(s_ij) / Z_i
    O_i = sum_j P_ij w_ij v_j

and, for an upstream gradient `dO`, with `Delta_i = <dO_i, O_i>` and
`dS_ij = P_ij (w_ij <dO_i, v_j> - Delta_i)`:

    dq_i = scale sum_j dS_ij k_j    dk_j = scale sum_i dS_ij q_i    dv_j = sum_i P_ij w_ij dO_i
    dz   = -sum_i exp(z_i - LSE_i) Delta_i

Suffixes say the axes: B batch, H query heads, I queries, J keys, D or E a head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = [
    "NOTHING",
    "Extras",
    "ReferenceResult",
    "absolute",
    "check_shapes",
    "fold_heads",
    "reference",
    "spread_heads",
]


@dataclass(frozen=True, slots=True, eq=False)
class Extras:
    """What changes a row beside the keys that it sees; by default nothing does."""

    null_keys: Int[Tensor, "H Nq"] | None = None
    """How many keys of score 0 and value 0 each row also sees; they only enlarge `Z`."""
    padded: Bool[Tensor, "B Nq"] | None = None
    """Queries that are padding: their rows see nothing at all, no sink and no null key."""
    keep: Bool[Tensor, "B H Nq Nk"] | None = None
    """Which probabilities dropout keeps, with weight `1 / (1 - dropout_p)`; `Z` has them all."""
    dropout_p: float = 0.0

    def absent(self, lse: Tensor) -> Tensor:
        """`padded` for each element of `lse` `[B, H, Nq]`."""
        if self.padded is None:
            return torch.zeros_like(lse, dtype=torch.bool)
        return self.padded[:, None].expand_as(lse)

    def weights(self, P: Tensor) -> Tensor:
        """`w_ij` for each probability in `P` `[B, H, Nq, Nk]`, in its dtype."""
        if self.keep is None:
            return torch.ones_like(P)
        return self.keep.to(P) / (1 - self.dropout_p)

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        """Refuses tensors of other shapes, which broadcasting might otherwise hide."""
        for name, shape in (
            ("null_keys", (heads, queries)),
            ("padded", (batch, queries)),
            ("keep", (batch, heads, queries, keys)),
        ):
            found = getattr(self, name)
            if found is not None and found.shape != shape:
                raise InvalidArgument(name, expected=str(list(shape)), got=str(list(found.shape)))


NOTHING = Extras()


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceResult:
    """Output, log-sum-exp and gradients; a gradient that was not asked for is None."""

    out: Float[Tensor, "B Nq H Dv"]
    lse: Float[Tensor, "B H Nq"]
    grad_query: Float[Tensor, "B Nq H D"] | None = None
    grad_key: Float[Tensor, "B Nk Hkv D"] | None = None
    grad_value: Float[Tensor, "B Nk Hkv Dv"] | None = None
    grad_sink: Float[Tensor, " H"] | Float[Tensor, "H Nq"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        named = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: tensor for name, tensor in named if tensor is not None}


def reference(
    q: Float[Tensor, "B Nq H D"],
    k: Float[Tensor, "B Nk Hkv D"],
    v: Float[Tensor, "B Nk Hkv Dv"],
    multiplicity: Int[Tensor, "H Nq Nk"],
    *,
    scale: float | None = None,
    sink: Float[Tensor, " H"] | Float[Tensor, "H Nq"] | None = None,
    grad_out: Float[Tensor, "B Nq H Dv"] | None = None,
    extras: Extras = NOTHING,
) -> ReferenceResult:
    """The formula evaluated in float64, whatever the dtype of the inputs.

    A row that sees no key has `out` 0, `lse` -inf and gradients 0. Memory is several
    `[B, H, Nq, Nk]` tensors in float64: this is for small problems.

    Args:
        q, k, v: query head `h` reads key/value head `h // (H // Hkv)`.
        multiplicity: how often query `i` of head `h` sees key `j`; broadcast to `[B, H, Nq, Nk]`.
        scale: default `D ** -0.5`.
        sink: a logit per head, or per head and query; -inf is no sink.
        grad_out: upstream gradient; without it there are no gradients in the result.
        extras: null keys, padded queries and dropout.

    Errors:
        InvalidArgument: shapes that do not fit together.

    Example:
        >>> q = k = v = torch.ones(1, 3, 1, 2)
        >>> causal = torch.ones(3, 3, dtype=torch.int64).tril()
        >>> reference(q, k, v, causal, scale=0.0).lse.exp().round()
        tensor([[[1., 2., 3.]]], dtype=torch.float64)
    """
    a = _Attended.by(q, k, v, multiplicity, scale, sink, extras)
    if grad_out is None:
        return ReferenceResult(a.out, a.lse)
    dO = grad_out.double()
    delta = torch.einsum("bihe,bihe->bhi", dO, a.out)
    dP = torch.einsum("bihe,bjhe->bhij", dO, a.V)
    dS = a.P * (a.weights * dP - delta[..., None])
    return a.result(a.out, a.lse, dS, dO, a.Q, a.K, -delta)


def absolute(
    q: Float[Tensor, "B Nq H D"],
    k: Float[Tensor, "B Nk Hkv D"],
    v: Float[Tensor, "B Nk Hkv Dv"],
    multiplicity: Int[Tensor, "H Nq Nk"],
    *,
    scale: float | None = None,
    sink: Float[Tensor, " H"] | Float[Tensor, "H Nq"] | None = None,
    grad_out: Float[Tensor, "B Nq H Dv"] | None = None,
    extras: Extras = NOTHING,
) -> ReferenceResult:
    """The same sums over absolute values, `C`: how much rounding errors can add up to.

    For example `C(dq) = scale sum_j P (|dO||v| + |dO||O|) |k|`. For `lse` it is 1 on rows that
    see something: a log-sum-exp moves at most as far as the score that moves furthest.

    Arguments and errors are those of `reference`.
    """
    a = _Attended.by(q, k, v, multiplicity, scale, sink, extras)
    C_out = torch.einsum("bhij,bjhe->bihe", a.P * a.weights, a.V.abs())
    C_lse = (a.lse != -torch.inf).double()
    if grad_out is None:
        return ReferenceResult(C_out, C_lse)
    dO = grad_out.double().abs()
    delta = torch.einsum("bihe,bihe->bhi", dO, a.out.abs())
    dP = torch.einsum("bihe,bjhe->bhij", dO, a.V.abs())
    dS = a.P * (a.weights * dP + delta[..., None])
    return a.result(C_out, C_lse, dS, dO, a.Q.abs(), a.K.abs(), delta)


@dataclass(frozen=True, slots=True, eq=False)
class _Attended:
    """What outputs and gradients have in common. Keys and values are one per query head."""

    Q: Tensor
    K: Tensor
    V: Tensor
    P: Tensor
    weights: Tensor
    """`w` `[B, H, I, J]`."""
    out: Tensor
    lse: Tensor
    sink: Tensor | None
    """`exp(z - LSE)` `[B, H, I]`: the part of the normaliser that the sink holds."""
    sink_varies: bool
    kv_heads: int
    scale: float

    @classmethod
    def by(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        multiplicity: Tensor,
        scale: float | None,
        sink: Tensor | None,
        extras: Extras,
    ) -> _Attended:
        check_shapes(q, k, v, multiplicity, sink, extras)
        heads = q.shape[2]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        Q, K, V = q.double(), spread_heads(k.double(), heads), spread_heads(v.double(), heads)
        # log 0 = -inf: a pair that is not in the pattern vanishes from every sum.
        logits = scale * torch.einsum("bihd,bjhd->bhij", Q, K) + multiplicity.double().log()
        lse = logits.logsumexp(-1)
        absent = extras.absent(lse)
        z = None if sink is None else sink.double().reshape(heads, -1).expand_as(lse)
        z = None if z is None else z.masked_fill(absent, -torch.inf)
        for also in (z, None if extras.null_keys is None else extras.null_keys.double().log()):
            lse = lse if also is None else torch.logaddexp(lse, also)
        lse = lse.masked_fill(absent, -torch.inf)
        finite = lse.masked_fill(lse == -torch.inf, 0.0)
        P = (logits - finite[..., None]).exp().masked_fill(absent[..., None], 0.0)
        weights = extras.weights(P)
        return cls(
            Q=Q,
            K=K,
            V=V,
            P=P,
            weights=weights,
            out=torch.einsum("bhij,bjhe->bihe", P * weights, V),
            lse=lse,
            sink=None if z is None else (z - finite).exp(),
            sink_varies=sink is not None and sink.dim() == 2,
            kv_heads=k.shape[2],
            scale=scale,
        )

    def result(
        self,
        out: Tensor,
        lse: Tensor,
        dS: Tensor,
        dO: Tensor,
        Q: Tensor,
        K: Tensor,
        sink_delta: Tensor,
    ) -> ReferenceResult:
        """`out` and `lse` with the gradients that follow from `dS`; `sink_delta` is dz's factor."""
        dz = None if self.sink is None else (self.sink * sink_delta).sum(0)
        return ReferenceResult(
            out=out,
            lse=lse,
            grad_query=self.scale * torch.einsum("bhij,bjhd->bihd", dS, K),
            grad_key=fold_heads(self.scale * torch.einsum("bhij,bihd->bjhd", dS, Q), self.kv_heads),
            grad_value=fold_heads(
                torch.einsum("bhij,bihe->bjhe", self.P * self.weights, dO), self.kv_heads
            ),
            grad_sink=dz if dz is None or self.sink_varies else dz.sum(-1),
        )


def spread_heads(x_BJGD: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated, one for each query head that reads them."""
    return x_BJGD.repeat_interleave(heads // x_BJGD.shape[2], dim=2)


def fold_heads(x_BJHD: Tensor, kv_heads: int) -> Tensor:
    """The gradient of `spread_heads`: query heads summed into the head they read."""
    batch, keys, heads, head_dim = x_BJHD.shape
    return x_BJHD.reshape(batch, keys, kv_heads, heads // kv_heads, head_dim).sum(3)


def check_shapes(
    q: Tensor, k: Tensor, v: Tensor, multiplicity: Tensor, sink: Tensor | None, extras: Extras
) -> None:
    """Refuses inputs that do not fit together, which broadcasting might otherwise hide."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    if k.shape != (batch, keys, kv_heads, head_dim) or v.shape[:3] != k.shape[:3]:
        raise InvalidArgument(
            "k, v",
            expected=f"[{batch}, Nk, Hkv, {head_dim}] and [{batch}, Nk, Hkv, Dv]",
            got=f"{list(k.shape)} and {list(v.shape)}",
        )
    if heads % kv_heads:
        raise InvalidArgument(
            "q", expected=f"a multiple of {kv_heads} heads, as k has", got=f"{heads} heads"
        )
    full = (batch, heads, queries, keys)
    sizes = zip(reversed(multiplicity.shape), reversed(full), strict=False)
    if multiplicity.dim() > 4 or any(size not in (1, whole) for size, whole in sizes):
        raise InvalidArgument(
            "multiplicity",
            expected=f"a shape that broadcasts to {list(full)}",
            got=str(list(multiplicity.shape)),
        )
    if sink is not None and sink.shape not in ((heads,), (heads, queries)):
        raise InvalidArgument(
            "sink", expected=f"[{heads}] or [{heads}, {queries}]", got=str(list(sink.shape))
        )
    extras.check(*full)
