"""What self-attention needs of a cache of keys and values, to be run step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ringspan.contracts.pattern import Pattern

__all__ = ["Cache"]


@runtime_checkable
class Cache(Protocol):
    """Keys and values of the tokens so far, for one layer; see `ringspan.decoding`."""

    @property
    def pattern(self) -> Pattern:
        """The pattern that the cache was made for."""
        ...

    @property
    def length(self) -> int:
        """How many tokens came so far, which is the next one's position."""
        ...

    def attend(
        self,
        query: Float[Tensor, "B n H D"],
        key: Float[Tensor, "B n Hkv D"],
        value: Float[Tensor, "B n Hkv Dv"],
        *,
        sink: Float[Tensor, " H"] | None = None,
    ) -> Float[Tensor, "B n H Dv"]:
        """Appends the next `n` tokens, and returns the rows of causal attention that are theirs."""
        ...
