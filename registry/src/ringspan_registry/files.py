"""Which TOML files configure this process, and what they say; values are not judged here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringspan_registry.errors import ConfigurationError

__all__ = ["ConfigurationFile", "exists", "project_file", "read"]


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """The part of one file that is about us."""

    path: Path
    table: str
    """How the file spells the table of our keys: `""` for its top, or `"tool.ringspan"`."""
    content: Mapping[str, Any]

    def spelled(self, *keys: str) -> str:
        """A key as the file spells it, with the file: for error messages."""
        return f"{'.'.join(part for part in (self.table, *keys) if part)} in {self.path}"


def project_file(directory: Path, filename: str, table: str) -> ConfigurationFile | None:
    """The file of the innermost directory, from `directory` upwards, that configures us.

    Raises:
        ConfigurationError: a directory has both files, or one of them is malformed.
    """
    for place in (directory, *directory.parents):
        own = place / filename
        shared = _pyproject(place / "pyproject.toml", table)
        if not exists(own):
            if shared is not None:
                return shared
            continue
        if shared is not None:
            raise ConfigurationError(
                "configuration",
                expected=f"either {filename} or [tool.{table}] in pyproject.toml",
                got=f"both in {place}",
                remedy="Move the keys into one of them and remove the other",
            )
        return read(own)
    return None


def exists(path: Path) -> bool:
    """Whether there is such a file; one in a directory that is closed to us does not count."""
    try:
        return path.is_file()
    except PermissionError:  # a container's user often has somebody else's home
        return False


def read(path: Path) -> ConfigurationFile:
    """A file that is about us alone.

    Raises:
        ConfigurationError: it cannot be read, or is not TOML; names file, line and column.
    """
    return ConfigurationFile(path, table="", content=_parsed(path, _text(path)))


def _pyproject(path: Path, table: str) -> ConfigurationFile | None:
    if not exists(path):
        return None
    text = _text(path)
    if table not in text:  # so that somebody else's malformed file does not stop us
        return None
    tool = _parsed(path, text).get("tool", {})
    if not isinstance(tool, dict) or table not in tool:
        return None
    if not isinstance(tool[table], dict):
        raise ConfigurationError(
            f"tool.{table} in {path}", expected="a table", got=repr(tool[table])
        )
    return ConfigurationFile(path, table=f"tool.{table}", content=tool[table])


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # Windows editors begin with a mark
    except OSError as error:
        raise ConfigurationError(
            str(path), expected="a readable file", got=error.strerror or str(error)
        ) from error
    except UnicodeDecodeError as error:
        lines = error.object[: error.start].split(b"\n")
        raise ConfigurationError(
            f"{path}, line {len(lines)}, column {len(lines[-1]) + 1}",
            expected="TOML in UTF-8",
            got=f"the byte 0x{error.object[error.start]:02x}",
        ) from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, location = str(error).partition(" (at ")
        where = location.rstrip(")")
        if where in ("", "end of document"):
            lines = text.split("\n")
            where = f"line {len(lines)}, column {len(lines[-1]) + 1}"
        raise ConfigurationError(
            f"{path}, {where}", expected="TOML", got=message[:1].lower() + message[1:]
        ) from error
