"""The sources of the lists of `recgrit recommend`: a run, a file of histories, or a few items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rich.markup import escape

from recgrit.display import output, print_history, recommendation_table
from recgrit.errors import DataError
from recgrit.progress import messages

if TYPE_CHECKING:
    import polars as pl

    from recgrit.data.user_histories import UserHistories
    from recgrit.recommender import Recommender
    from recgrit.runs import Run

# Number of users of a file of histories whose lists are printed. --out writes all lists.
SHOWN_USERS = 5
NOBODY = "without a name"


class Lists(Protocol):
    """A source of recommended lists for users, such as a run or a file of histories."""

    def tables(self) -> Iterator[pl.DataFrame]:
        """Return the lists of all users as tables, each of some users.

        The tables have the columns of `Run.recommend`.
        """
        ...

    def first(self, num_users: int) -> pl.DataFrame:
        """Return the lists to print: of all named users, or else of the first users.

        Args:
            num_users: Number of users to return lists for if no users were named.

        Returns:
            A table with the columns of `Run.recommend`.
        """
        ...

    def users(self) -> list[str]:
        """Return the ids of the users whose lists `first` returns."""
        ...

    def history(self, user_id: str) -> pl.DataFrame:
        """Return the items that a user's list follows."""
        ...

    @property
    def num_more(self) -> int:
        """The number of users whose lists `first` leaves out."""
        ...


@dataclass
class ListsOfRun:
    """The recommended lists of users of a run.

    Args:
        run: The run.
        user_ids: Users to recommend for. None recommends for all users of the run.
        options: Options of `Run.recommend`, such as ``top_k``.
        num_more: Number of users whose lists `first` leaves out, always 0.
    """

    run: Run
    user_ids: list[str] | None
    options: Mapping[str, Any]
    num_more: int = 0

    def tables(self) -> Iterator[pl.DataFrame]:
        """Return the lists of all users; see `Lists`."""
        return self.run.iterate_recommendations(self.user_ids, **self.options)

    def first(self, num_users: int) -> pl.DataFrame:
        """Return the lists of the named users; see `Lists`."""
        return self.run.recommend(self.user_ids, **self.options)

    def users(self) -> list[str]:
        """Return the ids of the named users; see `Lists`."""
        return self.user_ids or []

    def history(self, user_id: str) -> pl.DataFrame:
        """Return the items that a user's list follows; empty for a user who is not in the log."""
        known = self.run.data
        if user_id in known.interactions.user_ids or user_id in known.left_out.user_ids:
            return self.run.history(user_id)
        return self.run.data.items.to_polars().clear()


