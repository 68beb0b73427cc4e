"""The environment variables of a launcher are checked, and errors name the variable."""

from __future__ import annotations

import pytest

from recgrit.errors import ConfigError
from recgrit.launch import Launch, read_launch

RIGHT = {
    "WORLD_SIZE": "4",
    "RANK": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RIGHT:
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> Launch | None:
    for name, value in (RIGHT | changed).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return read_launch()


def test_ranks_and_world_size_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read_launch() is None
    assert launch(monkeypatch) == Launch(4, 2, 0)
    assert launch(monkeypatch, LOCAL_RANK=None) == Launch(4, 2, 2)
    assert launch(monkeypatch, WORLD_SIZE="1", RANK="0") is None
    assert launch(monkeypatch, RANK=None) is None, "some schedulers set the size alone"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "9" * 5000),
        ("RANK", "-1"),
        ("RANK", "4"),
        ("RANK", "1.0"),
        ("LOCAL_RANK", "4"),
        ("MASTER_ADDR", None),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", None),
        ("MASTER_PORT", "65536"),
    ],
)
def test_invalid_variables_are_refused_by_name(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(monkeypatch, **{name: value})
    assert name in str(caught.value)
    assert len(str(caught.value)) < 400
