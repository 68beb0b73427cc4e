"""All settings with their meaning, from the docstrings of the classes that hold them."""

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
    """One setting.

    Args:
        name: As overrides have it, such as ``retriever.epochs``.
        meaning: What it does, when to change it, and its unit where it has one.
        default: As YAML has it.
        values: What it may be.
    """

    name: str
    meaning: str
    default: str
    values: str


@dataclass(frozen=True)
class Section:
    """The settings below one name.

    Args:
        name: Empty for the settings of no section.
        meaning: What they are about.
        settings: In their order.
    """

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def list_sections(model: type[Config] = ExperimentConfig, prefix: str = "") -> list[Section]:
    """All settings, in the order of the experiment's file."""
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
    """The settings of whose name or meaning a word is a part; those with it in the name first."""
    wanted = word.lower()
    known = [setting for section in list_sections() for setting in section.settings]
    named = [setting for setting in known if wanted in setting.name.lower()]
    meant = [s for s in known if wanted in s.meaning.lower() and s not in named]
    return [*named, *meant]


def read_meanings(model: type[Config]) -> dict[str, str]:
    """What each setting of a class means, from the docstrings of it and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Config):
            found |= dict(_read_args(inspect.cleandoc(base.__doc__ or "")))
    return found


def describe_settings() -> str:
    """All settings as a page of Markdown."""
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
    """Names and meanings of a docstring's Args."""
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
    """The type in words, and its bounds."""
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
