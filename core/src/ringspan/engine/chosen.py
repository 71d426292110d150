"""What runs in one pass: the chosen backends, and what is done when one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

from ringspan.catalogue import catalogue
from ringspan.contracts.backend import AttentionBackend
from ringspan.contracts.errors import KernelFault, NoEligibleProvider
from ringspan.engine.choice import Choice
from ringspan.engine.faults import Checked, guarded_call

if TYPE_CHECKING:
    from ringspan_registry import Registry

__all__ = ["Chosen"]

Result = TypeVar("Result")

_checked: WeakKeyDictionary[Registry, Checked] = WeakKeyDictionary()
"""What was looked at, for as long as a registry keeps its decisions."""


class Chosen:
    """The choice of a pass. Failing kernels are named, and replaced where the settings say so.

    Args:
        choice: what runs at first.
        again: asks the same questions anew, after a backend was quarantined.
        scale: of the scores.
    """

    def __init__(self, choice: Choice, again: Callable[[Choice], Choice], scale: float) -> None:
        self.choice = choice
        self._again, self._scale = again, scale
        self._checked = _checked.get(catalogue()) or _checked.setdefault(catalogue(), Checked())

    def run(
        self,
        name: str,
        what: str,
        launch: Callable[[AttentionBackend], Result],
        *inputs: Tensor,
        look: Callable[[Result], object] | None = None,
    ) -> Result:
        """One launch of the backend that was chosen under a name.

        Args:
            name: of the decision.
            what: the method.
            launch: calls it.
            inputs: all tensors that it reads.
            look: what of the result to look at; None: all of it.

        Raises:
            KernelFault: it raised, or its result holds NaN where no input does. The latter is
                looked for on the first launch of a kind, and with `debug` on each.
        """
        problem, backend = self.choice.decisions[name].problem, self.choice.named_backend(name)
        check = self.choice.caution.always or self._checked.first_time(
            (backend.name, problem, what)
        )
        return guarded_call(
            backend, what, partial(launch, backend), inputs, problem, check, look, self._scale
        )

    def without_quarantined(self) -> None:
        """Replaces backends that failed since they were chosen, in another call."""
        shut_out = catalogue().quarantined()
        if any((each.kind, each.chosen) in shut_out for _, each in self.choice.named):
            self.choice = self._again(self.choice)

    def without(self, fault: KernelFault) -> bool:
        """Takes the next eligible backend in place of one that failed.

        Returns:
            False where the settings say that a fault is raised, or where nobody is left.
        """
        if not self.choice.caution.go_on:
            return False
        why = f"{fault.reason}, asked for {fault.expected}"
        catalogue().quarantine("backend", fault.backend, why)
        try:
            self.choice = self._again(self.choice)
        except NoEligibleProvider:
            return False
        return True
