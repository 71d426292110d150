"""A stand-in for FlashAttention 3: its signatures and conventions, computed on a CPU."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Optional

import pytest
import torch
from ringspan.testing.stand_ins.flash import FlashFormula, Varlen
from ringspan.testing.stand_ins.packages import install, listed
from torch import Tensor

torch.set_num_threads(1)


def seen(queries: int, keys: int, causal: bool, left: int, right: int) -> Tensor:
    """Which keys the kernel shows, with its own idea of what no window is."""
    if left >= keys - 1:
        left = -1
    if right >= queries - 1:
        right = -1
    if causal:
        right = 0
    if left < 0:
        left = keys - 1
    if right < 0:
        right = queries - 1
    row = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
    return (row - left <= key) & (key <= row + right)


FORMULA = FlashFormula(seen)


# The two functions, as `flash_attn_interface` declares them.


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Optional[Tensor] = None,  # noqa: UP045
    v_new: Optional[Tensor] = None,  # noqa: UP045
    qv: Optional[Tensor] = None,  # noqa: UP045
    out_: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_q: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_k: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_k_new: Optional[Tensor] = None,  # noqa: UP045
    seqused_q: Optional[Tensor] = None,  # noqa: UP045
    seqused_k: Optional[Tensor] = None,  # noqa: UP045
    max_seqlen_q: Optional[int] = None,  # noqa: UP045
    max_seqlen_k: Optional[int] = None,  # noqa: UP045
    page_table: Optional[Tensor] = None,  # noqa: UP045
    kv_batch_idx: Optional[Tensor] = None,  # noqa: UP045
    leftpad_k: Optional[Tensor] = None,  # noqa: UP045
    rotary_cos: Optional[Tensor] = None,  # noqa: UP045
    rotary_sin: Optional[Tensor] = None,  # noqa: UP045
    seqlens_rotary: Optional[Tensor] = None,  # noqa: UP045
    q_descale: Optional[Tensor] = None,  # noqa: UP045
    k_descale: Optional[Tensor] = None,  # noqa: UP045
    v_descale: Optional[Tensor] = None,  # noqa: UP045
    softmax_scale: Optional[float] = None,  # noqa: UP045
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Optional[Tensor] = None,  # noqa: UP045
    num_splits: int = 1,
    pack_gqa: Optional[bool] = None,  # noqa: UP045
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert num_splits == 1
    window = (causal, window_size_left, window_size_right)
    tiles = Varlen.of(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = FORMULA.forward(q, k, v, softmax_scale, window, tiles)
    return out, lse, torch.empty(0), torch.empty(0)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_k: Optional[Tensor] = None,  # noqa: UP045
    sequed_q: Optional[Tensor] = None,  # noqa: UP045
    sequed_k: Optional[Tensor] = None,  # noqa: UP045
    max_seqlen_q: Optional[int] = None,  # noqa: UP045
    max_seqlen_k: Optional[int] = None,  # noqa: UP045
    dq: Optional[Tensor] = None,  # noqa: UP045
    dk: Optional[Tensor] = None,  # noqa: UP045
    dv: Optional[Tensor] = None,  # noqa: UP045
    softmax_scale: Optional[float] = None,  # noqa: UP045
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    assert not deterministic or max(q.shape[-1], v.shape[-1]) <= 192
    window = (is_causal, window_size_left, window_size_right)
    tiles = Varlen.of(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    given = (dout, q, k, v, out, softmax_lse)
    FORMULA.backward(*given, (dq, dk, dv), softmax_scale, window, tiles)
    return torch.empty(0)


FUNCTIONS = {
    function.__name__: function for function in (_flash_attn_forward, _flash_attn_backward)
}

# As the module really has them: signatures say nothing of a custom operator.
OPERATORS = {
    name: torch.library.custom_op(
        f"ringspan_flash3_standin::{name}",
        function,
        mutates_args=("dq", "dk", "dv") if name.endswith("backward") else (),
    )
    for name, function in FUNCTIONS.items()
}


def installed(monkeypatch: pytest.MonkeyPatch, functions: Mapping[str, Any]) -> ModuleType:
    """Puts a stand-in where the adapter imports the kernel, and pip would list it."""
    listed(monkeypatch, "flash-attn-3", "3.0.0b2")
    flags = {"build_flags": {"FLASHATTENTION_DISABLE_BACKWARD": False}}
    modules = {"flash_attn_interface": functions, "flash_attn_config": {"CONFIG": flags}}
    return install(monkeypatch, modules)[0]


@pytest.fixture
def flash3(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """FlashAttention 3, on a CPU."""
    return installed(monkeypatch, FUNCTIONS)


@pytest.fixture(params=["functions", "operators"])
def either_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Plain functions, and custom operators."""
    return installed(monkeypatch, {"functions": FUNCTIONS, "operators": OPERATORS}[request.param])
