"""Settings: frozen pydantic models, one YAML file per experiment, and dotted overrides.

The settings of a package are in its ``config.py``, and those of a whole run in
`recgrit.experiment`. This module loads, overrides and validates them. Unknown keys are refused with
the nearest known name, because a misspelt setting that is silently ignored costs a user a whole
training run.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from recgrit.bounds import CONFIG_BYTES, CONFIG_VALUES
from recgrit.errors import ConfigError
from recgrit.text import is_text

LARGEST_INTEGER = 2**63 - 1
# Deepest nesting of mappings and lists in a settings file, far above what any experiment needs.
MAX_DEPTH = 50
# Longest file name and longest path that common file systems accept.
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096
# Most characters that a message shows of a value, and of the YAML parser's explanation.
SHOWN, MAX_EXPLANATION = 80, 600
MAX_FAULTS = 20
# An override whose value starts with one of these characters is plain text, because YAML gives them
# another meaning: %Y-%m-%d, |, #, a comma and *.csv are values of settings. ~ is a separator or the
# home folder, so null has to be written as null.
TEXT_MARKS = ("%", "@", "`", "|", ">", "#", ",", "*", "~")


class Config(BaseModel):
    """Base class of all settings: instances are frozen, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """Replace ``~`` by the home folder, because a shell does not expand it behind ``key=``."""
        return _check_path(value) if isinstance(value, Path) else value

    @field_validator("*", mode="before")
    @classmethod
    def _bound_integers(cls, value: Any) -> Any:
        """Refuse integers that do not fit into 64 bits."""
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"must be at most {LARGEST_INTEGER:,} in absolute value")
        return value


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML loader that reads ``2024-01-01`` as text, since no setting is a date."""


SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    model: type[ConfigT], path: Path | str | None = None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Read settings from a YAML file and apply ``key.subkey=value`` overrides.

    Args:
        model: Settings class to validate against.
        path: YAML file. None starts from the defaults.
        overrides: Strings such as ``"retriever.epochs=3"``. Values are parsed as YAML.

    Raises:
        ConfigError: The file is missing or not YAML, an override has no ``=``, a key is unknown, or
            a value does not fit its type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_yaml(Path(path))
    for override in overrides:
        _apply_override(values, override)
    return validate(model, values, str(path) if path is not None else "the settings")


def validate(model: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Return validated settings from a mapping of values.

    Args:
        model: Settings class to validate against.
        values: Values by key, as read from a file. Sections are nested mappings.
        source: Name of the origin of the values, for error messages.

    Raises:
        ConfigError: A key is unknown, or a value does not fit its type or its bounds.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(model, error, source)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file contains.

    Raises:
        ConfigError: The file is missing, cannot be parsed, or is not a mapping.
    """
    # Path.is_file would raise an error for a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        raise ConfigError(
            f"No config file at {path}. Expected a YAML file: check the path, or write one with "
            "'recgrit init movielens-100k' or, for your own files, 'recgrit init --events FILE'."
        )
    try:
        size = path.stat().st_size
        if size > CONFIG_BYTES.allowed():
            raise ConfigError(f"{path} has {CONFIG_BYTES.explain(size)}. Is it a data file?")
        values = _parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_explain_yaml(error)}") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold 'key: value' lines at its top level, got a {type(values).__name__}."
        )
    return values


def _parse(text: str) -> Any:
    """Return the values of a YAML text, unless they are too many or nested too deeply.

    The number of values is bounded because of aliases: an alias stands for all values that it
    names, so a few lines of nested aliases can stand for millions of values.

    Raises:
        ValueError: The text has too many values, is nested too deeply, or holds half of a surrogate
            pair, which is no character.
    """
    values = yaml.load(text, SettingsLoader)
    if (found := _count_values(values, {}, 0)) > CONFIG_VALUES.allowed():
        raise ValueError(f"it has {CONFIG_VALUES.explain(found)}")
    return values


def _count_values(value: Any, counted: dict[int, int], depth: int) -> int:
    """Return the number of values, counting the values behind an alias at each of its uses."""
    if isinstance(value, str) and not is_text(value):
        raise ValueError(f"it contains an incomplete character: {ascii(value)[:SHOWN]}")
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if id(value) not in counted:
        inner = [*value, *value.values()] if isinstance(value, Mapping) else list(value)
        counted[id(value)] = 1 + sum(_count_values(part, counted, depth + 1) for part in inner)
    return counted[id(value)]


