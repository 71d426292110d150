"""Where a setting comes from, and what happens to settings that nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan_registry import Configuration, ConfigurationError, InvalidArgument, Setting


class Settings(pydantic.BaseModel):
    cook: str | list[str] = "auto"
    blocked: list[str] = []
    autotune: bool = False
    mood: Literal["calm", "hasty"] = "calm"


class Oven(pydantic.BaseModel):
    degrees: int = 180
    fan: bool = False


Make = Callable[..., Configuration]


def configuration(root: Path, environ: Mapping[str, str]) -> Configuration:
    return Configuration(
        Settings,
        prefix="HOUSE",
        filename="house.toml",
        table="house",
        directory=root / "a" / "b",
        user_directory=root / "user",
        environ=environ,
        reserved={"HOUSE_KEY"},
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A configuration searched from `a/b`, with the user's file in `user`."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "user").mkdir()

    def make(**environ: str) -> Configuration:
        return configuration(tmp_path, {f"HOUSE_{key}": value for key, value in environ.items()})

    return make


LAYERS = ("call", "context", "environment", "project", "user", "default")


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.sampled_from(LAYERS[:-1])),
    st.sampled_from(["house.toml", "pyproject.toml"]),
    st.sampled_from(["", "a", "a/b"]),
)
def test_the_strongest_layer_that_sets_a_key_wins(
    present: set[str], filename: str, place: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "a" / "b").mkdir(parents=True)
        (root / "user").mkdir()
        project, user = root / place / filename, root / "user" / "house.toml"
        header = "[tool.house]\n" if filename == "pyproject.toml" else ""
        if "project" in present:
            project.write_text(f'{header}cook = "project"')
        if "user" in present:
            user.write_text('cook = "user"')
        found = configuration(
            root, {"HOUSE_COOK": "environment"} if "environment" in present else {}
        )
        call = "call" if "call" in present else None
        with found.use(**({"cook": "context"} if "context" in present else {})):
            setting = found.get("cook", call=call)
        winner = next(layer for layer in LAYERS if layer in {*present, "default"})
        sources = {"project": str(project), "user": str(user)}
        assert setting.source == sources.get(winner, winner)
        assert setting.value == ("auto" if winner == "default" else winner)


def test_layers_merge_key_by_key(make: Make, tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text('cook = ["anna", "auto"]')
    (tmp_path / "user" / "house.toml").write_text('cook = "bert"\nautotune = true')
    found = make(BLOCKED="dora")
    assert found.get("cook").value == ["anna", "auto"]
    assert found.get("autotune").value is True
    assert found.get("blocked") == Setting(["dora"], "environment")
    assert found.get("mood") == Setting("calm", "default")


def test_the_innermost_file_hides_the_outer_ones(make: Make, tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text("autotune = true")
    (tmp_path / "a" / "pyproject.toml").write_text('[tool.house]\ncook = "anna"')
    (tmp_path / "a" / "b" / "pyproject.toml").write_text("[tool.other]\n")
    found = make()
    assert found.get("cook").source == str(tmp_path / "a" / "pyproject.toml")
    assert found.get("autotune").value is False


def test_both_files_in_one_directory_are_an_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text("")
    (tmp_path / "pyproject.toml").write_text("[tool.house]\n")
    with pytest.raises(ConfigurationError, match="both in"):
        make().get("cook")


def test_somebody_elses_malformed_pyproject_is_none_of_our_business(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.other\n")
    assert make().get("cook").source == "default"


def test_a_folder_that_is_closed_to_us_holds_no_file(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_file(path: Path) -> bool:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert make().get("cook").source == "default"


def test_an_explicit_file_replaces_the_search(make: Make, tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text('cook = "anna"')
    explicit = tmp_path / "elsewhere.toml"
    explicit.write_text('cook = "bert"')
    assert make(CONFIG=str(explicit)).get("cook") == Setting("bert", str(explicit))


def test_an_explicit_file_that_does_not_exist_is_an_error(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: expected a readable file"):
        make(CONFIG=str(tmp_path / "nowhere.toml")).get("cook")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("manual", "manual"),
        (" manual ", "manual"),
        ("anna,bert", ["anna", "bert"]),
        ("anna, auto,", ["anna", "auto"]),
    ],
)
def test_commas_in_a_variable_make_a_list(make: Make, raw: str, value: object) -> None:
    assert make(COOK=raw).get("cook") == Setting(value, "environment")


def test_a_variable_for_a_list_takes_a_single_name(make: Make) -> None:
    assert make(BLOCKED="anna").get("blocked").value == ["anna"]


def test_an_empty_variable_counts_as_not_set(make: Make) -> None:
    assert make(COOK="").get("cook").source == "default"


def test_the_values_of_variables_are_read_live(make: Make, tmp_path: Path) -> None:
    environ = {"HOUSE_COOK": "anna"}
    found = configuration(tmp_path, environ)
    assert found.get("cook").value == "anna"
    environ["HOUSE_COOK"] = "bert"
    assert found.get("cook").value == "bert"


def test_files_are_read_once_until_reloaded(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "house.toml"
    file.write_text('cook = "anna"')
    found = make()
    assert found.get("cook").value == "anna"
    file.write_text('cook = "bert"')
    assert found.get("cook").value == "anna"
    found.reload()
    assert found.get("cook").value == "bert"


def test_nothing_is_read_before_the_first_question(make: Make, tmp_path: Path) -> None:
    found = make()
    (tmp_path / "house.toml").write_text('cook = "anna"')
    assert found.get("cook").value == "anna"


def test_contexts_nest_and_end_even_by_an_exception(make: Make) -> None:
    found = make()
    with found.use(cook="anna", autotune=True):
        with contextlib.suppress(RuntimeError), found.use(cook="bert"):
            assert found.get("cook") == Setting("bert", "context")
            assert found.get("autotune").value is True
            raise RuntimeError
        assert found.get("cook").value == "anna"
    assert found.get("cook").source == "default"


def test_a_context_is_seen_by_its_own_thread_alone(make: Make) -> None:
    found = make()
    seen: list[str] = []
    with found.use(cook="anna"):
        thread = threading.Thread(target=lambda: seen.append(found.get("cook").value))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_interleaved_tasks_see_their_own_contexts(make: Make) -> None:
    found = make()

    async def task(name: str) -> str:
        with found.use(cook=name):
            await asyncio.sleep(0)
            return str(found.get("cook").value)

    async def both() -> list[str]:
        return list(await asyncio.gather(task("anna"), task("bert")))

    assert asyncio.run(both()) == ["anna", "bert"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kook": "anna"}, r"one of the keys autotune, .*got 'kook'. Did you mean 'cook'\?"),
        ({"cook": 7}, "cook: expected a valid string, or a valid list, got 7"),
        ({"cook": None}, "got None"),
        ({"mood": "angry"}, "mood: expected 'calm' or 'hasty', got 'angry'"),
    ],
)
def test_a_context_is_validated_before_it_is_entered(
    make: Make, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make().use(**values)


def test_a_setting_of_the_whole_process_is_refused_in_a_context(make: Make) -> None:
    found = make()
    with pytest.raises(ConfigurationError) as raised:
        found.use(cook="anna", blocked=["bert"])
    message = str(raised.value)
    assert message.startswith(
        "blocked: expected a file or the environment to set it, got a context"
    )
    assert "read once for the whole process: set HOUSE_BLOCKED, or blocked in house.t" in message
    assert found.get("cook").source == "default"


def test_the_schemas_owner_says_which_settings_are_the_processes(tmp_path: Path) -> None:
    found = Configuration(Settings, prefix="HOUSE", environ={}, directory=tmp_path, fixed={"mood"})
    with pytest.raises(ConfigurationError, match="mood: expected a file or the environment"):
        found.use(mood="hasty")
    with found.use(blocked=["bert"]):
        assert found.get("blocked").value == ["bert"]


def test_a_bad_call_argument_is_an_invalid_argument(make: Make) -> None:
    with pytest.raises(InvalidArgument, match="cook: expected a valid string"):
        make().get("cook", call=7)


def test_an_unknown_key_is_asked_for_in_vain(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'cook'"):
        make().get("cooks")


@pytest.mark.parametrize(
    ("filename", "content", "messages"),
    [
        ("house.toml", "kook = 1", ["kook in ", "house.toml", "autotune", "mean 'cook'?"]),
        ("house.toml", "[plugin.anna]", ["plugin in ", "Did you mean 'plugins'?"]),
        ("house.toml", "cook = 7", ["cook in ", "house.toml", "got 7"]),
        ("house.toml", 'mood = "angry"', ["mood in ", "'calm' or 'hasty'", "got 'angry'"]),
        ("house.toml", "plugins = 7", ["plugins in ", "a table of tables", "got 7"]),
        ("house.toml", "plugins.oven = 7", ["plugins.oven in ", "a table", "got 7"]),
        ("pyproject.toml", "[tool.house]\nkook = 1", ["tool.house.kook in ", "pyproject.toml"]),
        ("pyproject.toml", "[tool]\nhouse = 1", ["tool.house in ", "expected a table, got 1"]),
    ],
)
def test_a_file_with_an_unknown_key_or_value_is_an_error_naming_file_and_key(
    make: Make, tmp_path: Path, filename: str, content: str, messages: list[str]
) -> None:
    (tmp_path / filename).write_text(content)
    with pytest.raises(ConfigurationError) as raised:
        make().get("autotune")
    for message in messages:
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'cook = "anna"\nmood = = 1', "line 2, column 8"),
        (b'cook = "anna', "line 1, column 13"),
        (b"[plugins", "line 1, column 9"),
        (b"autotune = true\nautotune = false", "line 2, column 17"),
        (b'cook = "anna"\nmood = "\xff"', "line 2, column 9"),
        (b'\xef\xbb\xbfmood = "\xff"', "line 1, column 9"),
    ],
)
def test_malformed_toml_names_file_line_and_column(
    make: Make, tmp_path: Path, content: bytes, where: str
) -> None:
    (tmp_path / "house.toml").write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        make().get("cook")
    assert str(tmp_path / "house.toml") in str(raised.value)
    assert where in str(raised.value)


@pytest.mark.parametrize(
    ("filename", "content"),
    [("house.toml", 'cook = "anna"'), ("pyproject.toml", '[tool.house]\ncook = "anna"')],
)
def test_a_byte_order_mark_is_no_part_of_a_file(
    make: Make, tmp_path: Path, filename: str, content: str
) -> None:
    (tmp_path / filename).write_text(content, encoding="utf-8-sig")
    assert make().get("cook").value == "anna"


def test_an_unknown_variable_is_an_error_that_lists_the_known_ones(make: Make) -> None:
    with pytest.raises(ConfigurationError) as raised:
        make(KOOK="anna").get("cook")
    message = str(raised.value)
    assert "HOUSE_KOOK" in message
    assert "HOUSE_AUTOTUNE, HOUSE_BLOCKED, HOUSE_CONFIG, HOUSE_COOK" in message
    assert "Did you mean 'HOUSE_COOK'?" in message


def test_reserved_and_foreign_variables_are_left_alone(tmp_path: Path) -> None:
    found = configuration(tmp_path, {"HOUSE_KEY": "1", "HOUSEBOAT": "1", "PATH": ""})
    assert found.get("cook").source == "default"


def test_a_bad_variable_is_named(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="HOUSE_AUTOTUNE: expected a valid boolean"):
        make(AUTOTUNE="perhaps").get("autotune")


def test_a_plugins_section_is_validated_by_its_own_schema(make: Make, tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text("[plugins.oven]\ndegrees = 220")
    (tmp_path / "user" / "house.toml").write_text("[plugins.oven]\ndegrees = 90\nfan = true")
    found = make()
    assert found.section("oven", Oven) == Oven(degrees=220, fan=True)
    assert found.section("stove", Oven) == Oven()
    assert list(found.section_names()) == ["oven"]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("degree = 1", ["tool.house.plugins.oven.degree in ", "degrees, fan", "mean 'degrees'?"]),
        ('degrees = "hot"', ["tool.house.plugins.oven.degrees in ", "a valid integer", "'hot'"]),
    ],
)
def test_a_bad_key_or_value_in_a_plugins_section_is_named_with_its_file(
    make: Make, tmp_path: Path, content: str, messages: list[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.house.plugins.oven]\n{content}")
    with pytest.raises(ConfigurationError) as raised:
        make().section("oven", Oven)
    for message in (*messages, "pyproject.toml"):
        assert message in str(raised.value)


def test_the_users_file_lies_where_the_platform_keeps_such_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(tmp_path / name))
    (tmp_path / "house").mkdir()
    file = tmp_path / "house" / "house.toml"
    file.write_text('cook = "anna"')
    monkeypatch.chdir(tmp_path)
    found = Configuration(
        Settings, prefix="HOUSE", filename="house.toml", table="house", environ={}
    )
    assert found.get("cook") == Setting("anna", str(file))


def test_advice_tells_how_to_set_a_key(make: Make) -> None:
    assert make().advice("blocked", "anna", "bert") == (
        'HOUSE_BLOCKED=anna,bert, or blocked = ["anna", "bert"] in house.toml'
    )
