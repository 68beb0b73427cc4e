"""User tables are read like item tables, and joined to the users of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from recgrit.data.config import DataConfig
from recgrit.data.prepare import prepare
from recgrit.errors import DataError

LOG = "customer,item,at\n" + "".join(
    f"{user},{item},2024-01-0{day}\n"
    for user in ("007", "b", "c")
    for day, item in enumerate("xyzw", start=1)
)


def write(folder: Path, users: str) -> DataConfig:
    (folder / "log.csv").write_text(LOG)
    (folder / "people.csv").write_text(users)
    return DataConfig.model_validate(
        {
            "source": "table",
            "path": folder / "log.csv",
            "min_user_interactions": 1,
            "min_item_interactions": 1,
            "table": {
                "user_id": "customer",
                "item_id": "item",
                "timestamp": "at",
                "users_path": folder / "people.csv",
            },
        }
    )


def test_users_are_joined_by_their_ids_as_they_are(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, "plan;customer;age\npaid;c;30\nfree;007;\ngold;nobody;7\n"))
    assert data.users is not None
    assert data.users.to_dict(as_series=False) == {
        "user_id": ["007", "b", "c"],
        "plan": ["free", None, "paid"],
        "age": [None, None, "30"],
    }
    counted = {row["step"]: row["counted"] for row in data.funnel.to_dicts()}
    assert counted["users without attributes"] == 1


def test_a_folder_of_all_files_does_not_take_users_for_a_log(tmp_path: Path) -> None:
    config = write(tmp_path, "customer,plan\n007,free\n")
    data = prepare(config.model_copy(update={"path": tmp_path}))
    assert len(data.interactions) == 12


def test_columns_with_reserved_names_keep_their_values(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, "customer,user_id,title,line\n007,u1,Dr,3\n"))
    assert data.users is not None
    assert data.users.columns == ["user_id", "user_id_column", "title", "line"]
    assert data.users.row(0)[1:3] == ("u1", "Dr")


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ("user,plan\n007,free\n", "lacks the column customer; it has user, plan"),
        ("customer,plan\n007,free\n007,paid\n", "007"),
        ("customer,plan\n", "no lines of data"),
    ],
)
def test_invalid_user_tables_are_refused(tmp_path: Path, users: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepare(write(tmp_path, users))


def test_the_key_depends_on_the_content_of_the_user_table_not_its_path(tmp_path: Path) -> None:
    from recgrit.experiment import ExperimentConfig
    from recgrit.stages.prepare import PREPARE

    def key(folder: Path, users: str) -> str:
        folder.mkdir(exist_ok=True)
        data = write(folder, users)
        return PREPARE.origin(ExperimentConfig(data=data)).key

    first = key(tmp_path / "a", "customer,plan\n007,free\n")
    assert key(tmp_path / "b", "customer,plan\n007,free\n") == first
    assert key(tmp_path / "b", "customer,plan\n007,paid\n") != first
