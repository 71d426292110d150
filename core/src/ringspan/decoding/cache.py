"""What every cache is: keys and values of the tokens so far, as far as they can still be seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from ringspan import validation
from ringspan.decoding.step import Piece, attend_step

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ringspan.contracts.pattern import Pattern
    from ringspan.decoding.sizes import Sizes

__all__ = ["Cache"]


class Cache(ABC):
    """Keys and values of the tokens so far, for one layer; made by `make_cache`.

    `attend` takes the next tokens, one (a step) or many (prefill, whole or in chunks), and
    returns their rows of the full causal attention. How the tokens are cut into calls makes no
    difference. Sequences of a batch advance together.

    Args:
        pattern: what attends to what.
        sizes: of all that enters.
    """

    def __init__(self, pattern: Pattern, sizes: Sizes) -> None:
        self.pattern = pattern
        self.sizes = sizes
        self._length = 0

    @property
    def length(self) -> int:
        """How many tokens came so far, which is the next one's position."""
        return self._length

    @property
    @abstractmethod
    def rows_per_head(self) -> tuple[int, ...]:
        """For each key/value head, how many rows it holds now."""

    @property
    @abstractmethod
    def row_limit(self) -> tuple[int, ...] | None:
        """For each key/value head, the most rows it ever holds; None: as many as tokens."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the buffers, filled or not."""

    def attend(
        self,
        query: Float[Tensor, "B n H D"],
        key: Float[Tensor, "B n Hkv D"],
        value: Float[Tensor, "B n Hkv Dv"],
        *,
        scale: float | None = None,
        sink: Float[Tensor, " H"] | None = None,
    ) -> Float[Tensor, "B n H Dv"]:
        """Takes the next `n` tokens and returns their rows of causal attention.

        A single token is computed here, in float32 (float64 for float64): one query per head has
        nothing for a tiled kernel to do. More go through `ringspan.attention`, whose backends and
        settings (`ringspan.use`) then apply. `torch.autocast` never does.

        Args:
            query: of tokens `length .. length + n - 1`, rotated by position where the model does.
            key: likewise.
            value: likewise.
            scale: of the scores; None: `D ** -0.5`.
            sink: a logit per query head that only enlarges the normaliser.

        Returns:
            `[B, n, H, Dv]` in the query's dtype.

        Raises:
            InvalidArgument: the tensors are not those that the cache was made for. The cache
                stays as it was.
            NotYetSupported: a gradient is asked for.
        """
        self.sizes.check_rows(key, value)
        self.sizes.check_query(query, key)
        if sink is not None:
            self.sizes.check_sink(sink)
        number = validation.checked_scale(scale)
        number = self.sizes.head_dim**-0.5 if number is None else number
        with torch.no_grad(), _no_autocast(self.sizes.device):
            if query.shape[1] == 1:
                self._keep(key, value)
                out = attend_step(query, list(self._seen()), number, sink, self.sizes)
            else:
                out = self._attend_chunk(query, key, value, number, sink)
                self._keep(key, value)
        self._length += query.shape[1]
        return out

    def append(self, key: Float[Tensor, "B n Hkv D"], value: Float[Tensor, "B n Hkv Dv"]) -> None:
        """Takes the next `n` tokens without computing their rows of attention.

        For a prefix whose outputs are known or not needed.

        Raises:
            InvalidArgument: as `attend`.
        """
        self.sizes.check_rows(key, value)
        with torch.no_grad():
            self._keep(key, value)
        self._length += key.shape[1]

    def reset(self) -> None:
        """Forgets all tokens; the buffers stay."""
        self._length = 0

    @abstractmethod
    def _keep(self, key: Tensor, value: Tensor) -> None:
        """Writes the tokens from `length` on, as far as they or later ones can see them."""

    @abstractmethod
    def _seen(self) -> Iterable[Piece]:
        """What the token at `length`, already kept, sees."""

    @abstractmethod
    def _attend_chunk(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None
    ) -> Tensor:
        """Attention of several tokens from `length` on, which are not kept yet."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pattern!r}, length={self._length})"


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Some devices, such as "meta", have no autocast, and torch refuses to turn it off there."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
