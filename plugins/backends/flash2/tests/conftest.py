"""A stand-in for flash-attn 2: its signatures and conventions, computed on a CPU."""

from collections.abc import Callable
from types import ModuleType
from typing import Optional

import pytest
import torch
from ringspan.testing.stand_ins.flash import FlashFormula, Varlen
from ringspan.testing.stand_ins.packages import install, listed
from torch import Tensor

torch.set_num_threads(1)


def seen(queries: int, keys: int, causal: bool, left: int, right: int) -> Tensor:
    """Which keys the kernel shows, with its own idea of what no window is."""
    if left >= keys:
        left = -1
    if right >= keys:
        right = -1
    if causal:
        right = 0
    if left < 0 and right >= 0:
        left = keys
    if left >= 0 and right < 0:
        right = keys
    row = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
    if left < 0 and right < 0:
        return torch.ones(queries, keys, dtype=torch.bool)
    return (row - left <= key) & (key <= row + right)


FORMULA = FlashFormula(seen, unseen=torch.inf)


# The four functions, as flash-attn 2.7 and 2.8 declare them.


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[Tensor],  # noqa: UP045
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert (dropout_p, softcap, alibi_slopes, return_softmax) == (0.0, 0.0, None, False)
    window = (causal, window_size_left, window_size_right)
    out, lse = FORMULA.forward(q, k, v, softmax_scale, window)
    return out, lse, q.new_empty(0), torch.empty(2, dtype=torch.int64)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,  # noqa: UP045
    return_softmax: bool = False,
    block_table: Optional[Tensor] = None,  # noqa: UP045
    leftpad_k: Optional[Tensor] = None,  # noqa: UP045
    seqused_k: Optional[Tensor] = None,  # noqa: UP045
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert (dropout_p, softcap, alibi_slopes, return_softmax) == (0.0, 0.0, None, False)
    window = (causal, window_size_left, window_size_right)
    varlen = Varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = FORMULA.forward(q, k, v, softmax_scale, window, varlen)
    return out, lse, q.new_empty(0), torch.empty(2, dtype=torch.int64)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Optional[Tensor],  # noqa: UP045
    dk: Optional[Tensor],  # noqa: UP045
    dv: Optional[Tensor],  # noqa: UP045
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[Tensor],  # noqa: UP045
    deterministic: bool,
    rng_state: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    assert (dropout_p, softcap, alibi_slopes, rng_state) == (0.0, 0.0, None, None)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    window = (causal, window_size_left, window_size_right)
    given = (dout, q, k, v, out, softmax_lse)
    FORMULA.backward(*given, (dq, dk, dv), softmax_scale, window)
    return torch.empty(0)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Optional[Tensor],  # noqa: UP045
    dk: Optional[Tensor],  # noqa: UP045
    dv: Optional[Tensor],  # noqa: UP045
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[Tensor],  # noqa: UP045
    deterministic: bool,
    rng_state: Optional[Tensor] = None,  # noqa: UP045
    zero_tensors: bool = False,
) -> Tensor:
    assert (dropout_p, softcap, alibi_slopes, rng_state) == (0.0, 0.0, None, None)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    window = (causal, window_size_left, window_size_right)
    varlen = Varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    given = (dout, q, k, v, out, softmax_lse)
    FORMULA.backward(*given, (dq, dk, dv), softmax_scale, window, varlen)
    return torch.empty(0)


FUNCTIONS = {
    function.__name__: function
    for function in (
        _flash_attn_forward,
        _flash_attn_varlen_forward,
        _flash_attn_backward,
        _flash_attn_varlen_backward,
    )
}

# The same as custom operators, as since 2.7 on torch 2.4 and later: signatures say nothing then.
OPERATORS = {
    name: torch.library.custom_op(
        f"ringspan_flash2_standin::{name}",
        function,
        mutates_args=("dq", "dk", "dv") if name.endswith("backward") else (),
    )
    for name, function in FUNCTIONS.items()
}


# And as 2.6 declares them: the window is a pair, and the padded inputs are returned.


def _forward_of_2_6(
    q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_softmax
):
    out, lse, dmask, rng = _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, *window_size, softcap, alibi_slopes,
        return_softmax,
    )  # fmt: skip
    return out, q, k, v, out, lse, dmask, rng


def _varlen_forward_of_2_6(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
    causal, window_size, softcap, alibi_slopes, return_softmax, block_table=None, leftpad_k=None,
    seqused_k=None,
):  # fmt: skip
    out, lse, dmask, rng = _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, *window_size, softcap, alibi_slopes, return_softmax,
    )  # fmt: skip
    return out, q, k, v, out, lse, dmask, rng


def _backward_of_2_6(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size,
    softcap, alibi_slopes, deterministic, rng_state=None,
):  # fmt: skip
    softmax_d = _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        *window_size, softcap, alibi_slopes, deterministic, rng_state,
    )  # fmt: skip
    return dq, dk, dv, softmax_d


def _varlen_backward_of_2_6(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
    max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
    deterministic, rng_state=None,
):  # fmt: skip
    softmax_d = _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, dropout_p, softmax_scale, causal, *window_size, softcap, alibi_slopes,
        deterministic, rng_state,
    )  # fmt: skip
    return dq, dk, dv, softmax_d


OLD = {
    "_flash_attn_forward": _forward_of_2_6,
    "_flash_attn_varlen_forward": _varlen_forward_of_2_6,
    "_flash_attn_backward": _backward_of_2_6,
    "_flash_attn_varlen_backward": _varlen_backward_of_2_6,
}

BUILDS = {"2.8.3": FUNCTIONS, "2.7.4.post1": OPERATORS, "2.6.3": OLD}


def installed(monkeypatch: pytest.MonkeyPatch, version: str) -> ModuleType:
    """Puts a stand-in where the adapter imports flash-attn, and pip would list it."""
    listed(monkeypatch, "flash-attn", version)
    interface = "flash_attn.flash_attn_interface"
    return install(monkeypatch, {"flash_attn": {}, interface: BUILDS[version]})[1]


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """flash-attn 2.8.3, on a CPU."""
    return installed(monkeypatch, "2.8.3")


@pytest.fixture(params=BUILDS)
def any_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Each of the versions whose functions differ."""
    return installed(monkeypatch, request.param)


@pytest.fixture
def kernel_sees() -> Callable[..., Tensor]:
    """Which keys the kernel shows: of queries, keys, causality, left and right."""
    return seen
