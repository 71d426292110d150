"""Which of Ringspan's own backends serves what on every generation of GPU, and why no other does.

Nothing is probed: every kernel is taken to be installed and to work wherever its declared limits
say so. What is left are capabilities, reasons and priorities, which need no GPU.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from ringspan.contracts import AttentionBackend, Availability, DeviceInfo, MaskCase, Problem, Task
from ringspan_registry.decision import Candidate, CandidateState
from ringspan_registry.discovery import Offer
from ringspan_registry.evaluation import evaluate
from ringspan_registry.selection import Ranked, Wish, settle

from tests.isolation.workspace import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

GPUS = {
    f"{DeviceInfo('cuda', compute_capability=each).architecture}-{each[0]}.{each[1]}": each
    for each in (
        *((6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9)),
        *((9, 0), (10, 0), (12, 0)),
    )
}
DEVICES = {
    name: DeviceInfo("cuda", 0, name, compute_capability=found) for name, found in GPUS.items()
} | {"cpu": DeviceInfo("cpu"), "xpu": DeviceInfo("xpu", 0)}
DTYPES = ("float64", "float32", "float16", "bfloat16")
HEAD_DIMS = (64, 128, 192, 256, 320)
MASKS = (MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND, MaskCase.INTERVAL, MaskCase.BITMAP)

GROUPS = {
    "any": DTYPES,
    "half": ("float16", "bfloat16"),
    "any GPU": tuple(GPUS),
    "from Ampere": tuple(name for name, found in GPUS.items() if found >= (8, 0)),
}

# The winner of a gradient's worth of attention with equal heads, by mask.
TABLE = """
on                                      in                head dims | full            causal          band                 interval             bitmap
cpu                                     any               64-320    | sdpa-cpu        sdpa-cpu        sdpa-cpu             sdpa-cpu             sdpa-cpu
xpu                                     any               64-320    | manual          manual          manual               manual               manual
any GPU                                 any               320       | manual          manual          manual               manual               manual
any GPU                                 float64           64-256    | manual          manual          manual               manual               manual
pascal-6.1, volta-7.0                   bfloat16          64-256    | manual          manual          manual               manual               manual
pascal-6.1                              float32, float16  64-256    | sdpa-efficient  sdpa-efficient  sdpa-efficient-bias  sdpa-efficient-bias  sdpa-efficient-bias
volta-7.0                               float32, float16  64-256    | xformers        xformers        sdpa-efficient-bias  sdpa-efficient-bias  sdpa-efficient-bias
turing-7.5                              bfloat16          64-256    | manual          manual          manual               manual               manual
turing-7.5                              float32           64-128    | xformers        xformers        triton               triton               triton
turing-7.5                              float32           192-256   | xformers        xformers        sdpa-efficient-bias  sdpa-efficient-bias  sdpa-efficient-bias
turing-7.5                              float16           64-256    | xformers        xformers        triton               triton               triton
from Ampere                             float32           64-256    | sdpa-efficient  sdpa-efficient  triton               triton               triton
ampere-8.0                              half              64-256    | flash2          flash2          flash2               triton               triton
ampere-8.6, ada-8.9                     half              64-192    | flash2          flash2          flash2               triton               triton
ampere-8.6, ada-8.9                     half              256       | flash3          flash3          flash3               triton               triton
hopper-9.0                              half              64-256    | flash4          flash4          flash4               triton               triton
blackwell-10.0                          half              64-128    | flash4          flash4          flash4               triton               triton
blackwell-10.0                          half              192-256   | flash4          flash4          flash2               triton               triton
blackwell-12.0                          half              64-128    | sdpa-cudnn      sdpa-cudnn      flash2               triton               triton
blackwell-12.0                          half              192       | flash2          flash2          flash2               triton               triton
blackwell-12.0                          half              256       | sdpa-efficient  sdpa-efficient  triton               triton               triton
"""  # noqa: E501

# All that could serve causal attention with head dimension 128, best first.
ORDERS = {
    ("pascal-6.1", "float32"): "sdpa-efficient xformers sdpa-efficient-bias manual",
    ("volta-7.0", "float16"): "xformers sdpa-efficient sdpa-efficient-bias manual",
    ("turing-7.5", "float16"): "xformers sdpa-efficient triton sdpa-efficient-bias manual",
    ("ampere-8.0", "bfloat16"): (
        "flash2 flash3 sdpa-flash sdpa-cudnn sdpa-efficient xformers triton flex "
        "sdpa-efficient-bias manual"
    ),
    ("ada-8.9", "bfloat16"): (
        "flash2 flash3 sdpa-flash sdpa-cudnn sdpa-efficient xformers triton flex "
        "sdpa-efficient-bias manual"
    ),
    ("hopper-9.0", "bfloat16"): (
        "flash4 flash3 sdpa-cudnn flash2 sdpa-flash sdpa-efficient xformers triton flex "
        "sdpa-efficient-bias manual"
    ),
    ("hopper-9.0", "float32"): ("sdpa-efficient xformers triton flex sdpa-efficient-bias manual"),
    ("blackwell-10.0", "bfloat16"): (
        "flash4 sdpa-cudnn flash2 sdpa-flash sdpa-efficient xformers triton flex "
        "sdpa-efficient-bias manual"
    ),
    ("cpu", "float32"): "sdpa-cpu manual triton",
    ("xpu", "float32"): "manual",
}

# What changes where more is asked than attention with equal heads: bfloat16, 128, on Hopper.
MODES = (
    ("flash4", MaskCase.CAUSAL, {"group_size": 8}),
    ("flash4", MaskCase.CAUSAL, {"value_head_dim": 64}),
    ("flash4", MaskCase.CAUSAL, {"deterministic": True}),
    ("flash4", MaskCase.CAUSAL, {"needs_backward": False}),
    ("flash4", MaskCase.CAUSAL, {"ragged": True}),
    ("triton", MaskCase.CAUSAL, {"key_padding": True}),
    ("triton", MaskCase.CAUSAL, {"dropout": True}),
    ("triton", MaskCase.FULL, {"blocks": True}),
    ("triton", MaskCase.FULL, {"task": Task.GATHER}),
    ("triton", MaskCase.FULL, {"task": Task.MERGE}),
)

# device, dtype, head dim, mask, a loser, and words of its reason
REASONS = (
    ("cpu", "float32", 64, "full", "flash2", "device cpu (supported: cuda)"),
    ("cpu", "float32", 64, "full", "manual", "lower priority: -1000, sdpa-cpu has 100"),
    ("xpu", "float32", 64, "full", "triton", "device xpu (supported: cpu, cuda)"),
    ("pascal-6.1", "float32", 64, "full", "flash2", "compute capability 6.1 (supported: 8.0.."),
    ("volta-7.0", "bfloat16", 64, "full", "sdpa-efficient", "dtype bfloat16 on compute capability"),
    ("turing-7.5", "bfloat16", 64, "full", "triton", "dtype bfloat16 on compute capability 7.5"),
    ("ampere-8.0", "float32", 64, "full", "flash2", "dtype float32 (supported: bfloat16, float16)"),
    ("ampere-8.0", "bfloat16", 64, "full", "flash4", "compute capability 8.0 (supported: 9.0.."),
    ("ampere-8.6", "bfloat16", 256, "full", "flash2", "a gradient with head dimension 256"),
    ("hopper-9.0", "bfloat16", 128, "full", "flash3", "lower priority: 450, flash4 has 500"),
    ("hopper-9.0", "bfloat16", 192, "full", "sdpa-cudnn", "head_dim 192 (supported: 1..128)"),
    ("hopper-9.0", "bfloat16", 128, "interval", "flash4", "mask interval (supported: band, causal"),
    ("hopper-9.0", "bfloat16", 128, "band", "sdpa-cudnn", "mask band (supported: causal, full)"),
    ("hopper-9.0", "bfloat16", 320, "full", "flash4", "head_dim 320 (supported: 1..256)"),
    ("blackwell-12.0", "bfloat16", 64, "full", "flash3", "compute capability 12.0"),
)  # fmt: skip


@cache
def offers() -> tuple[Offer, ...]:
    """Every backend in this repository, as the registry would find it."""
    plugins = sorted(path.name for path in (ROOT / "plugins/backends").iterdir() if path.is_dir())
    return tuple(
        Offer("backend", backend.name, backend, plugin, f"ringspan-{plugin}", "0")
        for plugin in plugins
        for backend in importlib.import_module(f"ringspan_{plugin}").ringspan_attention_backends()
    )


def problem_of(device: DeviceInfo, dtype: str, head_dim: int, mask: MaskCase) -> Problem:
    return Problem(device.type, dtype, mask, head_dim, head_dim, device_info=device)


def candidates(problem: Problem) -> tuple[Candidate, ...]:
    """In order of preference, if all that is installed works."""
    ranked = []
    for offer in offers():
        assert isinstance(offer.provider, AttentionBackend)
        candidate = evaluate(offer, problem, Availability.yes())
        ranked.append(Ranked(candidate, 0, offer.provider.priority(problem.device_info)))
    return settle(ranked, Wish(("auto",), "default"))


class Row(NamedTuple):
    """One line of the table."""

    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    winners: tuple[str, ...]

    def cells(self) -> Iterator[tuple[tuple[str, str, int, MaskCase], str]]:
        for device, dtype, head_dim in product(self.devices, self.dtypes, self.head_dims):
            for mask, winner in zip(MASKS, self.winners, strict=True):
                yield (device, dtype, head_dim, mask), winner


def rows() -> tuple[Row, ...]:
    header, *lines = TABLE.strip().splitlines()
    ends = (0, header.index("in "), header.index("head dims"), header.index("|"))
    found = []
    for line in lines:
        devices, dtypes, dims = (line[a:b].strip() for a, b in pairwise(ends))
        low, _, high = dims.partition("-")
        found.append(
            Row(
                tuple(name for part in devices.split(", ") for name in GROUPS.get(part, (part,))),
                tuple(name for part in dtypes.split(", ") for name in GROUPS.get(part, (part,))),
                tuple(dim for dim in HEAD_DIMS if int(low) <= dim <= int(high or low)),
                tuple(line[ends[-1] + 1 :].split()),
            )
        )
    return tuple(found)


def test_the_table_has_every_cell_once() -> None:
    cells = [cell for row in rows() for cell, _ in row.cells()]
    assert sorted(map(str, cells)) == sorted(map(str, product(DEVICES, DTYPES, HEAD_DIMS, MASKS)))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.devices}-{row.dtypes}")
def test_what_is_chosen_is_what_the_table_says(row: Row) -> None:
    for (device, dtype, head_dim, mask), winner in row.cells():
        chosen, *_ = candidates(problem_of(DEVICES[device], dtype, head_dim, mask))
        assert chosen.state is CandidateState.CHOSEN
        assert chosen.name == winner, (device, dtype, head_dim, mask)


def test_every_loser_is_told_why() -> None:
    for device, dtype, head_dim, mask in product(DEVICES, DTYPES, HEAD_DIMS, MASKS):
        chosen, *losers = candidates(problem_of(DEVICES[device], dtype, head_dim, mask))
        assert len(losers) == len(offers()) - 1
        for loser in losers:
            assert loser.state in (CandidateState.ELIGIBLE, CandidateState.UNSUPPORTED), loser
            assert loser.reasons, loser
            assert all(reason.strip() for reason in loser.reasons)
            if loser.state is CandidateState.ELIGIBLE:
                assert chosen.name in loser.reasons[0]


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "mask", "loser", "words"),
    REASONS,
    ids=[f"{each[0]}-{each[4]}" for each in REASONS],
)
def test_a_reason_names_what_is_there_and_what_is_supported(
    device: str, dtype: str, head_dim: int, mask: str, loser: str, words: str
) -> None:
    found = candidates(problem_of(DEVICES[device], dtype, head_dim, MaskCase(mask)))
    (reasons,) = (each.reasons for each in found if each.name == loser)
    assert words in "; ".join(reasons)


@pytest.mark.parametrize(("on", "order"), ORDERS.items(), ids=map("-".join, ORDERS))
def test_those_that_could_serve_come_in_this_order(on: tuple[str, str], order: str) -> None:
    device, dtype = on
    found = candidates(problem_of(DEVICES[device], dtype, 128, MaskCase.CAUSAL))
    able = [each.name for each in found if each.state is not CandidateState.UNSUPPORTED]
    assert able == order.split()


@pytest.mark.parametrize(("winner", "mask", "modes"), MODES, ids=[str(each[2]) for each in MODES])
def test_modes_are_served_by_those_that_declare_them(
    winner: str, mask: MaskCase, modes: dict[str, Any]
) -> None:
    problem = problem_of(DEVICES["hopper-9.0"], "bfloat16", 128, mask)
    chosen, *_ = candidates(replace(problem, **modes))
    assert chosen.state is CandidateState.CHOSEN
    assert chosen.name == winner


def test_a_wide_head_without_a_gradient_stays_with_the_kernel_for_it() -> None:
    problem = problem_of(DEVICES["ampere-8.6"], "bfloat16", 256, MaskCase.CAUSAL)
    assert candidates(replace(problem, needs_backward=False))[0].name == "flash2"


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_nothing_is_left_without_a_backend(device: str) -> None:
    for dtype, head_dim, mask in product(DTYPES, HEAD_DIMS, MASKS):
        problem = problem_of(DEVICES[device], dtype, head_dim, mask)
        asked = replace(problem, key_padding=True, dropout=True, deterministic=True, group_size=4)
        assert candidates(asked)[0].state is CandidateState.CHOSEN
