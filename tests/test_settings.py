"""Every setting has a description and can be found by a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from recgrit.config import Config, load_config
from recgrit.experiment import ExperimentConfig
from recgrit.settings import list_sections, read_meanings, search_settings

ALL = [setting for section in list_sections() for setting in section.settings]


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: setting.name)
def test_each_setting_has_a_meaning_and_values(setting: Any) -> None:
    assert len(setting.meaning) > 5
    assert "any" not in setting.values.split()


def test_defaults_are_those_of_the_classes_and_can_be_typed() -> None:
    assert len(ALL) > 150
    defaults = [
        s for s in ALL if not s.name.startswith(("model.settings", "run.dir", "features.blocks."))
    ]
    overrides = [f"{setting.name}={setting.default}" for setting in defaults]
    assert load_config(ExperimentConfig, None, overrides) == ExperimentConfig()


def test_a_word_finds_names_before_meanings() -> None:
    found = [setting.name for setting in search_settings("dropout")]
    assert found[0].endswith("dropout")
    assert "retriever.dropout" in found
    assert any(s.name == "data.repeats" for s in search_settings("different times"))


def test_a_class_inherits_the_meanings_that_it_does_not_replace() -> None:
    class Base(Config):
        """Something.

        Args:
            one: Of one
                line and more.
            two: Second.

        Raises:
            three: No setting.
        """

    class Own(Base):
        """Else.

        Attributes:
            two: Another.
        """

    assert read_meanings(Own) == {"one": "Of one line and more.", "two": "Another."}


def test_the_command_prints_and_searches(command: Callable[..., Any]) -> None:
    done = command("settings", "history_length", "--json")
    assert done.code == 0
    assert "retriever.history_length = 50" in done.out
    assert "retriever.history_length" in [s["name"] for s in done.json()["settings"]]
    wrong = command("settings", "droput")
    assert wrong.code == 2
    assert "Did you mean dropout?" in wrong.error_message()
