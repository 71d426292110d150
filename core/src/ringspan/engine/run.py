"""One call on one rank: what its text and tensors say, planned and ready to go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import RanksDisagree
from ringspan.contracts.tokens import Sequence
from ringspan.contracts.work import Indexed
from ringspan.engine.call import Call
from ringspan.engine.choice import Choice, Operands, choose, choose_communicator, decide, measures
from ringspan.engine.chosen import Chosen
from ringspan.engine.kernels import Kernels, Watch, unwatched
from ringspan.engine.leading import led
from ringspan.engine.masks import Seed
from ringspan.engine.plans import cached_plan, cached_plans
from ringspan.engine.ring.exchanges import connect
from ringspan.engine.ring.guard import guarded
from ringspan.engine.ring.messages import Channel, KeyValue, Ring
from ringspan.engine.ring.numbers import from_each
from ringspan.engine.ring.wire import Wire
from ringspan.engine.virtual.calls import (
    check_one_shard,
    check_queries,
    device_of,
    layout_of,
    virtual_ranks,
)
from ringspan.plan.agreement import agree
from ringspan.plan.groups import group_named
from ringspan.plan.layout import Layout
from ringspan.plan.queries import QueryPositions

if TYPE_CHECKING:
    from ringspan.contracts.communicator import Communicator
    from ringspan.plan.steps import Plan

__all__ = ["AGREE_ON_LENGTHS", "Run", "Tensors", "agreed_seed", "prepare"]

AGREE_ON_LENGTHS = -1
"""In place of `N`: the ranks hold contiguous shards and tell each other how long they are."""


class Tensors(NamedTuple):
    """All tensors that a call takes, besides a backward pass's own."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None = None
    key_padding: Tensor | None = None
    documents: Tensor | None = None
    """Lengths, on the host."""
    query_positions: Tensor | None = None
    seed: Tensor | None = None
    """Of dropout, on the host: a tensor, so that a recomputed call draws the same one again."""

    def rows_last_contiguous(self) -> Tensors:
        """Kernels read each head's row as one run of memory."""
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in self[:3])
        return self._replace(query=query, key=key, value=value)


