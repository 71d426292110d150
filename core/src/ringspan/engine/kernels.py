"""The chosen backends, called on one piece of work at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ringspan.contracts.backend import AttentionBackend, Grads, Task, TileOutput
from ringspan.contracts.branch import Piece, Placed
from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.masks import Mask
from ringspan.contracts.selection import Selection, key_rows, query_rows
from ringspan.contracts.work import Indexed, Ragged, Tiles, Work
from ringspan.engine.choice import Choice, name_of
from ringspan.engine.chosen import Chosen
from ringspan.engine.delta import deltas
from ringspan.engine.masks import Drawn, Seed, branch_of, tile_dropout, tile_mask
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.ring.messages import KeyValue
from ringspan.plan.restart import in_documents
from ringspan.plan.steps import Plan, Step

__all__ = ["Kernels", "Keys", "Output", "Saved", "Sum", "Sums", "Watch", "unwatched"]

_ELEMENTS_AT_ONCE = 2**24
"""Elements that one launch gathers or whose bitmap it expands, at most."""


class Output(Protocol):
    """What takes the pieces of a forward pass."""

    @property
    def into(self) -> TileOutput | None:
        """Where a kernel may write its rows directly."""

    def put(self, rows: Selection, out: Tensor, lse: Tensor, *, first: bool) -> None:
        """Takes a piece."""


class Sum(Protocol):
    """What takes the pieces of one gradient."""

    fresh: bool

    @property
    def tensor(self) -> Tensor:
        """What has arrived so far."""

    def put(self, rows: Selection, piece: Tensor, *, first: bool) -> None:
        """Takes a piece."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The gradients of query, key and value while pieces arrive."""

    query: Sum
    key: Sum
    value: Sum


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass starts from: `[B, N, H, D]` each, lse `[B, H, N]`."""

    grad_out: Tensor
    query: Tensor
    local: KeyValue
    out: Tensor
    lse: Tensor
    delta: Tensor | None = None
    """`[B, H, N]`, where a kernel asks for it."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The key/value rows at hand in a step, and what is known of each of them."""

    rows: KeyValue
    step: Step
    seen: Tensor | None
    """bool `[B, rows]`: False for padding."""

    @property
    def seen_by_head(self) -> Tensor | None:
        """`[B, rows, heads]`"""
        heads = self.rows.key.shape[2]
        return None if self.seen is None else self.seen.unsqueeze(-1).expand(-1, -1, heads)


Watch = Callable[..., None]


