"""The demo's training: exact resumption, whole files, Ctrl-C."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest
import torch
from ringspan.demo import checkpoint
from ringspan.demo.data import Text
from ringspan.demo.files import replacing
from ringspan.demo.interrupt import Interrupts
from ringspan.demo.settings import Settings
from ringspan.demo.train import Training, learning_rate
from ringspan.errors import InvalidArgument, RingspanError

pytestmark = pytest.mark.usefixtures("toy")

SETTINGS = Settings(steps=6, context=64, layers=1, width=16, heads=2)


@pytest.fixture
def text() -> Text:
    content = torch.randint(97, 107, (3000,), generator=torch.Generator().manual_seed(0))
    return Text("letters", content[:2000].byte(), content[2000:].byte(), "digest")


def trained(text: Text, settings: Settings = SETTINGS) -> Training:
    training = Training.begin(settings, text.digest)
    for _ in training.steps(text):
        pass
    return training


def assert_equal(first: Training, second: Training) -> None:
    assert first.losses == second.losses
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize("stop", range(SETTINGS.steps + 1))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    text: Text, tmp_path: Path, stop: int, dtype: str
) -> None:
    settings = dataclasses.replace(SETTINGS, dtype=dtype)
    path = tmp_path / "checkpoint.safetensors"
    started = Training.begin(settings, text.digest)
    if stop:
        for step in started.steps(text):
            if step.number == stop:
                break
    checkpoint.save(path, started)
    torch.manual_seed(1234)  # what else the process does must not matter
    resumed = checkpoint.load(path)
    for _ in resumed.steps(text):
        pass
    assert_equal(resumed, trained(text, settings))


def test_a_checkpoint_says_what_it_is(text: Text, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, trained(text))
    header = checkpoint.read_header(path)
    assert (header.settings, header.text_digest) == (SETTINGS, text.digest)
    assert header.finished
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="checkpoint: expected a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as fresh:
            fresh.write_text("half of the ne")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_ctrl_c_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_learns(text: Text) -> None:
    losses = trained(text, dataclasses.replace(SETTINGS, steps=60)).losses
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_not_finite_is_refused(text: Text) -> None:
    training = Training.begin(SETTINGS, text.digest)
    training.model.embedding.weight.data.fill_(float("nan"))
    with pytest.raises(RingspanError, match="at step 1"):
        next(training.steps(text))
    assert training.losses == []


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = Settings(steps=100, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("context", 100),
        ("context", 0),
        ("batch", 0),
        ("layers", 0),
        ("width", 100),
        ("heads", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("seed", -1),
        ("dtype", "float16"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
        dataclasses.replace(Settings(), **{name: value})


def test_settings_say_how_they_differ() -> None:
    other = dataclasses.replace(SETTINGS, steps=7, seed=3)
    assert SETTINGS.differences(other) == ["steps: 7, not 6", "seed: 3, not 0"]
    assert SETTINGS.differences(SETTINGS) == []