@dataclass(frozen=True, slots=True)
class Run:
    """One call, ready to go: on one rank, or on all virtual ranks of this process."""

    call: Call
    layout: Layout
    plans: tuple[Plan, ...]
    """This rank's; those of all virtual ranks."""
    operands: Operands
    group: Any
    tensors: Tensors
    documents: Documents | None
    queries: QueryPositions | None
    wire: Wire
    virtual: Communicator | None
    """What the virtual ranks are for."""

    @property
    def plan(self) -> Plan:
        """This rank's plan, or the first virtual rank's."""
        return self.plans[0]

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self.operands.head_dim**-0.5 if self.call.scale is None else self.call.scale

    @property
    def local(self) -> KeyValue:
        """This rank's own keys and values."""
        return KeyValue(self.tensors.key, self.tensors.value)

    @property
    def empty(self) -> bool:
        """Nothing to compute on any rank."""
        queries = self.layout.N if self.queries is None else self.queries.length
        return self.operands.batch == 0 or queries == 0

    def kernels(self, chosen: Chosen, seed: int, watch: Watch = unwatched) -> Kernels:
        """The chosen backends with what this call asks of them."""
        p = self.call.dropout_p
        return Kernels(
            chosen,
            self.scale,
            self.plan,
            self.tensors.key_padding,
            Seed(p, seed) if p > 0 else None,
            watch,
        )

    def choose(self) -> Choice:
        """Decides which backends and communicator run."""
        virtual = self.virtual is not None
        asked = (self.call, self.operands, self.plan, self.wire)
        if self.group is None or not measures():
            return choose(*asked, virtual=virtual)
        key = (self.group.group_name, self.call, self.layout, replace(self.operands, rows=0))
        mine = partial(choose, *asked) if self.plan.rank == 0 else None
        return choose(*asked, led=led(key, self._questions, mine, self._told_by_rank_0))

    def _questions(self) -> list[str]:
        """What is decided about backends."""
        asked = decide(self.call, self.operands, self.plan)
        return [each.name for each in asked if each.name != "communicator"]

    def choose_again(self, before: Choice) -> Choice:
        """The same questions, after one of the answers failed at work; not on a ring."""
        call = replace(self.call, backend=before.requested)
        virtual = self.virtual is not None
        asked = (call, self.operands, self.plan, before.wire)
        return choose(*asked, virtual=virtual, caution=before.caution)

    def chosen(self, choice: Choice) -> Chosen:
        """What runs in one pass."""
        return Chosen(choice, self.choose_again, self.scale)

    def _told_by_rank_0(self, number: int) -> int:
        """Rank 0's number."""
        return _from_each(self.call, self.group, number, self.operands.device, None)[0]

    @contextmanager
    def ring(self, choice: Choice, forward: int | None = None) -> Iterator[Ring | None]:
        """The messages of a ring, after all ranks agreed on what they are about to do.

        `forward` is the number of the forward pass, in the backward pass.

        Raises:
            RanksDisagree: they do not, or are in different calls.
            PeerLost, RingTimeout: a message failed; the group is then of no more use.
        """
        if self.group is None:
            yield None
            return
        facts = self._facts(choice)
        number = agree(self.group, facts, self.operands.device)
        backward = forward is not None
        with guarded(self.group, {**facts, "pass": "backward" if backward else "forward"}):
            to = connect(self.group, choice.communicator(), self.operands.device)
            if forward is None:
                forward = to.calls = to.calls + 1
            channel = Channel(to.exchange, to.buffers, choice.wire, number, forward, backward)
            yield Ring(channel, self.plan, self.local)

    def padded_queries(self) -> Tensor | None:
        """`[B, rows]`, True where a query is padding itself: its row is empty."""
        padding, positions = self.tensors.key_padding, self._query_positions
        another = self.queries is not None and self.queries.positions is None
        if padding is None or another or self.layout.N == 0:
            return None
        at = positions.on(padding.device)
        # Queries beyond the keys are not among those that may be padding.
        return ~padding[:, at.clamp(max=self.layout.N - 1)] & (at < self.layout.N)

    def without_padding(self) -> Run:
        """The same call with zeros in padded rows, which may hold anything, NaN too."""
        padding = self.tensors.key_padding
        if padding is None:
            return self
        keys = ~padding[:, self._key_positions.on(padding.device)]
        queries = self.padded_queries()
        query, key, value = self.tensors[:3]
        tensors = self.tensors._replace(
            query=query if queries is None else _zeroed(query, queries),
            key=_zeroed(key, keys),
            value=_zeroed(value, keys),
        )
        return replace(self, tensors=tensors)

    @property
    def _query_positions(self) -> Indexed:
        return self.plan.query_positions if self.virtual is None else Indexed(self.layout.order)

    @property
    def _key_positions(self) -> Indexed:
        own = self.plan.steps[0].key_positions
        return own if self.virtual is None else Indexed(self.layout.order)

    def _facts(self, choice: Choice) -> dict[str, str]:
        call, operands = self.call, self.operands
        return {
            "pattern": call.pattern.fingerprint,
            "causal": repr(call.causal),
            "scale": repr(call.scale),
            "layout": repr(self.layout),
            "documents": repr(self.documents and self.documents.digest),
            "key_padding": repr(call.padded),
            "sink": repr(self.tensors.sink is not None),
            **_first_facts(call),
            "batch": repr(operands.batch),
            "heads": repr((operands.heads, operands.kv_heads)),
            "head_dim": repr((operands.head_dim, operands.value_head_dim)),
            "dtype": operands.dtype_name,
            "needs_backward": repr(call.needs_backward),
            "debug": repr(choice.wire.debug),
            "gradient_wire": "wide" if choice.wire.wide_gradients else "input",
            "message_bytes": repr(choice.wire.message_bytes),
            "decisions": repr({name: decision.chosen for name, decision in choice.named}),
        }


