"""Event types of a log: which types are kept, their weights, and which types are predicted.

The log of a shop holds views, carts and purchases. All of them show what a user is interested in,
so all are part of the histories. The settings choose the types that are predicted, such as
purchases. Each row has the number of its type, from the weakest to the strongest. Of two events of
a user with an item at the same time, the one with the larger number is kept.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.bounds import EVENT_TYPES
from recgrit.errors import DataError
from recgrit.progress import show_control

logger = logging.getLogger(__name__)

# Name of the column of type numbers, in rows and in interactions.
EVENT = "event"
# Number of a type that is left out.
LEFT_OUT = -1
# Largest number of types that a message lists.
_SHOWN = 12


@dataclass(frozen=True)
class EventTypes:
    """The event types of a log, from the weakest to the strongest.

    Types that are predicted come after all others, and within both groups types are sorted by
    weight.

    Args:
        names: Names of the types, as they are written in the files.
        target_weights: Weight of each type in the training loss. 0 for types that occur in
            histories only.
        left_out: Names of the types whose rows are left out.
    """

    names: tuple[str, ...]
    target_weights: tuple[float, ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, weights: Mapping[str, float | None], targets: Sequence[str] | None
    ) -> EventTypes | None:
        """Return the event types that the settings name, or None if they name none.

        Args:
            weights: Weight of each type. A weight of None leaves the type out.
            targets: Types that are predicted. None predicts all types with a weight above 0.
        """
        if not weights:
            return None
        counted = {name: weight for name, weight in weights.items() if weight is not None}
        wanted = counted if targets is None else targets
        as_target = {name: w if name in wanted else 0.0 for name, w in counted.items()}
        names = sorted(counted, key=lambda name: (as_target[name] > 0, counted[name], name))
        return cls(
            names=tuple(names),
            target_weights=tuple(as_target[name] for name in names),
            left_out=tuple(name for name in weights if name not in counted),
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the types that are predicted."""
        weighed = zip(self.names, self.target_weights, strict=True)
        return tuple(name for name, weight in weighed if weight > 0)

    def weigh(self, events: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """Return the weight of each row as a target, float32 ``[len(events)]``.

        Args:
            events: int8, number of each row's type.
        """
        return np.asarray(self.target_weights, np.float32)[events]


class EventReader:
    """A reader that replaces event types by their numbers and counts them, file by file.

    Args:
        column: Name of the column of event types, for messages.
        types: Event types of the settings. None if the settings name none yet.
    """

    def __init__(self, column: str, types: EventTypes | None) -> None:
        self._column, self._types = column, types
        self._counts = Counter[str]()

    def read(self, column: pl.Series) -> pl.Series:
        """Return the number of each cell's type, int8, or null for an empty cell.

        Types that are left out, and types that the settings do not name, get the number `LEFT_OUT`.
        """
        texts = column.cast(pl.String).str.strip_chars()
        texts = texts.set(texts == "", None).rename(EVENT)
        counted = texts.drop_nulls().value_counts()
        self._counts.update(dict(counted.iter_rows()))
        names = () if self._types is None else self._types.names
        return texts.replace_strict(
            [None, *names],
            [None, *range(len(names))],
            default=LEFT_OUT,
            return_dtype=pl.Int8,
        )

    def finish(self) -> None:
        """Compare the types that all files hold with the types that the settings name.

        A named type that no file holds is logged as a warning.

        Raises:
            DataError: A file holds a type that the settings do not name, or no file holds a type
                that is predicted. The message lists the types that were found.
        """
        types = self._types
        known = () if types is None else (*types.names, *types.left_out)
        found = [name for name, _ in self._counts.most_common()]
        unknown = [name for name in found if name not in known]
        if unknown:
            counted = self._counts.most_common(_SHOWN)
            shown = ", ".join(f"{show_control(name)[:60]} ({count:,})" for name, count in counted)
            more = len(found) - len(counted)
            if len(found) > EVENT_TYPES.allowed():
                advice = "That is too many for event types: is data.table.event the right column?"
            else:
                example = ", ".join(f"{name}: 1" for name in unknown[:_SHOWN])
                advice = (
                    f"Give each a weight, such as data.event_weights='{{{example}}}', or null to "
                    "leave it out."
                )
            raise DataError(
                f"The column {self._column} holds the event types {shown}"
                f"{f' and {more:,} more' if more else ''}; data.event_weights does not name "
                f"{', '.join(unknown[:_SHOWN])}. {advice}"
            )
        assert types is not None
        missing = [name for name in types.names if name not in found]
        if not missing:
            return
        message = (
            f"data.event_weights names {', '.join(missing)}, which the column {self._column} does "
            f"not hold; it holds {', '.join(found)}."
        )
        if all(name in missing for name in types.targets):
            raise DataError(f"{message} No event is left to predict: see data.target_events.")
        logger.warning("%s", message)
