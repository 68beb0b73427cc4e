"""The MLflow model: in this process, and over HTTP on the loopback interface."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
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


def frame(*histories: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"history": list(histories)})


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
