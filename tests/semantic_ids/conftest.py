import numpy as np
import polars as pl
import pytest

from recgrit.semantic_ids.table import SemanticIdTable


@pytest.fixture(scope="session")
def make_table():
    """Build a table of codes. Item i has the id "item i" and the title "Title i"."""

    def make(codes, sizes=None, disambiguation_level=None):
        codes = np.array(codes, dtype=np.int32)
        return SemanticIdTable(
            codes=codes,
            codebook_sizes=tuple(sizes or (codes.max(axis=0) + 1).tolist()),
            disambiguation_level=disambiguation_level,
            item_ids=pl.Series([f"item {i}" for i in range(len(codes))]),
            titles=pl.Series([f"Title {i}" for i in range(len(codes))]),
        )

    return make
