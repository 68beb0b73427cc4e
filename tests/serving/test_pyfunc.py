"""The MLflow model: in this process, and over HTTP on the loopback interface."""

from __future__ import annotations

import importlib
import json
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
from recgrit.errors import ArtifactError
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
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
    """Sends a request to MLflow's scoring server, which answers in this process."""
    import mlflow.pyfunc
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    # The server is there before it loads a model.
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
    assert list(found.columns) == ["item_ids", "titles", "scores"]
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


def test_nulls_are_passed_over_and_no_id_is_altered(
    model: Any, post: Callable[..., httpx.Response], caplog: pytest.LogCaptureFixture
) -> None:
    """With pandas 3, MLflow cuts texts beside a null to one letter if the signature says texts."""
    wanted = model.predict(frame(["13", "21"]))["item_ids"][0]
    assert wanted != model.predict(frame(["1", "2"]))["item_ids"][0]
    for nulls in (["13", None, "21"], [None, "13", "21", float("nan"), pd.NA]):
        assert model.predict(frame(nulls))["item_ids"][0] == wanted
        assert model.predict(frame(np.array(nulls, dtype=object)))["item_ids"][0] == wanted
    assert "3 nulls in the histories are passed over" in caplog.text
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


def test_long_histories_are_read_from_their_end_and_wholly_kept_out(
    post: Callable[..., httpx.Response], model: Any
) -> None:
    """Beside short ones too: what is read is as long as the model reads, 20 items here."""
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


def test_what_one_request_may_ask_for_is_a_setting(model_folder: Path, model: Any) -> None:
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
    """In a process of its own, whose threads take turns."""
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
    assert model.metadata.signature.inputs.input_names() == ["history"]
    example = model.input_example
    assert len(model.predict(example)["item_ids"][0]) == 10
    # A wrong table is refused by the signature.
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="history"):
        model.predict(pd.DataFrame({"histories": [["1"]]}))


def test_a_folder_that_is_there_is_left_alone(bundle: Bundle, model_folder: Path) -> None:
    from recgrit.serving.pyfunc import save_pyfunc

    with pytest.raises(ArtifactError, match="is there already"):
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
    """`mlflow models serve --env-manager local`, and what it says of a wrong request."""
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
