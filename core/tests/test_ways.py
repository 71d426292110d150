"""Every way to run a piece of work gives the same numbers: in place, gathered, pulled, whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import ringspan as rs
import torch
from ringspan.catalogue import catalogue
from ringspan.contracts import (
    AttentionBackend,
    DeviceInfo,
    Grads,
    NoEligibleProvider,
    TileOutput,
    UnknownProvider,
    hookimpl,
)
from ringspan.contracts.errors import KernelFault
from ringspan.engine import choice
from ringspan.testing.site import plugged_in
from ringspan.testing.toy import Toy
from ringspan.testing.toy_whole import ToyWhole
from torch import Tensor

N, HEADS, KV_HEADS, HEAD_DIM, VALUE_HEAD_DIM = 311, 4, 2, 16, 8
PATTERNS = {
    "dense": rs.Dense(),
    "window": rs.Dense(window=(13, 7)),
    "longnet": rs.Dilated((64, 128, 400), (1, 2, 5)),
    "one branch": rs.Dilated((50,), (3,)),
    "head groups": rs.HeadGroups((64, 128), (1, 3)),
    "blocks": rs.BlockSparse.local(32, 2, 1),
    "neighbours": rs.Neighborhood((5,)),
}
LENGTHS = (7, 20, 33, 50, 61, 13, 5, 9, 17, 30, 44, 22)
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "documents": {"documents": rs.Documents.from_lengths(LENGTHS)},
    "sink": {"sink": torch.linspace(-1, 2, HEADS, dtype=torch.float64)},
    "padding": {"key_padding": torch.arange(N) < torch.tensor([[N], [250]])},
    "dropout": {"dropout_p": 0.3, "seed": 5},
}
WAYS = {
    "in place": {"fused": "off", "backend": "toy-whole"},
    "in place and pulled": {"fused": "toy-whole", "backend": "toy-whole"},
    "gathered and pulled": {"fused": "toy-whole", "backend": "toy"},
}


@pytest.fixture(scope="module", autouse=True)
def toys(_toy_distribution: None) -> Iterator[None]:
    with plugged_in("toy-whole", "ringspan.testing.toy_whole"):
        catalogue.cache_clear()
        yield
    catalogue.cache_clear()


def results(mode: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, VALUE_HEAD_DIM))
    inputs = [
        torch.randn(2, N, *shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    given = dict(mode)
    if "sink" in given:
        given["sink"] = given["sink"].clone().requires_grad_()
        inputs.append(given["sink"])
    out = rs.attention(*inputs[:3], **given, **options)
    upstream = torch.randn(out.shape, generator=draw, dtype=torch.float64)
    return out.detach(), *torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_way_gives_the_numbers_of_plain_tiles(pattern: str, mode: str, causal: bool) -> None:
    call = {"pattern": PATTERNS[pattern], "causal": causal}
    expected = results(MODES[mode], **call, backend="toy")
    for way, settings in WAYS.items():
        with rs.use(**settings):
            found = results(MODES[mode], **call)
        for x, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-11, msg=way)


def test_the_run_says_who_gathered_and_merged() -> None:
    with rs.use(**WAYS["gathered and pulled"]):
        results({}, pattern=PATTERNS["longnet"])
    decisions = rs.last_run().decisions  # type: ignore[union-attr]
    assert decisions["gather"].chosen == decisions["merge"].chosen == "toy-whole"
    assert decisions["backend (full)"].chosen == "toy"


def test_on_a_cpu_torch_moves_rows_unless_a_provider_is_named() -> None:
    results({}, pattern=PATTERNS["longnet"], backend="toy")
    assert not {"gather", "merge"} & set(rs.last_run().decisions)  # type: ignore[union-attr]


def test_a_named_mover_that_cannot_is_refused_by_name() -> None:
    with rs.use(fused="toy"), pytest.raises(NoEligibleProvider, match="task gather"):
        results({}, pattern=PATTERNS["longnet"], backend="toy")


def test_packed_documents_are_one_launch_for_a_kernel_that_takes_many_lengths() -> None:
    results(MODES["documents"], pattern=rs.Dense(), causal=True, backend="toy-whole")
    assert "backend (ragged causal)" in rs.last_run().decisions  # type: ignore[union-attr]


class Failing(Toy):
    """A toy that fails at what it is told to."""

    name = "failing"
    at: ClassVar[str] = ""
    how: ClassVar[str] = ""

    def priority(self, device: DeviceInfo) -> int:
        return 1000

    def forward(self, *tensors: Any, **options: Any) -> TileOutput:
        return self._spoilt("forward", super().forward(*tensors, **options))

    def backward(self, *tensors: Any, **options: Any) -> Grads:
        return self._spoilt("backward", super().backward(*tensors, **options))

    def _spoilt(self, what: str, result: Any) -> Any:
        if what != self.at:
            return result
        if self.how == "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        result[1].view(-1)[0] = torch.nan
        return result


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    return [Failing(), FailingWhole()]


@pytest.fixture
def failing(toys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh registry in which a backend of highest priority fails."""
    monkeypatch.setitem(sys.modules, "failing_backend", sys.modules[__name__])
    with plugged_in("failing", "failing_backend"):
        catalogue.cache_clear()
        yield
    catalogue.cache_clear()


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_failing_kernel_is_named_with_its_problem(
    failing: None, monkeypatch: pytest.MonkeyPatch, at: str, how: str
) -> None:
    monkeypatch.setattr(Failing, "at", at)
    monkeypatch.setattr(Failing, "how", how)
    with pytest.raises(KernelFault, match=r"backend 'failing'.*head_dim=16") as caught:
        results({}, pattern=PATTERNS["longnet"])
    assert caught.value.backend == "failing"
    assert caught.value.reason.startswith(at)


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("at", ["forward", "backward"])
def test_the_next_backend_goes_on_where_the_settings_say_so(
    failing: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: str,
    how: str,
) -> None:
    expected = results({}, pattern=PATTERNS["longnet"], backend="toy")
    monkeypatch.setattr(Failing, "at", at)
    monkeypatch.setattr(Failing, "how", how)
    with rs.use(on_fault="next"):
        for _ in range(2):
            found = results({}, pattern=PATTERNS["longnet"])
            for x, exact in zip(found, expected, strict=True):
                torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-11)
    told = [each for each in caplog.records if "quarantined" in each.getMessage()]
    assert [each.levelname for each in told] == ["WARNING"]
    run = rs.last_run()
    assert run is not None
    assert run.decisions["backend (full)"].chosen != "failing"


