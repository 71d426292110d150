"""The contract of an attention backend: capabilities as data, two functions on plain tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ringspan_registry.devices import DeviceInfo
from ringspan_registry.provider import Provider

from ringspan.contracts.masks import Mask, MaskCase

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, dtype

    from ringspan.contracts.branch import Branch, Piece, Placed

__all__ = ["AttentionBackend", "Capabilities", "Grads", "HeadDims", "Problem", "Task", "TileOutput"]


class Task(StrEnum):
    """What a backend may be asked to do."""

    ATTEND = "attend"
    """Attention of tiles: `forward` and `backward`."""
    GATHER = "gather"
    """Bring rows together for kernels that need them contiguous: `gather`."""
    MERGE = "merge"
    """Put the pieces of a result together, each output row once: `merge`."""


@dataclass(frozen=True, slots=True)
class HeadDims:
    """The head dimensions a kernel takes: `minimum .. maximum`, multiples of `multiple_of`."""

    minimum: int = 1
    maximum: int | None = None
    multiple_of: int = 1

    def __contains__(self, head_dim: int) -> bool:
        return (
            head_dim >= self.minimum
            and (self.maximum is None or head_dim <= self.maximum)
            and head_dim % self.multiple_of == 0
        )

    def __str__(self) -> str:
        top = "any" if self.maximum is None else str(self.maximum)
        steps = "" if self.multiple_of == 1 else f", multiples of {self.multiple_of}"
        return f"{self.minimum}..{top}{steps}"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can compute, as data."""

    devices: frozenset[str]
    """Device types, as in `torch.device.type`."""
    dtypes: frozenset[str]
    """Names of dtypes, as in `"float32"`."""
    masks: frozenset[MaskCase]
    head_dims: HeadDims = HeadDims()
    compute_capabilities: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Lowest and highest CUDA compute capability, inclusive; None: any."""
    value_head_dim_differs: bool = False
    """Whether values may have another head dimension than queries and keys."""
    gqa: bool = False
    """Whether several query heads may share a key/value head; if not, such problems are refused."""
    strided: bool = True
    """Whether tensors may have any strides but the last; otherwise they arrive contiguous."""
    key_padding: bool = False
    """Whether `Mask.key_seen` is honoured; if not, such problems are refused."""
    dropout: bool = False
    """Whether `forward` and `backward` take `dropout=` (a `Dropout`)."""
    blocks: bool = False
    """Whether `Mask.blocks` is honoured: block-sparse work comes whole, else cut into tiles."""
    ragged: bool = False
    """Whether `Mask.lengths` is honoured: tiles of many lengths come in one call."""
    branches: bool = False
    """Whether `forward_branch` and `backward_branch` are there: rows are read and gradients
    added where they lie, so that nothing is gathered, copied or scattered."""
    tasks: frozenset[Task] = frozenset({Task.ATTEND})
    deterministic: bool = True
    backward: bool = True
    """False: inference only; never chosen where a gradient is needed."""

    def reasons_against(self, problem: Problem, device: DeviceInfo) -> Iterable[str]:
        """Every declared limit that `problem` on `device` oversteps: actual, then supported."""
        if problem.task not in self.tasks:
            yield f"task {problem.task} (supported: {_names(self.tasks)})"
        if problem.device not in self.devices:
            yield f"device {problem.device} (supported: {_names(self.devices)})"
        if problem.dtype not in self.dtypes:
            yield f"dtype {problem.dtype} (supported: {_names(self.dtypes)})"
        if not self.takes(problem.mask):
            yield f"mask {problem.mask} (supported: {_names(self.masks)})"
        for name, head_dim in problem.head_dims.items():
            if head_dim not in self.head_dims:
                yield f"{name} {head_dim} (supported: {self.head_dims})"
        if problem.value_head_dim != problem.head_dim and not self.value_head_dim_differs:
            yield (
                f"value_head_dim {problem.value_head_dim} with head_dim {problem.head_dim} "
                "(supported: equal)"
            )
        if problem.group_size > 1 and not self.gqa:
            yield f"{problem.group_size} query heads per key/value head (supported: 1)"
        if problem.key_padding and not self.key_padding:
            yield "key_padding (supported: no padding)"
        if problem.dropout and not self.dropout:
            yield "dropout (supported: none)"
        if problem.blocks and not self.blocks:
            yield "block-sparse work as a whole (supported: tiles)"
        if problem.ragged and not self.ragged:
            yield "tiles of many lengths in one call (supported: equal lengths)"
        if problem.deterministic and not self.deterministic:
            yield "deterministic algorithms are required (supported: no deterministic kernel)"
        if problem.needs_backward and not self.backward:
            yield "a gradient is needed (supported: inference only)"
        yield from self._capability_reasons(device)

    def takes(self, mask: MaskCase) -> bool:
        """Whether a mask case is declared; a band is an interval too."""
        band = mask is MaskCase.BAND and MaskCase.INTERVAL in self.masks
        return band or mask in self.masks

    def _capability_reasons(self, device: DeviceInfo) -> Iterable[str]:
        found = device.compute_capability
        if self.compute_capabilities is None or found is None:
            return
        low, high = self.compute_capabilities
        if not low <= found <= high:
            yield (
                f"compute capability {found[0]}.{found[1]} "
                f"(supported: {low[0]}.{low[1]}..{high[0]}.{high[1]})"
            )


def _names(values: Iterable[str]) -> str:
    return ", ".join(sorted(str(value) for value in values))


@dataclass(frozen=True, slots=True)
class Problem:
    """One class of work, as selection sees it: without lengths, so that decisions are cached."""

    device: str
    dtype: str
    mask: MaskCase
    head_dim: int
    value_head_dim: int
    group_size: int = 1
    """Query heads per key/value head."""
    needs_backward: bool = True
    deterministic: bool = False
    key_padding: bool = False
    dropout: bool = False
    blocks: bool = False
    """Whether the work is block-sparse and comes as one tile."""
    ragged: bool = False
    """Whether tiles of many lengths come in one call."""
    task: Task = Task.ATTEND
    device_info: DeviceInfo = field(default=DeviceInfo(type="cpu"), repr=False)

    @property
    def head_dims(self) -> dict[str, int]:
        """Both head dimensions by name."""
        return {"head_dim": self.head_dim, "value_head_dim": self.value_head_dim}


class TileOutput(NamedTuple):
    """What a forward returns: `out` `[B, Lq, H, Dv]` in the query's dtype, `lse` `[B, H, Lq]`.

    `lse` is the natural logarithm of each row's normaliser in float32 (float64 for float64
    inputs). A row that sees no key has `out = 0` and `lse = -inf`.
    """

    out: Tensor
    lse: Tensor


class Grads(NamedTuple):
    """What a backward returns, shaped as query, key and value, in their dtype or in float32."""

    query: Tensor
    key: Tensor
    value: Tensor


class AttentionBackend(Provider):
    """Computes a batch of dense attention problems ("tiles") and their gradients.

    A backend never sees patterns, rings or autograd. All tiles of one call have the same
    lengths and the same mask case. Inputs are on one device and have one dtype; lengths are
    positive; the last stride is 1, other strides are arbitrary unless
    `capabilities.strided` is False.
    """

    capabilities: ClassVar[Capabilities]

    def reasons_against(self, problem: Problem) -> Iterable[str]:
        """Declared limits first, then `extra_reasons`."""
        yield from self.capabilities.reasons_against(problem, problem.device_info)
        yield from self.extra_reasons(problem)

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """Reasons against `problem` that data cannot say."""
        return ()

    @abstractmethod
    def forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Attention of each tile on its own, with its log-sum-exp (see `TileOutput`).

        A backend whose capabilities have `dropout` also takes `dropout: Dropout | None = None`,
        here and in `backward`; the log-sum-exp is that of all keys, dropped or not.

        Returns new tensors: the engine may go on to change them in place.
        """

    @abstractmethod
    def backward(
        self,
        grad_out: Float[Tensor, "B Lq H Dv"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        out: Float[Tensor, "B Lq H Dv"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """This tile's share of the gradients, given the *final* `out` and `lse` of all tiles.

        `P = exp(scale q k - lse)` may sum to less than one over this tile's keys. A row that
        saw no key anywhere has `lse = +inf` here, so that its `P` is zero. Returns new tensors.
        """

    def forward_branch(
        self,
        query: Float[Tensor, "B N H D"],
        key: Float[Tensor, "B M Hkv D"],
        value: Float[Tensor, "B M Hkv Dv"],
        branch: Branch,
        *,
        sink: Float[Tensor, "H rows"] | None = None,
        into: TileOutput | None = None,
    ) -> TileOutput:
        """`forward` of tiles whose rows lie somewhere in whole tensors of any strides but the last.

        Only backends whose capabilities have `branches` are asked.

        Args:
            query: all query rows of this rank.
            key: all key rows at hand.
            value: likewise.
            branch: which rows, and their mask.
            sink: logits that take part in each row's normaliser, by head and query row (or one for
                all rows).
            into: where to write: `out` `[B, N, H, Dv]` and `lse` `[B, H, N]`, of which only the
                rows of `branch.query` are touched. None: new tensors, as of `forward`,
                `[B * T, Lq, K * G, Dv]` and `[B * T, K * G, Lq]`.
        """
        raise NotImplementedError(f"{self.name} declares no branches")

    def backward_branch(
        self,
        grad_out: Float[Tensor, "B N H Dv"],
        query: Float[Tensor, "B N H D"],
        key: Float[Tensor, "B M Hkv D"],
        value: Float[Tensor, "B M Hkv Dv"],
        lse: Float[Tensor, "B H N"],
        delta: Float[Tensor, "B H N"],
        branch: Branch,
        *,
        grads: Grads,
        first_query: bool,
        first_key: bool,
    ) -> None:
        """Adds this branch's share to the gradients of whole tensors, where their rows lie.

        Args:
            grad_out: of the final output.
            query: all query rows of this rank.
            key: all key rows at hand.
            value: likewise.
            lse: final, +inf where a row saw no key.
            delta: `<grad_out, out>` of each row, computed once for all branches.
            branch: which rows, and their mask; key rows of several tiles may be the same where
                `branch.key.overlap`.
            grads: shaped as query, key and value; in their dtype only where every row gets one
                piece, else as wide as `lse`.
            first_query: the query's rows hold nothing yet: write instead of adding.
            first_key: the same for key and value.
        """
        raise NotImplementedError(f"{self.name} declares no branches")

    def gather(self, *placed: Placed) -> tuple[Tensor, ...]:
        """The rows as contiguous `[B * T, L, K * G, D]`, all in as few launches as possible.

        Only backends whose capabilities have the task `GATHER` are asked.
        """
        raise NotImplementedError(f"{self.name} does not gather")

    def merge(
        self,
        pieces: Sequence[Piece],
        shape: tuple[int, int, int, int],
        *,
        dtype: dtype,
        sink: Float[Tensor, "H rows"] | None = None,
        base: Piece | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """All pieces as one tensor `[B, N, H, D]`, whose every row reads its pieces once.

        Only backends whose capabilities have the task `MERGE` are asked. Sums are as wide as
        float32 (float64 for float64) and rounded once.

        Args:
            pieces: all with an `lse`, or all without; a row may be in any number of them, and in
                no piece twice.
            shape: of the result.
            dtype: of the result.
            sink: with an `lse` only: logits that take part in each row's normaliser, by head and
                row (or one for all rows).
            base: what was merged before, for all rows: `x` `[B, N, H, D]` and `lse` `[B, H, N]`;
                its `rows` say nothing.

        Returns:
            The tensor, contiguous, and with an `lse` the merged one `[B, H, N]`; a row of no piece
            is 0 with an `lse` of -inf.
        """
        raise NotImplementedError(f"{self.name} does not merge")
