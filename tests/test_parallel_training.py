"""Training on a ring under DDP and FSDP2 is training in one process with all rows.

Every comparison is in float64 and relative to the RMS of what one process gets. A ring differs
from it in the order of additions alone: some thousand of them behind every number, each within a
unit roundoff of 1.1e-16, give 1e-13; `CLOSE` leaves a factor of ten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from ringspan import parallel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, linear
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

CLOSE = 1e-12
VOCABULARY = 13
LONGEST = 64


@dataclass(frozen=True)
class Batch:
    """Two packed and padded sequences, and who holds which rows."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...] | None = None
    ordering: str | None = None
    seed: int = 0

    @property
    def documents(self) -> rs.Documents:
        return rs.Documents.from_lengths(self.lengths)

    def rows(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, labels and which tokens are real, of whole sequences."""
        generator = torch.Generator().manual_seed(100 * self.seed + step)
        ids = torch.randint(VOCABULARY, (2, sum(self.lengths)), generator=generator)
        real = torch.rand(ids.shape, generator=generator) > 0.2
        # As in practice, most padding is at the end, here on the last rank.
        real[:, -len(ids[0]) // 4 :] = False
        return ids, parallel.next_token_labels(ids, self.documents, real), real

    def layout(self, world_size: int) -> rs.Layout:
        return rs.Layout(sum(self.lengths), world_size, self.ordering, sizes=self.sizes)


class Decoder(nn.Module):
    """Learned and rotary positions, sinks, grouped heads, dilation and a window; recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.places = nn.Embedding(LONGEST, 16)
        self.blocks = nn.ModuleList(
            rs.nn.TransformerBlock(
                rs.nn.SelfAttention(16, 4, pattern, kv_heads=2, sink=True), hidden_dim=24
            )
            for pattern in (rs.Dilated((8, 40), (1, 4)), rs.Dense(window=(9, 0)))
        )

    def forward(self, ids: Tensor, positions: Tensor, **options: Any) -> Tensor:
        x = self.tokens(ids) + self.places(positions)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, **options)
        return linear(x, self.tokens.weight)


class Language(rs.nn.LongNet):
    """A `LongNet` that is not silent at first, and finds its positions itself."""

    def __init__(self) -> None:
        patterns = [rs.Dilated((8, 40), (1, 4)), rs.Dense()]
        super().__init__(VOCABULARY, 16, 2, 4, patterns, kv_heads=2, sink=True)
        for block in self.blocks:
            for layer in block.last_layers:  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, std=0.3)

    def forward(self, ids: Tensor, positions: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return super().forward(ids, **options)


MODELS = {"decoder": Decoder, "longnet": Language}


def new_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[kind]().double()
    for name, parameter in model.named_parameters():
        if name.endswith("sink"):
            nn.init.normal_(parameter)
    return model


@dataclass(frozen=True)
class History:
    """What each step left behind, by name of the parameter."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    parameters: list[dict[str, Tensor]] = field(default_factory=list)


def token_losses(
    model: nn.Module, batch: Batch, step: int, world_size: int, ring: Any
) -> tuple[Tensor, Tensor]:
    """The losses of this rank's rows, and which of them count."""
    documents, layout = batch.documents, batch.layout(world_size)
    whole = batch.rows(step)
    ids, labels = parallel.shard(whole[:2], layout, ring)
    positions = parallel.position_ids(layout, ring, documents=documents)
    options = {"layout": layout, "group": ring, "documents": documents, "key_padding": whole[2]}
    logits = model(ids, positions, **options)
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses, labels.flatten() != -100


def train(
    model: nn.Module, batches: tuple[Batch, ...], world_size: int = 1, ring: Any = None
) -> History:
    """Two steps, each over all batches."""
    history = History()
    # Its steps are linear in the gradients: others, as Adam's, divide what is zero but for
    # rounding by its own size.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for step in range(2):
        parts = [token_losses(model, batch, step, world_size, ring) for batch in batches]
        losses, real = (torch.cat(each) for each in zip(*parts, strict=True))
        loss = parallel.token_mean(losses, real)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        inner = getattr(model, "module", model)
        history.losses.append(loss.item())
        history.gradients.append({n: whole_of(p.grad) for n, p in inner.named_parameters()})
        history.parameters.append({n: whole_of(p) for n, p in inner.named_parameters()})
    return history


def whole_of(x: Tensor) -> Tensor:
    """A copy of a tensor, or of all parts of what FSDP sharded."""
    x = x.detach()
    return x.full_tensor().clone() if hasattr(x, "full_tensor") else x.clone()


def wrapped(model: nn.Module, wrapper: str, mesh: Any) -> nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def on_a_ring(rank: int, kind: str, wrapper: str, batch: Batch) -> History:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = wrapped(new_model(kind), wrapper, mesh)
    return train(model, (batch,), dist.get_world_size(), mesh)


def on_a_mesh(rank: int, kind: str, wrapper: str, batches: tuple[Batch, Batch]) -> History:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "ring"))
    model = wrapped(new_model(kind), wrapper, mesh)
    return train(model, (batches[mesh["data"].get_local_rank()],), 2, mesh["ring"])