def test_a_backward_pass_says_who_took_the_place_of_whom(
    failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "at", "backward")
    monkeypatch.setattr(Failing, "how", "raise")
    with rs.use(on_fault="next"):
        results({}, pattern=PATTERNS["longnet"])
    run = rs.last_run()
    assert run is not None
    assert run.backward_decisions is not None
    assert run.decisions["backend (full)"].chosen == "failing"
    taken = run.backward_decisions["backend (full)"].chosen
    assert taken != "failing"
    assert f"backward: backend (full) {taken}" in str(run)


class FailingWhole(ToyWhole):
    """Fails at whole work, at merging, or with gradients of listed rows."""

    name = "failing-whole"
    at: ClassVar[str] = ""

    def priority(self, device: DeviceInfo) -> int:
        return -500

    def forward(self, *tensors: Any, **options: Any) -> TileOutput:
        if self.at == "forward":
            raise RuntimeError("no whole work today")
        return super().forward(*tensors, **options)

    def merge(self, *pieces: Any, **options: Any) -> Any:
        if self.at == "merge":
            raise RuntimeError("no merging today")
        return super().merge(*pieces, **options)

    def backward_branch(self, *tensors: Any, **options: Any) -> None:
        super().backward_branch(*tensors, **options)
        if self.at == "backward_branch":
            for grad in options["grads"]:
                grad.fill_(torch.nan)


