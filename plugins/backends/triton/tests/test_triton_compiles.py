"""The interpreter takes what the compiler refuses: kernels are compiled too, for absent GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(("capability", "shared_memory"), [(80, 163), (90, 227)])
def test_the_kernels_compile_and_fit_the_shared_memory(
    capability: int, shared_memory: int, tmp_path: Path
) -> None:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = json.loads(answer.stdout)
    assert [name for name, _ in found] == ["forward_kernel", "key_kernel", "query_kernel"]
    assert all(0 < shared <= shared_memory * 1024 for _, shared in found)
