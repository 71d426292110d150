"""How the CUDA providers call their operators, on operators that a CPU stands in for.

The stand-ins compute exactly, in the conventions of PyTorch's CUDA operators: layouts, padded
log-sum-exps, and everything that those operators do not check but need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ringspan.contracts import (
    CAUSAL,
    FULL,
    AttentionBackend,
    DeviceInfo,
    InvalidArgument,
    Mask,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters import arguments, cuda
from ringspan_sdpa import SdpaCpu, SdpaCudnn, SdpaEfficient, SdpaFlash, ringspan_attention_backends
from ringspan_sdpa.kernel import cpu_backward, cpu_forward
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)
aten = torch.ops.aten
NOT_READ = torch.empty(0)

FLASH, EFFICIENT, CUDNN = SdpaFlash(), SdpaEfficient(), SdpaCudnn()
KERNELS = [FLASH, EFFICIENT, CUDNN]
by_name = pytest.mark.parametrize("backend", KERNELS, ids=lambda backend: backend.name)


def swapped(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def check_scale(scale: float) -> None:
    """A kernel may take a row's maximum, or hide a key, before it multiplies by the scale."""
    assert scale > 0


def check_width(*tensors: Tensor) -> None:
    for x in tensors:
        assert x.shape[-1] % 8 == 0
        assert x.stride(-1) == 1
        assert x.shape[0] <= 65535


class CudaOperators(TorchDispatchMode):
    """Answers the CUDA operators on CPU tensors; everything else runs as it is."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = {
            aten._flash_attention_forward.default: self.flash_forward,
            aten._flash_attention_backward.default: self.flash_backward,
            aten._efficient_attention_forward.default: self.efficient_forward,
            aten._efficient_attention_backward.default: self.efficient_backward,
            aten._scaled_dot_product_cudnn_attention.default: self.cudnn_forward,
            aten._scaled_dot_product_cudnn_attention_backward.default: self.cudnn_backward,
        }.get(function, function)
        return answer(*args, **kwargs)

    def flash_forward(
        self, q, k, v, cum_q, cum_k, max_q, max_k, dropout_p, causal, debug, *, scale
    ):
        check_scale(scale)
        check_width(q, k, v)
        assert (cum_q, cum_k, max_q, max_k) == (None, None, q.shape[1], k.shape[1])
        assert dropout_p == 0
        out, lse = cpu_forward(*swapped(q, k, v), causal=causal, scale=scale)
        return out.transpose(1, 2), lse.contiguous(), torch.empty(2), NOT_READ, NOT_READ

    def flash_backward(
        self, dO, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, causal, rng, unused,
        *, scale,
    ):  # fmt: skip
        check_scale(scale)
        check_width(dO, q, k, v, out)
        assert (cum_q, cum_k, max_q, max_k) == (None, None, q.shape[1], k.shape[1])
        assert lse.is_contiguous()
        grads = cpu_backward(*swapped(dO, q, k, v, out), lse, causal=causal, scale=scale)
        return tuple(swapped(*grads))

    def efficient_forward(
        self, q, k, v, bias, cu_q, cu_k, max_q, max_k, dropout_p, mask_type, with_lse, *, scale
    ):
        check_scale(scale)
        check_width(q, k, v)
        assert q.shape[2] == k.shape[2] == v.shape[2]
        assert mask_type in (0, 1)
        assert with_lse
        out, lse = cpu_forward(*swapped(q, k, v), causal=mask_type == 1, scale=scale)
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.nan)
        return out.transpose(1, 2), padded, NOT_READ, NOT_READ, q.shape[1], k.shape[1]

    def efficient_backward(
        self, dO, q, k, v, bias, out, cu_q, cu_k, max_q, max_k, lse, dropout_p, seed, offset,
        mask_type, bias_requires_grad, *, scale, num_splits_key=None,
    ):  # fmt: skip
        check_scale(scale)
        check_width(dO, q, k, v, out)
        assert (max_q, max_k) == (q.shape[1], k.shape[1])
        assert out.is_contiguous()
        assert lse.shape[-1] % 32 == 0
        assert (lse[..., max_q:] == torch.inf).all()
        assert num_splits_key == (1 if torch.are_deterministic_algorithms_enabled() else None)
        grads = cpu_backward(
            *swapped(dO, q, k, v, out), lse[..., :max_q], causal=mask_type == 1, scale=scale
        )
        return (*swapped(*grads), NOT_READ)

    def cudnn_forward(
        self, q, k, v, bias, with_lse, dropout_p=0.0, causal=False, debug=False, *, scale
    ):
        check_scale(scale)
        check_width(q, k, v)
        assert bias is None
        assert with_lse
        assert k.shape[2] > 1
        out, lse = cpu_forward(q, k, v, causal=causal, scale=scale)
        sizes = (q.shape[2], k.shape[2])
        return out, lse[..., None], NOT_READ, NOT_READ, *sizes, NOT_READ, NOT_READ, NOT_READ

    def cudnn_backward(
        self, dO, q, k, v, out, lse, seed, offset, bias, cum_q, cum_k, max_q, max_k, dropout_p,
        causal, *, scale,
    ):  # fmt: skip
        check_scale(scale)
        check_width(dO, q, k, v, out)
        assert (bias, cum_q, cum_k, max_q, max_k) == (None, None, None, q.shape[2], k.shape[2])
        assert lse.shape == (*q.shape[:3], 1)
        return cpu_backward(dO, q, k, v, out, lse[..., 0], causal=causal, scale=scale)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets CPU tensors reach the CUDA providers."""
    monkeypatch.setattr(arguments, "check_tensors", lambda device, **tensors: None)


