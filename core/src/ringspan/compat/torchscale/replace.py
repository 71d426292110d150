"""Swapping torchscale's modules for Ringspan's in a model that is already built."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ringspan.compat.torchscale.attention import DilatedAttention
from ringspan.contracts.errors import InvalidArgument

__all__ = ["replace"]

_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj", "inner_attn_ln")
_ATTRIBUTES = ("embed_dim", "num_heads", *_PARTS, "xpos")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def replace(model: nn.Module) -> list[str]:
    """Swaps every `DilatedAttention` of torchscale in a model for Ringspan's, in place.

    They are known by the name of their class, `DilatedAttention`, and by `args.segment_length` and
    `args.dilated_ratio`, also in copies of torchscale that a model brings along; nothing is
    imported. Projections, layer norms and their
    parameters are taken over as they are: weights, names, dtype, device and training mode stay,
    and optimizers and state dicts of the model remain good.

    Returns:
        The names of the modules that were swapped, in the order of `named_modules`; empty where
        there are none.

    Raises:
        InvalidArgument: the model is itself such a module, or one of them lacks an attribute of
            torchscale's, or has hooks, which would be lost. Nothing is swapped then.

    Example:
        >>> from torch import nn
        >>> replace(nn.Sequential(nn.Linear(4, 4)))
        []
    """
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if _is_torchscales(module)
    }
    for name, module in found.items():
        _check(name, module)
    swapped = {id(module): _taken_over(module) for module in found.values()}
    for name, module in found.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, swapped[id(module)])
    return list(found)


def _is_torchscales(module: nn.Module) -> bool:
    named = any(kind.__name__ == "DilatedAttention" for kind in type(module).__mro__)
    args = getattr(module, "args", None)
    return named and hasattr(args, "segment_length") and hasattr(args, "dilated_ratio")


def _check(name: str, module: nn.Module) -> None:
    if not name:
        raise InvalidArgument(
            "model",
            expected="a model that has DilatedAttention modules inside",
            got="a DilatedAttention itself, which cannot be swapped in place",
            remedy="Put it into a torch.nn.ModuleList first",
        )
    missing = [attribute for attribute in _ATTRIBUTES if not hasattr(module, attribute)]
    if missing:
        raise InvalidArgument(
            "model",
            expected=f"the attributes of torchscale's DilatedAttention: {', '.join(_ATTRIBUTES)}",
            got=f"{name} without {', '.join(missing)}",
            remedy="Build ringspan.compat.torchscale.DilatedAttention and load its state dict",
        )
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise InvalidArgument(
            "model",
            expected="no hooks on the modules that are swapped",
            got=f"hooks on {name}",
            remedy="Register them after replace(model)",
        )


def _taken_over(old: Any) -> DilatedAttention:
    args = old.args
    # What the constructor makes here is thrown away: on this device it takes no memory.
    with torch.device("meta"):
        new = DilatedAttention(
            old.embed_dim,
            old.num_heads,
            args.segment_length,
            args.dilated_ratio,
            _dropout(old),
            subln=old.inner_attn_ln is not None,
            xpos_rel_pos=old.xpos is not None,
            xpos_scale_base=512 if old.xpos is None else old.xpos.scale_base,
            seq_parallel=getattr(args, "seq_parallel", False),
        )
    for part in _PARTS:
        setattr(new, part, getattr(old, part))
    if new.xpos is not None:
        new.xpos.scale = old.xpos.scale
    new.training = old.training
    return new


def _dropout(old: Any) -> float:
    """Some copies keep the probability in a module alone."""
    return float(old.dropout if hasattr(old, "dropout") else old.dropout_module.p)
