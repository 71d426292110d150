"""What a cache is made for: the sizes, dtype and device of all that enters it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.validation import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Sizes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes, dtype and device that every query, key and value of a cache must have."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        for name, least in (
            ("batch", 0),
            ("heads", 1),
            ("kv_heads", 1),
            ("head_dim", 1),
            ("value_head_dim", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InvalidArgument(name, expected=f"an integer >= {least}", got=repr(value))
        if self.heads % self.kv_heads:
            raise InvalidArgument(
                "kv_heads", expected=f"a divisor of heads {self.heads}", got=str(self.kv_heads)
            )
        if self.dtype not in DTYPES:
            raise InvalidArgument(
                "dtype", expected="float16, bfloat16, float32 or float64", got=repr(self.dtype)
            )

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads

    def buffers(self, lanes: int, rows: int) -> tuple[Tensor, Tensor]:
        """Room for keys `[lanes, B, rows, D]` and values `[lanes, B, rows, Dv]`."""
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            key, value = (
                torch.empty(lanes, self.batch, rows, dim, dtype=self.dtype, device=self.device)
                for dim in (self.head_dim, self.value_head_dim)
            )
        return key, value

    def check_rows(self, key: Tensor, value: Tensor) -> None:
        """Raises unless these are keys and values of the same next tokens, at least one."""
        tokens = key.shape[1] if isinstance(key, torch.Tensor) and key.dim() == 4 else 1
        if tokens == 0:
            raise InvalidArgument("k", expected="at least one token", got=_told(key))
        self._check("k", key, tokens, self.kv_heads, self.head_dim)
        self._check("v", value, tokens, self.kv_heads, self.value_head_dim)

    def check_query(self, query: Tensor, key: Tensor) -> None:
        """Raises unless the query has a row for each of the key's."""
        self._check("q", query, key.shape[1], self.heads, self.head_dim)

    def check_sink(self, sink: Tensor) -> None:
        """Raises unless `sink` is a logit per query head."""
        if not isinstance(sink, torch.Tensor) or sink.shape != (self.heads,):
            raise InvalidArgument(
                "sink", expected=f"a tensor of shape [{self.heads}]", got=_told(sink)
            )
        self._check_place("sink", sink)

    def _check(self, name: str, x: Tensor, tokens: int, heads: int, head_dim: int) -> None:
        shape = (self.batch, tokens, heads, head_dim)
        if not isinstance(x, torch.Tensor) or x.shape != shape:
            raise InvalidArgument(
                name,
                expected=f"a tensor of shape {list(shape)}: this cache is for batch {self.batch}, "
                f"{self.heads} query and {self.kv_heads} key/value heads",
                got=_told(x),
                remedy="Make a cache of these sizes with make_cache(...)",
            )
        if x.dtype != self.dtype:
            raise InvalidArgument(
                f"{name}.dtype", expected=f"{self.dtype}, as the cache", got=str(x.dtype)
            )
        self._check_place(name, x)

    def _check_place(self, name: str, x: Tensor) -> None:
        if x.device != self.device:
            raise InvalidArgument(
                f"{name}.device", expected=f"{self.device}, as the cache", got=str(x.device)
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise NotYetSupported(
                name,
                expected="a tensor without gradient: a cache is changed in place",
                got="one that requires grad",
                remedy="Decode inside torch.no_grad()",
            )


def _told(x: object) -> str:
    return f"shape {list(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
