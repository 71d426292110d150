"""A house with two kinds of staff, and real throw-away distributions that offer some."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

import pluggy
import pydantic
import pytest
from ringspan_registry import Configuration, DeviceInfo, Provider, Registry

GROUP = "house"
KINDS = {"cook": "house_cooks", "driver": "house_drivers"}

PREAMBLE = """
import pluggy
from house_contracts import Cook, Driver
from ringspan_registry import Availability

hookimpl = pluggy.HookimplMarker("house")

"""


class Cook(Provider):
    """One kind of provider; usable everywhere unless a test says otherwise."""


class Driver(Provider):
    """Another kind of provider."""


class Settings(pydantic.BaseModel):
    cook: str | list[str] = "auto"
    blocked: list[str] = []
    autotune: Literal["first-run", "off"] = "off"
    autotune_file: str | None = None


class Install(Protocol):
    def __call__(
        self, plugin: str, source: str, *, distribution: str = "", module: str = ""
    ) -> Path: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Writes a module and its .dist-info into a folder of its own and puts it on sys.path."""
    before = set(sys.modules)
    contracts = ModuleType("house_contracts")
    contracts.Cook, contracts.Driver = Cook, Driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "house_contracts", contracts)

    def install(plugin: str, source: str, *, distribution: str = "", module: str = "") -> Path:
        distribution = distribution or f"house-{plugin}"
        module = module or f"house_{plugin}"
        site = tmp_path / distribution
        information = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        information.mkdir(parents=True)
        (site / f"{module}.py").write_text(PREAMBLE + textwrap.dedent(source))
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n"
        )
        (information / "entry_points.txt").write_text(f"[{GROUP}]\n{plugin} = {module}\n")
        monkeypatch.syspath_prepend(site)
        return site

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("house_"):
            del sys.modules[name]


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., Registry]:
    """A registry of the house, configured as the keyword arguments say."""

    def house(*, slow_seconds: float = 2.0, **environ: str) -> Registry:
        configuration = Configuration(
            Settings,
            prefix="HOUSE",
            filename="house.toml",
            table="house",
            directory=tmp_path,
            user_directory=tmp_path / "user",
            environ={
                "HOUSE_AUTOTUNE_FILE": str(tmp_path / "times.json"),
                **{f"HOUSE_{key.upper()}": value for key, value in environ.items()},
            },
        )
        return Registry(
            group=GROUP,
            hookspecs=hookspecs(),
            kinds=KINDS,
            bases={"cook": Cook, "driver": Driver},
            configuration=configuration,
            slow_seconds=slow_seconds,
        )

    return house


def hookspecs() -> ModuleType:
    marker = pluggy.HookspecMarker(GROUP)
    module = ModuleType("house_hookspecs")

    @marker
    def house_cooks() -> list[Cook]:  # type: ignore[empty-body]
        """Returns cooks."""

    @marker
    def house_drivers() -> list[Driver]:  # type: ignore[empty-body]
        """Returns drivers."""

    module.house_cooks = house_cooks  # type: ignore[attr-defined]
    module.house_drivers = house_drivers  # type: ignore[attr-defined]
    return module


@pytest.fixture
def cpu() -> DeviceInfo:
    return DeviceInfo(type="cpu", name="a CPU")


@pytest.fixture
def cook_source() -> Callable[..., str]:
    """The source of a plugin with one cook per name; `body` goes into each class."""

    def cook_source(*names: str, body: str = "") -> str:
        return _source("Cook", "house_cooks", names, body)

    return cook_source


@pytest.fixture
def driver_source() -> Callable[..., str]:
    def driver_source(*names: str, body: str = "") -> str:
        return _source("Driver", "house_drivers", names, body)

    return driver_source


def _source(base: str, hook: str, names: tuple[str, ...], body: str) -> str:
    classes = [
        f"class {base}{number}({base}):\n"
        f"    name = {name!r}\n"
        "    def probe(self, device):\n"
        "        return Availability.yes()\n" + textwrap.indent(textwrap.dedent(body), "    ")
        for number, name in enumerate(names)
    ]
    instances = ", ".join(f"{base}{number}()" for number in range(len(names)))
    return "\n".join([*classes, f"\n@hookimpl\ndef {hook}():\n    return [{instances}]\n"])
