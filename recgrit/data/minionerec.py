"""MiniOneRec's protocol: all samples in time order, split 80/10/10, with short histories.

A sample is an interaction that has an earlier one of the same user, with up to ten items of the
user before it as its history. The samples of all users are sorted by the time of the target. The
first 80% are for training, the next 10% for validation and the last 10% for test
(``data/amazon18_data_process.py`` of AkaliKong/MiniOneRec; arXiv 2510.24431). Every target is
evaluated, so a user may have many targets. A test history may hold validation items and earlier
test items, because these happened before the target.

Samples with the same time are ordered by user, in the order in which users first appear in the
file, and then as in the file. Models here learn from a user's training items as one sequence, in
windows of ``retriever.history_length``. With a length of 10 no target sees more items than the
protocol allows.

The history of each evaluated target is stored once more. In the worst case this adds about twice
the number of interactions: a fifth of the samples, with up to 11 items each.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from recgrit.data.protocols import Sequences
from recgrit.data.splits import SequenceSplit
from recgrit.errors import DataError

TRAIN_SHARE, BEFORE_TEST_SHARE = 0.8, 0.9
MAX_HISTORY = 10


def minionerec(sequences: Sequences) -> SequenceSplit:
    """Split sequences by MiniOneRec's protocol.

    The result has each user's sequence with its training part, followed by one sequence for each
    target.

    Args:
        sequences: Sequences of all users, because samples are sorted over all users.

    Raises:
        DataError: There are too few samples for all three parts.
    """
    items, offsets = sequences.items, sequences.offsets
    num_users = len(offsets) - 1
    users = np.repeat(np.arange(num_users), np.diff(offsets))
    is_first = np.zeros(len(items), dtype=np.bool_)
    is_first[offsets[:-1]] = True
    samples = np.flatnonzero(~is_first)
    samples = samples[np.argsort(sequences.times[samples], kind="stable")]
    num_train = int(len(samples) * TRAIN_SHARE)
    num_before_test = int(len(samples) * BEFORE_TEST_SHARE)
    if not 0 < num_train < num_before_test < len(samples):
        raise DataError(
            f"{len(samples)} samples cannot be split 8:1:1: expected at least 10. A sample "
            "needs an earlier interaction of the same user. Lower the filters of the data section, "
            "or use data.split=leave_one_out."
        )
    # Samples are in time order, so a user's training samples are the first of the user's sequence.
    num_learned = np.bincount(users[samples[:num_train]], minlength=num_users)
    targets = samples[num_train:]
    own_starts = offsets[:-1]
    histories = np.maximum(own_starts[users[targets]], targets - MAX_HISTORY)
    lengths = targets - histories + 1
    copies = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    copied = np.repeat(histories - copies[:-1], lengths) + np.arange(copies[-1])
    starts = len(items) + copies[:-1]
    ends = len(items) + copies[1:]
    nothing = np.full(num_users, -1)
    is_valid = np.arange(len(targets)) < num_before_test - num_train
    return SequenceSplit(
        items=np.concatenate([items, items[copied]]),
        offsets=np.concatenate([offsets, ends]),
        train_ends=np.concatenate(
            [own_starts + np.where(num_learned > 0, num_learned + 1, 0), starts]
        ),
        valid_targets=np.concatenate([nothing, np.where(is_valid, ends - 1, -1)]),
        test_targets=np.concatenate([nothing, np.where(is_valid, -1, ends - 1)]),
        num_items=sequences.num_items,
        owners=np.concatenate([np.arange(num_users), users[targets]]),
    )


def keep_short_titles(
    interactions: pl.DataFrame, items: pl.DataFrame, max_words: int
) -> pl.DataFrame:
    """Keep the interactions with items whose title is known and has at most ``max_words`` words."""
    short = items.filter(pl.col("title").str.count_matches(" ", literal=True) < max_words)
    return interactions.filter(pl.col("item_id").is_in(short["item_id"].implode()))
