"""Settings: frozen pydantic models, one YAML file per experiment, dotted overrides.

Each package keeps its own config class beside its builder; here they are only loaded, overridden
and validated. Unknown keys are refused with the nearest known name, since a misspelt setting that
is silently ignored costs a user a whole training run.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from recgrit.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: frozen, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """``~`` means the home folder, which a shell leaves alone behind ``key=``."""
        return value.expanduser() if isinstance(value, Path) else value


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
    try:
        return model.model_validate(values)
    except ValidationError as error:
        source = str(path) if path is not None else "the settings"
        raise ConfigError(_explain(model, error, source)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        ConfigError: The file is missing, cannot be parsed, or is not a mapping.
    """
    if not path.is_file():
        raise ConfigError(
            f"No config file at {path}. Expected a YAML file such as "
            "configs/movielens-100k.yaml; check the path or run from the repository root."
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold 'key: value' lines at its top level, got a {type(values).__name__}."
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"Cannot read the override {override!r}: expected key=value, "
            "for example retriever.epochs=3."
        )
    try:
        value = yaml.load(text, SettingsLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The value of override {override!r} is not valid YAML: {error}"
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


def _explain(model: type[Config], error: ValidationError, source: str) -> str:
    """One line per fault, in the user's terms: the dotted key, what it got, what is expected."""
    lines = [f"{error.error_count()} setting(s) of {source} cannot be used:"]
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(
                f"  {key}: unknown key.{_suggestion(model, [str(p) for p in fault['loc']])}"
            )
        else:
            message = fault["msg"].removeprefix("Value error, ")
            whole_section = isinstance(fault["input"], Mapping | Config)
            got = "" if whole_section else f" (got {fault['input']!r})"
            lines.append(f"  {key or '(whole config)'}: {message}{got}")
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


def _nested_configs(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [
        nested for part in getattr(annotation, "__args__", ()) for nested in _nested_configs(part)
    ]


def _section_fields(model: type[Config], location: Sequence[str]) -> set[str]:
    current: list[type[Config]] = [model]
    for part in location:
        current = [
            nested
            for config in current
            if part in config.model_fields
            for nested in _nested_configs(config.model_fields[part].annotation)
        ]
    return {name for config in current for name in config.model_fields}


def _dotted_names(model: type[Config], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for nested in _nested_configs(field.annotation):
            names.extend(_dotted_names(nested, f"{prefix}{name}."))
    return names
