"""Who is chosen, and how every loser learns why."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ringspan_registry import (
    Candidate,
    CandidateState,
    ConfigurationError,
    Decision,
    DeviceInfo,
    Faulty,
    InvalidArgument,
    NoEligibleProvider,
    Provider,
    Registry,
    UnknownProvider,
)
from ringspan_registry.selection import Ranked, Wish, settle

House = Callable[..., Registry]
Install = Callable[..., Path]
Source = Callable[..., str]

HOPPER = DeviceInfo(type="cuda", index=0, name="NVIDIA H100", compute_capability=(9, 0))
FULL = "def reasons_against(self, problem):\n    yield f'{problem} guests (supported: 1..8)'"
AWAY = "def probe(self, device):\n    return Availability.no('away until May', remedy='Call again')"
BROKEN = "def probe(self, device):\n    raise RuntimeError('fell off the ladder')"


@dataclass(frozen=True)
class Dinner:
    guests: int
    style: CandidateState = CandidateState.ELIGIBLE
    tables: tuple[int, ...] = (4, 8)
    wines: frozenset[str] = frozenset({"red", "white"})
    menu: Path = Path("menu.txt")


def priority(value: object) -> str:
    return f"def priority(self, device):\n    return {value}"


def state_of(decision: Decision, name: str) -> Candidate:
    return next(each for each in decision.candidates if each.name == name)


@pytest.fixture
def kitchens(install: Install, cook_source: Source) -> None:
    """anna has priority 10 and bert 5; chef and cleo share a plugin and have 0."""
    install("anna", cook_source("anna", body=priority(10)))
    install("bert", cook_source("bert", body=priority(5)))
    install("school", cook_source("chef", "cleo"))


@pytest.mark.usefixtures("kitchens")
def test_auto_takes_the_highest_priority_and_says_why_the_others_lost(
    house: House, cpu: DeviceInfo
) -> None:
    decision = house().select("cook", 4, cpu)
    assert (decision.chosen, decision.plugin, decision.distribution, decision.version) == (
        "anna",
        "anna",
        "house-anna",
        "1.5",
    )
    assert (decision.requested, decision.source) == (("auto",), "default")
    assert [each.name for each in decision.candidates] == ["anna", "bert", "chef", "cleo"]
    assert decision.candidates[0].state is CandidateState.CHOSEN
    assert all(each.state is CandidateState.ELIGIBLE for each in decision.candidates[1:])
    assert state_of(decision, "bert").reasons == ("lower priority: 5, anna has 10",)


def test_equal_priorities_are_settled_by_name(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    install("school", cook_source("cleo", "chef"))
    decision = house().select("cook", 4, cpu)
    assert decision.chosen == "chef"
    assert state_of(decision, "cleo").reasons == (
        "same priority 0 as chef, which comes first by name",
    )


def test_priority_may_depend_on_the_device(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    install("anna", cook_source("anna", body=priority(1)))
    on_hopper = "def priority(self, device):\n    return 2 * (device.architecture == 'hopper')"
    install("bert", cook_source("bert", body=on_hopper))
    registry = house()
    assert registry.select("cook", 4, cpu).chosen == "anna"
    assert registry.select("cook", 4, HOPPER).chosen == "bert"


@pytest.mark.usefixtures("kitchens")
def test_a_rank_given_by_the_caller_replaces_priority(house: House, cpu: DeviceInfo) -> None:
    decision = house().select("cook", 4, cpu, rank_of=lambda provider: provider.name == "cleo")
    assert decision.chosen == "cleo"


@pytest.mark.usefixtures("kitchens")
def test_a_named_request_is_strict_and_leaves_the_others_unprobed(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    install("zoe", cook_source("zoe", body=BROKEN))
    decision = house().select("cook", 4, cpu, requested="bert")
    assert (decision.chosen, decision.source) == ("bert", "call")
    zoe = state_of(decision, "zoe")
    assert zoe.state is CandidateState.NOT_REQUESTED
    assert zoe.reasons == ("only bert may serve, from call",)


@pytest.mark.usefixtures("kitchens")
def test_a_plugins_name_means_all_its_providers(house: House, cpu: DeviceInfo) -> None:
    decision = house().select("cook", 4, cpu, requested="school")
    assert decision.chosen == "chef"
    assert state_of(decision, "cleo").state is CandidateState.ELIGIBLE
    assert state_of(decision, "anna").state is CandidateState.NOT_REQUESTED


@pytest.mark.usefixtures("kitchens")
def test_a_list_is_an_order_of_preference_and_strict_within(house: House, cpu: DeviceInfo) -> None:
    decision = house().select("cook", 4, cpu, requested=["cleo", "bert"])
    assert decision.chosen == "cleo"
    assert state_of(decision, "bert").reasons == ("cleo comes earlier in the requested order",)
    assert state_of(decision, "anna").state is CandidateState.NOT_REQUESTED


@pytest.mark.usefixtures("kitchens")
def test_auto_inside_a_list_stands_for_everybody_else(house: House, cpu: DeviceInfo) -> None:
    registry = house(cook="cleo,auto")
    decision = registry.select("cook", 4, cpu)
    assert (decision.chosen, decision.source) == ("cleo", "environment")
    assert [each.name for each in decision.candidates] == ["cleo", "anna", "bert", "chef"]
    last = registry.select("cook", 4, cpu, requested=["auto", "anna"])
    assert [each.name for each in last.candidates] == ["bert", "chef", "cleo", "anna"]


def test_every_reason_against_every_candidate_is_collected(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    picky = (
        "def reasons_against(self, problem):\n"
        "    yield f'{problem} guests (supported: 1..8)'\n"
        "    yield 'no fish (supported: fish)'"
    )
    install("anna", cook_source("anna", body=picky))
    install("bert", cook_source("bert", body=AWAY + "\n" + FULL))
    install("chef", cook_source("chef"))
    decision = house().select("cook", 12, cpu)
    assert decision.chosen == "chef"
    anna, bert = state_of(decision, "anna"), state_of(decision, "bert")
    assert anna.state is CandidateState.UNSUPPORTED
    assert anna.reasons == ("12 guests (supported: 1..8)", "no fish (supported: fish)")
    assert bert.state is CandidateState.UNAVAILABLE
    assert bert.reasons == ("away until May", "12 guests (supported: 1..8)")
    assert bert.remedy == "Call again"


def test_a_reason_that_probe_and_problem_share_is_given_once(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    same = "def reasons_against(self, problem):\n    return ['away until May']"
    install("anna", cook_source("anna", body=AWAY + "\n" + same))
    install("bert", cook_source("bert"))
    assert state_of(house().select("cook", 4, cpu), "anna").reasons == ("away until May",)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (BROKEN, "probe raised RuntimeError: fell off the ladder"),
        ("def probe(self, device):\n    return True", "expected an Availability, got True"),
        ("def reasons_against(self, problem):\n    return 1 / 0", "reasons_against raised ZeroDiv"),
        ("def reasons_against(self, problem):\n    return 'tired'", "the one string 'tired'"),
        ("def reasons_against(self, problem):\n    return [7]", "expected strings, got 7"),
        ("def priority(self, device):\n    return {}['x']", "priority raised KeyError"),
        (priority("None"), "priority raised TypeError: expected an integer, got None"),
        (priority("'high'"), "priority raised TypeError: expected an integer, got 'high'"),
        (priority("float('nan')"), "priority raised TypeError: expected an integer, got nan"),
    ],
)
def test_a_provider_that_raises_when_asked_is_faulty_and_another_one_serves(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo, body: str, reason: str
) -> None:
    install("anna", cook_source("anna", body=body))
    install("bert", cook_source("bert"))
    decision = house().select("cook", 4, cpu)
    assert decision.chosen == "bert"
    anna = state_of(decision, "anna")
    assert anna.state is CandidateState.FAULTY
    assert reason in anna.reasons[0]
    assert "Error" in anna.traceback


def test_a_probe_is_asked_once_per_device_and_its_exception_is_kept(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    counting = (
        "calls = []\ndef probe(self, device):\n    self.calls.append(device)\n    raise OSError"
    )
    install("anna", cook_source("anna", body=counting))
    registry = house()
    answers = [registry.probe("cook", "anna", device) for device in (cpu, HOPPER, cpu)]
    busy = replace(HOPPER, memory_free=1)
    registry.probe("cook", "anna", busy)
    assert registry.provider("cook", "anna").calls == [cpu, HOPPER]  # type: ignore[attr-defined]
    assert answers[0] is answers[2]
    assert isinstance(answers[0], Faulty)
    assert "OSError" in answers[0].traceback


def test_when_nobody_can_serve_every_reason_and_remedy_is_raised(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    install("anna", cook_source("anna", body=FULL))
    install("bert", cook_source("bert", body=AWAY))
    install("chef", cook_source("chef", body=BROKEN))
    with pytest.raises(NoEligibleProvider) as raised:
        house().select("cook", 12, cpu)
    message = str(raised.value)
    assert "anna: unsupported: 12 guests (supported: 1..8)" in message
    assert "bert: unavailable: away until May" in message
    assert "chef: faulty: probe raised RuntimeError: fell off the ladder" in message
    assert message.endswith(
        "Call again. Report this to the plugin's authors, with the traceback"
    ) or message.endswith("with the traceback. Call again")
    decision = raised.value.decision
    assert isinstance(decision, Decision)
    assert decision.chosen == ""
    assert {each.name for each in decision.candidates} == {"anna", "bert", "chef"}


def test_a_named_request_that_cannot_be_served_never_falls_back(
    install: Install, house: House, cook_source: Source, cpu: DeviceInfo
) -> None:
    install("anna", cook_source("anna", body=FULL))
    install("bert", cook_source("bert"))
    with pytest.raises(NoEligibleProvider) as raised:
        house(cook="anna").select("cook", 12, cpu)
    message = str(raised.value)
    assert "cook (from environment)" in message
    assert "12 guests (supported: 1..8)" in message
    assert "bert" not in message
    assert "Request 'auto' to let another cook serve" in message


def test_no_plugin_of_a_kind_at_all_says_what_failed_and_what_to_install(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("anna", "raise ValueError('broken')")
    with pytest.raises(NoEligibleProvider) as raised:
        house().select("driver", None, cpu)
    assert "'anna' of house-anna is faulty: ValueError: broken" in str(raised.value)
    assert "Install a plugin that offers a driver" in str(raised.value)


@pytest.mark.usefixtures("kitchens")
def test_an_unknown_name_in_a_list_is_an_error_that_says_where_it_came_from(
    house: House, cpu: DeviceInfo
) -> None:
    with pytest.raises(UnknownProvider, match=r"cook \(from environment\).*'anne'.*'anna'"):
        house(cook="bert,anne").select("cook", 4, cpu)


@pytest.mark.usefixtures("kitchens")
def test_a_plugins_name_is_not_one_provider_where_it_has_several(
    house: House, cpu: DeviceInfo
) -> None:
    registry = house()
    for use in (
        lambda: registry.provider("cook", "school"),
        lambda: registry.probe("cook", "school", cpu),
    ):
        with pytest.raises(UnknownProvider, match="one of chef, cleo"):
            use()
    assert registry.provider("cook", "bert").name == "bert"


@pytest.mark.parametrize("requested", ["", [], 7, ["anna", ""], [7]])
@pytest.mark.usefixtures("kitchens")
def test_a_request_that_is_not_a_name_is_an_invalid_argument(
    house: House, cpu: DeviceInfo, requested: object
) -> None:
    for kind in ("cook", "driver"):
        with pytest.raises(InvalidArgument, match=kind):
            house().select(kind, 4, cpu, requested=requested)  # type: ignore[arg-type]


@pytest.mark.usefixtures("kitchens")
def test_an_empty_list_in_a_file_is_a_configuration_error(
    house: House, cpu: DeviceInfo, tmp_path: Path
) -> None:
    (tmp_path / "house.toml").write_text("cook = []")
    with pytest.raises(ConfigurationError, match=r"house\.toml"):
        house().select("cook", 4, cpu)


@pytest.mark.usefixtures("kitchens")
def test_an_unknown_kind_lists_the_known_ones(house: House, cpu: DeviceInfo) -> None:
    with pytest.raises(InvalidArgument, match="cook, driver"):
        house().select("gardener", 4, cpu)


@pytest.mark.usefixtures("kitchens")
def test_a_new_decision_is_logged_once_with_winner_and_losers(
    house: House, cpu: DeviceInfo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ringspan")
    registry = house()
    assert registry.select("cook", 4, cpu) is registry.select("cook", 4, cpu)
    (line,) = (entry.getMessage() for entry in caplog.records)
    assert "cook 'anna' (house-anna 1.5) on a CPU for 4" in line
    assert "bert: eligible: lower priority: 5, anna has 10" in line
    assert "\n" not in line
    registry.select("cook", 5, cpu)
    assert len(caplog.records) == 2


@pytest.mark.usefixtures("kitchens")
def test_decisions_are_kept_apart_by_request_source_and_device(
    house: House, cpu: DeviceInfo
) -> None:
    registry = house()
    chosen = {
        registry.select("cook", 4, cpu),
        registry.select("cook", 4, cpu, requested="auto"),
        registry.select("cook", 4, HOPPER),
        registry.select("cook", 4, replace(HOPPER, index=1)),
    }
    assert len(chosen) == 2  # only requests and sources show in a decision
    assert registry.select("cook", 4, cpu).source == "default"
    assert registry.select("cook", 4, cpu, requested="auto").source == "call"


@pytest.mark.usefixtures("kitchens")
def test_with_autotune_the_fastest_eligible_provider_wins_and_is_measured_once(
    house: House, cpu: DeviceInfo
) -> None:
    seconds = {"anna": 3.0, "bert": 2.0, "chef": 1.0, "cleo": 4.0}
    measured: list[str] = []

    def measure(provider: Provider) -> float:
        measured.append(provider.name)
        return seconds[provider.name]

    registry = house(autotune="first-run")
    decision = registry.select("cook", 4, cpu, measure=measure)
    assert decision.chosen == "chef"
    assert state_of(decision, "bert").reasons == ("measured 2 s, chef 1 s (measured now)",)
    registry.select("cook", 4, cpu, measure=measure)
    registry.select("cook", 4, cpu, measure=measure, requested="auto")
    assert sorted(measured) == ["anna", "bert", "chef", "cleo"]
    assert house().select("cook", 4, cpu, measure=measure).chosen == "anna"


@pytest.mark.usefixtures("kitchens")
def test_configured_order_comes_before_measured_time_and_a_single_choice_is_not_measured(
    house: House, cpu: DeviceInfo
) -> None:
    def measure(provider: Provider) -> float:
        raise AssertionError("nothing to choose")

    registry = house(autotune="first-run")
    assert registry.select("cook", 4, cpu, measure=measure, requested=["bert", "auto"]).chosen == (
        "bert"
    )


@pytest.mark.usefixtures("kitchens")
def test_a_provider_that_raises_while_it_is_measured_is_faulty(
    house: House, cpu: DeviceInfo
) -> None:
    def measure(provider: Provider) -> float:
        if provider.name == "anna":
            raise MemoryError("too many guests")
        return 1.0

    decision = house(autotune="first-run").select("cook", 4, cpu, measure=measure)
    assert decision.chosen == "bert"
    assert state_of(decision, "anna").state is CandidateState.FAULTY
    assert "being measured raised MemoryError" in state_of(decision, "anna").reasons[0]


@pytest.mark.usefixtures("kitchens")
def test_a_decision_is_data_that_json_and_people_can_read(house: House) -> None:
    problem = Dinner(4)
    decision = house().select("cook", problem, HOPPER, requested=("bert", "auto"))
    data = json.loads(json.dumps(decision.as_dict()))
    assert data["problem"] == {
        "guests": 4,
        "style": "eligible",
        "tables": [4, 8],
        "wines": ["red", "white"],
        "menu": "menu.txt",
    }
    assert data["requested"] == ["bert", "auto"]
    assert data["candidates"][0]["state"] == "chosen"
    assert str(decision).splitlines()[:2] == [
        "cook: bert, requested bert, auto (from call)",
        "  bert: chosen",
    ]


@pytest.mark.usefixtures("kitchens")
def test_decisions_and_the_errors_that_carry_them_survive_pickling(house: House) -> None:
    decision = house().select("cook", Dinner(4), HOPPER)
    assert pickle.loads(pickle.dumps(decision)) == decision
    error = NoEligibleProvider("cook", expected="a cook", got="none", remedy="Hire one")
    error.decision = decision
    error.add_note("while dinner was served")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is NoEligibleProvider
    assert str(again) == str(error)
    assert again.decision == decision
    assert again.__notes__ == ["while dinner was served"]


@pytest.mark.usefixtures("kitchens")
def test_a_section_for_a_plugin_that_is_not_installed_is_warned_about(
    house: House, cpu: DeviceInfo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "house.toml").write_text("[plugins.ana]\nsalary = 1\n")
    house().select("cook", 4, cpu)
    (warning,) = caplog.records
    assert "plugins.ana in" in warning.getMessage()
    assert "Did you mean 'anna'?" in warning.getMessage()


SALARIED = """
import pydantic
class Salary(pydantic.BaseModel):
    salary: int = 0
