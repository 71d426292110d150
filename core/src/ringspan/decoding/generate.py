"""Tokens from a model: prefill of the prompt, then one step after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.decoding.make import make_cache

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from ringspan.decoding.cache import Cache
    from ringspan.nn import LongNet, SelfAttention

__all__ = ["generate", "make_caches", "stream"]


def make_caches(model: LongNet, batch: int) -> list[Cache]:
    """An empty cache for each block of `model`, to be passed to it as `caches`.

    Inside `torch.autocast` they are of its dtype, as the keys and values then are.

    Raises:
        NotYetSupported: a block's pattern cannot be decoded with a cache.

    Example:
        >>> import torch, ringspan as rs
        >>> model = rs.nn.LongNet(256, 64, 2, 4, rs.Dilated((32, 128), (1, 4)))
        >>> caches = make_caches(model, batch=1)
        >>> with torch.no_grad():
        ...     logits = model(torch.randint(256, (1, 300)), caches=caches)
        ...     logits = model(torch.randint(256, (1, 1)), caches=caches)
        >>> caches[0].length
        301
    """
    return [_cache_of(layer, batch) for layer in model.attentions]


def _cache_of(layer: SelfAttention, batch: int) -> Cache:
    weight = layer.k_proj.weight
    device, dtype = weight.device, weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return make_cache(
        layer.pattern,
        batch=batch,
        heads=layer.num_heads,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        value_head_dim=layer.value_head_dim,
        dtype=dtype,
        device=device,
    )


@dataclass(frozen=True)
class _Sampler:
    """Chooses the next token of every sequence from its logits."""

    temperature: float
    top_k: int | None
    generator: torch.Generator | None

    def __call__(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        # The largest becomes 0 first: a tiny temperature then gives -inf, and never inf - inf.
        below = logits - logits.amax(-1, keepdim=True)
        shares = (below / max(self.temperature, torch.finfo(below.dtype).tiny)).softmax(-1)
        return torch.multinomial(shares, 1, generator=self.generator)[:, 0]


def stream(
    model: LongNet,
    prompt: Int[Tensor, "B n"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
    caches: list[Cache] | None = None,
) -> Iterator[Int[Tensor, " B"]]:
    """The tokens of `generate`, one for each sequence at a time, as they come.

    Whoever iterates may stop at any time. Arguments and errors are those of `generate`; they are
    checked at once, before the first token is asked for.

    Args:
        caches: where the tokens so far are, from `make_caches`; None: new ones. `prompt` follows
            them. Afterwards they hold all but the last token.

    Example:
        >>> import torch, ringspan as rs
        >>> model = rs.nn.LongNet(256, 64, 2, 4, rs.Dilated((32, 128), (1, 4)))
        >>> prompt = torch.tensor([[1, 2, 3]])
        >>> len(list(stream(model, prompt, max_new_tokens=5)))
        5
    """
    _check(model, prompt, max_new_tokens, temperature, top_k, seed)
    generator = None
    if seed is not None:
        generator = torch.Generator(prompt.device).manual_seed(seed)
    sampler = _Sampler(temperature, top_k, generator)
    caches = make_caches(model, prompt.shape[0]) if caches is None else caches
    return _steps(model, prompt, max_new_tokens, sampler, caches)


# On a generator function this holds between two yields only, not for whoever iterates.
@torch.no_grad()
def _steps(
    model: LongNet, prompt: Tensor, max_new_tokens: int, sampler: _Sampler, caches: list[Cache]
) -> Iterator[Tensor]:
    input_ids = prompt
    for _ in range(max_new_tokens):
        token = sampler(model(input_ids, caches=caches)[:, -1])
        yield token
        input_ids = token[:, None]


def generate(
    model: LongNet,
    prompt: Int[Tensor, "B n"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Int[Tensor, "B n_and_new"]:
    """The prompt with `max_new_tokens` more tokens, each drawn given all before it.

    Equal to calling the whole model on all tokens so far, again for each token, at the cost of one
    token each. With `Dilated` patterns, memory and time of a step do not grow with the length.

    Args:
        model: a `ringspan.nn.LongNet`, or another model with its `attentions` and `caches`; not
            training with dropout.
        prompt: int64 or int32, one sequence or several of one length.
        max_new_tokens: how many to add.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
        top_k: sample among the `top_k` likeliest tokens only (more where they tie).
        seed: of the sampling; None: torch's default generator.

    Raises:
        InvalidArgument: an argument is wrong; names it.
        NotYetSupported: a block's pattern cannot be decoded with a cache.

    Example:
        >>> import torch, ringspan as rs
        >>> model = rs.nn.LongNet(256, 64, 2, 4, rs.Dilated((32, 128), (1, 4)))
        >>> generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=5).shape
        torch.Size([1, 8])
    """
    tokens = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    return torch.cat([prompt, *(token[:, None].to(prompt.dtype) for token in tokens)], dim=1)


def _check(
    model: object,
    prompt: object,
    max_new_tokens: object,
    temperature: object,
    top_k: object,
    seed: object,
) -> None:
    if not hasattr(model, "attentions"):
        raise InvalidArgument(
            "model",
            expected="a ringspan.nn.LongNet, or a model with its attentions",
            got=type(model).__name__,
        )
    _check_prompt(prompt)
    _check_integer("max_new_tokens", max_new_tokens, least=0)
    if top_k is not None:
        _check_integer("top_k", top_k, least=1)
    if seed is not None:
        _check_integer("seed", seed, least=0)
    if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise InvalidArgument("temperature", expected="a finite number >= 0", got=repr(temperature))


def _check_prompt(prompt: object) -> None:
    expected = "an int64 or int32 tensor [batch, tokens] with at least one token"
    if not isinstance(prompt, torch.Tensor):
        raise InvalidArgument("prompt", expected=expected, got=type(prompt).__name__)
    whole = prompt.dtype in (torch.int32, torch.int64)
    if not whole or prompt.dim() != 2 or prompt.shape[1] < 1:
        got = f"{prompt.dtype} of shape {list(prompt.shape)}"
        raise InvalidArgument("prompt", expected=expected, got=got)


def _check_integer(name: str, value: object, *, least: int) -> None:
    if type(value) is not int or not least <= value < 2**63:
        raise InvalidArgument(name, expected=f"an integer >= {least}", got=repr(value))