@pytest.mark.parametrize(
    ("at", "pattern", "mode"),
    [
        ("forward", "blocks", "plain"),
        ("forward", "dense", "documents"),
        ("merge", "longnet", "plain"),
        ("backward_branch", "longnet", "plain"),
        ("backward_branch", "neighbours", "plain"),
    ],
)
def test_whatever_fails_something_else_takes_its_place(
    failing: None, monkeypatch: pytest.MonkeyPatch, at: str, pattern: str, mode: str
) -> None:
    call: dict[str, Any] = {"pattern": PATTERNS[pattern]}
    expected = results(MODES[mode], **call, backend="toy")
    monkeypatch.setattr(FailingWhole, "at", at)
    with rs.use(on_fault="next", fused="failing-whole" if at == "merge" else "off"):
        if at == "merge":
            # It was named, and nobody else may merge.
            with pytest.raises(KernelFault, match="no merging today"):
                results(MODES[mode], **call)
            return
        found = results(MODES[mode], **call, backend=("failing-whole", "auto"))
    for x, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-11)


def test_a_backward_pass_goes_on_as_its_forward_pass_was_told(
    failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = torch.randn(1, 64, 2, 8, dtype=torch.float64, requires_grad=True)
    with rs.use(on_fault="next"):
        out = rs.attention(q, q, q, pattern=PATTERNS["longnet"])
    monkeypatch.setattr(Failing, "at", "backward")
    monkeypatch.setattr(Failing, "how", "raise")
    monkeypatch.setattr(FailingWhole, "at", "backward_branch")
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_rows_that_nobody_wrote_yet_are_no_fault(failing: None) -> None:
    poison = [torch.full((1, 2, 5000), torch.nan) for _ in range(40)]
    del poison
    q = torch.randn(1, 5000, 2, 4)
    rs.attention(q, q, q, pattern=rs.Dilated((64,), (1,)), backend="toy-whole")


def test_scores_beyond_float32_are_no_fault_of_the_kernel(failing: None) -> None:
    q = torch.full((1, 8, 1, 4), 1e20)
    q[:, ::2] *= -1
    with rs.use(on_fault="next"):
        rs.attention(q, q, q, backend="toy")
    assert not catalogue().quarantined()


def test_a_mover_that_nobody_offers_is_refused_by_the_name_of_its_setting() -> None:
    with rs.use(fused="nobody"), pytest.raises(UnknownProvider, match=r"fused \(from context\)"):
        results({}, pattern=PATTERNS["longnet"])


@pytest.mark.parametrize(
    ("pattern", "options", "way"),
    [
        ("longnet", {"backend": "toy-whole"}, {"backend (full)": "rows in place"}),
        ("longnet", {"backend": "toy"}, {"backend (full)": "rows as strided views"}),
        (
            "blocks",
            {"backend": "toy-whole"},
            {"backend (blocks)": "compressed rows of blocks, whole"},
        ),
        (
            "dense",
            {"backend": "toy-whole", "documents": MODES["documents"]["documents"]},
            {"backend (ragged full)": "all lengths in one call"},
        ),
    ],
)
def test_explain_says_in_which_way_rows_are_taken(
    pattern: str, options: dict[str, Any], way: dict[str, str]
) -> None:
    q = torch.zeros(1, N, HEADS, HEAD_DIM)
    report = rs.explain(q, q, q, pattern=PATTERNS[pattern], **options)
    assert report.ways == way
    assert all(f"\n    {each}\n" in str(report) for each in way.values())


def test_equal_calls_have_one_choice_and_leave_nothing_behind() -> None:
    results({}, pattern=PATTERNS["longnet"], backend="toy")
    known = len(choice._made), len(choice._choices)
    for _ in range(3):
        results({}, pattern=PATTERNS["longnet"], backend="toy")
    assert (len(choice._made), len(choice._choices)) == known
