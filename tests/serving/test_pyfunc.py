"""Test the MLflow model in this process and over HTTP on the loopback interface."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from recgrit.data.items import ItemTable
from recgrit.errors import ArtifactError, RecgritError
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
from recgrit.tracking.start import quieten_mlflow


@pytest.fixture(scope="module")
def model_folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    quieten_mlflow()
    from recgrit.serving.pyfunc import save_pyfunc

    folder = tmp_path_factory.mktemp("model") / "model"
    save_pyfunc(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(model_folder))


@pytest.fixture(scope="module")
def post(model_folder: Path) -> Callable[..., httpx.Response]:
    """Send a request to MLflow's scoring server, which answers in this process."""
    import mlflow.pyfunc
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    # As in `mlflow models serve`, the server's module is imported before the model is loaded.
    app = scoring_server.init(mlflow.pyfunc.load_model(str(model_folder)))
    client = TestClient(app, raise_server_exceptions=False)

    def send(body: object, kind: str = "application/json") -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.post("/invocations", content=content, headers={"Content-Type": kind})

    return send


def frame(*histories: Any) -> pd.DataFrame:
    return pd.DataFrame({"history": list(histories)})


def records(*histories: Any, **params: Any) -> dict[str, Any]:
    return {"dataframe_records": [{"history": history} for history in histories], "params": params}


def test_it_answers_as_the_bundle_does(
    model: Any, bundle: Bundle, histories: dict[str, list[str]]
) -> None:
    found = model.predict(frame(*histories.values()))
    assert list(found.columns) == ["item_ids", "titles", "scores", "source"]
    expected = bundle.recommend_after(histories).to_pandas().groupby("user_id")
    for user, row in zip(histories, found.itertuples(), strict=True):
        rows = expected.get_group(user)
        assert row.item_ids == rows["item_id"].tolist()
        assert row.titles == rows["title"].tolist()
        np.testing.assert_allclose(row.scores, rows["score"], atol=1e-5)


def test_parameters_and_histories_of_all_kinds(
    model: Any, histories: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    seen = histories["3"]
    found = model.predict(
        frame(seen, [], ["nobody knows this"], [*seen, "nor this"]),
        params={"top_k": 30, "exclude_seen": False},
    )
    assert [len(row) for row in found["item_ids"]] == [30, 0, 0, 30], "wider than the beam too"
    assert found["item_ids"][0] == found["item_ids"][3]
    assert set(seen) & set(found["item_ids"][0])
    short = model.predict(frame(seen), params={"top_k": 3})
    assert len(short["item_ids"][0]) == 3
    assert not set(seen) & set(short["item_ids"][0])


def test_popular_items_are_returned_on_request_and_marked(
    model: Any, bundle: Bundle, post: Callable[..., httpx.Response]
) -> None:
    popular = bundle.recommend_after({"x": []}, top_k=3, fallback="popular")
    asked = (["13"], [], ["nobody knows this"])
    reply = post(records(*asked, top_k=3, fallback="popular"))
    assert reply.status_code == 200
    rows = reply.json()["predictions"]
    assert [row["source"] for row in rows] == ["history", "popular", "popular"]
    assert rows[1]["item_ids"] == rows[2]["item_ids"] == popular["item_id"].to_list()
    assert rows[1]["scores"] == popular["score"].to_list()
    rows = post(records(*asked, top_k=3)).json()["predictions"]
    assert [row["source"] for row in rows] == ["history", "none", "none"]
    assert [len(row["item_ids"]) for row in rows] == [3, 0, 0]
    reply = post(records(*asked, fallback="newest"))
    assert reply.status_code == 400
    assert "fallback must be 'popular' or 'none', got 'newest'" in reply.json()["message"]


def test_the_models_config_sets_the_fallback(bundle: Bundle, tmp_path: Path) -> None:
    from recgrit.serving.pyfunc import save_pyfunc

    save_pyfunc(bundle, tmp_path / "model")
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(tmp_path / "model"), model_config={"fallback": "popular"})
    assert model.predict(frame([]))["source"].tolist() == ["popular"]
    found = model.predict(frame([]), params={"fallback": "none"})
    assert found["source"].tolist() == ["none"]


