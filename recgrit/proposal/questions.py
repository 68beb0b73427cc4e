"""What only a person can know: asked in a terminal, taken as proposed, or refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recgrit.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """Something that the files leave open.

    Args:
        text: The question.
        options: The answers there are.
        default: The one that is likely; None where nothing speaks for any.
        setting: The setting that answers it.
        unanswered: What is done where nobody is there to answer; None needs an answer.
    """

    text: str
    options: Sequence[str]
    default: str | None
    setting: str
    unanswered: str | None = None


Ask = Callable[[Question], str]


def take_default(question: Question) -> str:
    """The likely answer, which is said.

    Raises:
        ConfigError: None is likely, and one is needed.
    """
    if question.unanswered is not None:
        return question.unanswered
    if question.default is None:
        raise ConfigError(
            f"{question.text} Nothing tells. Set {question.setting} to one of "
            f"{', '.join(question.options)}."
        )
    logger.warning("%s Taken: %s (%s)", question.text, question.default, question.setting)
    return question.default


def refuse(question: Question) -> str:
    """Nobody is there to answer.

    Raises:
        ConfigError: An answer is needed; names the setting.
    """
    if question.unanswered is not None:
        return question.unanswered
    example = question.default or question.options[0]
    likely = "" if question.default is None else f", or take {question.default} with --yes"
    raise ConfigError(
        f"{question.text} It may be {', '.join(question.options)}. Add "
        f"{question.setting}={example!r} to the command{likely}."
    )
