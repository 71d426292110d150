"""Decoding on the real backends, and `ringspan generate` on a run of the demo."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import ringspan as rs
import torch
from ringspan.decoding import generate, make_cache
from ringspan.demo import checkpoint
from ringspan.demo.model import ByteModel
from ringspan.demo.settings import Settings
from ringspan.demo.train import Training
from ringspan.testing import assert_exact, multiplicity, yardstick
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

GENERATE = [sys.executable, "-m", "ringspan.cli", "generate"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
SETTINGS = Settings(steps=1, context=256, layers=2, width=32, heads=4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def awake(model: ByteModel) -> ByteModel:
    """With blocks that do something: new ones are silent."""
    torch.manual_seed(0)
    for attention, block in zip(model.attentions, model.blocks, strict=True):
        nn.init.normal_(attention.out_proj.weight, std=0.3)
        nn.init.normal_(block.perceptron[-1].weight, std=0.3)  # type: ignore[union-attr, index]
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, whose model is as good as untrained."""
    folder = tmp_path_factory.mktemp("run")
    training = Training.begin(SETTINGS, "a text")
    awake(training.model)
    checkpoint.save(folder / checkpoint.FILE_NAME, training)
    return folder


def ringspan_generate(*options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*GENERATE, *options], env=ENVIRONMENT, capture_output=True, timeout=120, check=False
    )


@pytest.mark.parametrize("backend", ["sdpa-cpu", "manual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_and_steps_are_exact_on_real_backends(backend: str, dtype: torch.dtype) -> None:
    pattern = rs.Dilated((16, 64, 100), (1, 4, 7), head_offsets="query")
    query, key, value = (torch.randn(2, 333, h, d).to(dtype) for h, d in ((6, 16), (2, 16), (2, 8)))
    sink = torch.randn(6)
    cache = make_cache(
        pattern, batch=2, heads=6, kv_heads=2, head_dim=16, value_head_dim=8, dtype=dtype
    )
    with rs.use(backend=backend):
        out = torch.cat(
            [
                cache.attend(q, k, v, sink=sink)
                for q, k, v in zip(
                    *(x.split((150, 1, 1, 30, 1, 100, 50), 1) for x in (query, key, value)),
                    strict=True,
                )
            ],
            dim=1,
        )
    m = multiplicity.dilated(
        333, 6, 2, pattern.segment_lengths, pattern.dilation_rates, "query", causal=True
    )
    assert_exact({"out": out}, yardstick(query, key, value, m, sink=sink))


def test_the_demos_model_generates_what_its_full_forward_says_beyond_its_context() -> None:
    model = awake(ByteModel(SETTINGS)).double()
    prompt = torch.randint(256, (2, 200))
    tokens = generate(model, prompt, max_new_tokens=120)
    with torch.no_grad():
        assert torch.equal(tokens[:, 200:], model(tokens)[:, 199:-1].argmax(-1))


def test_the_text_alone_goes_to_the_output_and_a_seed_decides_it(run: Path) -> None:
    first, again, other = (
        ringspan_generate(str(run), "--prompt", "def f", "--length", "60", "--seed", seed)
        for seed in ("1", "1", "2")
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.decode().startswith("def f")
    assert first.stdout == again.stdout
    assert first.stdout != other.stdout
    assert b"\x1b" not in first.stdout
    assert first.stderr.startswith(b"60 bytes in ")
    assert b"rows per head" in first.stderr
    assert first.stderr.count(b"\n") == 1


def test_a_prompt_may_have_lines_and_any_letters(run: Path) -> None:
    prompt = "größer\n\tals ∞:"
    process = ringspan_generate(str(run), "--prompt", prompt, "--length", "0")
    assert process.returncode == 0, process.stderr
    assert process.stdout.decode().expandtabs() == f"{prompt}\n".expandtabs()


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are POSIX's")
def test_on_a_terminal_a_bar_shows_the_progress(run: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*GENERATE, str(run), "--length", "300"],
        env=ENVIRONMENT | {"TERM": "xterm"},
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"Writing" in shown
    assert b"/300" in shown
    assert b"bytes/s" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_an_interrupt_keeps_what_is_written_and_shows_no_traceback(run: Path) -> None:
    process = subprocess.Popen(
        [*GENERATE, str(run), "--prompt", "first\nsecond", "--length", "10000000"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert output.startswith(b"second")
    assert output.endswith(b"\n")
    assert told.startswith(b"Stopped after ")
    assert told.count(b"\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["{folder}/nothing"], "run: expected a folder with a run of `ringspan demo`"),
        (["{folder}"], "checkpoint: expected a checkpoint of `ringspan demo`"),
        (["{run}", "--prompt", ""], "prompt: expected at least one character"),
        (["{run}", "--length", "-1"], "length: expected an integer >= 0, got -1"),
        (["{run}", "--temperature", "-1"], "temperature: expected a finite number >= 0"),
        (["{run}", "--top-k", "0"], "top_k: expected an integer >= 1, got 0"),
        (["{run}", "--seed", "-1"], "seed: expected an integer >= 0, got -1"),
    ],
)
def test_bad_input_is_one_line(run: Path, tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / checkpoint.FILE_NAME).write_text("not a checkpoint")
    process = ringspan_generate(*(each.format(run=run, folder=tmp_path) for each in options))
    assert process.returncode == 2
    assert words in process.stderr.decode()
    assert process.stderr.count(b"\n") == 1
    assert process.stdout == b""
