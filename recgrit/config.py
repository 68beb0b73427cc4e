"""Settings: frozen pydantic models, one YAML file per experiment, dotted overrides.

Each package keeps its own config class beside its builder; here they are only loaded, overridden
and validated. Unknown keys are refused with the nearest known name, since a misspelt setting that
is silently ignored costs a user a whole training run.
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
# Of values in one another: far more than any experiment has.
MAX_DEPTH = 50
# What a file system takes.
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096
# Characters of a value in a message, and of what the parser says.
SHOWN, MAX_EXPLANATION = 80, 600
MAX_FAULTS = 20
# No value of one line begins with these in YAML: %Y-%m-%d, |, #, a comma and *.csv are text. ~ is
# the separator or the home folder: null is written as null.
TEXT_MARKS = ("%", "@", "`", "|", ">", "#", ",", "*", "~")


class Config(BaseModel):
    """Base of all settings: frozen, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """``~`` means the home folder, which a shell leaves alone behind ``key=``."""
        return _check_path(value) if isinstance(value, Path) else value

    @field_validator("*", mode="before")
    @classmethod
    def _bound_integers(cls, value: Any) -> Any:
        """No setting is an integer that 64 bits do not hold; some have bounds of their own."""
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"must be at most {LARGEST_INTEGER:,} in size")
        return value


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML in which ``2024-01-01`` is text: no setting is a date, some are names."""


SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    model: type[ConfigT], path: Path | str | None = None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Settings read from a YAML file, then overridden by ``key.subkey=value`` strings.

    Args:
        model: The config class to validate against.
        path: A YAML file; None starts from the defaults.
        overrides: Strings such as ``"retriever.epochs=3"``; values are parsed as YAML.

    Raises:
        ConfigError: The file is missing or not YAML, an override has no ``=``, a key is unknown,
            or a value does not fit its type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_yaml(Path(path))
    for override in overrides:
        _apply_override(values, override)
    return validate(model, values, str(path) if path is not None else "the settings")


def validate(model: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Settings of values that a file holds.

    Args:
        model: The config class to validate against.
        values: Of the file.
        source: What messages call it.

    Raises:
        ConfigError: A key is unknown, or a value does not fit its type or its bounds.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(model, error, source)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        ConfigError: The file is missing, cannot be parsed, or is not a mapping.
    """
    # Not the path's own method, which raises where a name is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        raise ConfigError(
            f"No config file at {path}. Expected a YAML file: check the path, or write one with "
            "'recgrit init movielens-100k' or, for your own files, 'recgrit init --events FILE'."
        )
    try:
        size = path.stat().st_size
        if size > CONFIG_BYTES.allowed():
            raise ConfigError(f"{path} has {CONFIG_BYTES.explain(size)}. Is it a file of data?")
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
    """What YAML says.

    Raises:
        ValueError: It says more than settings do, as a few lines can: an alias stands for all that
            it names, and one that names two others for all of theirs.
    """
    values = yaml.load(text, SettingsLoader)
    if (found := _count_values(values, {}, 0)) > CONFIG_VALUES.allowed():
        raise ValueError(f"it has {CONFIG_VALUES.explain(found)}")
    return values


def _count_values(value: Any, counted: dict[int, int], depth: int) -> int:
    """Values in all, those behind an alias counted wherever it stands."""
    if isinstance(value, str) and not is_text(value):
        raise ValueError(f"it holds half of a character: {ascii(value)[:SHOWN]}")
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
    """A path with its home folder, if a file system could have it."""
    text = str(path)
    if "\0" in text:
        raise ValueError("a path holds no NUL character")
    if not is_text(text):
        raise ValueError("a path has to be UTF-8: rename the file or folder")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > MAX_NAME_BYTES or len(os.fsencode(text)) > MAX_PATH_BYTES:
        raise ValueError(
            f"a path has at most {MAX_PATH_BYTES:,} bytes and a name in it {MAX_NAME_BYTES}, got "
            f"{len(os.fsencode(text)):,} and {longest:,}"
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
            # A section may be given as the one word that is its kind, as engine=ray.
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
    """A value as it stands in Python, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # An integer of thousands of digits; a list in itself.
        return f"a long {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _explain(model: type[Config], error: ValidationError, source: str) -> str:
    """One line per fault, in the user's terms: the dotted key, what it got, what is expected."""
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
    """The nearest known name: in the same section first, else anywhere in the config."""
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
    """The classes of settings in a type; none where it is a value."""
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