def test_nulls_are_ignored_and_no_id_is_changed(
    model: Any, post: Callable[..., httpx.Response], caplog: pytest.LogCaptureFixture
) -> None:
    """Nulls must not change ids.

    With pandas 3 and a signature of texts, MLflow cuts texts to one letter if their column has
    nulls.
    """
    wanted = model.predict(frame(["13", "21"]))["item_ids"][0]
    assert wanted != model.predict(frame(["1", "2"]))["item_ids"][0]
    for nulls in (["13", None, "21"], [None, "13", "21", float("nan"), pd.NA]):
        assert model.predict(frame(nulls))["item_ids"][0] == wanted
        assert model.predict(frame(np.array(nulls, dtype=object)))["item_ids"][0] == wanted
    assert "3 nulls in the histories are ignored" in caplog.text
    reply = post(records(["13", None, "21"], [None], "13", ["13"]))
    assert reply.status_code == 200
    lists = [row["item_ids"] for row in reply.json()["predictions"]]
    assert lists[:2] == [wanted, []]
    assert lists[2] == lists[3], "a bare string is one id"


@pytest.mark.parametrize("history", [None, 13, [13], ["13", 2.5], [["13"]], {"13": 1}, [{}], True])
def test_what_is_no_list_of_ids_is_refused(
    post: Callable[..., httpx.Response], history: object
) -> None:
    reply = post(records(["13"], history))
    assert reply.status_code == 400
    assert re.search("Expected a list of ids|Ids are text", reply.json()["message"])
    assert "history 1" in reply.json()["message"]
    assert "stack_trace" not in reply.json()


@pytest.mark.parametrize("top_k", [0, -3, None])
def test_lists_need_a_length(post: Callable[..., httpx.Response], top_k: int | None) -> None:
    reply = post(records(["13"], top_k=top_k))
    assert reply.status_code == 400
    assert "top_k must be at least 1" in reply.json()["message"]
    assert "stack_trace" not in reply.json()
    reply = post(records(["13"], exclude_seen=None))
    assert (reply.status_code, "exclude_seen must be true or false" in reply.text) == (400, True)


LONG = 300_000


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"dataframe_records": ' + b"[" * 100_000 + b"}", 400, "nested too deeply"),
        (b'{"params": {"top_k": ' + b"9" * 5000 + b"}}", 400, "cannot be read"),
        (b'{"dataframe_records": [{"history": ' + b"[" * 500 + b"]" * 500 + b"}]}", 400, "Ids are"),
        (b'{"dataframe_split": {"columns": [["a"]], "data": 1}}', 400, ""),
        (b'{"dataframe_records": [5]}', 400, ""),
        (b"\xff\xfe", 400, ""),
        (b"", 400, ""),
        (json.dumps(records(["\ud800", "\x00"])).encode(), 200, ""),
    ],
)
def test_requests_that_cannot_be_read_get_status_400(
    post: Callable[..., httpx.Response], body: bytes, status: int, message: str
) -> None:
    reply = post(body)
    assert reply.status_code == status
    assert message in reply.text


def test_lists_end_with_the_catalogue(post: Callable[..., httpx.Response]) -> None:
    reply = post(records(["13"], top_k=10**9, exclude_seen=False))
    (row,) = reply.json()["predictions"]
    assert len(row["item_ids"]) == len(set(row["item_ids"])) == 40


def test_long_histories_are_read_from_their_end_and_excluded_completely(
    post: Callable[..., httpx.Response], model: Any
) -> None:
    """In a batch with short histories, a long one is cut to its last 20 items.

    The model reads no more items. All items of the whole history are filtered out of its list.
    """
    old, late = ["1", "2", "3"], ["13", "21", "29", "37"]
    long = old * LONG + late * 10
    started = time.monotonic()
    reply = post(records(long, *[late] * 300, top_k=40))
    assert time.monotonic() - started < 10, "36 seconds when all of it was searched for"
    lists = [row["item_ids"] for row in reply.json()["predictions"]]
    assert not {*old, *late} & set(lists[0])
    assert len(lists[0]) == 40 - 7
    short = model.predict(frame(old + late * 5), params={"top_k": 40})
    assert lists[0] == short["item_ids"][0]
    assert lists[1] == lists[300] == model.predict(frame(late), params={"top_k": 40})["item_ids"][0]


def test_the_number_of_items_of_a_request_is_limited_by_a_setting(
    model_folder: Path, model: Any
) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    small = mlflow.pyfunc.load_model(str(model_folder), model_config={"max_listed": 100})
    asked = frame(*[["13"]] * 11)
    with pytest.raises(MlflowException, match="may ask for 100 items, got 11 histories of 10"):
        small.predict(asked)
    assert len(small.predict(asked.head(10))) == 10
    assert len(model.predict(asked)) == 11


