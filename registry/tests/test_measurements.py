"""Measured times outlive their process, and no file can stop a choice."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ringspan_registry import (
    CandidateState,
    CannotMeasure,
    ConfigurationError,
    Decision,
    DeviceInfo,
    Provider,
    Registry,
    autotune,
    measurements,
)
from ringspan_registry.measurements import MeasurementFile, Subject, default_path, text_of

House = Callable[..., Registry]
Install = Callable[..., Path]
Source = Callable[..., str]

SUBJECT = Subject(
    kind="cook",
    problem="4",
    shape="",
    device="a CPU",
    compute_capability="",
    driver="",
    software="torch 2",
    provider="anna",
    distribution="house-anna 1.5",
    kernel="",
)
SECONDS = {"anna": 3.0, "bert": 2.0, "chef": 1.0}


class Clock:
    """A measuring function that notes whom it measured."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds or SECONDS
        self.measured: list[str] = []

    def __call__(self, provider: Provider) -> float:
        self.measured.append(provider.name)
        return self.seconds[provider.name]


@pytest.fixture
def tuned(house: House, install: Install, cook_source: Source) -> House:
    """A house of anna, bert and chef that measures first runs."""
    for name in SECONDS:
        install(name, cook_source(name))
    return lambda **environ: house(autotune="first-run", **environ)


@pytest.fixture
def times(tmp_path: Path) -> Path:
    """Where the house keeps its times."""
    return tmp_path / "times.json"


def reasons(decision: Decision) -> dict[str, str]:
    return {each.name: "; ".join(each.reasons) for each in decision.candidates}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_later_process_finds_the_times_of_an_earlier_one(tuned: House, cpu: DeviceInfo) -> None:
    first, later = Clock(), Clock()
    assert reasons(tuned().select("cook", 4, cpu, measure=first)) == {
        "chef": "measured 1 s (measured now)",
        "bert": "measured 2 s, chef 1 s (measured now)",
        "anna": "measured 3 s, chef 1 s (measured now)",
    }
    decision = tuned().select("cook", 4, cpu, measure=later)
    assert decision.chosen == "chef"
    assert reasons(decision)["chef"] == "measured 1 s (cached)"
    assert reasons(decision)["bert"] == "measured 2 s, chef 1 s (cached)"
    assert sorted(first.measured) == sorted(SECONDS)
    assert later.measured == []


def test_who_is_new_is_measured_alone_and_each_time_says_where_it_is_from(
    tuned: House, install: Install, cook_source: Source, cpu: DeviceInfo
) -> None:
    tuned().select("cook", 4, cpu, measure=Clock())
    install("dora", cook_source("dora"))
    clock = Clock(dora=0.5)
    decision = tuned().select("cook", 4, cpu, measure=clock)
    assert clock.measured == ["dora"]
    assert reasons(decision)["dora"] == "measured 0.5 s (measured now)"
    assert reasons(decision)["chef"] == "measured 1 s (cached), dora 0.5 s (measured now)"


def test_a_problem_a_shape_and_a_device_are_measured_apart(tuned: House, cpu: DeviceInfo) -> None:
    registry = tuned()
    gpu = DeviceInfo(type="cuda", index=0, name="H", compute_capability=(9, 0), driver="550")
    for problem, device, shape in [
        (4, cpu, None),
        (5, cpu, None),
        (4, cpu, (1, 2)),
        (4, cpu, (1, 3)),
        (4, gpu, None),
        (4, replace(gpu, driver="560"), None),
        (4, replace(gpu, compute_capability=(9, 1)), None),
    ]:
        clock = Clock()
        registry.select("cook", problem, device, measure=clock, shape=shape)
        assert len(clock.measured) == 3
    again = Clock()
    registry.select("cook", 4, cpu, measure=again, shape=(1, 3), requested="auto")
    registry.select("cook", 4, replace(gpu, index=1), measure=again)
    assert again.measured == []


def test_without_autotune_a_shape_makes_no_decision_of_its_own(
    house: House, install: Install, cook_source: Source, cpu: DeviceInfo, times: Path
) -> None:
    install("anna", cook_source("anna"))
    install("bert", cook_source("bert"))
    registry, clock = house(autotune="off"), Clock()
    one = registry.select("cook", 4, cpu, measure=clock, shape=1, insist="bert")
    assert one is registry.select("cook", 4, cpu, measure=clock, shape=2)
    assert one.chosen == "anna"
    assert clock.measured == []
    assert not times.exists()


