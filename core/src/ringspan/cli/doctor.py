"""`ringspan doctor`: the machine, and every plugin with its state, reason and remedy."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringspan.cli.problem import print_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ringspan_registry import DeviceInfo, PluginRecord

__all__ = ["doctor", "table"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """This machine, every plugin found, and whether it is usable: the reason, and the remedy.

    Names in the settings that no plugin offers are told too.
    """
    findings = _findings()
    if as_json:
        print_json(findings)
    else:
        _show(findings)


def _findings() -> dict[str, Any]:
    import torch
    from ringspan_registry import detect_all

    import ringspan
    from ringspan.catalogue import catalogue, configuration

    devices = detect_all()
    settings = configuration()
    return {
        "ringspan": ringspan.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "devices": [_device(device) for device in devices],
        "settings": {key: dataclasses.asdict(settings.get(key)) for key in settings.keys},
        "unknown_names": [str(error) for error in catalogue().unknown_names()],
        "quarantined": [
            {"kind": kind, "name": name, "reason": reason}
            for (kind, name), reason in catalogue().quarantined().items()
        ],
        "plugins": [_plugin(record, devices) for record in catalogue().plugins()],
    }


def _device(device: DeviceInfo) -> dict[str, Any]:
    from ringspan_registry import recommended_dtype

    return dataclasses.asdict(device) | {
        "architecture": device.architecture,
        "recommended_dtype": recommended_dtype(device),
    }


def _plugin(record: PluginRecord, devices: Sequence[DeviceInfo]) -> dict[str, Any]:
    facts = dataclasses.asdict(record)
    facts["providers"] = [
        {"kind": kind, "name": name, "devices": list(_probes(kind, name, devices))}
        for kind, name in record.providers
    ]
    return facts


def _probes(kind: str, name: str, devices: Sequence[DeviceInfo]) -> Iterator[dict[str, Any]]:
    from ringspan.catalogue import catalogue

    for device in devices:
        availability = catalogue().probe(kind, name, device)
        yield {"device": _device_name(device)} | dataclasses.asdict(availability)


def _device_name(device: DeviceInfo) -> str:
    return device.type if device.index is None else f"{device.type}:{device.index}"


def _show(findings: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for name in ("ringspan", "python", "torch", "platform"):
        console.print(f"{name} {findings[name]}", markup=False)
    for device in findings["devices"]:
        console.print(f"device {_device_line(device)}", markup=False)
    for key, setting in findings["settings"].items():
        console.print(f"{key} = {setting['value']!r} ({setting['source']})", markup=False)
    for told in findings["unknown_names"]:
        console.print(Text(f"warning: {told}", "yellow"))
    for shut_out in findings["quarantined"]:
        told = "quarantined: {kind} {name}: {reason}".format(**shut_out)
        console.print(Text(told, "red"))
    console.print(table(findings["plugins"]))


def _device_line(device: dict[str, Any]) -> str:
    name = device["type"] if device["index"] is None else f"{device['type']}:{device['index']}"
    facts = [name, device["name"]]
    if device["compute_capability"]:
        major, minor = device["compute_capability"]
        facts.append(f"{device['architecture']} (compute capability {major}.{minor})")
    if device["memory_total"]:
        free, total = (
            "?" if device[key] is None else f"{device[key] / 2**30:.1f}"
            for key in ("memory_free", "memory_total")
        )
        facts.append(f"{free} of {total} GiB free")
    if device["driver"]:
        facts.append(f"driver {device['driver']}")
    if device["nvlink"]:
        facts.append("NVLink")
    if device["mig"]:
        facts.append("MIG")
    facts.append(f"recommended dtype {device['recommended_dtype']}")
    return ", ".join(fact for fact in facts if fact)


def table(plugins: Iterable[dict[str, Any]]) -> Table:
    """One row per provider, and one per plugin that offers none or wants attention.

    Args:
        plugins: as in `ringspan doctor --json`.
    """
    rows = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("plugin", "offers", "distribution", "state", "reason and remedy"):
        # What does not fit goes on in the next line: by default it would be cut. A state with many
        # devices takes lines of its own, not the width of the names.
        rows.add_column(header, overflow="fold", max_width=14 if header == "state" else None)
    for plugin in plugins:
        distribution = f"{plugin['distribution']} {plugin['version']}"
        if plugin["state"] != "loaded" or plugin["reason"] or not plugin["providers"]:
            verdict = _state(plugin["state"]), Text(_remark(plugin))
            rows.add_row(plugin["name"], "", distribution, *verdict)
        for provider in plugin["providers"]:
            offer = f"{provider['kind']} {provider['name']}"
            rows.add_row(plugin["name"], offer, distribution, *_verdicts(provider["devices"]))
    return rows


def _verdicts(found: Iterable[dict[str, Any]]) -> tuple[Text, Text]:
    """State and remark of a provider; devices are named where they differ."""
    devices: dict[tuple[str, str], list[str]] = {}
    for facts in found:
        state = "faulty" if "traceback" in facts else "usable" if facts["usable"] else "not usable"
        devices.setdefault((state, _remark(facts)), []).append(facts["device"])
    if len(devices) == 1:
        state, remark = next(iter(devices))
        return _state(state), Text(remark)
    named = [(state, remark, ", ".join(names)) for (state, remark), names in devices.items()]
    states = [_state(state, f" on {names}") for state, _, names in named]
    remarks = [Text(f"{names}: {remark}") for _, remark, names in named if remark]
    return Text("\n").join(states), Text("\n").join(remarks)


def _state(state: str, where: str = "") -> Text:
    return Text(f"{state}{where}", {"usable": "green", "faulty": "red"}.get(state, "yellow"))


def _remark(facts: dict[str, Any]) -> str:
    return ". ".join(part.rstrip(".") for part in (facts["reason"], facts["remedy"]) if part)
