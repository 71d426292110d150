"""NCCL itself, on GPUs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import nccl_scenarios as scenarios
import pytest
import torch
from ringspan.testing.ranks import Ring

if TYPE_CHECKING:
    from collections.abc import Callable

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
def test_messages_to_oneself_travel_over_nccl() -> None:
    with contextlib.closing(Ring(1, "nccl")) as ring:
        ring.run(scenarios.messages_to_itself_travel_over_nccl)


@pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices: NCCL refuses two ranks on one")
@pytest.mark.parametrize(
    ("scenario", "survivors"),
    [
        (scenarios.messages_cross_over_nccl, 2),
        (scenarios.a_silent_peer_over_nccl_is_named, 2),
        (scenarios.a_dead_peer_over_nccl_is_lost, 1),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_between_two_gpus(scenario: Callable[[int], None], survivors: int) -> None:
    with contextlib.closing(Ring(2, "nccl")) as ring:
        ring.run(scenario, answers=survivors)
