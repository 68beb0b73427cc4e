"""Questions about the files that only the user can answer, and ways to answer them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recgrit.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A question that the files do not answer.

    Args:
        text: Text of the question.
        options: Possible answers.
        default: Likely answer. None if no answer is likely.
        setting: Setting that answers the question.
        unanswered: Value to use if nobody can answer. None if an answer is required.
    """

    text: str
    options: Sequence[str]
    default: str | None
    setting: str
    unanswered: str | None = None


Ask = Callable[[Question], str]


def take_default(question: Question) -> str:
    """Return the likely answer, and log it as a warning.

    A question that needs no answer gets its value for the unanswered case, without a warning.

    Raises:
        ConfigError: No answer is likely, and one is required.
    """
    if question.unanswered is not None:
        return question.unanswered
    if question.default is None:
        raise ConfigError(
            f"{question.text} The files do not show it. Set {question.setting} to one of "
            f"{', '.join(question.options)}."
        )
    logger.warning("%s Chosen: %s (%s)", question.text, question.default, question.setting)
    return question.default


def refuse(question: Question) -> str:
    """Answer no question: return its value for the unanswered case, or raise an error.

    Raises:
        ConfigError: An answer is required. The message names the setting.
    """
    if question.unanswered is not None:
        return question.unanswered
    example = question.default or question.options[0]
    likely = "" if question.default is None else f", or take {question.default} with --yes"
    raise ConfigError(
        f"{question.text} It may be {', '.join(question.options)}. Add "
        f"{question.setting}={example!r} to the command{likely}."
    )
