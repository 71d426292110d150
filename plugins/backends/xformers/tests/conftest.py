"""A stand-in for xFormers: its signatures and conventions, computed on a CPU.

16-bit inputs go to what behaves as its FlashAttention operators, float32 to what behaves as its
CUTLASS ones: which masks they take, how they pad the log-sum-exp, and what they do not check.
"""

import math
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ringspan.testing.stand_ins.dense import attend, gradients
from ringspan.testing.stand_ins.packages import install, listed
from torch import Tensor

torch.set_num_threads(1)


class LowerTriangularMask:
    """From the top left."""


@dataclass
class LocalAttentionFromBottomRightMask:
    """Of the last query beside the last key."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        if self.window_left < 0 or self.window_right < 0:
            raise ValueError(f"expected windows of at least 0, got {self}")


@dataclass
class Inputs:
    """Of one call."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_bias: Any = None
    p: float = 0.0
    scale: float | None = None

    def check(self) -> None:
        q, k, v = self.query, self.key, self.value
        if q.dim() != 4 or k.shape[:3:2] != q.shape[:3:2] or v.shape != k.shape:
            raise ValueError("Incompatible shapes for attention inputs")
        if not q.dtype == k.dtype == v.dtype:
            raise ValueError("should all have the same dtype")
        assert q.shape[0] <= 65535
        assert self.scale is not None
        assert self.scale > 0
        for x in (q, k, v):
            assert x.shape[-1] % 8 == 0
            assert x.stride(-2) % 8 == 0
            assert x.stride(-1) == 1

    @property
    def seen(self) -> Tensor:
        """Which keys are seen, a window as wide as the keys being none."""
        queries, keys = self.query.shape[1], self.key.shape[1]
        row, key = torch.arange(queries)[:, None], torch.arange(keys)
        if isinstance(self.attn_bias, LowerTriangularMask):
            return key <= row
        seen = torch.ones(queries, keys, dtype=torch.bool)
        if self.attn_bias is not None:
            left, right = self.attn_bias.window_left, self.attn_bias.window_right
            last = row + keys - queries
            seen &= (left >= keys) | (key >= last - left)
            seen &= (right >= keys) | (key <= last + right)
        return seen


class Flash:
    """16 bits only; windows; squares only, if causal."""

    forward_name, backward_name = "fa2F@2.7.4-pt", "fa2B@2.7.4-pt"

    @staticmethod
    def refuses(inputs: Inputs) -> str:
        square = inputs.query.shape[1] == inputs.key.shape[1]
        if inputs.query.dtype == torch.float32:
            return "dtype=torch.float32"
        if isinstance(inputs.attn_bias, LowerTriangularMask) and not square:
            return "Only support LowerTriangularMask if equal number of keys and queries"
        return ""

    @staticmethod
    def padded(lse: Tensor) -> Tensor:
        return lse

    @staticmethod
    def rows(lse: Tensor, queries: int) -> Tensor:
        assert lse.shape[-1] >= queries
        return lse[..., :queries]


class Cutlass:
    """Every dtype; no windows; a log-sum-exp for 32 rows at a time."""

    forward_name, backward_name = "cutlassF-pt", "cutlassB-pt"

    @staticmethod
    def refuses(inputs: Inputs) -> str:
        if isinstance(inputs.attn_bias, LocalAttentionFromBottomRightMask):
            return "attn_bias type is LocalAttentionFromBottomRightMask"
        return ""

    @staticmethod
    def padded(lse: Tensor) -> Tensor:
        return torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.nan)

    @staticmethod
    def rows(lse: Tensor, queries: int) -> Tensor:
        filled = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=math.inf)
        assert (filled[..., queries:] == math.inf).all()
        return filled[..., :queries]


def dispatch(name: str, inputs: Inputs) -> type[Flash] | type[Cutlass]:
    operators = (Flash, Cutlass)
    if torch.are_deterministic_algorithms_enabled() and name.endswith("backward"):
        operators = (Cutlass,)
    for operator in operators:
        if not operator.refuses(inputs):
            return operator
    raise NotImplementedError(f"No operator found for `{name}`")


# The functions, as xFormers 0.0.35 declares them.


def memory_efficient_attention_forward_requires_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    assert (p, op, output_dtype) == (0.0, None, None)
    inputs = Inputs(query, key, value, attn_bias, p, scale)
    inputs.check()
    operator = dispatch("memory_efficient_attention_forward", inputs)
    out, lse = attend(query, key, value, inputs.seen, inputs.scale)
    return out.to(query.dtype), operator.padded(lse.float())


def memory_efficient_attention_backward(
    grad: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert (p, op) == (0.0, None)
    inputs = Inputs(query, key, value, attn_bias, p, scale)
    inputs.check()
    if lse.dim() != 3 or lse.shape[:2] != (query.shape[0], query.shape[2]):
        raise ValueError("Input tensors have incompatible shapes.")
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()
    assert output.is_contiguous()
    assert grad.shape == output.shape == query.shape
    operator = dispatch("memory_efficient_attention_backward", inputs)
    rows = operator.rows(lse, query.shape[1])
    given = (grad, query, key, value, output, rows)
    found = gradients(*given, inputs.seen, inputs.scale)
    dq, dk, dv = (x.to(like.dtype) for x, like in zip(found, (query, key, value), strict=True))
    return dq, dk, dv


def _dispatch_fw(inp: Inputs, needs_gradient: bool) -> Any:
    assert needs_gradient
    return SimpleNamespace(NAME=dispatch("forward", inp).forward_name)


def _dispatch_bw(inp: Inputs, varlen_lse_packed: bool | None) -> Any:
    assert varlen_lse_packed is None
    return SimpleNamespace(NAME=dispatch("backward", inp).backward_name)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """xFormers 0.0.35, on a CPU: its module of attention."""
    listed(monkeypatch, "xformers", "0.0.35")
    library = {"_built_with_cuda": True, "_cpp_library_load_exception": None}
    functions = (
        Inputs,
        _dispatch_fw,
        _dispatch_bw,
        memory_efficient_attention_forward_requires_grad,
        memory_efficient_attention_backward,
    )
    masks = (LowerTriangularMask, LocalAttentionFromBottomRightMask)
    fmha = {function.__name__: function for function in functions}
    fmha["attn_bias"] = SimpleNamespace(**{mask.__name__: mask for mask in masks})
    parts = {"xformers._cpp_lib": library, "xformers.ops": {}, "xformers.ops.fmha": fmha}
    return install(monkeypatch, {"xformers": {}, **parts})[-1]