def prepare(tensors: Tensors, text: str, N: int, before: Choice | None = None) -> Run:
    """The call of that text on these tensors, planned.

    `before` is the choice of the forward pass, in the backward pass; None: as the settings say.

    Raises:
        InvalidArgument: the pattern, documents or queries do not fit the tokens, or the layout or
            the tensors' devices the ranks.
    """
    call = Call.from_text(text, N)
    group = _group(call)
    if group is not None:
        agree(group, _first_facts(call), tensors.query.device)
    world_size = 1 if group is None else group.size()
    virtual = virtual_ranks(call, world_size) if before is None else before.virtual
    if N == AGREE_ON_LENGTHS:
        layout = _agreed_layout(call, group, tensors.query, before)
    else:
        layout = layout_of(call, N, virtual)
    documents = _documents(tensors.documents)
    queries = _queries(tensors, group)
    operands = Operands.of(*tensors[:3])
    if virtual is not None:
        check_queries(virtual, queries)
        places = (x.device for x in tensors[:3])
        operands = replace(operands, device=device_of(virtual, *places))
    elif group is None:
        check_one_shard(layout, *tensors[:2])
    if before is not None:
        wire = before.wire
    else:
        wire = Wire() if layout.world_size == 1 else Wire.configured()
    asked = (call.pattern.fingerprint, call.pattern, call.causal, operands.heads, operands.kv_heads)
    most_rows = wire.most_rows(operands.row_bytes, operands.device.type, layout.world_size)
    if virtual is not None:
        plans = cached_plans(*asked, layout, documents, most_rows)
    else:
        rank = 0 if group is None else group.rank()
        plans = (cached_plan(*asked, layout, rank, documents, queries, most_rows),)
    run = Run(call, layout, plans, operands, group, tensors, documents, queries, wire, virtual)
    return run.without_padding()


def _zeroed(x: Tensor, padded: Tensor) -> Tensor:
    return x.masked_fill(padded[:, :, None, None].to(x.device), 0.0)


def _documents(lengths: Tensor | None) -> Documents | None:
    return None if lengths is None else _documents_of(lengths.numpy().tobytes())


@lru_cache(maxsize=256)
def _documents_of(lengths: bytes) -> Documents:
    return Documents(np.frombuffer(lengths, dtype=np.int64))


def _queries(tensors: Tensors, group: Any) -> QueryPositions | None:
    if tensors.query_positions is not None:
        return _queries_at(tensors.query_positions.cpu().numpy().tobytes())
    length = tensors.query.shape[1]
    if group is None and length != tensors.key.shape[1]:
        return QueryPositions(length=length)
    return None


@lru_cache(maxsize=256)
def _queries_at(positions: bytes) -> QueryPositions:
    return QueryPositions(np.frombuffer(positions, dtype=np.int64))


def _group(call: Call) -> Any:
    if call.group is None:
        return None
    group = group_named(call.group)
    return group if group.size() > 1 else None


def _first_facts(call: Call) -> dict[str, str]:
    """What decides which numbers ranks ask each other for: no rank shall wait for one in vain."""
    return {
        "layout given": repr(call.layout is not None),
        "dropout_p": repr(call.dropout_p),
        "seed given": repr(call.seeded),
    }


def _agreed_layout(call: Call, group: Any, query: Tensor, before: Choice | None) -> Layout:
    """Contiguous shards as long as they are: one small exchange per pass.

    Asked every time, because a rank whose own length stayed the same cannot know that another's
    changed. A given layout needs no such question.
    """
    rows = query.shape[1]
    if group is None:
        return Layout(call.tokens or Sequence(rows))
    sizes = tuple(_from_each(call, group, rows, query.device, before))
    return Layout(call.tokens or Sequence(sum(sizes)), group.size(), sizes=sizes)


def _from_each(
    call: Call, group: Any, number: int, device: torch.device, before: Choice | None
) -> list[int]:
    """A number from each rank, by the communicator that will carry the rows."""
    if before is None:
        communicator = choose_communicator(call, device, group.size())
    else:
        communicator = before.communicator()
    with guarded(group, _first_facts(call)):
        return from_each(connect(group, communicator, device).exchange, number, device)


def agreed_seed(run: Run) -> int:
    """The seed of dropout; in a ring rank 0's, by a small exchange."""
    if run.tensors.seed is None:
        return 0
    seed = int(run.tensors.seed)
    if run.group is None:
        return seed
    seeds = _from_each(run.call, run.group, seed, run.operands.device, None)
    if run.call.seeded and len(set(seeds)) > 1:
        raise RanksDisagree(
            "seed",
            expected=f"the same on every rank; rank {run.plan.rank} has {seed}",
            got=f"{seeds} by rank",
            remedy="Pass the same seed on every rank",
        )
    return seeds[0]