def _explain_yaml(error: Exception) -> str:
    return (
        "it is nested too deeply"
        if isinstance(error, RecursionError)
        else str(error)[:MAX_EXPLANATION]
    )


def _check_path(path: Path) -> Path:
    """Return a path with its home folder expanded, and refuse one that no file system accepts."""
    text = str(path)
    if "\0" in text:
        raise ValueError("a path must not contain a NUL character")
    if not is_text(text):
        raise ValueError("a path must be UTF-8: rename the file or folder")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > MAX_NAME_BYTES or len(os.fsencode(text)) > MAX_PATH_BYTES:
        raise ValueError(
            f"a path may have at most {MAX_PATH_BYTES:,} bytes and each name in it "
            f"{MAX_NAME_BYTES}, got {len(os.fsencode(text)):,} and {longest:,}"
        )
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("there is no such home folder") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"Cannot read the override {_show(override)}: expected key=value, "
            "for example retriever.epochs=3."
        )
    try:
        value = text if text.startswith(TEXT_MARKS) else _parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"The value of override {_show(override)} is not valid YAML: {_explain_yaml(error)}"
        ) from None
    *parents, last = key.split(".")
    node = values
    for part in parents:
        child = node.get(part)
        if not isinstance(child, dict):
            # A section may be given as one word, its kind: engine=ray stands for engine.kind=ray.
            child = {"kind": child} if isinstance(child, str) else {}
            node[part] = child
        node = child
    if isinstance(value, Mapping) and isinstance(node.get(last), dict):
        node[last].update(value)
    elif isinstance(value, str) and isinstance(node.get(last), dict):
        node[last]["kind"] = value
    else:
        node[last] = value


def _show(value: object) -> str:
    """Return the ``repr`` of a value, shortened if it is long."""
    try:
        text = repr(value)
    # Python cannot show an integer of thousands of digits, or a mapping nested too deeply.
    except (ValueError, RecursionError):
        return f"a long {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _explain(model: type[Config], error: ValidationError, source: str) -> str:
    """Return one line per fault: the dotted key, what is wrong, and the value that was given."""
    faults = error.errors()
    lines = [f"{len(faults)} setting(s) of {source} cannot be used:"]
    for fault in faults[:MAX_FAULTS]:
        key = ".".join(str(part)[:SHOWN] for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(
                f"  {key}: unknown key.{_suggestion(model, [str(p) for p in fault['loc']])}"
            )
        else:
            message = fault["msg"].removeprefix("Value error, ")
            whole_section = isinstance(fault["input"], Mapping | Config)
            got = "" if whole_section else f" (got {_show(fault['input'])})"
            lines.append(f"  {key or '(whole config)'}: {message}{got}")
    if len(faults) > MAX_FAULTS:
        lines.append(f"  and {len(faults) - MAX_FAULTS:,} more")
    return "\n".join(lines)


def _suggestion(model: type[Config], location: list[str]) -> str:
    """Return a hint that names the nearest known key, in the same section if possible."""
    known_here = sorted(_section_fields(model, location[:-1]))
    close = difflib.get_close_matches(location[-1], known_here, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {'.'.join([*location[:-1], close[0]])}?"
    dotted = _dotted_names(model)
    same_leaf = [name for name in dotted if name.split(".")[-1] == location[-1]]
    close = same_leaf[:1] or difflib.get_close_matches(".".join(location), dotted, n=1, cutoff=0.7)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known keys here: {', '.join(known_here)}."


def nested_configs(annotation: Any) -> list[type[Config]]:
    """Return the settings classes that a type annotation contains, or none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [
        nested for part in getattr(annotation, "__args__", ()) for nested in nested_configs(part)
    ]


def _section_fields(model: type[Config], location: Sequence[str]) -> set[str]:
    current: list[type[Config]] = [model]
    for part in location:
        current = [
            nested
            for config in current
            if part in config.model_fields
            for nested in nested_configs(config.model_fields[part].annotation)
        ]
    return {name for config in current for name in config.model_fields}


def _dotted_names(model: type[Config], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for nested in nested_configs(field.annotation):
            names.extend(_dotted_names(nested, f"{prefix}{name}."))
    return names
