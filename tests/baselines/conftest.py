"""Sequences and IDs small enough to check by plain loops."""

import numpy as np
import pytest

from recgrit.data.splits import SequenceSplit


@pytest.fixture(scope="session")
def make_split():
    """Leave-one-out split; the last two items of each sequence are targets if it has three."""

    def make(sequences, num_items=None):
        lengths = np.array([len(sequence) for sequence in sequences])
        offsets = np.cumsum([0, *lengths])
        ends = offsets[1:]
        has_targets = lengths >= 3
        items = np.concatenate(sequences).astype(np.int32)
        return SequenceSplit(
            items=items,
            offsets=offsets,
            train_ends=np.where(has_targets, ends - 2, ends),
            valid_targets=np.where(has_targets, ends - 2, -1),
            test_targets=np.where(has_targets, ends - 1, -1),
            num_items=num_items or int(items.max()) + 1,
        )

    return make


@pytest.fixture(scope="session")
def cyclic():
    """Sequences in which each item fixes the next one: item + 7 modulo the catalogue."""

    def draw(num_users=150, num_items=40, length=12, seed=0):
        starts = np.random.default_rng(seed).integers(0, num_items, (num_users, 1))
        return (starts + 7 * np.arange(length)) % num_items

    return draw
