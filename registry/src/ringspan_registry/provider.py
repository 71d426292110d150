"""What every plugin offers: a named provider that can say whether, and why not, it serves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ringspan_registry.devices import DeviceInfo

if TYPE_CHECKING:
    import pydantic

__all__ = ["API_VERSION", "Availability", "Provider"]

API_VERSION = 1


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a provider can run on a device, as found by a probe.

    Example:
        >>> Availability.no("needs a CUDA device", remedy="run on a GPU").usable
        False
    """

    usable: bool
    reason: str = ""
    remedy: str = ""
    version: str = ""

    @classmethod
    def yes(cls, version: str = "") -> Availability:
        """Usable; `version` is the version of the kernel or library that was probed."""
        return cls(True, version=version)

    @classmethod
    def no(cls, reason: str, *, remedy: str = "", version: str = "") -> Availability:
        """Not usable here, for a reason a user can read, with the remedy where there is one."""
        return cls(False, reason=reason, remedy=remedy, version=version)


class Provider(ABC):
    """A named implementation of one hook kind.

    Construction must be cheap; work belongs in `probe`.
    """

    name: ClassVar[str]
    """What users write in configuration."""
    api_version: ClassVar[int] = API_VERSION
    """The contract version this provider was written for."""
    settings: ClassVar[type[pydantic.BaseModel] | None] = None
    """The schema of its plugin's section in the configuration; None: it takes no settings.

    Providers of one plugin that take settings share one schema.
    """
    section: pydantic.BaseModel | None = None
    """What the configuration says in that section, an instance of `settings`; set by the registry
    before the provider is first asked anything. None: outside of a registry, or no settings."""

    @abstractmethod
    def probe(self, device: DeviceInfo) -> Availability:
        """Says whether this provider really runs on `device`.

        That is: importable, of the right version, and, unless `proof` does that, a tiny call
        works. Every candidate is probed, so a probe must not compile anything.
        An exception escaping from a probe marks the provider *faulty*; a provider that
        merely cannot serve returns `Availability.no(reason)`.
        """

    def proof(self, device: DeviceInfo) -> Availability:
        """Says whether a tiny call, which may have to be compiled, really works on `device`.

        Asked once, after `probe` said yes and only where this provider is about to be chosen, and
        by `ringspan doctor`. Exceptions are those of a probe.
        """
        return Availability.yes()

    def priority(self, device: DeviceInfo) -> int:
        """Preference among eligible providers under `auto` on `device`; larger is tried first."""
        return 0

    def reasons_against(self, problem: Any) -> Iterable[str]:
        """Every reason why this provider cannot serve `problem`.

        Each with the actual and the supported value.
        """
        return ()
