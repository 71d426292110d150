"""The demo from end to end, with its real ring: small, but through the real command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import torch
from ringspan.demo import checkpoint
from ringspan.demo.data import held_out_windows, load_text, order0_entropy
from ringspan.demo.evaluate import bits_per_byte, summed_nats
from ringspan.demo.results import MOST_OF_ENTROPY
from ringspan.demo.settings import Settings
from ringspan.demo.train import Training

if TYPE_CHECKING:
    from pathlib import Path

DEMO = [sys.executable, "-m", "ringspan.cli", "demo"]
SMALL = ["--context", "512", "--layers", "2", "--width", "32", "--heads", "4"]
# One thread: the number of threads decides in which order sums are taken.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *SMALL, *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a whole run, with a ring of three."""
    out = tmp_path_factory.mktemp("demo") / "run"
    process = demo("--steps", "8", "--world-size", "3", "--out", str(out))
    assert process.returncode == 0, process.stderr
    return out, process.stdout


def test_the_ring_finds_the_same_loss_and_receives_the_planned_bytes(
    finished: tuple[Path, str],
) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    assert abs(results["ring_loss"] / results["held_out_loss"] - 1) <= 1e-5
    assert results["ring_bytes_received"] == results["planned_bytes_received"]
    assert len(results["ring_bytes_received"]) == 3
    assert sum(results["ring_bytes_received"]) > 0


def test_a_smaller_model_already_keeps_the_promise_on_the_standard_library() -> None:
    settings = Settings(
        steps=150, context=1024, batch=4, layers=1, width=64, heads=4, learning_rate=1e-2
    )
    text = load_text((), context=settings.context)
    training = Training.begin(settings, text.digest)
    for _ in training.steps(text):
        pass
    windows = held_out_windows(text, settings.context)
    loss = bits_per_byte(summed_nats(training.model, windows), windows)
    assert loss <= MOST_OF_ENTROPY * order0_entropy(windows)


def test_mixed_precision_follows_float32() -> None:
    text = load_text((), context=512)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        settings = Settings(steps=5, context=512, layers=1, width=32, heads=2, dtype=dtype)
        training = Training.begin(settings, text.digest)
        losses[dtype] = [step.bits_per_byte for step in training.steps(text)]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


def test_a_run_leaves_a_checkpoint_the_numbers_and_a_report(finished: tuple[Path, str]) -> None:
    assert names(finished[0]) == {"checkpoint.safetensors", "results.json", "report.html"}
    for word in ("bits/byte", "order-0 entropy", "ring of 3", "report.html"):
        assert word in finished[1]


def test_the_report_holds_everything_and_fetches_nothing(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text()
    images = re.findall(r'src="([^"]*)"', page)
    assert len(images) == 3
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert not re.search(r"https?:|<link|<script|url\(|@import", page)
    assert 'name="viewport"' in page
    for word in ("order-0 entropy", "sdpa-cpu", "communicator", "bytes received", "learning rate"):
        assert word in page


def test_the_report_is_well_formed(finished: tuple[Path, str]) -> None:
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed((finished[0] / "report.html").read_text())
    assert open_tags == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_an_interrupted_run_resumes_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    options = ("--steps", "80", "--world-size", "1")
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    process = subprocess.Popen(
        [*DEMO, *SMALL, *options, "--out", str(interrupted)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (interrupted / "checkpoint.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Go on with: ringspan demo --resume" in output
    assert names(interrupted) == {"checkpoint.safetensors"}

    resumed = demo(*options, "--resume", "--out", str(interrupted))
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on after step" in resumed.stdout
    assert demo(*options, "--out", str(whole)).returncode == 0
    first, second = (
        checkpoint.load(out / "checkpoint.safetensors") for out in (interrupted, whole)
    )
    assert first.losses == second.losses
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_other_settings_do_not_overwrite_an_unfinished_run(tmp_path: Path) -> None:
    settings = Settings(steps=3, context=512, layers=2, width=32, heads=4)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, Training.begin(settings, "another text"))
    before = path.read_bytes()
    process = demo("--steps", "4", "--out", str(tmp_path))
    assert process.returncode == 2
    assert "steps: 3, not 4; another text" in process.stderr
    assert "--fresh" in process.stderr
    assert path.read_bytes() == before
    assert names(tmp_path) == {path.name}


def test_a_failing_ring_is_one_clear_error_and_the_model_stays(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"RINGSPAN_COMMUNICATOR": "pigeon"}
    process = subprocess.run(
        [*DEMO, *SMALL, "--steps", "1", "--out", str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 2
    assert "pigeon" in process.stderr
    assert names(tmp_path / "run") == {"checkpoint.safetensors"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--text", "{folder}/nothing"], "--text: expected a file or folder"),
        (["--text", "{folder}/empty"], "--text: expected at least"),
        (["--steps", "0"], "steps: expected an integer >= 1, got 0"),
        (["--width", "33"], "width: expected a multiple of 8"),
        (["--dtype", "int8"], "dtype: expected float32 or bfloat16"),
        (["--world-size", "0"], "world_size: expected"),
        (["--resume"], "--resume: expected a run to go on with"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, options: list[str], word: str
) -> None:
    (tmp_path / "empty").touch()
    out = tmp_path / "run"
    process = demo(*(option.format(folder=tmp_path) for option in options), "--out", str(out))
    assert process.returncode == 2
    assert word in process.stderr
    assert process.stderr.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        process = demo("--out", str(tmp_path / out))
        assert process.returncode == 2
        assert "--out: expected a folder" in process.stderr
    assert (tmp_path / "file").read_text() == "mine"
