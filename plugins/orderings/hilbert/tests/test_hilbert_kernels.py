"""Keys by Triton's kernels are the keys by torch, and Triton is not asked where it cannot help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from ringspan.contracts import Grid
from ringspan_hilbert import Curve, Gilbert, Hilbert, Morton, fused
from ringspan_hilbert.fused import has_kernels

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not published for this platform"
)
each_curve = pytest.mark.parametrize(
    "curve", [Hilbert(), Morton(), Gilbert()], ids=lambda curve: curve.name
)


def run(script: str, *arguments: str, **environment: str) -> str:
    """Runs it in a process of its own, as Triton reads its environment when it is imported."""
    others = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=others | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


@needs_triton
def test_interpreted_kernels_give_the_keys_that_torch_gives() -> None:
    counts = dict(
        part.split("=") for part in run("interpreted_keys.py", TRITON_INTERPRET="1").split()
    )
    assert set(counts) == {"hilbert", "morton", "gilbert"}
    assert all(int(count) >= 100 for count in counts.values())


@needs_triton
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_compile(capability: str, tmp_path: Path) -> None:
    compiled = json.loads(run("compile_keys.py", capability, TRITON_CACHE_DIR=str(tmp_path)))
    assert compiled == ["_interleaved_kernel", "_interleaved_kernel", "_gilbert_kernel"] * 2


@needs_triton
@pytest.mark.parametrize(
    ("interpreted", "device", "expected"),
    [("0", "cuda", True), ("0", "cpu", False), ("1", "cpu", True), ("1", "cuda", False)],
)
def test_kernels_are_for_gpus_or_interpreted_for_a_cpu(
    interpreted: str, device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    assert has_kernels(torch.device(device)) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_without_triton_there_are_no_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_has_triton", lambda: False)
    assert not has_kernels(torch.device(device))


@each_curve
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_gpu_orders_as_a_cpu_does(curve: Curve) -> None:
    for grid in (Grid(37, 90), Grid(12, 20, 17)):
        assert torch.equal(
            curve.places(grid, device="cuda").tokens.cpu(), curve.places(grid).tokens
        )


@each_curve
def test_the_plugin_is_imported_and_used_without_triton(curve: Curve) -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from ringspan.contracts import Grid\n"
        f"from ringspan_hilbert import {type(curve).__name__} as Curve\n"
        "print(Curve().places(Grid(5, 7)).tokens.tolist())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) == curve.places(Grid(5, 7)).tokens.tolist()
