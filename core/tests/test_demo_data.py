"""The demo's text: where it comes from, what is held out, which window a step sees."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.demo import data
from ringspan.demo.data import (
    Text,
    held_out_windows,
    load_text,
    order0_entropy,
    training_windows,
)
from ringspan.demo.settings import Settings
from ringspan.errors import InvalidArgument


def text_of(length: int) -> Text:
    numbers = torch.arange(length).remainder(251).to(torch.uint8)
    return Text("numbers", numbers, numbers, "digest")


def write_files(folder: Path, names: list[str], size: int = 100) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode().ljust(size, b"."))


def test_the_standard_library_is_the_default_text_and_comes_out_equal_each_time() -> None:
    first, second = load_text((), context=1024), load_text((), context=1024)
    assert first.digest == second.digest
    assert len(first.training) > len(first.held_out) > 100_000
    assert len(first.training) <= data.TRAINING_BYTES


def test_no_file_is_on_both_sides(tmp_path: Path) -> None:
    names = [f"folder/file-{index}.txt" for index in range(200)]
    write_files(tmp_path, names)
    text = load_text((tmp_path,), context=64)
    sides = [bytes(part.tolist()) for part in (text.training, text.held_out)]
    for name in names:
        assert sum(name.encode() + b"." in side for side in sides) == 1
    assert 5 <= sides[1].count(b"file-") <= 40


def test_a_file_stays_on_its_side_wherever_its_folder_stands(tmp_path: Path) -> None:
    names = [f"file-{index}.txt" for index in range(200)]
    for place in ("here", "there"):
        write_files(tmp_path / place, names)
    here, there = (load_text((tmp_path / place,), context=64) for place in ("here", "there"))
    assert here.digest == there.digest


def test_one_file_is_cut_so_that_its_end_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(bytes(range(250)) * 10)
    text = load_text((path,), context=64)
    assert (
        bytes(text.training.tolist()) + bytes(text.held_out.tolist()) == path.read_bytes() + b"\n"
    )
    assert len(text.held_out) == 250


def test_hidden_and_binary_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    write_files(tmp_path, ["seen.txt", ".hidden/secret.txt", ".secret"], size=500)
    (tmp_path / "binary").write_bytes(b"secret\0")
    text = load_text((tmp_path,), context=64)
    assert b"secret" not in bytes(torch.cat([text.training, text.held_out]).tolist())


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_missing_empty_and_short_text_is_refused_by_name(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"--text: expected .* got"):
        load_text((path,), context=64)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="0 bytes"):
        load_text((tmp_path,), context=64)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are not those of POSIX")
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_text("text")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Rather than chmod, which does not stop the superuser.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidArgument, match="Permission denied"):
        load_text((path,), context=64)


@given(
    length=st.integers(65, 2000),
    batch=st.integers(1, 3),
    seed=st.integers(0, 5),
    step=st.integers(0, 50),
)
def test_windows_are_runs_of_the_text_and_a_function_of_seed_and_step(
    length: int, batch: int, seed: int, step: int
) -> None:
    settings = Settings(context=64, batch=batch, seed=seed)
    windows = training_windows(text_of(length), settings, step)
    assert windows.shape == (batch, 65)
    assert ((windows[:, 1:] - windows[:, :-1]) % 251 == 1).all()
    assert torch.equal(windows, training_windows(text_of(length), settings, step))


def test_no_window_comes_twice_before_every_window_came_once() -> None:
    settings = Settings(context=64)
    starts = [int(training_windows(text_of(251), settings, step)[0, 0]) for step in range(3)]
    assert len({start // 64 for start in starts}) == 3


@given(length=st.integers(65, 2000))
def test_held_out_windows_do_not_share_targets(length: int) -> None:
    windows = held_out_windows(text_of(length), 64)
    assert len(windows) == min(data.HELD_OUT_WINDOWS, (length - 1) // 64)
    targets = windows[:, 1:].flatten().long()
    assert torch.equal(targets, torch.arange(1, len(targets) + 1) % 251)


def test_order0_entropy_is_that_of_the_targets() -> None:
    windows = torch.tensor([[9, 0, 0, 1, 2]], dtype=torch.uint8)
    assert math.isclose(order0_entropy(windows), 1.5)
