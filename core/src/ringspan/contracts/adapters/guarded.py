"""What every kernel here needs before it is called, since the kernels check nothing themselves."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from ringspan.contracts import AttentionBackend, Grads, Mask, TileOutput
from ringspan.contracts.adapters import arguments
from ringspan.contracts.adapters.scale import above_zero, unfolded

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["GuardedKernel"]


class GuardedKernel(AttentionBackend):
    """A kernel that is called only with what it computes rightly.

    Tensors are on its device and of one dtype, the mask is one of its capabilities, lengths and
    the scale are above zero, and head dimensions are equal, or what `widths` says: where they are
    not, columns of zeros fill them up and are cut off the results. A kernel adds `attend` and
    `attend_backward`.
    """

    width_multiple: ClassVar[int] = 1
    """Head dimensions that are no multiple of this are filled up as well."""

    def widths(self, head_dim: int, value_head_dim: int, device: torch.device) -> tuple[int, int]:
        """The widths to which queries and keys, and values and outputs, are filled up."""
        width = max(head_dim, value_head_dim)
        width += -width % self.width_multiple
        return width, width

    @abstractmethod
    def attend(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """The kernel's forward, its results in the contract's form."""

    @abstractmethod
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
        """The kernel's backward."""

    def forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Attention of each tile on its own, with its log-sum-exp.

        Raises:
            InvalidArgument: tensors on another device or of several dtypes, a mask that is not
                among the capabilities, or a causal one with other than as many queries as keys.
        """
        self._check(mask, query, key, value)
        if not query.numel() or not key.numel():
            return arguments.nothing_seen(query, value)
        with torch.no_grad():
            folded, factor = above_zero(query, scale)
            width, value_width = self._widths(query, value)
            q, k = (arguments.with_width(x, width) for x in (folded, key))
            v = arguments.with_width(value, value_width)
            out, lse = self.attend(q, k, v, mask=mask, scale=factor)
            return TileOutput(out[..., : value.shape[-1]], lse)

    def backward(
        self,
        grad_out: Float[Tensor, "B Lq H Dv"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        out: Float[Tensor, "B Lq H Dv"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """This tile's share of the gradients, given the final `out` and `lse` of all tiles.

        Raises:
            InvalidArgument: as in `forward`.
        """
        self._check(mask, query, key, value, grad_out=grad_out, out=out)
        arguments.check_tensors(self._device_type, lse=lse)
        if not query.numel() or not key.numel():
            return arguments.no_grads(query, key, value)
        with torch.no_grad():
            folded, factor = above_zero(query, scale)
            width, value_width = self._widths(query, value)
            q, k = (arguments.with_width(x, width) for x in (folded, key))
            v, dO, final = (arguments.with_width(x, value_width) for x in (value, grad_out, out))
            dq, dk, dv = self.attend_backward(dO, q, k, v, final, lse, mask=mask, scale=factor)
            head_dim, value_head_dim = query.shape[-1], value.shape[-1]
            dq = unfolded(dq[..., :head_dim], scale)
            return Grads(dq, dk[..., :head_dim], dv[..., :value_head_dim])

    @property
    def _device_type(self) -> str:
        (device_type,) = self.capabilities.devices
        return device_type

    def _check(
        self, mask: Mask, query: Tensor, key: Tensor, value: Tensor, **others: Tensor
    ) -> None:
        arguments.check_tensors(self._device_type, query=query, key=key, value=value, **others)
        arguments.check_mask(mask, self.capabilities, query.shape[1], key.shape[1])

    def _widths(self, query: Tensor, value: Tensor) -> tuple[int, int]:
        return self.widths(query.shape[-1], value.shape[-1], query.device)
