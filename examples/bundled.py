"""Photographs that lie inside scikit-image's wheel, so that nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["photograph"]


def photograph(name: str) -> Float[Tensor, "3 h w"]:
    """A bundled photograph: float64 in 0 .. 1.

    Args:
        name: without its ending: `"astronaut"`, `"chelsea"` and `"coffee"` are photographs,
            `"ihc"` is stained colon tissue under a microscope.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        FileNotFoundError: its wheel has no such picture.

    Example:
        >>> photograph("astronaut").shape
        torch.Size([3, 512, 512])
    """
    path = _folder() / f"{name}.png"
    if not path.is_file():
        raise FileNotFoundError(f"scikit-image's wheel has no picture {name!r} ({path})")
    from skimage.io import imread

    pixels = torch.from_numpy(imread(path)[..., :3].copy())
    return pixels.permute(2, 0, 1).double() / 255


def _folder() -> Path:
    # The folder and not `skimage.data`, whose functions may go to the network for a picture.
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "the examples read photographs that scikit-image ships: pip install scikit-image",
            name="skimage",
        )
    return Path(found.origin).parent / "data"
