"""A fault names its kernel; what is no fault passes through, and steady steps never wait."""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ringspan.catalogue import catalogue
from ringspan.contracts import Grads, InvalidArgument, TileOutput
from ringspan.engine.faults import Checked, guarded_call
from ringspan.errors import KernelFault, RingspanError
from ringspan.testing.toy import Toy

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = torch.ones(1, 2, 1, 3)
LSE = torch.zeros(1, 1, 2)
NAN = torch.tensor(float("nan"))


def guarded(call: Callable[[], Any], *inputs: torch.Tensor | None, what: str = "forward") -> Any:
    return guarded_call(Toy(), what, call, inputs or (ROWS,), "a tile", True)


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_a_result_passes_as_it_is() -> None:
    result = TileOutput(ROWS, LSE)
    assert guarded(lambda: result) is result
    assert guarded(lambda: None) is None


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), ValueError("boom"), OSError("boom"), AssertionError("boom")]
)
def test_an_exception_of_a_kernel_is_its_fault_and_the_cause_is_kept(error: Exception) -> None:
    with pytest.raises(KernelFault) as raised:
        guarded(raising(error), what="backward")
    fault = raised.value
    assert fault.__cause__ is error
    assert (fault.backend, fault.reason) == ("toy", f"backward raised {type(error).__name__}: boom")
    assert fault.reason in str(fault)
    for word in ("backend 'toy'", "a tile", 'on_fault = "next"', "another backend"):
        assert word in str(fault)
    again = pickle.loads(pickle.dumps(fault))
    assert (again.backend, again.reason, str(again)) == (fault.backend, fault.reason, str(fault))


@pytest.mark.usefixtures("toy")
def test_a_fault_names_the_version_of_an_installed_backend() -> None:
    assert catalogue().provider("backend", "toy")
    with pytest.raises(KernelFault, match=r"backend 'toy' \(ringspan-toy 1.0\)"):
        guarded(raising(RuntimeError("boom")))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        InvalidArgument("key", expected="a key", got="none"),
        RingspanError("memory", expected="some", got="none"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
)
def test_what_is_no_fault_of_the_kernel_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        guarded(raising(error))
    assert raised.value is error


@pytest.mark.parametrize(
    ("what", "result", "names"),
    [
        ("forward", TileOutput(ROWS * NAN, LSE), "out"),
        ("forward", TileOutput(ROWS * NAN, LSE * NAN), "out, lse"),
        ("backward", Grads(ROWS, ROWS * NAN, ROWS), "grad_key"),
        ("merge", ROWS * NAN, "its result"),
        ("gather", (ROWS, ROWS * NAN), "1"),
    ],
)
def test_nan_of_a_kernels_own_is_its_fault_by_name(what: str, result: Any, names: str) -> None:
    with pytest.raises(KernelFault) as raised:
        guarded(lambda: result, what=what)
    assert raised.value.reason == f"{what} returned NaN in {names} where its inputs have none"


def test_one_nan_among_many_numbers_is_found() -> None:
    out = torch.zeros(2, 64, 4, 8)
    out[1, 63, 3, 7] = torch.nan
    with pytest.raises(KernelFault):
        guarded(lambda: TileOutput(out, LSE))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_nan_that_comes_from_the_inputs_is_no_fault(poison: float) -> None:
    poisoned = ROWS.clone()
    poisoned[0, 1, 0, 2] = poison
    result = TileOutput(ROWS * NAN, LSE)
    assert guarded(lambda: result, ROWS, poisoned, None) is result


def test_an_infinite_lse_is_ordinary_and_excuses_nothing() -> None:
    empty = TileOutput(ROWS, LSE - torch.inf)
    assert guarded(lambda: empty) is empty
    with pytest.raises(KernelFault):
        guarded(lambda: Grads(ROWS * NAN, ROWS, ROWS), ROWS, LSE + torch.inf, what="backward")


def test_gradients_in_float16_may_overflow_and_outputs_may_not() -> None:
    half = ROWS.half()
    grads = Grads(half * NAN, half, half)
    assert guarded(lambda: grads, half, what="backward") is grads
    with pytest.raises(KernelFault):
        guarded(lambda: TileOutput(half * NAN, LSE), half)


def test_nothing_is_checked_unless_asked_or_while_a_graph_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = TileOutput(ROWS * NAN, LSE)
    assert guarded_call(Toy(), "forward", lambda: result, (ROWS,), "a tile", False) is result
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert guarded(lambda: result) is result


class Counting(torch.Tensor):
    """Counts how often the host looks at what it holds."""

    looked = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.isnan, torch.Tensor.isfinite):
            Counting.looked += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_inputs_are_looked_at_only_when_a_result_holds_nan() -> None:
    watched = ROWS.as_subclass(Counting)
    guarded(lambda: TileOutput(ROWS, LSE), watched)
    assert Counting.looked == 0
    with pytest.raises(KernelFault):
        guarded(lambda: TileOutput(ROWS * NAN, LSE), watched)
    assert Counting.looked == 1


def test_a_launch_is_checked_the_first_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Checked()
    assert checked.first_time(("toy", 1))
    assert not checked.first_time(("toy", 1))
    assert checked.first_time(("toy", 2))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not checked.first_time(("toy", 3))
    assert checked.first_time(("toy", 3))


def test_of_threads_that_ask_at_once_one_is_the_first() -> None:
    checked, answers = Checked(), []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        answers.append(checked.first_time("key"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
