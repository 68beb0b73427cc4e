"""Event types of a log: which count, how much, and which are what is predicted.

A log of a shop holds views, carts and purchases. All of them tell what a user is after, so all
stand in the histories; what is predicted is set, purchases for example. Rows carry the number of
their type, from the weakest to the strongest: of two events at one time the larger number stays.
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

# The column of rows and of interactions.
EVENT = "event"
# Stands for a type that is left out.
LEFT_OUT = -1
# Types are few: a column of more is another column.
_SHOWN = 12


@dataclass(frozen=True)
class EventTypes:
    """The types of a log, from the weakest to the strongest: targets last, then by weight.

    Args:
        names: As they stand in the files.
        target_weights: What each counts in the training loss; 0 for history only.
        left_out: Types whose rows are left out.
    """

    names: tuple[str, ...]
    target_weights: tuple[float, ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, weights: Mapping[str, float | None], targets: Sequence[str] | None
    ) -> EventTypes | None:
        """Types as the settings have them; None where they name none.

        Args:
            weights: Of each type; None leaves it out.
            targets: The types that are predicted; None for all with a weight over 0.
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
        """The types that are predicted."""
        weighed = zip(self.names, self.target_weights, strict=True)
        return tuple(name for name, weight in weighed if weight > 0)

    def weigh(self, events: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """What rows of these types count as targets: float32 [len(events)]."""
        return np.asarray(self.target_weights, np.float32)[events]


class EventReader:
    """Numbers the types in a column of files, and counts them.

    Args:
        column: Name of the column.
        types: What the settings say of them; None where they say nothing yet.
    """

    def __init__(self, column: str, types: EventTypes | None) -> None:
        self._column, self._types = column, types
        self._counts = Counter[str]()

    def read(self, column: pl.Series) -> pl.Series:
        """The number of each cell's type, int8; null where there is none."""
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
        """Refuse types that the settings do not name.

        Raises:
            DataError: There are some; lists all with their counts.
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
                advice = "So many are hardly types of events: is data.table.event the right column?"
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