def compare(
    backend: AttentionBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dO: Tensor,
    mask: Mask,
    scale: float = 0.2,
) -> None:
    """Forward and backward equal the CPU kernel's, which is tested against the formula."""
    expected = SdpaCpu().forward(q, k, v, mask=mask, scale=scale)
    with CudaOperators():
        found = backend.forward(q, k, v, mask=mask, scale=scale)
    # As merged with keys elsewhere: the final log-sum-exp is larger than this tile's.
    out, lse = expected.out * 0.7, expected.lse + 0.3
    tensors = (dO, q, k, v, out, lse)
    expected_grads = SdpaCpu().backward(*tensors, mask=mask, scale=scale)
    with CudaOperators():
        grads = backend.backward(*tensors, mask=mask, scale=scale)
    for x, y in zip((*found, *grads), (*expected, *expected_grads), strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x.to(y.dtype), y, rtol=1e-6, atol=1e-6)
    assert found.lse.shape == (q.shape[0], q.shape[2], q.shape[1])


def tensors(
    batch: int, rows: int, keys: int, heads: int, kv_heads: int, head_dim: int, value_head_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, heads, head_dim), (keys, kv_heads, head_dim),
              (keys, kv_heads, value_head_dim), (rows, heads, value_head_dim))  # fmt: skip
    q, k, v, dO = (
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return q, k, v, dO


@by_name
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
@pytest.mark.parametrize("head_dims", [(16, 16), (5, 8), (8, 5), (1, 33)])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 65])
@pytest.mark.usefixtures("on_cpu")
def test_calls_and_results_keep_to_the_operators_conventions(
    backend: AttentionBackend,
    mask: Mask,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    rows: int,
) -> None:
    compare(backend, *tensors(2, rows, rows, *heads, *head_dims), mask)
    if mask.case is MaskCase.FULL:
        compare(backend, *tensors(2, rows, 1, *heads, *head_dims), mask)
        compare(backend, *tensors(2, rows, 7, *heads, *head_dims), mask)


@by_name
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
@pytest.mark.parametrize("scale", [-1.0, -0.1, 0.0])
@pytest.mark.usefixtures("on_cpu")
def test_operators_are_given_a_scale_above_zero(
    backend: AttentionBackend, mask: Mask, scale: float
) -> None:
    compare(backend, *tensors(2, 9, 9, 4, 2, 8, 5), mask, scale)


@by_name
@pytest.mark.usefixtures("on_cpu")
def test_a_batch_beyond_a_grid_is_cut(
    backend: AttentionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 3)
    compare(backend, *tensors(8, 5, 5, 2, 1, 8, 8), CAUSAL)


@by_name
@pytest.mark.usefixtures("on_cpu")
def test_nothing_to_attend_to_makes_no_call(backend: AttentionBackend) -> None:
    q, k, v, dO = tensors(2, 3, 0, 2, 2, 8, 4)
    out, lse = backend.forward(q, k, v, mask=FULL, scale=1.0)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    grads = backend.backward(dO, q, k, v, out, lse, mask=FULL, scale=1.0)
    assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.usefixtures("on_cpu")
def test_deterministic_mode_takes_one_split_of_the_keys() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        compare(EFFICIENT, *tensors(1, 5, 5, 2, 1, 8, 8), CAUSAL)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", [FLASH, CUDNN], ids=lambda backend: backend.name)
def test_this_torchs_schemas_and_shape_rules_accept_the_calls(
    backend: AttentionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "check_tensors", lambda device, **tensors: None)
    q = torch.empty(2, 37, 4, 24, dtype=torch.bfloat16, device="meta")
    k = torch.empty(2, 37, 2, 24, dtype=torch.bfloat16, device="meta")
    out, lse = backend.forward(q, k, k, mask=CAUSAL, scale=1.0)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (2, 4, 37), torch.float32)
    grads = backend.backward(q, q, k, k, out, lse, mask=CAUSAL, scale=1.0)
    assert [x.shape for x in grads] == [q.shape, k.shape, k.shape]