def unwatched(*tensors: Tensor) -> None:
    """Watches nothing."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The chosen backends, and what they need to know of the call."""

    chosen: Chosen
    scale: float
    plan: Plan
    key_padding: Tensor | None = None
    """`[B, N]` by position, True for real tokens; here or on the host."""
    dropout: Seed | None = None
    watch: Watch = unwatched
    """Is shown the tensors that each launch reads and makes."""

    @property
    def choice(self) -> Choice:
        """What runs now."""
        return self.chosen.choice

    def keys(self, step: Step, rows: KeyValue) -> Keys:
        """The rows at hand in a step."""
        if self.key_padding is None:
            return Keys(rows, step, None)
        seen = self.key_padding[:, step.key_positions.on(self.key_padding.device)]
        return Keys(rows, step, seen.to(rows.key.device))

    def prepared(self, saved: Saved) -> Saved:
        """With what the chosen kernels' backward needs of all rows, found out once."""
        if saved.delta is not None or not self.choice.takes_branches:
            return saved
        return replace(saved, delta=deltas(saved.grad_out, saved.out, saved.lse.dtype))

    def launches(self, query: Tensor, keys: Keys) -> Iterator[Work]:
        """A step's work in launches: whole where a kernel takes it whole, else as tiles."""
        if self.plan.whole is not None and self.choice.whole:
            yield from self.plan.whole.tiles
            return
        for work in keys.step.work:
            if isinstance(work, Ragged) and self.choice.ragged(work.mask):
                yield work
                continue
            for tiles in work.tiles:
                if self._in_place(tiles):
                    yield tiles
                else:
                    yield from self._bounded(tiles, query, keys)

    def attend(self, work: Work, query: Tensor, keys: Keys, total: Output) -> None:
        """One launch of the forward pass."""
        if isinstance(work, Tiles) and self._in_place(work):
            self._attend_branch(work, query, keys, total)
        else:
            self._attend_tiles(work, query, keys, total)

    def add_gradients(self, work: Work, saved: Saved, keys: Keys, sums: Sums) -> None:
        """One launch of the backward pass, given the final out and lse."""
        if isinstance(work, Tiles) and self._in_place(work):
            self._add_branch(work, saved, keys, sums)
        else:
            self._add_tiles(work, saved, keys, sums)

    def merge(
        self, pieces: Sequence[Piece], shape: tuple[int, ...], **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """`AttentionBackend.merge` of the chosen kernel."""
        inputs = [x for piece in pieces for x in (piece.x, piece.lse) if x is not None]
        call = methodcaller("merge", pieces, shape, **options)
        found = self.chosen.run(str(Task.MERGE), "merge", call, *inputs)
        return cast("tuple[Tensor, Tensor | None]", found)

    def _in_place(self, tiles: Tiles) -> bool:
        capabilities = self._backend(tiles).capabilities
        return capabilities.branches and tiles.blocks is None and tiles.mask in capabilities.masks

    def _backend(self, work: Work) -> AttentionBackend:
        return self.choice.backend(work)

    def _bounded(self, tiles: Tiles, query: Tensor, keys: Keys) -> Iterator[Tiles]:
        """The tiles in parts that gather no more than a bounded number of elements."""
        elements = 0
        if isinstance(tiles.key, Indexed) or isinstance(tiles.query, Indexed):
            width = keys.rows.key.shape[-1] + keys.rows.value.shape[-1]
            elements += max(tiles.key_length, tiles.query_length) * len(tiles.key_heads) * width
        if tiles.seen is not None:
            elements += tiles.query_length * tiles.key_length
        most = _ELEMENTS_AT_ONCE // max(1, elements * query.shape[0])
        yield from tiles.chunks(max(1, most) if elements else tiles.count)

    def _attend_branch(self, tiles: Tiles, query: Tensor, keys: Keys, total: Output) -> None:
        backend, into = self._backend(tiles), total.into
        branch = branch_of(tiles, self.scale, keys.seen, self._drawn(keys), query.device)

        def launch(backend: AttentionBackend) -> TileOutput:
            return backend.forward_branch(query, *keys.rows, branch, into=into)

        def rows(found: TileOutput) -> TileOutput:
            # Of whole tensors, other rows may hold anything yet.
            lse = found.lse.transpose(1, 2).unsqueeze(-1)
            return TileOutput(branch.query.view(found.out), branch.query.view(lse))

        look = None if into is None else rows
        with _no_autocast(query):
            name = name_of(tiles)
            found = self.chosen.run(name, "forward_branch", launch, query, *keys.rows, look=look)
        if into is None:
            self.watch(*found)
            shape = (query.shape[0] * tiles.count, tiles.query_length, _heads(tiles))
            _check_output(backend, found, shape, keys.rows.value.shape[-1], query.dtype)
            total.put(branch.query, *found, first=tiles.forward_first)

    def _attend_tiles(self, work: Work, query: Tensor, keys: Keys, total: Output) -> None:
        backend, tiles = self._backend(work), _one_length(work)
        batch, at_query, at_key = query.shape[0], query_rows(tiles), key_rows(tiles)
        q, k, v = self._tiles(
            backend, (at_query, query), (at_key, keys.rows.key), (at_key, keys.rows.value)
        )
        options = self._options(backend, work, query, keys)
        if isinstance(work, Ragged):
            q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))
        self.watch(q, k, v)
        with _no_autocast(q):
            call = methodcaller("forward", q, k, v, **options)
            out, lse = self.chosen.run(name_of(work), "forward", call, q, k, v)
        self.watch(out, lse)
        _check_output(backend, TileOutput(out, lse), q.shape[:3], v.shape[-1], q.dtype)
        del q, k, v, call
        if isinstance(work, Ragged):
            out = torch.unflatten(out, 1, (batch, -1)).squeeze(0)
            lse = torch.unflatten(lse, 2, (batch, -1)).squeeze(0).transpose(0, 1)
        total.put(at_query, out, lse, first=work.forward_first)

    def _add_branch(self, tiles: Tiles, saved: Saved, keys: Keys, sums: Sums) -> None:
        assert saved.delta is not None
        branch = branch_of(tiles, self.scale, keys.seen, self._drawn(keys), saved.query.device)
        tensors = (saved.grad_out, saved.query, *keys.rows, saved.lse, saved.delta)
        grads = Grads(sums.query.tensor, sums.key.tensor, sums.value.tensor)

        def launch(backend: AttentionBackend) -> Grads:
            backend.backward_branch(
                *tensors,
                branch,
                grads=grads,
                first_query=tiles.backward_first and sums.query.fresh,
                first_key=tiles.key_first and sums.key.fresh,
            )
            return grads

        def rows(grads: Grads) -> Grads:
            at = (branch.query, branch.key, branch.key)
            return Grads(*(rows.view(x) for rows, x in zip(at, grads, strict=True)))

        with _no_autocast(saved.query):
            self.chosen.run(name_of(tiles), "backward_branch", launch, *tensors, look=rows)

    def _add_tiles(self, work: Work, saved: Saved, keys: Keys, sums: Sums) -> None:
        backend, tiles = self._backend(work), _one_length(work)
        batch, at_query, at_key = saved.query.shape[0], query_rows(tiles), key_rows(tiles)
        lse = at_query.tile_batch(saved.lse.transpose(1, 2).unsqueeze(-1))
        lse = lse.squeeze(-1).transpose(1, 2)
        tensors = self._tiles(
            backend,
            (at_query, saved.grad_out),
            (at_query, saved.query),
            (at_key, keys.rows.key),
            (at_key, keys.rows.value),
            (at_query, saved.out),
        )
        options = self._options(backend, work, saved.query, keys)
        if isinstance(work, Ragged):
            tensors = tuple(x.flatten(0, 1).unsqueeze(0) for x in tensors)
            lse = lse.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        lse = lse.contiguous()
        self.watch(*tensors, lse)
        grad_out, q, k, v, out = tensors
        with _no_autocast(lse):
            call = methodcaller("backward", grad_out, q, k, v, out, lse, **options)
            grads = self.chosen.run(name_of(work), "backward", call, *tensors, lse)
        self.watch(*grads)
        for name, grad, x in zip(Grads._fields, grads, (q, k, v), strict=True):
            _check(backend, f"gradient of {name}", grad, tuple(x.shape), x.dtype)
        del tensors, grad_out, q, k, v, out, lse, call
        if isinstance(work, Ragged):
            grads = Grads(*(torch.unflatten(x, 1, (batch, -1)).squeeze(0) for x in grads))
        sums.query.put(at_query, grads.query, first=work.backward_first)
        sums.key.put(at_key, grads.key, first=work.key_first)
        sums.value.put(at_key, grads.value, first=work.key_first)

    def _tiles(
        self, backend: AttentionBackend, *placed: tuple[Selection, Tensor]
    ) -> tuple[Tensor, ...]:
        """The rows as the backend takes them: views where it takes strides, else brought together
        by a kernel if there is one."""
        strided = backend.capabilities.strided
        if strided and all(rows.is_view(x) for rows, x in placed):
            return tuple(rows.tile_batch(x) for rows, x in placed)
        if self.choice.gathers:
            call = methodcaller("gather", *(Placed(rows, x) for rows, x in placed))
            found = self.chosen.run(str(Task.GATHER), "gather", call, *(x for _, x in placed))
            return cast("tuple[Tensor, ...]", found)
        found = (rows.tile_batch(x) for rows, x in placed)
        return tuple(x if strided else x.contiguous() for x in found)

    def _options(
        self, backend: AttentionBackend, work: Work, query: Tensor, keys: Keys
    ) -> dict[str, Any]:
        device, batch = query.device, query.shape[0]
        options: dict[str, Any] = {"scale": self.scale}
        if isinstance(work, Ragged):
            options["mask"] = Mask(work.mask, lengths=work.lengths_on(device, batch))
            return options
        mask = tile_mask(work, batch, keys.seen_by_head, device)
        if mask.case not in backend.capabilities.masks:
            mask = mask.as_interval(work.query_length, work.key_length, device)
        options["mask"] = mask
        drawn = self._drawn(keys)
        if drawn is not None:
            options["dropout"] = tile_dropout(work, batch, drawn, query, keys.rows.key)
        return options

    def _drawn(self, keys: Keys) -> Drawn | None:
        """Positions restart in documents, so that packed ones draw as each alone does."""
        if self.dropout is None:
            return None
        positions = (self.plan.query_positions, keys.step.key_positions)
        return Drawn(self.dropout, *(in_documents(x, self.plan.documents) for x in positions))


def _one_length(work: Work) -> Tiles:
    """The rows of ragged work in line, those of tiles as they are."""
    return work.in_line if isinstance(work, Ragged) else work


def _heads(tiles: Tiles) -> int:
    return len(tiles.query_heads) * tiles.group


def _no_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Inside, products are computed in the dtypes that the kernel chose."""
    if not torch.amp.is_autocast_available(like.device.type):
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def _check_output(
    backend: AttentionBackend,
    found: TileOutput,
    rows: tuple[int, ...],
    value_head_dim: int,
    dtype: torch.dtype,
) -> None:
    batch, length, heads = rows
    _check(backend, "out", found.out, (batch, length, heads, value_head_dim), dtype)
    _check(backend, "lse", found.lse, (batch, heads, length), accumulation_dtype(dtype))


def _check(
    backend: AttentionBackend, what: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Refuses a kernel's result that would be merged into nonsense."""
    wide = accumulation_dtype(dtype)
    if tuple(x.shape) != shape or x.dtype not in (dtype, wide):
        raise BrokenContract(
            f"backend {backend.name!r}",
            expected=f"{what} of shape {list(shape)} in {dtype} or {wide}",
            got=f"shape {list(x.shape)} in {x.dtype}",
        )