def test_eight_threads_get_the_same_answers_as_one(
    post: Callable[..., httpx.Response], histories: dict[str, list[str]]
) -> None:
    asked = [list(histories.values())[number % len(histories)] for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda history: post(records(history)), asked))
    one_by_one = [post(records(history)) for history in asked[: len(histories)]]
    for number, reply in enumerate(replies):
        assert reply.status_code == 200
        (ours,) = reply.json()["predictions"]
        (theirs,) = one_by_one[number % len(histories)].json()["predictions"]
        assert ours["item_ids"] == theirs["item_ids"]
        np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-5)


def test_hostile_requests_leave_no_memory_behind(model_folder: Path) -> None:
    """The test needs a separate process, whose threads answer in turn."""
    script = """
import asyncio, json, sys, psutil, mlflow.pyfunc
from mlflow.pyfunc import scoring_server
model = mlflow.pyfunc.load_model(sys.argv[1])
schema = model.metadata.get_input_schema()
rows = [{"history": [f"no such item {i}" for i in range(300_000)]}, {"history": ["13"] * 300_000}]
bodies = [json.dumps({"dataframe_records": [row], "params": {"top_k": 10**9}}) for row in rows]
def ask(body):
    try:
        scoring_server.invocations(body, "application/json", model, schema)
    except mlflow.exceptions.MlflowException:
        pass
async def main():
    for _ in range(8):
        await asyncio.gather(*(asyncio.to_thread(ask, b) for b in [*bodies, "[" * 10**5] * 2))
        print(psutil.Process().memory_info().rss // 2**20)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(model_folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    memory = [int(line) for line in done.stdout.split()]
    assert memory[-1] - memory[3] < 60, memory


def test_it_has_a_signature_an_example_and_nothing_pickled(model_folder: Path, model: Any) -> None:
    names = {path.name for path in model_folder.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin"))}
    assert {"MLmodel", "pyfunc_code.py", "input_example.json", "weights.safetensors"} <= names
    assert model.metadata.signature.inputs.input_names() == ["history", "user_id"]
    example = model.input_example
    assert len(model.predict(example)["item_ids"][0]) == 10
    # The signature refuses a table with wrong columns.
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="history"):
        model.predict(pd.DataFrame({"histories": [["1"]]}))


def test_a_folder_that_is_there_is_left_alone(bundle: Bundle, model_folder: Path) -> None:
    from recgrit.serving.pyfunc import save_pyfunc

    with pytest.raises(ArtifactError, match="already exists"):
        save_pyfunc(bundle, model_folder)


def test_a_model_of_an_appended_bundle(
    bundle: Bundle, like: Callable[..., ItemTable], tmp_path: Path
) -> None:
    import mlflow.pyfunc

    from recgrit.serving.pyfunc import save_pyfunc

    made = append_items(bundle, tmp_path / "b", like(["5", "9"]), removed=["13"]).bundle
    save_pyfunc(made, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    found = model.predict(frame(["new 5", "17"]), params={"top_k": 40})["item_ids"][0]
    assert "new 9" in found
    assert "13" not in found
    assert model.metadata.metadata == {"fingerprint": made.fingerprint}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        return importlib.import_module("serve_latency")


def test_mlflow_serves_it_over_http(
    benchmark: ModuleType,
    model_folder: Path,
    model: Any,
    histories: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    """`mlflow models serve --env-manager local` serves the model and refuses a wrong request."""
    asked = [*list(histories.values())[:7], []]
    with benchmark.serve(model_folder, tmp_path / "log.txt") as address, httpx.Client() as client:
        served = pd.DataFrame(benchmark.ask(client, address, asked, top_k=5))
        wrong = client.post(f"{address}/invocations", json={"dataframe_records": [{"x": 1}]})
    expected = model.predict(frame(*asked), params={"top_k": 5})
    assert served["item_ids"].tolist() == expected["item_ids"].tolist()
    assert served["titles"].tolist() == expected["titles"].tolist()
    for ours, theirs in zip(served["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert wrong.status_code == 400
    assert "history" in json.dumps(wrong.json())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/ping")


def test_another_bundle_than_it_was_saved_with_is_refused(
    model_folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    import mlflow.pyfunc

    copy = Path(shutil.copytree(model_folder, tmp_path / "model"))
    inside = next(copy.rglob("catalogue.parquet")).parent
    other = append_items(bundle, tmp_path / "other", removed=["5"])
    shutil.rmtree(inside)
    shutil.copytree(other.bundle.directory, inside)
    with pytest.raises(ArtifactError, match=r"was saved with the bundle .* and holds"):
        mlflow.pyfunc.load_model(str(copy))


@pytest.fixture(scope="module")
def with_users(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model whose bundle keeps the users."""
    quieten_mlflow()
    from recgrit.serving.pyfunc import save_pyfunc

    folder = tmp_path_factory.mktemp("users")
    first = export_bundle(run, folder / "first", with_users=True)
    # The bundle of the next night must keep them too.
    save_pyfunc(append_items(first, folder / "second", removed=["1"]).bundle, folder / "model")
    return folder / "model"


