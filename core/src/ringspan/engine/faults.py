"""What kernels do wrong at work, as `KernelFault`s that name them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ringspan.catalogue import catalogue
from ringspan.contracts.backend import AttentionBackend, Grads
from ringspan.contracts.errors import KernelFault, RingspanError
from ringspan.engine.capture import capturing

__all__ = ["Checked", "guarded_call"]

Result = TypeVar("Result")

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""How torch says it where it has no `OutOfMemoryError`: on CPUs, and from libraries of CUDA."""


def guarded_call(
    backend: AttentionBackend,
    what: str,
    call: Callable[[], Result],
    inputs: Sequence[Tensor | None],
    problem: object,
    check: bool,
    look: Callable[[Result], object] | None = None,
    scale: float = 1.0,
) -> Result:
    """The result of `call`, one launch of a backend.

    Args:
        backend: whose launch it is.
        what: `"forward"`, `"backward"`, or another method's name.
        call: the launch. It returns tensors, tuples of them, or what else it likes.
        inputs: all that it reads. An infinite `lse` is ordinary, an infinite row is not.
        problem: what was asked, as text for the message.
        check: whether a result that holds NaN is a fault: see `Checked`. The host then waits for
            the device, so nothing is checked while a CUDA graph is recorded.
        look: what of the result is checked; None: all of it.
        scale: of the scores, which may overflow.

    Raises:
        KernelFault: the launch raised, or brought NaN of its own. The lack of memory and errors
            of Ringspan's own pass through: they are no fault of the kernel.
    """
    try:
        result = call()
    except RingspanError:
        raise
    except Exception as error:
        if _says_no_memory(error):
            raise
        told = f"{what} raised {type(error).__name__}: {error}"
        raise _fault(backend, told, str(problem)) from error
    if check and not capturing():
        bad = _with_nan(what, result if look is None else look(result))
        if bad and not _excused(what, inputs, scale):
            told = f"{what} returned NaN in {', '.join(bad)} where its inputs have none"
            raise _fault(backend, told, str(problem))
    return result


class Checked:
    """Which launches were checked for NaN: each kind once, so that a steady step never waits.

    Example:
        >>> checked = Checked()
        >>> checked.first_time(("sdpa", "causal")), checked.first_time(("sdpa", "causal"))
        (True, False)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[Hashable] = set()

    def first_time(self, key: Hashable) -> bool:
        """Whether `key` comes for the first time; never during the recording of a CUDA graph,
        where nothing can be checked."""
        if key in self._seen or capturing():
            return False
        with self._lock:
            new = key not in self._seen
            self._seen.add(key)
            return new


def _fault(backend: AttentionBackend, reason: str, problem: str) -> KernelFault:
    version = catalogue().version("backend", backend.name)
    return KernelFault.of(backend.name, reason, problem=problem, version=version)


def _says_no_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def _with_nan(what: str, result: object) -> list[str]:
    """The names of the tensors that hold NaN."""
    named = [(name, x) for name, x in _named(what, result) if x.is_floating_point()]
    if not named:
        return []
    found: list[bool] = torch.stack([x.isnan().any() for _, x in named]).tolist()
    return [name for (name, _), bad in zip(named, found, strict=True) if bad]


def _named(what: str, result: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        yield "its result", result
    elif isinstance(result, tuple | list):
        front = "grad_" if isinstance(result, Grads) or what.startswith("backward") else ""
        names: Iterable[str] = getattr(result, "_fields", map(str, range(len(result))))
        for name, x in zip(names, result, strict=True):
            if isinstance(x, Tensor):
                yield f"{front}{name}", x


def _excused(what: str, inputs: Sequence[Tensor | None], scale: float) -> bool:
    """Whether the arithmetic itself may come to NaN: `inf - inf`, `0 * inf`.

    Gradients in float16 overflow inside of kernels from finite inputs too: under loss scaling
    that is ordinary, and the scaler skips the step.
    """
    given = [x for x in inputs if x is not None and x.is_floating_point()]
    if what.startswith("backward") and any(x.dtype is torch.float16 for x in given):
        return True
    # Rows have a dimension more than `lse`, which is infinite where a row sees no key.
    if any(bool((x.isnan() if x.ndim < 4 else ~x.isfinite()).any()) for x in given):
        return True
    rows = [x for x in given if x.ndim >= 4 and x.numel()]
    largest = max((float(x.abs().max()) for x in rows), default=0.0)
    width = max((x.shape[-1] for x in rows), default=1)
    # Kernels compute in float32 at best, but for float64.
    wide = torch.float64 if any(x.dtype is torch.float64 for x in rows) else torch.float32
    return largest**2 * width * max(1.0, abs(scale)) > torch.finfo(wide).max / 16