def check(histories: list[History], kind: str, batches: tuple[Batch, ...]) -> None:
    together = tuple(Batch(each.lengths, seed=each.seed) for each in batches)
    expected = train(new_model(kind), together)
    for found in histories:
        assert found.losses == histories[0].losses
        for step in range(2):
            assert found.losses[step] == pytest.approx(expected.losses[step], rel=CLOSE, abs=0)
            for what in ("gradients", "parameters"):
                mine, theirs = (getattr(each, what)[step] for each in (found, expected))
                assert mine.keys() == theirs.keys()
                for name, x in theirs.items():
                    error = (mine[name] - x).square().mean().sqrt() / x.square().mean().sqrt()
                    assert error <= CLOSE, f"{what} of {name} after step {step + 1}: {error:.1e}"


BATCHES = {
    2: Batch((17, 0, 20), (25, 12)),
    3: Batch((3, 30, 4), (20, 0, 17)),
    4: Batch((40, 1), ordering="zigzag"),
}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("world_size", list(BATCHES))
def test_a_ring_trains_as_one_process_does(
    run_ring: Any, world_size: int, kind: str, wrapper: str
) -> None:
    batch = BATCHES[world_size]
    check(run_ring(world_size, on_a_ring, kind, wrapper, batch), kind, (batch,))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_two_rings_with_other_sequences_train_as_one_process_with_both(
    run_ring: Any, kind: str, wrapper: str
) -> None:
    batches = (Batch((20, 15), (30, 5)), Batch((9,), (4, 5), seed=1))
    check(run_ring(4, on_a_mesh, kind, wrapper, batches), kind, batches)


def own_sink(rank: int) -> tuple[Tensor, Tensor]:
    """A sink's gradient on this rank, and what the formula says of its rows alone."""
    layout = rs.Layout(23, 3, sizes=(10, 0, 13))
    torch.manual_seed(0)
    q, k, v, upstream = (
        layout.shard(x, rank) for x in torch.randn(4, 2, 23, 4, 8, dtype=torch.float64)
    )
    sink = torch.randn(4, dtype=torch.float64).requires_grad_()
    options = {"layout": layout, "group": dist.group.WORLD, "sink": sink, "causal": True}
    out, lse = rs.attention(q, k, v, return_lse=True, **options)
    (grad,) = torch.autograd.grad(out, sink, upstream)
    delta = (upstream * out.detach()).sum(-1).transpose(1, 2)
    return grad, -((sink.detach()[:, None] - lse).exp() * delta).sum((0, 2))


def test_each_rank_has_its_queries_part_of_a_sink_s_gradient(run_ring: Any) -> None:
    for found, expected in run_ring(3, own_sink):
        torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
