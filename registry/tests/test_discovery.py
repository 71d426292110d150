"""Every rule of discovery, with distributions that are really installed."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ringspan_registry import (
    DeviceInfo,
    DuplicateProvider,
    PluginRecord,
    PluginState,
    Registry,
    UnknownProvider,
)

House = Callable[..., Registry]
Install = Callable[..., Path]
Source = Callable[..., str]


def record(registry: Registry, name: str) -> PluginRecord:
    return next(found for found in registry.plugins() if found.name == name)


def assert_faulty_alone(registry: Registry, cpu: DeviceInfo, *reasons: str) -> None:
    """The plugin `bad` is faulty for these reasons, and `good` serves as if it were not there."""
    bad = record(registry, "bad")
    assert bad.state is PluginState.FAULTY
    for reason in reasons:
        assert reason in bad.reason
    assert "house-bad" in bad.remedy
    assert "HOUSE_BLOCKED=bad" in bad.remedy
    assert "Traceback" in bad.traceback or "Error" in bad.traceback
    assert bad.providers == ()
    assert record(registry, "good").state is PluginState.LOADED
    assert registry.select("cook", None, cpu).chosen == "anna"


@pytest.fixture
def good(install: Install, cook_source: Source) -> None:
    install("good", cook_source("anna"))


def test_a_plugin_is_recorded_with_its_distribution_version_and_providers(
    install: Install, house: House, cook_source: Source
) -> None:
    install("kitchen", cook_source("anna", "bert"), distribution="fine-kitchens")
    found = record(house(), "kitchen")
    assert (found.distribution, found.version) == ("fine-kitchens", "1.5")
    assert found.state is PluginState.LOADED
    assert found.providers == (("cook", "anna"), ("cook", "bert"))
    assert found.reason == found.remedy == found.traceback == ""


def test_nothing_is_imported_before_the_first_question(
    install: Install, house: House, cook_source: Source
) -> None:
    install("kitchen", cook_source("anna"))
    registry = house()
    assert "house_kitchen" not in sys.modules
    registry.names("cook")
    assert "house_kitchen" in sys.modules


@pytest.mark.parametrize("blocked", ["bad", "house-bad", "House_Bad"])
@pytest.mark.usefixtures("good")
def test_a_blocked_plugin_is_not_imported(
    install: Install, house: House, tmp_path: Path, blocked: str
) -> None:
    proof = tmp_path / "imported"
    install("bad", f"open({str(proof)!r}, 'w').close()")
    registry = house(blocked=blocked)
    found = record(registry, "bad")
    assert found.state is PluginState.BLOCKED
    assert "house_bad" not in sys.modules
    assert not proof.exists()
    assert registry.names("cook") == ("anna",)


@pytest.mark.usefixtures("good")
def test_a_plugin_that_cannot_be_imported_is_faulty_alone(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("bad", "import a_module_that_nobody_has")
    assert_faulty_alone(
        house(), cpu, "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"
    )


@pytest.mark.usefixtures("good")
def test_a_plugin_that_exits_at_import_is_faulty_alone(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("bad", "raise SystemExit('no licence')")
    assert_faulty_alone(house(), cpu, "SystemExit: no licence")


@pytest.mark.usefixtures("good")
def test_an_interrupt_during_an_import_is_not_swallowed(install: Install, house: House) -> None:
    install("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        house().plugins()


@pytest.mark.usefixtures("good")
def test_a_plugin_whose_module_does_not_exist_is_faulty_alone(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    site = install("bad", "")
    (site / "house_bad.py").unlink()
    assert_faulty_alone(house(), cpu, "No module named 'house_bad'")


@pytest.mark.usefixtures("good")
def test_a_distribution_with_malformed_entry_points_is_faulty_alone(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    site = install("bad", "")
    (table,) = site.glob("*.dist-info/entry_points.txt")
    table.write_text("[house]\nthis line has no equals sign\n")
    registry = house()
    assert record(registry, "house-bad").state is PluginState.FAULTY
    assert registry.select("cook", None, cpu).chosen == "anna"


@pytest.mark.usefixtures("good")
def test_a_hook_that_raises_makes_its_plugin_faulty_alone(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("bad", "@hookimpl\ndef house_cooks():\n    raise OSError('the kitchen is on fire')")
    assert_faulty_alone(house(), cpu, "house_cooks raised OSError: the kitchen is on fire")


@pytest.mark.usefixtures("good")
def test_a_misspelt_hook_makes_its_plugin_faulty_and_lists_the_known_hooks(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("bad", "@hookimpl\ndef house_cookz():\n    return []")
    assert_faulty_alone(
        house(),
        cpu,
        "unknown hook house_cookz (known: house_cooks, house_drivers)",
        "Did you mean 'house_cooks'?",
    )


@pytest.mark.usefixtures("good")
def test_a_hook_with_an_argument_nobody_passes_is_faulty(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("bad", "@hookimpl\ndef house_cooks(salary):\n    return []")
    assert_faulty_alone(house(), cpu, "house_cooks", "salary")


@pytest.mark.usefixtures("good")
def test_a_plugin_that_forgot_the_hook_marker_is_faulty(
    install: Install, house: House, cpu: DeviceInfo
) -> None:
    install("bad", "def house_cooks():\n    return []")
    assert_faulty_alone(house(), cpu, "no hook marked with hookimpl", "house_cooks, house_drivers")


@pytest.mark.usefixtures("good")
def test_a_provider_for_another_api_version_makes_its_plugin_faulty(
    install: Install, house: House, cpu: DeviceInfo, cook_source: Source
) -> None:
    install("bad", cook_source("zoe", body="api_version = 99"))
    assert_faulty_alone(house(), cpu, "'zoe' has api_version 99 (expected 1)")


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("[object()]", "expected an instance of Cook"),
        ("[Driver0()]", "a Driver0 (expected an instance of Cook)"),
        ("[Driver0]", "the class Driver0"),
        ("None", ""),
        ("'anna'", "'anna' (expected a list of providers)"),
        ("7", "7 (expected a list of providers)"),
    ],
)
@pytest.mark.usefixtures("good")
def test_a_hook_that_returns_something_else_than_its_providers_is_faulty(
    install: Install,
    house: House,
    cpu: DeviceInfo,
    driver_source: Source,
    returned: str,
    reason: str,
) -> None:
    hook = f"\n@hookimpl\ndef house_cooks():\n    return {returned}\n"
    install("bad", driver_source("dora") + hook)
    if returned == "None":  # pluggy's way to say "nothing from me"
        assert record(house(), "bad").providers == (("driver", "dora"),)
    else:
        assert_faulty_alone(house(), cpu, "house_cooks", reason)


@pytest.mark.parametrize("name", ["auto", "", "anna,bert", "two words"])
@pytest.mark.usefixtures("good")
def test_a_provider_whose_name_cannot_be_configured_makes_its_plugin_faulty(
    install: Install, house: House, cpu: DeviceInfo, cook_source: Source, name: str
) -> None:
    install("bad", cook_source(name))
    assert_faulty_alone(house(), cpu, f"named {name!r}")


@pytest.mark.usefixtures("good")
def test_settings_that_are_no_pydantic_model_make_their_plugin_faulty(
    install: Install, house: House, cpu: DeviceInfo, cook_source: Source
) -> None:
    install("bad", cook_source("zoe", body="settings = {'salary': 1}"))
    assert_faulty_alone(house(), cpu, "settings {'salary': 1} (expected a pydantic model)")


@pytest.mark.usefixtures("good")
def test_a_plugin_with_one_name_twice_is_faulty(
    install: Install, house: House, cpu: DeviceInfo, cook_source: Source
) -> None:
    install("bad", cook_source("zoe", "zoe"))
    assert_faulty_alone(house(), cpu, "two providers named 'zoe'")


@pytest.mark.usefixtures("good")
def test_a_faulty_plugin_is_logged_once(
    install: Install, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    install("bad", "raise ValueError('broken')")
    registry = house()
    registry.plugins()
    registry.plugins()
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "ValueError: broken" in warning.getMessage()


def test_a_slow_plugin_works_and_one_warning_says_how_to_block_it(
    install: Install, house: House, cook_source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    install("slow", "import time\ntime.sleep(0.2)\n" + cook_source("anna"))
    registry = house(slow_seconds=0.1)
    found = record(registry, "slow")
    assert found.state is PluginState.LOADED
    assert found.import_seconds > 0.1
    assert "s to import" in found.reason
    assert registry.names("cook") == ("anna",)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "'slow'" in warning.getMessage()
    assert "HOUSE_BLOCKED=slow" in warning.getMessage()


def test_a_quick_plugin_is_not_warned_about(
    install: Install, house: House, cook_source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    install("quick", cook_source("anna"))
    assert record(house(slow_seconds=60.0), "quick").reason == ""
    assert caplog.records == []


@pytest.fixture
def two_annas(install: Install, cook_source: Source, driver_source: Source) -> None:
    install("left", cook_source("anna", "bert"))
    install("right", cook_source("anna"))
    install("garage", driver_source("dora"))


@pytest.mark.usefixtures("two_annas")
def test_a_name_offered_twice_is_an_error_naming_both_distributions(
    house: House, cpu: DeviceInfo
) -> None:
    registry = house()
    for use in (
        lambda: registry.select("cook", None, cpu),
        lambda: registry.select("cook", None, cpu, requested="bert"),
        lambda: registry.provider("cook", "anna"),
    ):
        with pytest.raises(DuplicateProvider, match="'anna'") as raised:
            use()
        assert "house-left" in raised.value.got
        assert "house-right" in raised.value.got


@pytest.mark.usefixtures("two_annas")
def test_a_name_offered_twice_leaves_other_kinds_and_the_list_of_plugins_alone(
    house: House, cpu: DeviceInfo
) -> None:
    registry = house()
    assert registry.select("driver", None, cpu).chosen == "dora"
    assert registry.names("cook") == ("anna", "bert")
    assert "house-right" in record(registry, "left").reason
    assert "HOUSE_BLOCKED=left" in record(registry, "right").remedy
    assert record(registry, "garage").reason == ""
    anna = registry.probe("cook", "anna", cpu)
    assert not anna.usable
    assert "house-left" in anna.reason
    assert registry.probe("cook", "bert", cpu).usable


@pytest.mark.usefixtures("two_annas")
def test_blocking_one_of_two_equal_names_is_the_remedy(house: House, cpu: DeviceInfo) -> None:
    with pytest.raises(DuplicateProvider, match="HOUSE_BLOCKED=right"):
        house().select("cook", None, cpu)
    assert house(blocked="right").select("cook", None, cpu).distribution == "house-left"


def test_two_distributions_with_the_same_plugin_name_clash_until_one_is_blocked(
    install: Install, house: House, cook_source: Source, driver_source: Source, cpu: DeviceInfo
) -> None:
    install("kitchen", cook_source("anna"), distribution="fine-kitchens", module="house_fine")
    install("kitchen", cook_source("bert"), distribution="poor-kitchens", module="house_poor")
    install("garage", driver_source("dora"))
    registry = house()
    with pytest.raises(DuplicateProvider, match="plugin 'kitchen'") as raised:
        registry.select("cook", None, cpu)
    assert "fine-kitchens" in str(raised.value)
    assert "HOUSE_BLOCKED=poor-kitchens" in str(raised.value)
    assert registry.select("driver", None, cpu).chosen == "dora"
    assert house(blocked="poor-kitchens").select("cook", None, cpu).chosen == "anna"


def test_a_copy_of_a_distribution_further_back_on_the_path_is_shadowed(
    install: Install,
    house: House,
    cook_source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = install("kitchen", cook_source("anna"))
    copy = tmp_path / "copy" / "house_kitchen-0.1.dist-info"
    copy.mkdir(parents=True)
    (copy / "METADATA").write_text("Metadata-Version: 2.1\nName: House_Kitchen\nVersion: 0.1\n")
    (copy / "entry_points.txt").write_text("[house]\nkitchen = house_kitchen\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path, str(copy.parent)])
    assert [found.version for found in house().plugins()] == ["1.5"]


def test_a_plugin_that_asks_the_registry_while_it_is_imported_is_faulty_alone(
    install: Install, house: House, cook_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good", cook_source("anna"))
    install("bad", "import house_contracts\nhouse_contracts.registry.names('cook')")
    registry = house()
    monkeypatch.setattr(sys.modules["house_contracts"], "registry", registry, raising=False)
    assert "while plugins are being loaded" in record(registry, "bad").reason
    assert registry.names("cook") == ("anna",)


def test_threads_that_ask_at_once_import_a_plugin_once(
    install: Install, house: House, cook_source: Source
) -> None:
    count = "import house_contracts, time\nhouse_contracts.calls.append(1)\ntime.sleep(0.05)\n"
    install("kitchen", cook_source("anna").replace("    return [", f"{_indent(count)}    return ["))
    calls: list[int] = []
    sys.modules["house_contracts"].calls = calls  # type: ignore[attr-defined]
    registry = house()
    threads = [threading.Thread(target=registry.plugins) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def _indent(source: str) -> str:
    return "".join(f"    {line}\n" for line in source.splitlines())


@pytest.mark.usefixtures("good")
def test_an_unknown_name_lists_the_known_ones_and_the_plugins_that_failed(
    install: Install, house: House
) -> None:
    install("bad", "raise ValueError('broken')")
    install("idle", "raise AssertionError('imported')")
    registry = house(blocked="idle")
    with pytest.raises(UnknownProvider) as raised:
        registry.provider("cook", "ana")
    message = str(raised.value)
    assert "one of anna, good" in message
    assert "Did you mean 'anna'?" in message
    assert "'bad' of house-bad is faulty: ValueError: broken" in message
    assert "idle" not in message
    with pytest.raises(UnknownProvider, match="'idle' of house-idle is blocked"):
        registry.provider("cook", "idle")