@dataclass
class ListsOfFile:
    """The recommended lists of users of a file of histories, or of users that a bundle knows.

    Args:
        recommender: Recommender of the bundle.
        read: Users with their histories.
        user_ids: Users to recommend for. None recommends for all users in ``read``.
        options: Options of `Run.recommend`, such as ``top_k``.

    Raises:
        DataError: A user in ``user_ids`` has no history in ``read``.
    """

    recommender: Recommender
    read: UserHistories
    user_ids: list[str] | None
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        import numpy as np

        places = {user_id: place for place, user_id in enumerate(self.read.user_ids)}
        unknown = [user_id for user_id in self.user_ids or [] if user_id not in places]
        if unknown:
            raise DataError(
                f"User(s) {', '.join(map(repr, unknown[:3]))} are not in the histories, which "
                f"have {len(places)} users, such as "
                f"{', '.join(map(repr, self.read.user_ids.head(3).to_list()))}."
            )
        named = places if self.user_ids is None else self.user_ids
        self._places = np.array([places[user_id] for user_id in named], dtype=np.int64)
        lengths = np.diff(self.read.split.offsets)[self._places]
        if not lengths.all() and self.options["fallback"] is None:
            messages.print(
                f"{int((lengths == 0).sum()):,} of {len(lengths):,} users had none of the bundle's "
                "items and get no list; --fallback popular gives them popular items."
            )

    def tables(self) -> Iterator[pl.DataFrame]:
        """Return the lists of all users; see `Lists`."""
        return self._list(len(self._places))

    def first(self, num_users: int) -> pl.DataFrame:
        """Return the lists of the named users, or of the first ``num_users`` users; see `Lists`."""
        import polars as pl

        self._num_shown = len(self._places) if self.user_ids is not None else num_users
        return pl.concat(self._list(self._num_shown))

    def users(self) -> list[str]:
        """Return the ids of the users whose lists `first` returned; see `Lists`."""
        shown = self._places[: self._num_shown].tolist()
        return [str(self.read.user_ids[place]) for place in shown]

    def history(self, user_id: str) -> pl.DataFrame:
        """Return the items that a user's list follows; see `Lists`."""
        import polars as pl

        place = self.read.user_ids.index_of(user_id)
        assert place is not None
        rows = self.read.split.full_sequence(place).tolist()
        return self.recommender.items.to_polars().select(pl.all().gather(rows))

    @property
    def num_more(self) -> int:
        """The number of users whose lists `first` left out; see `Lists`."""
        return max(0, len(self._places) - self._num_shown)

    def _list(self, num_users: int) -> Iterator[pl.DataFrame]:
        filters = {name: self.options[name] for name in ("allowed_items", "blocked_items")}
        popular = self.options["fallback"] is not None
        return self.recommender.list_users(
            self.read.split,
            self.read.user_ids,
            self._places[:num_users],
            ranker=self.recommender.ranker(**filters),
            top_k=self.options["top_k"],
            exclude_seen=self.options["exclude_seen"],
            source="history",
            popular=self.recommender.popular(**filters) if popular else None,
        )


@dataclass
class ListsAfter:
    """A single recommended list that follows a history of a few items.

    Args:
        recommender: Recommender of the run or bundle.
        items: Item ids of the history, oldest first.
        options: Options of `Recommender.recommend_after`, such as ``top_k``.
        num_more: Number of users whose lists `first` leaves out, always 0.
    """

    recommender: Recommender
    items: list[str]
    options: Mapping[str, Any]
    num_more: int = 0

    def tables(self) -> Iterator[pl.DataFrame]:
        """Return the list as the only table; see `Lists`.

        Raises:
            DataError: No item is known, and there is no fallback.
        """
        if self.options["fallback"] is None and not len(
            self.recommender.items.find_items(self.items)
        ):
            known = self.recommender.items.item_ids.head(3).to_list()
            raise DataError(
                f"None of the items {', '.join(map(repr, self.items[:3]))} is in the catalogue, "
                f"which has ids such as {', '.join(map(repr, known))}. For popular items set "
                "--fallback popular."
            )
        yield self.recommender.recommend_after({NOBODY: self.items}, **self.options)

    def first(self, num_users: int) -> pl.DataFrame:
        """Return the list; see `Lists`."""
        return next(self.tables())

    def users(self) -> list[str]:
        """Return the placeholder name of the only user; see `Lists`."""
        return [NOBODY]

    def history(self, user_id: str) -> pl.DataFrame:
        """Return the known items of the history; see `Lists`."""
        import polars as pl

        rows = self.recommender.items.find_items(self.items).tolist()
        return self.recommender.items.to_polars().select(pl.all().gather(rows))


def print_lists(found: pl.DataFrame, lists: Lists, *, top_k: int) -> None:
    """Print a table for each user, and the history that its list follows."""
    for user_id in lists.users():
        rows = found.filter(found["user_id"] == user_id)
        if rows.is_empty():
            messages.print(
                f"User {escape(user_id)} gets no list: no item of the history is in the catalogue."
            )
            continue
        output.print(recommendation_table(user_id, rows))
        print_history(lists.history(user_id), rows["source"][0])
        if rows.height < top_k:
            messages.print(f"User {escape(user_id)} can be recommended only {rows.height} items.")
    if not found.is_empty():
        output.print("score: higher is better; compare scores only within one list.")
    if lists.num_more:
        messages.print(f"{lists.num_more:,} more users: --user ID shows one, --out FILE has all.")