def test_known_users_can_be_requested_by_their_ids(
    with_users: Path, histories: dict[str, list[str]]
) -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(with_users))
    found = model.predict(pd.DataFrame({"user_id": list(histories)}))
    expected = model.predict(frame(*histories.values()))
    pd.testing.assert_frame_equal(found, expected)
    both = pd.DataFrame(
        {"user_id": ["3", None, "a stranger"], "history": [None, histories["3"], None]}
    )
    found = model.predict(both, params={"fallback": "popular"})
    assert found["item_ids"][0] == found["item_ids"][1]
    assert found["source"].tolist() == ["history", "history", "popular"]
    bundle = Bundle(next(with_users.glob("artifacts/*")))
    assert set(bundle.users.user_ids) >= set(histories)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"user_id": "3", "history": ["17"]}, "Row 0 needs a history or a user_id, got both"),
        ({"user_id": None, "history": None}, "Row 0 needs a history or a user_id, got neither"),
        ({"user_id": 3.5}, "user_id of row 0"),
        ({"user_id": []}, "user_id of row 0 is a list"),
        ({"user_id": ["3", "4"]}, "user_id of row 0 is a list"),
        ({"user_id": np.array(["3", "4"])}, "user_id of row 0 is a ndarray"),
        ({"history": np.array("17")}, "Expected a list of ids for history 0"),
        ({"other": "3"}, "Expected a column history or user_id"),
    ],
)
def test_rows_that_name_no_user_or_two_are_refused(
    with_users: Path, row: dict[str, Any], told: str
) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(with_users))
    with pytest.raises(MlflowException, match=told):
        model.predict(pd.DataFrame([row]))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (None, "Expected a data frame"),
        ([["17"]], "Expected a data frame"),
        (pd.DataFrame([["3", "4"]], columns=["user_id", "user_id"]), "one column user_id, got 2"),
        (pd.DataFrame([["1", "2"]], columns=["history", "history"]), "one column history, got 2"),
    ],
)
def test_what_is_no_table_of_requests_is_refused(with_users: Path, table: Any, told: str) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(with_users)).unwrap_python_model()
    with pytest.raises(MlflowException, match=told):
        model.predict(None, table)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        *(
            (name, value, f"Expected a list of ids for {name}")
            for name in ("allowed_items", "blocked_items")
            for value in (None, 5, True, pd.NA, np.array("5"), {"5": 1})
        ),
        ("allowed_items", ["5", 5], "Ids are text"),
        *(
            ("fallback", value, "fallback must be 'popular' or 'none'")
            for value in (pd.NA, np.array(["popular"]), pd.Series(["none"]), ["popular"], 1)
        ),
    ],
)
def test_parameters_of_another_kind_are_refused(
    model: Any, name: str, value: Any, told: str
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=told):
        model.unwrap_python_model().predict(None, frame(["13"]), {name: value})


def test_a_bare_string_of_items_is_one_id(model: Any) -> None:
    ask = model.unwrap_python_model().predict
    only = ask(None, frame(["13"]), {"allowed_items": "21"})
    assert only["item_ids"].tolist() == [["21"]]
    without = ask(None, frame(["13"]), {"top_k": 40, "blocked_items": "21"})["item_ids"][0]
    assert "21" not in without
    assert {"1", "2"} <= set(without)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        *(({"max_listed": value}, "max_listed of") for value in ("x", -1, 1.5, True, [1])),
        *(({"bundle": value}, "bundle of the model's config") for value in (1, True, ["x"])),
        *(
            ({"bundle": value}, "Cannot read the bundle")
            for value in ("a\0b", "\ud800", "x" * 5000)
        ),
    ],
)
def test_an_invalid_config_is_refused_when_the_model_is_loaded(
    model_folder: Path, config: dict[str, Any], told: str
) -> None:
    import mlflow.pyfunc

    with pytest.raises(RecgritError, match=told):
        mlflow.pyfunc.load_model(str(model_folder), model_config=config)