def test_rows_that_begin_between_16_bytes_are_copied_and_others_are_not() -> None:
    x = torch.randn(2, 4, 2, 8)
    assert arguments.aligned(x) is x
    assert arguments.aligned(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    odd = torch.randn(2, 4, 2, 9)
    for view in (odd[..., :8], torch.randn(129)[1:].view(2, 4, 2, 8)):
        copy = arguments.aligned(view)
        assert copy.is_contiguous()
        assert torch.equal(copy, view)
        assert copy.storage_offset() == 0


@by_name
def test_tensors_that_are_not_on_a_gpu_are_refused(backend: AttentionBackend) -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match="query: expected a tensor on cuda, got one on cpu"):
        backend.forward(x, x, x, mask=FULL, scale=1.0)


@by_name
@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (Mask(MaskCase.INTERVAL, torch.zeros(4).long(), torch.arange(4)), "interval"),
        (Mask(MaskCase.BITMAP, seen=torch.eye(4, dtype=torch.bool)), "bitmap"),
        (replace(FULL, key_seen=torch.arange(4) < 3), "padded keys"),
        (replace(CAUSAL, key_seen=torch.arange(4) < 3), "padded keys"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.usefixtures("on_cpu")
def test_a_mask_that_the_kernel_lacks_is_refused_and_not_taken_for_another(
    backend: AttentionBackend, mask: Mask, got: str
) -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match=f"mask: expected .*, got {got}"):
        backend.forward(x, x, x, mask=mask, scale=1.0)
    lse = torch.zeros(1, 1, 4)
    with pytest.raises(InvalidArgument, match=f"mask: expected .*, got {got}"):
        backend.backward(x, x, x, x, x, lse, mask=mask, scale=1.0)


@pytest.mark.parametrize("backend", ringspan_attention_backends(), ids=lambda backend: backend.name)
def test_dropout_is_refused_by_every_kernel(backend: AttentionBackend) -> None:
    (device,) = backend.capabilities.devices
    problem = Problem(device, "float16", MaskCase.FULL, 64, 64, dropout=True)
    assert "dropout (supported: none)" in backend.reasons_against(problem)


@by_name
def test_the_probe_says_that_there_is_no_gpu(backend: AttentionBackend) -> None:
    assert "supported: cuda" in backend.probe(DeviceInfo(type="cpu")).reason
    if not torch.cuda.is_available():
        found = backend.probe(DeviceInfo(type="cuda", index=0))
        assert "sees no CUDA device" in found.reason
        assert found.remedy


@pytest.mark.parametrize("backend", ringspan_attention_backends(), ids=lambda backend: backend.name)
def test_a_foreign_device_is_one_reason_in_the_words_of_the_capabilities(
    backend: AttentionBackend,
) -> None:
    problem = Problem("abacus", "float16", MaskCase.FULL, 64, 64)
    reasons = [backend.probe(DeviceInfo(type="abacus")).reason, *backend.reasons_against(problem)]
    (supported,) = backend.capabilities.devices
    assert set(reasons) == {f"device abacus (supported: {supported})"}


def gpu(major: int, minor: int) -> DeviceInfo:
    return DeviceInfo(type="cuda", index=0, compute_capability=(major, minor))


@pytest.mark.parametrize(
    ("device", "dtype", "order"),
    [
        (gpu(10, 0), "bfloat16", ["sdpa-cudnn", "sdpa-flash", "sdpa-efficient"]),
        (gpu(9, 0), "bfloat16", ["sdpa-cudnn", "sdpa-flash", "sdpa-efficient"]),
        (gpu(9, 0), "float32", ["sdpa-efficient"]),
        (gpu(8, 6), "float16", ["sdpa-flash", "sdpa-cudnn", "sdpa-efficient"]),
        (gpu(7, 5), "float16", ["sdpa-efficient"]),
        (gpu(7, 5), "bfloat16", []),
        (gpu(6, 1), "float32", ["sdpa-efficient"]),
        (DeviceInfo(type="cpu"), "float32", ["sdpa-cpu"]),
    ],
)
def test_the_order_fits_the_architecture(device: DeviceInfo, dtype: str, order: list[str]) -> None:
    problem = Problem(device.type, dtype, MaskCase.CAUSAL, 64, 64, device_info=device)
    eligible = [x for x in ringspan_attention_backends() if not list(x.reasons_against(problem))]
    assert [x.name for x in sorted(eligible, key=lambda x: -x.priority(device))] == order


def test_a_wide_gradient_on_a_small_gpu_is_refused_by_flash() -> None:
    problem = Problem("cuda", "float16", MaskCase.FULL, 224, 224, device_info=gpu(8, 6))
    assert any("supported: 1..192" in reason for reason in FLASH.reasons_against(problem))


@pytest.mark.parametrize("backend", [FLASH, CUDNN], ids=lambda backend: backend.name)
def test_kernels_that_use_atomics_refuse_deterministic_problems(backend: AttentionBackend) -> None:
    problem = Problem(
        "cuda", "float16", MaskCase.FULL, 64, 64, deterministic=True, device_info=gpu(9, 0)
    )
    assert any("deterministic" in reason for reason in backend.reasons_against(problem))