"""


def test_a_section_is_validated_by_the_schema_that_the_plugins_providers_declare(
    install: Install, house: House, cook_source: Source, tmp_path: Path
) -> None:
    install("anna", SALARIED + cook_source("anna", "ada", body="settings = Salary"))
    file = tmp_path / "house.toml"
    file.write_text("[plugins.anna]\nsalary = 1\n")
    assert house().names("cook") == ("ada", "anna")
    file.write_text("[plugins.anna]\nsallary = 1\n")
    with pytest.raises(ConfigurationError, match=r"plugins.anna.sallary in .*house.toml") as raised:
        house().names("cook")
    assert "Did you mean 'salary'?" in str(raised.value)


@pytest.mark.parametrize(("content", "salary"), [("[plugins.anna]\nsalary = 7\n", 7), ("", 0)])
def test_a_provider_that_takes_settings_is_given_its_plugins_section(
    install: Install,
    house: House,
    cook_source: Source,
    tmp_path: Path,
    content: str,
    salary: int,
) -> None:
    install("anna", SALARIED + cook_source("anna", "ada", body="settings = Salary"))
    install("bert", cook_source("bert"))
    (tmp_path / "house.toml").write_text(content)
    registry = house()
    assert registry.provider("cook", "anna").section.salary == salary  # type: ignore[union-attr]
    assert registry.provider("cook", "ada").section.salary == salary  # type: ignore[union-attr]
    assert registry.provider("cook", "bert").section is None


@pytest.mark.usefixtures("kitchens")
@pytest.mark.parametrize("content", ["salary = 1\n", ""])
def test_a_section_for_a_plugin_without_settings_is_an_error_naming_it(
    house: House, tmp_path: Path, content: str
) -> None:
    (tmp_path / "house.toml").write_text(f"[plugins.bert]\n{content}")
    registry = house()
    for _ in range(2):
        with pytest.raises(ConfigurationError) as raised:
            registry.names("cook")
    message = str(raised.value)
    assert f"plugins.bert in {tmp_path}" in message
    assert "'bert' of house-bert" in message
    assert "takes no settings" in message
    (tmp_path / "house.toml").unlink()


def test_a_section_for_a_plugin_that_is_blocked_or_faulty_is_left_alone(
    install: Install, house: House, cook_source: Source, tmp_path: Path
) -> None:
    install("anna", cook_source("anna"))
    install("bert", "raise ValueError('broken')")
    (tmp_path / "house.toml").write_text("[plugins.anna]\nsalary = 1\n[plugins.bert]\npay = 2\n")
    assert house(blocked="anna").names("cook") == ()


@pytest.mark.usefixtures("kitchens")
def test_a_blocked_name_that_nobody_has_is_warned_about_once(
    house: House, cpu: DeviceInfo, caplog: pytest.LogCaptureFixture
) -> None:
    registry = house(blocked="House_Anna,bret,school")
    registry.select("cook", 4, cpu, requested="bert")
    registry.select("cook", 5, cpu, requested="bert")
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    message = warning.getMessage()
    assert message.startswith("blocked (from environment): no plugin or distribution named 'bret'")
    assert "Did you mean 'bert'?" in message


NAMES = ("anna", "bert", "chef", "cleo", "dora")


@st.composite
def contests(draw: st.DrawFn) -> list[Ranked]:
    states = st.sampled_from(
        [CandidateState.ELIGIBLE, CandidateState.UNSUPPORTED, CandidateState.FAULTY]
    )
    return [
        Ranked(
            Candidate(name, name, f"house-{name}", draw(states), reasons=("because",)),
            draw(st.none() | st.integers(0, 3)),
            draw(st.integers(-3, 3)),
        )
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True))
    ]


@given(contests(), st.randoms())
def test_the_winner_is_the_best_eligible_candidate_whatever_the_order_of_discovery(
    contest: list[Ranked], random: object
) -> None:
    contest = [
        replace(entry, candidate=replace(entry.candidate, state=CandidateState.NOT_REQUESTED))
        if entry.position is None
        else entry
        for entry in contest
    ]
    wish = Wish(("anna", "auto"), "call")
    settled = settle(contest, wish)
    shuffled = list(contest)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert settle(shuffled, wish) == settled
    eligible = [entry for entry in contest if entry.eligible]
    chosen = [each.name for each in settled if each.state is CandidateState.CHOSEN]
    if not eligible:
        assert chosen == []
        return
    best = min(eligible, key=lambda entry: (entry.position, -entry.priority, entry.candidate.name))
    assert chosen == [best.candidate.name]
    assert settled[0].name == best.candidate.name
    assert all(each.reasons for each in settled[1:])
