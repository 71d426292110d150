"""One call as a string: what may cross the border of an operator, and `torch.compile`.

The text never holds the number of tokens of a plain sequence, so that lengths do not recompile.
"""

from __future__ import annotations

import ast
import threading
from dataclasses import dataclass
from functools import lru_cache

from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Coordinates, Grid, Sequence, Tokens, tokens_from
from ringspan.plan.layout import Layout

__all__ = ["Call"]

Request = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Call:
    """The options of one attention call, without tensors and lengths."""

    pattern: Pattern
    causal: bool = False
    scale: float | None = None
    tokens: Tokens | None = None
    """None: a plain sequence."""
    layout: Layout | None = None
    """None: one shard, or with a group, contiguous shards of whatever lengths the ranks hold."""
    group: str | None = None
    """Name of the process group."""
    backend: Request = None
    communicator: Request = None
    needs_backward: bool = True
    dropout_p: float = 0.0
    padded: bool = False
    """Whether there is key padding."""
    seeded: bool = False
    """Whether the caller gave dropout's seed."""

    @property
    def text(self) -> str:
        """A literal from which `from_text` builds an equal call, given the number of tokens."""
        layout = "None" if self.layout is None else self.layout.text
        return (
            f"({self.pattern.text}, {self.causal!r}, {self.scale!r}, {_tokens_text(self.tokens)}, "
            f"{layout}, {self.group!r}, {self.backend!r}, {self.communicator!r}, "
            f"{self.needs_backward!r}, {self.dropout_p!r}, {self.padded!r}, "
            f"{self.seeded!r})"
        )

    def layout_for(self, N: int) -> Layout:
        """The layout of `N` tokens: the given one with what the tokens are, or one shard."""
        if self.layout is None:
            return Layout(self.tokens or Sequence(N))
        if self.tokens is None or self.tokens == self.layout.tokens:
            return self.layout
        return self.layout.laid_over(self.tokens)

    @staticmethod
    def from_text(text: str, N: int) -> Call:
        """The inverse of `text`; `N` is the number of tokens over all shards."""
        return _from_text(text, N)


_reading = threading.Lock()
"""Python 3.11 counts the depth of what it reads for all threads together."""


@lru_cache(maxsize=256)
def _from_text(text: str, N: int) -> Call:
    with _reading:
        literal = ast.literal_eval(text)
    pattern, causal, scale, tokens, layout, *rest = literal
    return Call(
        Pattern.from_literal(pattern),
        causal,
        scale,
        tokens_from(tokens),
        None if layout is None else Layout.from_literal(layout, N),
        *rest,
    )


def _tokens_text(tokens: Tokens | None) -> str:
    return tokens.text if isinstance(tokens, Grid | Coordinates) else "None"
