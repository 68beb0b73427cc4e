"""Test similar items from a bundle: added items are listed, and removed items are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.similar import WAYS


@pytest.mark.parametrize("by", WAYS)
def test_a_bundle_finds_what_its_run_does(run: Run, bundle: Bundle, by: Any) -> None:
    found, expected = bundle.similar_items("3", 6, by=by), run.similar_items("3", 6, by=by)
    assert found.select(pl.exclude("score")).equals(expected.select(pl.exclude("score")))
    assert found["score"].to_numpy() == pytest.approx(expected["score"].to_numpy(), abs=1e-5)


def test_added_items_are_found_and_removed_ones_are_not(
    bundle: Bundle,
    like: Callable[..., ItemTable],
    tmp_path: Path,
    command: Callable[..., Any],
) -> None:
    later = append_items(bundle, tmp_path / "later", like(["3"]), removed=["7"]).bundle
    for by in WAYS:
        of_new = later.similar_items("new 3", 40, by=by)
        assert of_new.height > 0, by
        assert "7" not in of_new["item_id"], by
        assert "new 3" in later.similar_items("3", 41, by=by)["item_id"], by
        assert later.similar_items("7", 3, by=by).height == 3, "removed items may be asked for"
        whole = pl.concat(later.similar(by).list_all(top_k=3))
        assert set(whole["item_id"]) == set(later.items.item_ids) - {"7"}
        assert "7" not in whole["similar_item_id"]
    done = command("similar", "--bundle", tmp_path / "later", "new 3", "--json")
    assert done.json()["similar"] == later.similar_items("new 3").to_dicts()
