"""What runs in one pass: the chosen backends, and what is done when one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

from ringspan.catalogue import catalogue, configuration
from ringspan.contracts.backend import AttentionBackend
from ringspan.contracts.errors import KernelFault, NoEligibleProvider
from ringspan.contracts.work import Work
from ringspan.engine.choice import Choice, name_of
from ringspan.engine.faults import Checked, guarded_call

if TYPE_CHECKING:
    from ringspan_registry import Registry

__all__ = ["Chosen"]

Result = TypeVar("Result")

_checked: WeakKeyDictionary[Registry, Checked] = WeakKeyDictionary()
"""What was looked at, for as long as a registry keeps its decisions."""


class Chosen:
    """The choice of a pass. Failing kernels are named, and replaced where the settings say so."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self._always = bool(configuration().get("debug").value)
        self._checked = _checked.get(catalogue()) or _checked.setdefault(catalogue(), Checked())

    def run(
        self,
        backend: AttentionBackend,
        work: Work,
        what: str,
        launch: Callable[[], Result],
        *inputs: Tensor,
    ) -> Result:
        """One launch.

        Raises:
            KernelFault: it raised, or its result holds NaN where no input does. The latter is
                looked for on the first launch of a kind, and with `debug` on each.
        """
        decision = self.choice.decisions[name_of(work)]
        check = self._always or self._checked.first_time((backend.name, decision.problem, what))
        return guarded_call(backend, what, launch, inputs, decision.problem, check)

    def without(self, fault: KernelFault) -> bool:
        """Takes the next eligible backend in place of one that failed.

        Returns:
            False where the settings say that a fault is raised, or where nobody is left.
        """
        if configuration().get("on_fault").value != "next":
            return False
        catalogue().quarantine(
            "backend", fault.backend, f"{fault.reason}, asked for {fault.expected}"
        )
        try:
            self.choice = _again(self.choice, fault.backend)
        except NoEligibleProvider:
            return False
        return True


def _again(choice: Choice, failed: str) -> Choice:
    """The same questions, asked anew where the failed backend was the answer."""
    named = tuple(
        (
            name,
            catalogue().select(
                decision.kind,
                decision.problem,
                decision.problem.device_info,
                requested=decision.requested,
            )
            if decision.kind == "backend" and decision.chosen == failed
            else decision,
        )
        for name, decision in choice.named
    )
    return replace(choice, named=named)
