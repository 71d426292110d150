"""The provider `triton`."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    HeadDims,
    Mask,
    MaskCase,
    Problem,
    Task,
    TileOutput,
)
from ringspan.contracts.adapters import arguments
from ringspan.contracts.adapters.trial import trial

from ringspan_triton.limits import OLDEST, OLDEST_FOR_BFLOAT16, widest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float
    from ringspan.contracts import Branch, Dropout, Piece, Placed
    from torch import Tensor

__all__ = ["Triton"]


class Triton(AttentionBackend):
    """Attention, block-sparse attention, gathers and merges by kernels written in Triton.

    On NVIDIA GPUs from Turing on. On a CPU Triton's interpreter runs them where the environment
    sets `TRITON_INTERPRET=1`: slow, and for tests only.
    """

    name: ClassVar[str] = "triton"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda", "cpu"}),
        # Triton 3.7 compiles only some products in float64.
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase),
        head_dims=HeadDims(maximum=256),
        value_head_dim_differs=True,
        gqa=True,
        key_padding=True,
        dropout=True,
        blocks=True,
        branches=True,
        tasks=frozenset(Task),
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable where Triton is there, for a GPU or, interpreted, for a CPU."""
        if device.type not in self.capabilities.devices:
            supported = ", ".join(sorted(self.capabilities.devices))
            return Availability.no(f"device {device.type} (supported: {supported})")
        if find_spec("triton") is None:
            return Availability.no(
                "triton is not installed", remedy="pip install 'ringspan-triton[kernel]'"
            )
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device.type == "cpu":
            if not interpreted:
                return Availability.no(
                    "on a CPU the kernels run interpreted, which is off",
                    remedy="set TRITON_INTERPRET=1 before Python starts, for tests",
                )
            return Availability.yes(version("triton"))
        if interpreted:
            return Availability.no(
                "TRITON_INTERPRET=1 runs kernels on the CPU", remedy="unset TRITON_INTERPRET"
            )
        if not torch.cuda.is_available():
            return Availability.no(
                f"torch {torch.__version__} sees no CUDA device",
                remedy="install a CUDA build of torch, on a machine with an NVIDIA GPU",
            )
        index, count = device.index or 0, torch.cuda.device_count()
        if index >= count:
            return Availability.no(f"CUDA device {index} (there: 0..{count - 1})")
        found = torch.cuda.get_device_capability(index)
        if found < OLDEST:
            return Availability.no(
                f"compute capability {found[0]}.{found[1]} (supported: 7.5 and later)"
            )
        return Availability.yes(version("triton"))

    def proof(self, device: DeviceInfo) -> Availability:
        """Usable where a tiny call agrees with the formula."""
        if device.type == "cpu":
            return _tried(torch.device("cpu"), torch.float32)
        return _tried(torch.device("cuda", device.index or 0), torch.float16)

    def priority(self, device: DeviceInfo) -> int:
        """Behind PyTorch's own kernels on a GPU, and never by itself on a CPU."""
        return 60 if device.type == "cuda" else -2000

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """GPUs that are too old, too old for bfloat16, or short of shared memory."""
        found = problem.device_info.compute_capability
        if problem.device != "cuda" or found is None:
            return
        has = f"on compute capability {found[0]}.{found[1]}"
        if found < OLDEST:
            yield f"compute capability {found[0]}.{found[1]} (supported: 7.5 and later)"
        if problem.dtype == "bfloat16" and found < OLDEST_FOR_BFLOAT16:
            yield f"dtype bfloat16 {has} (supported: 8.0 and later)"
        if problem.task is not Task.ATTEND:
            return
        most = widest(found, getattr(torch, problem.dtype).itemsize)
        for name, head_dim in problem.head_dims.items():
            if head_dim > most:
                yield f"{name} {head_dim} in {problem.dtype} {has} (supported: up to {most})"

    def forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> TileOutput:
        """Attention of each tile on its own, with its log-sum-exp.

        Raises:
            InvalidArgument: tensors on several devices or of several dtypes, or a causal mask
                with other than as many queries as keys.
        """
        from ringspan_triton.geometry import of_tiles
        from ringspan_triton.launch import attend

        arguments.check_tensors(query.device.type, query=query, key=key, value=value)
        arguments.check_mask(mask, self.capabilities, query.shape[1], key.shape[1])
        if not query.numel() or not key.numel():
            return arguments.nothing_seen(query, value)
        with torch.no_grad():
            geometry = of_tiles(query, key, mask, scale, dropout)
            return attend(query, key, value, geometry)

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
        dropout: Dropout | None = None,
    ) -> Grads:
        """This tile's share of the gradients, given the final `out` and `lse` of all tiles.

        Raises:
            InvalidArgument: as in `forward`.
        """
        from ringspan_triton.geometry import of_tiles
        from ringspan_triton.launch import attend_backward

        arguments.check_tensors(
            query.device.type, query=query, key=key, value=value, grad_out=grad_out, out=out
        )
        arguments.check_mask(mask, self.capabilities, query.shape[1], key.shape[1])
        if not query.numel() or not key.numel():
            return arguments.no_grads(query, key, value)
        wide = arguments.lse_dtype(query.dtype)
        with torch.no_grad():
            geometry = of_tiles(query, key, mask, scale, dropout)
            delta = (grad_out.to(wide) * out.to(wide)).sum(-1).transpose(1, 2)
            grads = Grads(*(x.new_empty(x.shape) for x in (query, key, value)))
            attend_backward(
                grad_out, query, key, value, lse, delta, geometry,
                grads=grads, first_query=True, first_key=True,
            )  # fmt: skip
            return grads

    def forward_branch(
        self,
        query: Float[Tensor, "B N H D"],
        key: Float[Tensor, "B M Hkv D"],
        value: Float[Tensor, "B M Hkv Dv"],
        branch: Branch,
        *,
        sink: Float[Tensor, "H rows"] | None = None,
        into: TileOutput | None = None,
    ) -> TileOutput:
        """Attention of tiles whose rows lie somewhere in whole tensors; nothing is copied.

        Raises:
            InvalidArgument: tensors on several devices or of several dtypes, or a mask without
                its tensors.
        """
        from ringspan_triton.geometry import of_branch
        from ringspan_triton.launch import attend

        arguments.check_tensors(query.device.type, query=query, key=key, value=value)
        with torch.no_grad():
            geometry = of_branch(branch, query)
            return attend(query, key, value, geometry, sink=sink, into=into)

    def backward_branch(
        self,
        grad_out: Float[Tensor, "B N H Dv"],
        query: Float[Tensor, "B N H D"],
        key: Float[Tensor, "B M Hkv D"],
        value: Float[Tensor, "B M Hkv Dv"],
        lse: Float[Tensor, "B H N"],
        delta: Float[Tensor, "B H N"],
        branch: Branch,
        *,
        grads: Grads,
        first_query: bool,
        first_key: bool,
    ) -> None:
        """Writes or adds the branch's share of the gradients where their rows lie.

        Key rows of several tiles that are the same are summed from new tensors, in an order of
        their own: no two programs add to one row.

        Raises:
            InvalidArgument: as in `forward_branch`.
        """
        from ringspan_triton.overlap import backward_branch

        arguments.check_tensors(
            query.device.type, query=query, key=key, value=value, grad_out=grad_out
        )
        with torch.no_grad():
            backward_branch(
                grad_out, query, key, value, lse, delta, branch,
                grads=grads, first_query=first_query, first_key=first_key,
            )  # fmt: skip

    def gather(self, *placed: Placed) -> tuple[Tensor, ...]:
        """The rows as contiguous `[B * T, L, K * G, D]`, in few launches."""
        from ringspan_triton.gather import gather

        return gather(*placed)

    def merge(
        self,
        pieces: Sequence[Piece],
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        sink: Float[Tensor, "H rows"] | None = None,
        base: Piece | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """All pieces as one tensor `[B, N, H, D]`, whose every row reads its pieces once."""
        from ringspan_triton.merge import merge

        return merge(pieces, shape, dtype=dtype, sink=sink, base=base)


@cache
def _tried(device: torch.device, dtype: torch.dtype) -> Availability:
    """Tried once: kernels are compiled for it."""
    return trial(Triton(), device, dtype)
