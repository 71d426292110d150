"""Settings: call argument > context > environment > project file > user file > default.

The schema says which keys exist and which values they take; this module only loads and merges.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ringspan_registry.errors import ConfigurationError, InvalidArgument, RingspanError
from ringspan_registry.files import ConfigurationFile, exists, project_file, read
from ringspan_registry.suggest import did_you_mean, listed

if TYPE_CHECKING:
    import pydantic

    Section = TypeVar("Section", bound=pydantic.BaseModel)

__all__ = ["Configuration", "Setting"]

_PLUGINS = "plugins"


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from.

    `source` is `"call"`, `"context"`, `"environment"`, `"default"` or the path of a file.
    """

    value: Any
    source: str


class Configuration:
    """Loads and merges the settings of one process.

    Files and the names of environment variables are read once, on first use; `reload` reads
    them again. The values of variables are read live. An empty variable counts as not set.

    Args:
        schema: a pydantic model; its fields are the keys, and every field has a default.
        prefix: environment variables are `<prefix>_<KEY>`; `<prefix>_CONFIG` names a file to
            read instead of searching for one.
        filename: the project's and the user's file.
        table: the project's table in pyproject.toml, below `tool`.
        directory: where the search for the project's file begins, upwards; None: the current one.
        user_directory: where the user's file lies; None: the platform's place for it.
        environ: the environment; None: this process's.
        reserved: variables with the prefix that mean something else, and are left alone.
        fixed: keys that are read once for the whole process, and so refused in a context; the
            registry's own is `blocked`.

    Example:
        >>> import pydantic
        >>> class Settings(pydantic.BaseModel):
        ...     backend: str = "auto"
        >>> configuration = Configuration(Settings, environ={"RINGSPAN_BACKEND": "manual"})
        >>> configuration.get("backend")
        Setting(value='manual', source='environment')
        >>> with configuration.use(backend="sdpa"):
        ...     configuration.get("backend")
        Setting(value='sdpa', source='context')
    """

    def __init__(
        self,
        schema: type[pydantic.BaseModel],
        *,
        prefix: str = "RINGSPAN",
        filename: str = "ringspan.toml",
        table: str = "ringspan",
        directory: Path | None = None,
        user_directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
        reserved: Collection[str] = (),
        fixed: Collection[str] = ("blocked",),
    ) -> None:
        self._schema = schema
        self._prefix = prefix
        self._filename = filename
        self._table = table
        self._directory = directory
        self._user_directory = user_directory
        self._environ = os.environ if environ is None else environ
        self._reserved = frozenset(reserved)
        self._fixed = frozenset(fixed)
        self._context: ContextVar[Mapping[str, Any]] = ContextVar(
            "settings", default=MappingProxyType({})
        )
        self._lock = threading.RLock()
        self._files: tuple[ConfigurationFile, ...] | None = None
        self._validated: dict[tuple[str, str], Any] = {}

    @cached_property
    def _defaults(self) -> pydantic.BaseModel:
        return self._schema()

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every key that the schema knows."""
        return tuple(self._schema.model_fields)

    @cached_property
    def _variables(self) -> Mapping[str, str]:
        """Key -> name of its environment variable: settings are read in every call."""
        return {key: self._variable(key) for key in self.keys}

    def get(self, key: str, call: Any = None) -> Setting:
        """The value that wins, and where it came from; `call` is a call's argument, if given.

        Raises:
            InvalidArgument: `call` is not a value of that key.
            ConfigurationError: a key or value in the environment or in a file is not known.
        """
        self._check_key(key)
        if call is not None:
            return Setting(self._check_value(key, call, key, InvalidArgument), "call")
        context = self._context.get()
        if key in context:
            return Setting(context[key], "context")
        files = self._loaded()
        variable = self._variables[key]
        raw = self._environ.get(variable, "")
        if raw.strip():
            return Setting(self._from_text(key, raw, variable), "environment")
        for file in files:
            if key in file.content:
                return Setting(file.content[key], str(file.path))
        return Setting(copy(getattr(self._defaults, key)), "default")

    def use(self, **values: Any) -> AbstractContextManager[None]:
        """Settings for the calls inside a `with`, in this thread or task alone; nests.

        Raises:
            ConfigurationError: a key or value is not known, or the key is one of `fixed`; before
                anything is entered.
        """
        for key in values:
            self._check_key(key)
            self._refuse_fixed(key)
        return self._entered({key: self._check_value(key, values[key], key) for key in values})

    def section(self, plugin_name: str, schema: type[Section]) -> Section:
        """What the files say in `[plugins.<plugin_name>]`, validated by the plugin's own schema.

        Raises:
            ConfigurationError: a key or value that `schema` does not know.
        """
        merged: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for file in reversed(self._loaded()):
            for key, value in file.content.get(_PLUGINS, {}).get(plugin_name, {}).items():
                where = file.spelled(_PLUGINS, plugin_name, key)
                if key not in schema.model_fields:
                    raise _unknown_key(key, schema.model_fields, where)
                merged[key], origin[key] = value, where
        default = f"[{_PLUGINS}.{plugin_name}]"
        return _validated(schema, merged, origin, default, ConfigurationError)

    def section_names(self) -> Mapping[str, str]:
        """Every plugin that a file has a section for -> where."""
        return {
            name: file.spelled(_PLUGINS, name)
            for file in reversed(self._loaded())
            for name in file.content.get(_PLUGINS, {})
        }

    def advice(self, key: str, *values: str) -> str:
        """How a user would set `key`, for remedies."""
        array = ", ".join(f'"{value}"' for value in values)
        return f"{self._variable(key)}={','.join(values)}, or {key} = [{array}] in {self._filename}"

    def reload(self) -> None:
        """Reads the files and the environment again on next use."""
        with self._lock:
            self._files = None
            self._validated.clear()

    @contextmanager
    def _entered(self, values: Mapping[str, Any]) -> Iterator[None]:
        token = self._context.set({**self._context.get(), **values})
        try:
            yield
        finally:
            self._context.reset(token)

    def _variable(self, key: str) -> str:
        return f"{self._prefix}_{key.upper()}"

    def _loaded(self) -> tuple[ConfigurationFile, ...]:
        if self._files is None:
            with self._lock:
                if self._files is None:
                    self._check_environment()
                    self._files = tuple(self._checked(file) for file in self._found())
        return self._files

    def _found(self) -> Iterator[ConfigurationFile]:
        """The files that exist, the strongest first."""
        explicit = self._environ.get(f"{self._prefix}_CONFIG", "").strip()
        if explicit:
            yield read(Path(explicit).expanduser())
        else:
            start = Path.cwd() if self._directory is None else self._directory.resolve()
            project = project_file(start, self._filename, self._table)
            if project is not None:
                yield project
        user = self._user_file()
        if exists(user):
            yield read(user)

    def _user_file(self) -> Path:
        if self._user_directory is not None:
            return self._user_directory / self._filename
        import platformdirs

        return Path(platformdirs.user_config_dir(self._table)) / self._filename

    def _checked(self, file: ConfigurationFile) -> ConfigurationFile:
        """The same file with validated values; the sections wait for their plugins' schemas."""
        content = dict(file.content)
        sections = content.pop(_PLUGINS, {})
        checked: dict[str, Any] = {}
        for key, value in content.items():
            if key not in self.keys:
                raise _unknown_key(key, (*self.keys, _PLUGINS), file.spelled(key))
            checked[key] = self._check_value(key, value, file.spelled(key))
        if not isinstance(sections, dict):
            raise ConfigurationError(
                file.spelled(_PLUGINS), expected="a table of tables", got=repr(sections)
            )
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise ConfigurationError(
                    file.spelled(_PLUGINS, name), expected="a table", got=repr(section)
                )
        return ConfigurationFile(file.path, file.table, {**checked, _PLUGINS: sections})

    def _check_environment(self) -> None:
        known = {*map(self._variable, self.keys), f"{self._prefix}_CONFIG", *self._reserved}
        for name in self._environ:
            if name.startswith(f"{self._prefix}_") and name not in known:
                raise ConfigurationError(
                    "environment",
                    expected=f"one of {listed(known)}",
                    got=name,
                    remedy=did_you_mean(name.upper(), known),
                )
        for key in self.keys:
            raw = self._environ.get(self._variable(key), "")
            if raw.strip():
                self._from_text(key, raw, self._variable(key))

    def _check_key(self, key: str) -> None:
        if key not in self._variables:
            raise _unknown_key(key, self.keys, "setting")

    def _refuse_fixed(self, key: str) -> None:
        if key in self._fixed:
            raise ConfigurationError(
                key,
                expected="a file or the environment to set it",
                got="a context",
                remedy=(
                    "It is read once for the whole process: "
                    f"set {self._variable(key)}, or {key} in {self._filename}"
                ),
            )

    def _from_text(self, key: str, raw: str, variable: str) -> Any:
        """A variable's value: commas make a list, where the key takes one."""
        if (key, raw) not in self._validated:
            parts = [part.strip() for part in raw.split(",") if part.strip()]
            first, second = (parts, raw) if "," in raw else (raw.strip(), parts)
            try:
                value = self._check_value(key, first, variable)
            except ConfigurationError as error:
                try:
                    value = self._check_value(key, second, variable)
                except ConfigurationError:
                    raise error from None
            self._validated[key, raw] = value
        return self._validated[key, raw]

    def _check_value(
        self, key: str, value: Any, where: str, error: type[RingspanError] = ConfigurationError
    ) -> Any:
        return getattr(_validated(self._schema, {key: value}, {key: where}, where, error), key)


def _unknown_key(key: str, known: Collection[str], where: str) -> ConfigurationError:
    return ConfigurationError(
        where,
        expected=f"one of the keys {listed(known)}",
        got=repr(key),
        remedy=did_you_mean(key, known),
    )


def _validated(
    schema: type[Section],
    values: Mapping[str, Any],
    origin: Mapping[str, str],
    default: str,
    error: type[RingspanError],
) -> Section:
    """The model, or an error that names where the first bad value stands."""
    import pydantic

    try:
        return schema.model_validate(values)
    except pydantic.ValidationError as failure:
        problems = failure.errors(include_url=False, include_context=False)
        key = str(problems[0]["loc"][0]) if problems[0]["loc"] else ""
        mine = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
        expectations = dict.fromkeys(_expectation(str(problem["msg"])) for problem in mine)
        raise error(
            origin.get(key, default),
            expected=", or ".join(expectations),
            got=repr(values.get(key, problems[0]["input"])),
        ) from None


def _expectation(message: str) -> str:
    """What pydantic wanted, as a noun where it says so."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")