def test_user_ids_are_refused_by_a_bundle_without_users(
    model: Any, post: Callable[..., httpx.Response]
) -> None:
    reply = post({"dataframe_records": [{"user_id": "3"}]})
    assert reply.status_code == 400
    assert "This bundle has no users" in reply.json()["message"]


def test_requests_may_block_and_allow_items(
    model: Any, post: Callable[..., httpx.Response], histories: dict[str, list[str]]
) -> None:
    seen = histories["3"]
    best = model.predict(frame(seen), params={"top_k": 5})["item_ids"][0]
    reply = post(records(seen, [], top_k=5, blocked_items=best[:2], fallback="popular"))
    first, second = reply.json()["predictions"]
    assert first["item_ids"][:3] == best[2:5]
    assert not set(best[:2]) & set(second["item_ids"]), "popular items are filtered too"
    only = post(records(seen, top_k=5, allowed_items=[best[3], best[1]])).json()["predictions"][0]
    assert only["item_ids"] == [best[1], best[3]]
    for stock in (["nobody knows this"], []):
        assert post(records(seen, allowed_items=stock)).status_code == 400, "nothing is left"
    assert model.predict(frame(seen), params={"top_k": 5})["item_ids"][0] == best, "as before"


def test_a_new_bundle_is_loaded_under_load_without_a_failed_request(
    model_folder: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    from recgrit.serving import pyfunc

    monkeypatch.setattr(pyfunc, "LOOK_SECONDS", 0.02)
    first = bundle.recommend_after({"x": ["13"]}, top_k=3)["item_id"].to_list()
    second = append_items(bundle, tmp_path / "tuesday", removed=first[:1]).bundle
    expected = [first, second.recommend_after({"x": ["13"]}, top_k=3)["item_id"].to_list()]
    assert expected[0] != expected[1]
    current = tmp_path / "current"
    current.symlink_to(bundle.directory)
    model = mlflow.pyfunc.load_model(str(model_folder), model_config={"bundle": str(current)})
    client = TestClient(scoring_server.init(model), raise_server_exceptions=False)
    body = records(["13"], top_k=3)

    def ask(_: int) -> list[str]:
        reply = client.post("/invocations", json=body)
        assert reply.status_code == 200, reply.text
        return list(reply.json()["predictions"][0]["item_ids"])

    def point_to(folder: Path) -> None:
        (tmp_path / "next").symlink_to(folder)
        (tmp_path / "next").replace(current)

    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(ask, number) for number in range(40)]
        point_to(second.directory)
        deadline = time.monotonic() + 60
        while (last := threads.submit(ask, 0).result()) != expected[1]:
            assert last == expected[0]
            assert time.monotonic() < deadline
        assert all(answer.result() in expected for answer in answers)
        # A bundle that cannot be read is not used, and the next readable one is.
        (tmp_path / "broken").mkdir()
        for broken in (tmp_path / "broken", tmp_path / "nowhere"):
            point_to(broken)
            assert [threads.submit(ask, n).result() for n in range(20)] == [expected[1]] * 20
        point_to(bundle.directory)
        while threads.submit(ask, 0).result() != expected[0]:
            assert time.monotonic() < deadline


def test_the_old_bundle_answers_if_its_replacement_cannot_be_loaded(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from recgrit.serving import pyfunc

    monkeypatch.setattr(pyfunc, "LOOK_SECONDS", 0)
    link, cut = tmp_path / "live", tmp_path / "cut"
    link.symlink_to(bundle.directory)
    follow = pyfunc.FollowedBundle(link)
    shutil.copytree(bundle.directory, cut)
    (cut / "catalogue.parquet").write_bytes(b"")
    for place in (link.name, "nowhere", os.devnull, cut):
        caplog.clear()
        link.unlink()
        link.symlink_to(place)
        deadline = time.monotonic() + 30
        while "still answering with" not in caplog.text:
            assert follow.get().fingerprint == bundle.fingerprint
            assert time.monotonic() < deadline, place
            time.sleep(0.01)


def test_a_path_without_a_bundle_is_refused_when_the_model_is_loaded(
    model_folder: Path, tmp_path: Path
) -> None:
    import mlflow.pyfunc

    with pytest.raises(ArtifactError, match="Cannot read the bundle"):
        mlflow.pyfunc.load_model(
            str(model_folder), model_config={"bundle": str(tmp_path / "nowhere")}
        )
