"""Labels for next-token prediction, made before rows go to their ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.parallel.checks import check_documents

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from ringspan.contracts.documents import Documents

__all__ = ["next_token_labels"]


def next_token_labels(
    ids: Int[Tensor, "B N"],
    documents: Documents | None = None,
    key_padding: Bool[Tensor, "B N"] | None = None,
    *,
    ignore_index: int = -100,
) -> Int[Tensor, "B N"]:
    """The token that follows each one: `labels[:, i] = ids[:, i + 1]`.

    To be made from whole sequences, before `shard`: a shard's last token is followed by another
    rank's first, and in most layouts its rows do not follow each other at all. Then
    `cross_entropy(logits, labels, reduction="none")` and `token_mean` need nothing from elsewhere.

    Args:
        ids: whole sequences of integers, in order of position.
        documents: the last token of each has no next one.
        key_padding: True for real tokens; padding neither predicts nor is predicted.
        ignore_index: label of tokens without a next one, the last included.

    Returns:
        int64 `[B, N]`, as `torch.nn.functional.cross_entropy` takes them.

    Raises:
        InvalidArgument: an argument is wrong or does not fit the others; names it.

    Example:
        >>> import torch, ringspan as rs
        >>> documents = rs.Documents.from_lengths([2, 3])
        >>> next_token_labels(torch.tensor([[5, 6, 7, 8, 9]]), documents).tolist()
        [[6, -100, 8, 9, -100]]
    """
    _check(ids, documents, key_padding)
    if type(ignore_index) is not int:
        raise InvalidArgument("ignore_index", expected="an integer", got=repr(ignore_index))
    labels = torch.full(ids.shape, ignore_index, dtype=torch.int64, device=ids.device)
    labels[:, :-1] = ids[:, 1:]
    if documents is not None:
        lengths = documents.tensor
        last = (lengths.cumsum(0) - 1)[lengths > 0]
        labels[:, last.to(ids.device)] = ignore_index
    if key_padding is not None:
        labels[:, :-1].masked_fill_(~(key_padding[:, :-1] & key_padding[:, 1:]), ignore_index)
    return labels


def _check(ids: object, documents: object, key_padding: object) -> None:
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.dtype not in _INTEGERS:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, torch.Tensor) else repr(ids)
        raise InvalidArgument("ids", expected="a tensor of integers [batch, tokens]", got=got)
    if documents is not None:
        check_documents(documents, ids.shape[1])
    if key_padding is None:
        return
    masks = isinstance(key_padding, torch.Tensor) and key_padding.dtype == torch.bool
    if not masks or key_padding.shape != ids.shape:  # type: ignore[attr-defined]
        raise InvalidArgument(
            "key_padding",
            expected=f"a bool tensor {list(ids.shape)}, as ids",
            got=f"{key_padding.dtype} {list(key_padding.shape)}"
            if isinstance(key_padding, torch.Tensor)
            else repr(key_padding),
        )


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
