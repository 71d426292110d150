"""What CUDA kernels have in common, PyTorch's own and others: alignment, batches, probing.

A kernel adds its two operators (`kernel_forward`, `kernel_backward`), its limits and its
place in the default order. Tensors are `[B, L, H, D]` throughout.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from ringspan.contracts import (
    Availability,
    DeviceInfo,
    Grads,
    InvalidArgument,
    Mask,
    TileOutput,
)
from ringspan.contracts.adapters import arguments
from ringspan.contracts.adapters.guarded import GuardedKernel
from ringspan.contracts.adapters.trial import trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["LARGEST_BATCH", "CudaKernel"]

LARGEST_BATCH = 65535
"""Batches lie along a CUDA grid's y or z axis, which ends here."""


class CudaKernel(GuardedKernel):
    """A kernel on NVIDIA GPUs."""

    width_multiple: ClassVar[int] = 8
    trial_dtype: ClassVar[torch.dtype] = torch.float16
    remedy: ClassVar[str] = "install a build of torch that has it"
    """What a user can do where something is `missing`."""

    @abstractmethod
    def kernel_forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """The kernel's forward, its log-sum-exp in the contract's form."""

    @abstractmethod
    def kernel_backward(
        self,
        grad_out: Float[Tensor, "B Lq H D"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        out: Float[Tensor, "B Lq H D"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """The kernel's backward; `lse` arrives contiguous."""

    @abstractmethod
    def missing(self) -> str:
        """What this installation lacks for the kernel; empty where it lacks nothing."""

    def kernel_version(self) -> str:
        """The version of what holds the kernel."""
        return torch.__version__

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable where the kernel is installed, and made for this GPU."""
        if device.type != "cuda":
            return Availability.no(f"device {device.type} (supported: cuda)")
        if not torch.cuda.is_available():
            return Availability.no(
                f"torch {torch.__version__} sees no CUDA device",
                remedy="install a CUDA build of torch, on a machine with an NVIDIA GPU",
            )
        if torch.version.hip is not None:
            return Availability.no(f"torch {torch.__version__} is built for ROCm, not CUDA")
        index, count = device.index or 0, torch.cuda.device_count()
        if index >= count:
            return Availability.no(f"CUDA device {index} (there: 0..{count - 1})")
        supported = self.capabilities.compute_capabilities
        found = torch.cuda.get_device_capability(index)
        if supported and not supported[0] <= found <= supported[1]:
            (low, high) = (f"{major}.{minor}" for major, minor in supported)
            return Availability.no(
                f"compute capability {found[0]}.{found[1]} (supported: {low}..{high})"
            )
        if lack := self.missing():
            return Availability.no(lack, remedy=self.remedy)
        return Availability.yes(version=self.kernel_version())

    def proof(self, device: DeviceInfo) -> Availability:
        """Usable where a tiny forward and backward on the GPU agree with the formula."""
        tried = trial(self, torch.device("cuda", device.index or 0), self.trial_dtype)
        return replace(tried, version=self.kernel_version())

    def attend(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Calls of the kernel, each on as many tiles as it takes."""
        _check_tiles(mask)
        tensors = [arguments.aligned(x) for x in (query, key, value)]
        parts = [self.kernel_forward(*part, mask=mask, scale=scale) for part in _batches(tensors)]
        return TileOutput(*(_joined(part) for part in zip(*parts, strict=True)))

    def attend_backward(
        self,
        grad_out: Float[Tensor, "B Lq H D"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        out: Float[Tensor, "B Lq H D"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """Calls of the kernel, each on as many tiles as it takes."""
        _check_tiles(mask)
        tensors = [arguments.aligned(x) for x in (grad_out, query, key, value, out)]
        # The kernels read a log-sum-exp as if it were contiguous, without a check.
        tensors.append(lse.contiguous())
        parts = [self.kernel_backward(*part, mask=mask, scale=scale) for part in _batches(tensors)]
        return Grads(*(_joined(part) for part in zip(*parts, strict=True)))


def _check_tiles(mask: Mask) -> None:
    """Tiles of many lengths cannot be cut unless it is read from the device where they lie."""
    tiles = 1 if mask.lengths is None else mask.lengths.query_bounds.shape[0] - 1
    if tiles > LARGEST_BATCH:
        raise InvalidArgument(
            "mask",
            expected=f"at most {LARGEST_BATCH} tiles of many lengths in one call",
            got=str(tiles),
            remedy="attend to fewer documents at a time, or choose a backend without this limit",
        )


def _batches(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors cut along the batch, each part short enough for a grid."""
    for start in range(0, tensors[0].shape[0], LARGEST_BATCH):
        yield [x[start : start + LARGEST_BATCH] for x in tensors]


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
