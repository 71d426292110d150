"""What one run of the demo is, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ringspan.contracts.errors import InvalidArgument

__all__ = ["DTYPES", "Settings"]

DTYPES = ("float32", "bfloat16")
_RATES = (1, 4, 16, 32)
_SHARES = (32, 8, 2, 1)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a training run, apart from the text.

    Two runs with equal settings on equal text end with equal weights.

    Raises:
        InvalidArgument: where a value is out of range or values do not fit together.

    Example:
        >>> Settings(context=1024).segment_lengths
        (32, 128, 512, 1024)
    """

    steps: int = 150
    context: int = 16_384
    batch: int = 1
    layers: int = 2
    width: int = 128
    heads: int = 4
    learning_rate: float = 2e-3
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in {
            "steps": 1,
            "context": max(_RATES),
            "batch": 1,
            "layers": 1,
            "width": 2,
            "heads": 1,
            "seed": 0,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InvalidArgument(name, expected=f"an integer >= {least}", got=repr(value))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InvalidArgument(
                "learning_rate", expected="a number above 0", got=repr(self.learning_rate)
            )
        if self.context % max(_SHARES):
            raise InvalidArgument(
                "context", expected=f"a multiple of {max(_SHARES)}", got=str(self.context)
            )
        if self.width % (2 * self.heads):
            raise InvalidArgument(
                "width",
                expected=f"a multiple of {2 * self.heads} (an even number per head)",
                got=f"{self.width} with {self.heads} heads",
            )
        if self.dtype not in DTYPES:
            raise InvalidArgument("dtype", expected=" or ".join(DTYPES), got=repr(self.dtype))

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """A thirty-second, an eighth, half and all of the context."""
        return tuple(self.context // share for share in _SHARES)

    @property
    def dilation_rates(self) -> tuple[int, ...]:
        """One per segment length; each branch keeps about the same number of tokens.

        Short contexts lower the rates to what fits in a segment.
        """
        return tuple(
            min(rate, length) for rate, length in zip(_RATES, self.segment_lengths, strict=True)
        )

    @property
    def tokens_per_step(self) -> int:
        """Targets in one step."""
        return self.batch * self.context

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return asdict(self)

    def differences(self, other: Settings) -> list[str]:
        """`"name: theirs, not ours"` for each field in which `other` differs."""
        return [
            f"{field.name}: {getattr(other, field.name)}, not {getattr(self, field.name)}"
            for field in fields(self)
            if getattr(other, field.name) != getattr(self, field.name)
        ]
