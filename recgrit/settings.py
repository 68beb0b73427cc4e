"""The list of all settings, with the meanings from the docstrings of the settings classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from recgrit.config import Config, nested_configs
from recgrit.experiment import ExperimentConfig

_HEADS = ("Args:", "Attributes:")


@dataclass(frozen=True)
class Setting:
    """A setting as it is shown to users.

    Args:
        name: Dotted name as in overrides, such as ``retriever.epochs``.
        meaning: What the setting does, when to change it, and its unit if it has one.
        default: Default value as YAML text.
        values: Allowed values in words.
    """

    name: str
    meaning: str
    default: str
    values: str


@dataclass(frozen=True)
class Section:
    """A section of the settings file.

    Args:
        name: Dotted name of the section. Empty for settings outside of any section.
        meaning: What the settings of the section are about.
        settings: Settings of the section, in their order in the file.
    """

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def list_sections(model: type[Config] = ExperimentConfig, prefix: str = "") -> list[Section]:
    """Return all sections with their settings, in the order of the settings file.

    Args:
        model: Settings class to read.
        prefix: Dotted name of the class's section, with a dot at its end. Empty for the whole file.
    """
    meanings = read_meanings(model)
    own: list[Setting] = []
    below: list[Section] = []
    for name, field in model.model_fields.items():
        nested = nested_configs(field.annotation)
        if nested:
            named = f"{name}.NAME" if get_origin(field.annotation) is dict else name
            below += list_sections(nested[0], f"{prefix}{named}.")
        else:
            own.append(
                Setting(
                    prefix + name,
                    meanings.get(name, ""),
                    _show_default(field.get_default(call_default_factory=True)),
                    _show_values(field),
                )
            )
    first = (inspect.getdoc(model) or "").partition("\n\n")[0]
    return [Section(prefix.rstrip("."), " ".join(first.split()), tuple(own)), *below]


def search_settings(word: str) -> list[Setting]:
    """Return the settings whose name or meaning contains a word, matches in names first."""
    wanted = word.lower()
    known = [setting for section in list_sections() for setting in section.settings]
    named = [setting for setting in known if wanted in setting.name.lower()]
    meant = [s for s in known if wanted in s.meaning.lower() and s not in named]
    return [*named, *meant]


def read_meanings(model: type[Config]) -> dict[str, str]:
    """Return the meaning of each setting of a class, from its docstring and those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Config):
            found |= dict(_read_args(inspect.cleandoc(base.__doc__ or "")))
    return found


def describe_settings() -> str:
    """Return all settings as the text of a Markdown page."""
    lines = [
        "# Settings",
        "",
        "Every setting with its meaning, default and values. They stand in a YAML, one section",
        "below the other, or behind a command as `retriever.epochs=3`; None is written `null`.",
        "`recgrit settings epochs` searches names and meanings in the terminal.",
        "",
        "<!-- Made from the docstrings of the classes: python docs/generate.py -->",
    ]
    for section in list_sections():
        lines += ["", f"## {section.name or 'At the top'}", "", _markdown(section.meaning), ""]
        lines += ["| setting | default | values | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{setting.name}` | `{_cell(setting.default)}` | {_cell(setting.values)} | "
            f"{_cell(_markdown(setting.meaning))} |"
            for setting in section.settings
        ]
    return "\n".join(lines) + "\n"


def _read_args(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and meanings in the ``Args:`` or ``Attributes:`` section of a docstring."""
    inside, name, words = False, "", list[str]()
    for line in [*text.splitlines(), "end"]:
        if line in _HEADS:
            inside = True
            continue
        if inside and line and not line.startswith(" "):
            break
        if match := re.match(r"    (\w+): (.*)", line) if inside else None:
            if name:
                yield name, " ".join(words)
            name, words = match[1], [match[2]]
        elif inside and line.strip():
            words.append(line.strip())
    if name:
        yield name, " ".join(words)


def _show_default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if str(value) else "''"


def _show_values(field: FieldInfo) -> str:
    """Return a setting's type and bounds in words."""
    words = _show_type(field.annotation)
    signs = {
        annotated_types.Ge: ("ge", "≥"), annotated_types.Gt: ("gt", ">"),
        annotated_types.Le: ("le", "≤"), annotated_types.Lt: ("lt", "<"),
    }  # fmt: skip
    for kind, (name, sign) in signs.items():
        for bound in field.metadata:
            if isinstance(bound, kind):
                words += f", {sign} {getattr(bound, name):,}"
    return words


def _show_type(annotation: Any) -> str:
    names = {
        int: "whole number", float: "number", bool: "true or false", str: "text",
        type(None): "null", "Path": "path", "date": "day", "datetime": "time",
    }  # fmt: skip
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin in (tuple, list):
        return f"list of {_show_type(inner[0])}"
    if origin is dict:
        return "mapping"
    if inner:
        return " or ".join(_show_type(part) for part in inner)
    return names.get(annotation) or names.get(getattr(annotation, "__name__", ""), "any")


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
