"""The conformance kit fails what breaks a contract, by faults that kernels have had."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    Grid,
    HeadDims,
    InvalidArgument,
    Mask,
    MaskCase,
    Ordering,
    Permutation,
    Provider,
    Sequence,
    TileOutput,
    Tokens,
)
from ringspan.testing.suites.check import Checked, Offered, check
from ringspan.testing.toy import Toy
from ringspan.testing.toy_whole import ToyWhole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ringspan.contracts import Problem


def checked(kind: str, provider: Provider, select: str) -> Checked:
    (found,) = check([Offered("mine", kind, "mine", provider)], select=select, quiet=True)
    return found


class Faulty(Toy):
    """A toy whose results pass through something that should not be there."""

    forward_fault: ClassVar[Callable[..., TileOutput]]
    backward_fault: ClassVar[Callable[..., Grads]]

    def forward(self, *args: Any, **options: Any) -> TileOutput:
        result = super().forward(*args, **options)
        fault = type(self).__dict__.get("forward_fault")
        return result if fault is None else fault(result, *args, **options)

    def backward(self, *args: Any, **options: Any) -> Grads:
        fault = type(self).__dict__.get("backward_fault")
        return super().backward(*args, **options) if fault is None else fault(*args, **options)


def forward_fault(fault: Callable[..., TileOutput]) -> AttentionBackend:
    backend: AttentionBackend = type("Mine", (Faulty,), {"forward_fault": fault})()
    return backend


def backward_fault(fault: Callable[..., Grads]) -> AttentionBackend:
    backend: AttentionBackend = type("Mine", (Faulty,), {"backward_fault": fault})()
    return backend


def declaring(**capabilities: Any) -> AttentionBackend:
    declared = replace(Toy.capabilities, **capabilities)
    backend: AttentionBackend = type("Mine", (Toy,), {"capabilities": declared})()
    return backend


def in_base_two(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    return TileOutput(result.out, result.lse / math.log(2))


def finite_where_empty(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    return TileOutput(result.out, result.lse.masked_fill(result.lse == -torch.inf, 0.0))


def nan_where_empty(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    empty = (result.lse == -torch.inf).transpose(1, 2)[..., None]
    return TileOutput(result.out.masked_fill(empty, torch.nan), result.lse)


def in_sixteen_bits(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    return TileOutput(result.out, result.lse.to(result.out.dtype))


def heads_last(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    return TileOutput(result.out, result.lse.transpose(1, 2).contiguous())


def unwritten_where_empty(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    memory = torch.empty_like(result.out)
    tiny = memory.masked_fill(~memory.isnan(), 0.0)
    return TileOutput(result.out + tiny, result.lse)


def writing_into_the_query(
    result: TileOutput, query: torch.Tensor, *args: Any, **options: Any
) -> TileOutput:
    query.mul_(options["scale"])
    return result


def the_same_memory_for_all_tiles(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    return TileOutput(result.out, result.lse[:1].expand_as(result.lse))


def another_lse(grad_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, **options: Any) -> Grads:
    """Recomputes the normaliser of this tile alone instead of taking the final one."""
    return Toy().backward(grad_out, q, k, v, out, Toy().forward(q, k, v, **options).lse, **options)


def detached_normaliser(
    grad_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, **options: Any
) -> Grads:
    return Toy().backward(grad_out, q, k, v, torch.zeros_like(out), lse, **options)


def mean_gradient(
    grad_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, **options: Any
) -> Grads:
    return Toy().backward(grad_out.mean().expand_as(grad_out), q, k, v, out, lse, **options)


def undropped(grad_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, **options: Any) -> Grads:
    return Toy().backward(grad_out, q, k, v, out, lse, **options | {"dropout": None})


_calls = itertools.count()


def not_even_twice(result: TileOutput, *args: Any, **options: Any) -> TileOutput:
    return TileOutput(result.out * (1 + 1e-6 * (next(_calls) % 97)), result.lse)


class Forgetful(Toy):
    """Does not look at what it declares."""

    capabilities: ClassVar[Capabilities] = replace(Toy.capabilities, dropout=False)

    def reasons_against(self, problem: Problem) -> Iterable[str]:
        return ()


class Silent(Toy):
    """Refuses without a word."""

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        return [""] if problem.group_size > 1 else []


class Grumpy(Toy):
    """Refuses everything."""

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        return ["I would rather not"]


class Explosive(Toy):
    """Raises where it should answer."""

    def probe(self, device: DeviceInfo) -> Availability:
        if device.type == "cuda":
            raise RuntimeError("no CUDA")
        return Availability.yes()


class Masked(Toy):
    """Takes one mask for another."""

    def forward(self, *args: Any, mask: Any, **options: Any) -> TileOutput:
        if mask.case is MaskCase.BITMAP:
            mask = replace(mask, case=MaskCase.FULL, seen=None)
        return super().forward(*args, mask=mask, **options)


def without(fault: str) -> AttentionBackend:
    """A toy that takes work whole, and whose method of this name is one of `Careless`."""
    return type("Mine", (ToyWhole,), {fault.split(":")[0]: CARELESS[fault]})()


def band_as_full(self: ToyWhole, *args: Any, mask: Mask, **options: Any) -> TileOutput:
    return ToyWhole.forward(self, *args, mask=replace(mask, right=mask.right + 1), **options)


def one_tile(self: ToyWhole, *args: Any, mask: Mask, **options: Any) -> TileOutput:
    return ToyWhole.forward(self, *args, mask=replace(mask, lengths=None), **options)


def everything_zeroed(self: ToyWhole, *args: Any, into: Any = None, **options: Any) -> TileOutput:
    if into is not None:
        into.out.zero_()
    return ToyWhole.forward_branch(self, *args, into=into, **options)


def sinkless(self: ToyWhole, *args: Any, sink: Any = None, **options: Any) -> TileOutput:
    return ToyWhole.forward_branch(self, *args, **options)


def first_rows(self: ToyWhole, *args: Any, **options: Any) -> TileOutput:
    *tensors, branch = args
    rows = replace(branch.key, rows=replace(branch.key.rows, head_step=0))
    return ToyWhole.forward_branch(self, *tensors, replace(branch, key=rows), **options)


def always_first(self: ToyWhole, *args: Any, first_query: bool, **options: Any) -> None:
    ToyWhole.backward_branch(self, *args, first_query=True, **options)


def never_first(self: ToyWhole, *args: Any, first_key: bool, **options: Any) -> None:
    ToyWhole.backward_branch(self, *args, first_key=False, **options)


def last_tile_wins(self: ToyWhole, *args: Any, **options: Any) -> None:
    *tensors, branch = args
    apart = replace(branch, key=replace(branch.key, overlap=False))
    ToyWhole.backward_branch(self, *tensors, apart, **options)


def zero_delta(self: ToyWhole, *args: Any, **options: Any) -> None:
    *tensors, delta, branch = args
    ToyWhole.backward_branch(self, *tensors, torch.zeros_like(delta), branch, **options)


def one_after_the_other(self: ToyWhole, *placed: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x.flip(1) for x in ToyWhole.gather(self, *placed))


def last_piece_wins(self: ToyWhole, pieces: Any, *args: Any, **options: Any) -> Any:
    return ToyWhole.merge(self, pieces[-1:], *args, **options)


def baseless(self: ToyWhole, *args: Any, base: Any = None, **options: Any) -> Any:
    return ToyWhole.merge(self, *args, **options)


def unsunk(self: ToyWhole, *args: Any, sink: Any = None, **options: Any) -> Any:
    return ToyWhole.merge(self, *args, **options)


def twice_rounded(self: ToyWhole, *args: Any, dtype: torch.dtype, **options: Any) -> Any:
    out, lse = ToyWhole.merge(self, *args, dtype=torch.bfloat16, **options)
    return out.to(dtype), lse if lse is None else lse.to(torch.promote_types(dtype, torch.float32))


CARELESS: dict[str, Callable[..., Any]] = {
    "forward: a band one key too wide": band_as_full,
    "forward: tiles of many lengths as one": one_tile,
    "forward_branch: rows of no tile zeroed": everything_zeroed,
    "forward_branch: sinks left out": sinkless,
    "forward_branch: every head at the first one's rows": first_rows,
    "backward_branch: written over what was there": always_first,
    "backward_branch: added to what was never written": never_first,
    "backward_branch: a row of several tiles gets one share": last_tile_wins,
    "backward_branch: delta left out": zero_delta,
    "gather: rows in another order": one_after_the_other,
    "merge: the last piece only": last_piece_wins,
    "merge: what was there forgotten": baseless,
    "merge: sinks left out": unsunk,
    "merge: rounded to sixteen bits on the way": twice_rounded,
}
WHERE = {
    "forward: a band one key too wide": "bands_of_any_width",
    "forward: tiles of many lengths as one": "many_lengths and uneven and float32",
    "forward_branch: rows of no tile zeroed": "rows_lie and dilated",
    "forward_branch: sinks left out": "branch_has_every_mode and sink",
    "forward_branch: every head at the first one's rows": "rows_lie and dilated",
    "backward_branch: written over what was there": "branches_add_up and float32",
    "backward_branch: added to what was never written": "rows_lie and dilated",
    "backward_branch: a row of several tiles gets one share": "rows_lie and windows",
    "backward_branch: delta left out": "rows_lie and dilated",
    "gather: rows in another order": "bit_for_bit and dilated",
    "merge: the last piece only": "merge_by_their_lse and float32",
    "merge: what was there forgotten": "merge_by_their_lse and float32",
    "merge: sinks left out": "merge_by_their_lse and float32",
    "merge: rounded to sixteen bits on the way": "rounded_once and float32",
}


@pytest.mark.parametrize("fault", CARELESS)
def test_a_backend_that_is_careless_with_whole_work_fails(fault: str) -> None:
    assert checked("backend", without(fault), WHERE[fault]).state == "failed"


def test_one_that_is_careful_with_whole_work_passes_the_same_tests() -> None:
    select = " or ".join(f"({select})" for select in WHERE.values())
    assert checked("backend", ToyWhole(), select).state == "passed"


FAULTS: dict[str, tuple[AttentionBackend, str]] = {
    "lse in base two": (forward_fault(in_base_two), "every_mask and float32"),
    "lse of empty rows finite": (forward_fault(finite_where_empty), "masks_broadcast and BHL"),
    "out of empty rows NaN": (forward_fault(nan_where_empty), "masks_broadcast and BHL"),
    "lse in sixteen bits": (forward_fault(in_sixteen_bits), "shapes_and_dtypes"),
    "lse with heads last": (forward_fault(heads_last), "shapes_and_dtypes"),
    "unwritten memory": (forward_fault(unwritten_where_empty), "new_memory"),
    "the query changed": (forward_fault(writing_into_the_query), "left_alone"),
    "one memory for several tiles": (forward_fault(the_same_memory_for_all_tiles), "are_new"),
    "a normaliser of its own in the backward": (backward_fault(another_lse), "halves"),
    "rows that saw nothing in the gradients": (backward_fault(another_lse), "infinity"),
    "a detached normaliser": (backward_fault(detached_normaliser), "every_mask and float32"),
    "a mean upstream gradient": (
        backward_fault(mean_gradient),
        "every_mask and float32",
    ),
    "dropout forgotten in the backward": (backward_fault(undropped), "dropout"),
    "another result every time": (forward_fault(not_even_twice), "bit_for_bit"),
    "more head dims than declared": (declaring(head_dims=HeadDims(8, 64, 0x7)), "head_dim"),
    "dtypes that torch has not": (declaring(dtypes=frozenset({"float33"})), "capabilities"),
    "no masks": (declaring(masks=frozenset()), "capabilities"),
    "limits that are not reasons": (Forgetful(), "declared_limit"),
    "a refusal without a reason": (Silent(), "shared_key_value"),
    "nothing served": (Grumpy(), "any_lengths"),
    "a probe that raises": (Explosive(), "probe"),
    "a bitmap read as no mask": (Masked(), "bitmap and every_mask"),
}


@pytest.mark.parametrize(("backend", "select"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_backend_fails(backend: AttentionBackend, select: str) -> None:
    found = checked("backend", backend, select)
    assert found.state == "failed"


class Mine(Ordering):
    """Every token where it was; subclasses go wrong."""

    name: ClassVar[str] = "mine"

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def places(self, tokens: Tokens, **options: Any) -> Permutation:
        return Permutation.from_tokens(torch.arange(tokens.N, device=options.get("device")))


class Twice(Mine):
    """Two tokens at one place, unseen: the permutation is built past its own check."""

    def places(self, tokens: Tokens, **options: Any) -> Permutation:
        half = torch.arange(tokens.N) // 2
        return Permutation(half, half)


class Drawn(Mine):
    """Another order every time."""

    def places(self, tokens: Tokens, **options: Any) -> Permutation:
        return Permutation.from_tokens(torch.randperm(tokens.N))


class Picky(Mine):
    """Refuses a plain sequence and does not say what to do about it."""

    def places(self, tokens: Tokens, **options: Any) -> Permutation:
        if isinstance(tokens, Sequence):
            raise InvalidArgument("tokens", expected="geometry", got="none")
        return super().places(tokens, **options)


class Empty(Mine):
    """Cannot order nothing."""

    def places(self, tokens: Tokens, **options: Any) -> Permutation:
        assert tokens.N > 0
        return super().places(tokens, **options)


class Partial(Mine):
    """Needs as many tokens as shards."""

    def places(self, tokens: Tokens, *, shards: int = 1, **options: Any) -> Permutation:
        if shards > tokens.N > 0:
            raise InvalidArgument("shards", expected=f"at most {tokens.N}", got=str(shards))
        return super().places(tokens, **options)


class GridOnly(Mine):
    """Turns a grid around, and its points not."""

    def places(self, tokens: Tokens, **options: Any) -> Permutation:
        places = super().places(tokens, **options).places
        return Permutation.from_places(places.flip(0) if isinstance(tokens, Grid) else places)


DISORDERS: dict[str, tuple[Ordering, str]] = {
    "two tokens at one place": (Twice(), "every_kind"),
    "another order every time": (Drawn(), "alone"),
    "a refusal without the remedy": (Picky(), "remedy"),
    "no order of nothing": (Empty(), "any_tokens"),
    "more shards than tokens": (Partial(), "shards"),
    "a grid unlike its points": (GridOnly(), "as_its_points"),
}


@pytest.mark.parametrize(("ordering", "select"), DISORDERS.values(), ids=DISORDERS)
def test_a_faulty_ordering_fails(ordering: Ordering, select: str) -> None:
    assert checked("ordering", ordering, select).state == "failed"


def test_a_right_ordering_passes_the_same_tests() -> None:
    select = " or ".join(select for _, select in DISORDERS.values())
    assert checked("ordering", Mine(), select).state == "passed"


def test_a_right_backend_passes_the_same_tests() -> None:
    select = " or ".join(f"({select})" for _, select in FAULTS.values())
    assert checked("backend", Toy(), select).state == "passed"


def test_checks_that_select_nothing_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="-k: expected words in the names of standard tests"):
        checked("ordering", Mine(), "no_such_test")