def test_a_kernel_of_another_version_is_measured_again(
    tuned: House, install: Install, cook_source: Source, cpu: DeviceInfo, tmp_path: Path
) -> None:
    body = "def probe(self, device):\n    return Availability.yes(version='{}')"
    site = install("dora", cook_source("dora", body=body.format("1.0")))
    clock = Clock(**SECONDS, dora=9.0)
    tuned().select("cook", 4, cpu, measure=clock)
    (site / "house_dora.py").write_text(
        (site / "house_dora.py").read_text().replace("1.0", "11.0")  # another size: no stale .pyc
    )
    sys.modules.pop("house_dora")
    again = Clock(**SECONDS, dora=9.0)
    tuned().select("cook", 4, cpu, measure=again)
    assert again.measured == ["dora"]


def test_other_software_has_other_times(
    tuned: House, cpu: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned().select("cook", 4, cpu, measure=Clock())
    monkeypatch.setattr("ringspan_registry.registry.software", lambda _: "torch 3")
    clock = Clock()
    tuned().select("cook", 4, cpu, measure=clock)
    assert len(clock.measured) == 3


def test_the_software_is_torch_and_what_it_stands_on() -> None:
    import torch

    told = autotune.software("cpu")
    assert f"torch {torch.__version__}" in told
    assert f"threads {torch.get_num_threads()}" in told
    assert "threads" not in autotune.software("cuda")


def test_one_who_cannot_be_measured_is_faulty_and_nothing_is_kept_of_it(
    tuned: House, cpu: DeviceInfo, times: Path
) -> None:
    def measure(provider: Provider) -> float:
        return float("nan") if provider.name == "chef" else SECONDS[provider.name]

    decision = tuned().select("cook", 4, cpu, measure=measure)
    assert decision.chosen == "bert"
    assert (
        "being measured raised ValueError: expected seconds, got nan" in reasons(decision)["chef"]
    )
    assert {subject.provider for subject in MeasurementFile(times).read()} == {"anna", "bert"}


def test_where_nothing_can_be_measured_the_call_is_told_and_nobody_is_at_fault(
    tuned: House, cpu: DeviceInfo
) -> None:
    def refuse(provider: Provider) -> float:
        raise CannotMeasure("autotune", expected="another moment", got="this one")

    registry = tuned()
    with pytest.raises(CannotMeasure):
        registry.select("cook", 4, cpu, measure=refuse)
    assert registry.select("cook", 4, cpu, measure=Clock()).chosen == "chef"
    assert registry.select("cook", 4, cpu, measure=refuse, requested="auto").chosen == "chef"


def test_what_another_rank_measured_wins_and_nothing_is_measured_here(
    tuned: House, cpu: DeviceInfo
) -> None:
    registry, clock = tuned(), Clock()
    decision = registry.select("cook", 4, cpu, measure=clock, insist="bert")
    assert decision.chosen == "bert"
    assert reasons(decision)["bert"] == "chosen by rank 0's measurement"
    assert reasons(decision)["chef"] == "bert was chosen by rank 0's measurement"
    assert clock.measured == []
    assert registry.select("cook", 4, cpu, insist="anna").chosen == "anna"
    assert registry.select("cook", 4, cpu, measure=clock).chosen == "chef"


def test_what_another_rank_measured_wins_among_eligible_rivals_alone(
    tuned: House, install: Install, cook_source: Source, cpu: DeviceInfo
) -> None:
    away = "def probe(self, device):\n    return Availability.no('away until May')"
    install("dora", cook_source("dora", body=away))
    registry = tuned()
    decision = registry.select("cook", 4, cpu, insist="dora")
    assert decision.chosen == "anna"
    assert "rank 0" not in str(decision)
    ordered = registry.select("cook", 4, cpu, insist="anna", requested=["bert", "auto"])
    assert ordered.chosen == "bert"


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"null",
        b'{"measurements": []}',
        b'{"schema": "ringspan.autotune/99", "measurements": []}',
        b'{"schema": "ringspan.autotune/1", "measurements": 7}',
        b'{"schema": "ringspan.autotune/1", "measurements": [{"seconds": 1}]}',
        b'{"schema": "ringspan.autotune/1", "measurements": [[1, 2]]}',
        b'{"schema": "ringspan.autotune/1"',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_not_ours_is_warned_about_once_and_never_touched(
    tuned: House, cpu: DeviceInfo, times: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    times.write_bytes(content)
    registry, clock = tuned(), Clock()
    for problem in (4, 5, 4):
        assert registry.select("cook", problem, cpu, measure=clock).chosen == "chef"
    assert len(clock.measured) == 6
    (warning,) = warnings(caplog)
    assert str(times) in warning
    assert "autotune_file" in warning
    assert times.read_bytes() == content


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-1", '"soon"', "null"])
def test_a_file_with_times_that_are_none_is_not_ours(times: Path, seconds: str) -> None:
    MeasurementFile(times).add({SUBJECT: 1.0})
    times.write_text(times.read_text().replace("1.0", seconds))
    with pytest.raises(ConfigurationError, match="measured times that Ringspan wrote"):
        MeasurementFile(times).read()


@pytest.mark.parametrize("content", [b"", b"  \n"])
def test_an_empty_file_holds_no_times_and_is_written(
    tuned: House, cpu: DeviceInfo, times: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    times.write_bytes(content)
    tuned().select("cook", 4, cpu, measure=Clock())
    assert len(MeasurementFile(times).read()) == 3
    assert warnings(caplog) == []


def test_a_place_that_cannot_be_written_is_warned_about_once(
    tuned: House, cpu: DeviceInfo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "times.json"):
        caplog.clear()
        registry = tuned(autotune_file=str(place))
        for problem in (4, 5):
            assert registry.select("cook", problem, cpu, measure=Clock()).chosen == "chef"
        (warning,) = warnings(caplog)
        assert "kept in memory alone" in warning
        assert str(place) in warning


def test_a_disk_that_is_full_leaves_the_file_as_it_was(
    times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MeasurementFile(times)
    file.add({SUBJECT: 1.0})
    before = times.read_bytes()

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            file.add({replace(SUBJECT, provider="bert"): 1.0})
    assert times.read_bytes() == before
    assert {path.name for path in times.parent.iterdir()} == {"times.json", ".times.json.lock"}


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from ringspan_registry.measurements import MeasurementFile, Subject
file = MeasurementFile(Path(sys.argv[1]))
for turn in range(20):
    subject = Subject("cook", str(turn), "", "", "", "", "", sys.argv[2], "", "")
    file.add({subject: float(turn)})
"""


def test_processes_that_write_at_once_lose_nothing_and_never_leave_half_a_file(
    times: Path,
) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(times), name])
        for name in ("anna", "bert", "chef")
    ]
    file = MeasurementFile(times)
    while any(writer.poll() is None for writer in writers):
        file.read()  # raises where it is not whole
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(file.read()) == 60


def test_another_who_never_lets_go_of_the_file_does_not_stop_a_writer(
    times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="locks of POSIX")
    monkeypatch.setattr(measurements, "_PATIENCE_SECONDS", 0.05)
    with (times.parent / ".times.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        MeasurementFile(times).add({SUBJECT: 1.0})
    assert MeasurementFile(times).read() == {SUBJECT: 1.0}


def test_where_the_system_has_no_locks_files_are_written_all_the_same(
    times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    MeasurementFile(times).add({SUBJECT: 1.0})
    assert MeasurementFile(times).read() == {SUBJECT: 1.0}


def test_a_file_keeps_the_newest_times(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "_MOST", 2)
    file, (a, b, c) = MeasurementFile(times), (replace(SUBJECT, problem=each) for each in "abc")
    file.add({a: 1.0, b: 2.0})
    file.add({a: 3.0})
    file.add({c: 4.0})
    assert file.read() == {a: 3.0, c: 4.0}


def test_clearing_says_how_many_times_there_were(times: Path) -> None:
    file = MeasurementFile(times)
    assert file.clear() == 0
    file.add({SUBJECT: 1.0, replace(SUBJECT, problem="5"): 2.0})
    assert file.clear() == 2
    assert file.read() == {}
    times.write_text("my diary")
    with pytest.raises(ConfigurationError):
        file.clear()
    assert times.read_text() == "my diary"


def test_the_file_is_in_the_users_folder_of_caches_unless_a_setting_moves_it(
    house: House, times: Path
) -> None:
    place = Path(platformdirs.user_cache_dir("house")) / "autotune.json"
    assert default_path("house") == place
    assert house(autotune_file="").measurements().path == place
    assert house().measurements().path == times
    assert house(autotune_file="~/times").measurements().path == Path.home() / "times"


@dataclass(frozen=True)
class Table:
    seats: int
    state: CandidateState = CandidateState.ELIGIBLE
    seen: int = field(default=0, compare=False)
    hidden: int = field(default=0, repr=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (4, "4"),
        ("full", "full"),
        (CandidateState.CHOSEN, "chosen"),
        ((1, "a"), "(1, a)"),
        (frozenset({"b", "a"}), "{a, b}"),
        (Table(4, seen=9), "Table(seats=4, state=eligible)"),
    ],
)
def test_words_for_values_are_the_same_in_every_process(value: object, text: str) -> None:
    assert text_of(value) == text


@given(st.dictionaries(st.text(), st.floats(0, 1e9)))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory,
                                  seconds: dict[str, float]) -> None:  # fmt: skip
    file = MeasurementFile(tmp_path_factory.mktemp("times") / "deep" / "er" / "times.json")
    written = {replace(SUBJECT, problem=problem): value for problem, value in seconds.items()}
    file.add(written)
    assert file.read() == written
    assert json.loads(file.path.read_text())["schema"] == "ringspan.autotune/1"
