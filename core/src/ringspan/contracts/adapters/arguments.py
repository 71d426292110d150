"""What every kernel here needs to be true of its tensors, checked because the kernels do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts import Capabilities, Grads, InvalidArgument, Mask, MaskCase, TileOutput

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = [
    "aligned",
    "check_mask",
    "check_tensors",
    "lse_dtype",
    "no_grads",
    "nothing_seen",
    "with_last_stride_one",
    "with_width",
]


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a log-sum-exp: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensors(device_type: str, **tensors: Tensor) -> None:
    """Refuses tensors on other devices or of several dtypes, which the kernels read as garbage."""
    dtype, device = next((x.dtype, x.device) for x in tensors.values())
    for name, x in tensors.items():
        if x.device != device or x.device.type != device_type:
            raise InvalidArgument(
                name,
                expected=f"a tensor on {device if device.type == device_type else device_type}",
                got=f"one on {x.device}",
                remedy="move all tensors to one device",
            )
        if x.dtype != dtype:
            raise InvalidArgument(name, expected=f"dtype {dtype}", got=str(x.dtype))


def check_mask(mask: Mask, limits: Capabilities, query_length: int, key_length: int) -> None:
    """Refuses a mask that the kernel lacks, and a causal triangle that is not square.

    Kernels disagree on where a triangle that is not square begins.
    """
    if mask.case not in limits.masks:
        supported = ", ".join(sorted(limits.masks))
        raise InvalidArgument("mask", expected=supported, got=str(mask.case))
    if mask.key_seen is not None and not limits.key_padding:
        raise InvalidArgument("mask", expected="no key_seen", got="padded keys")
    if mask.blocks is not None and not limits.blocks:
        raise InvalidArgument("mask", expected="no blocks", got="block-sparse work as a whole")
    if mask.lengths is not None and not limits.ragged:
        raise InvalidArgument("mask", expected="no lengths", got="tiles of many lengths")
    if mask.case is MaskCase.CAUSAL and query_length != key_length:
        raise InvalidArgument(
            "mask",
            expected="as many queries as keys for a causal mask",
            got=f"{query_length} queries and {key_length} keys",
            remedy="describe a shifted triangle as an interval mask",
        )


def with_last_stride_one(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x`, copied only where its last stride is not 1: the kernels would read past its end."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def aligned(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x`, copied only where a row does not begin at a multiple of 16 bytes.

    CUDA kernels load 16 bytes at a time, and some stop with a misaligned address otherwise. They
    look at the strides of axes of one entry too, which say nothing: those become 0.
    """
    x = with_last_stride_one(x)
    strides = [stride if size > 1 else 0 for size, stride in _axes(x)[:-1]]
    if any(start * x.element_size() % 16 for start in (*strides, x.storage_offset())):
        return x.clone(memory_format=torch.contiguous_format)
    if all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1]):
        return x
    return x.as_strided(x.shape, (*strides, x.stride(-1)))


def _axes(x: Tensor) -> list[tuple[int, int]]:
    return list(zip(x.shape, x.stride(), strict=True))


def with_width(x: Float[Tensor, "*rows D"], width: int) -> Float[Tensor, "*rows width"]:
    """`x` with zero columns up to `width`: they change no score and no output."""
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def nothing_seen(
    query: Float[Tensor, "B Lq H D"], value: Float[Tensor, "B Lk Hkv Dv"]
) -> TileOutput:
    """The result where there is no query or no key, on which the kernels stop the process."""
    batch, length, heads, _ = query.shape
    return TileOutput(
        query.new_zeros(batch, length, heads, value.shape[-1]),
        query.new_full((batch, heads, length), -torch.inf, dtype=lse_dtype(query.dtype)),
    )


def no_grads(query: Tensor, key: Tensor, value: Tensor) -> Grads:
    """The gradients where there is no query or no key."""
    return Grads(torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value))
