"""The seconds that a part may take, and what it left out when they were over."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

__all__ = ["UNLIMITED", "Budget"]


@dataclass
class Budget:
    """Runs from when it is made."""

    seconds: float = math.inf
    left_out: list[str] = field(default_factory=list)
    """What there was no time for, in words."""
    _start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until it is over; 0 then."""
        return max(0.0, self.seconds - (time.monotonic() - self._start))

    def allows(self, what: str) -> bool:
        """Whether there is time for `what`; if not, it is left out."""
        if self.left:
            return True
        self.left_out.append(what)
        return False


UNLIMITED = Budget()
