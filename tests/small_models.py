"""Small catalogues, models with uneven probabilities, and sequences that can or cannot be learned.

Every size is set here, so no test depends on a default.
"""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recgrit.data.attributes import Attributes
from recgrit.data.splits import SequenceSplit
from recgrit.models.model import CatalogueInputs
from recgrit.models.trie import TrieModel
from recgrit.ranking import Batch
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.model import TrieRetriever
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.training.gradients import plan_step
from recgrit.training.loop import Trained


def build_inputs(split, table=None, features=None, config=None):
    """Build the inputs of a catalogue without removed and without added items.

    If settings ask for attributes, items have ``category`` and ``price``, and users have
    ``segment``.
    """
    trained = split.train_item_counts() > 0
    places, users = np.arange(split.num_items), np.arange(split.num_users)
    items = pl.DataFrame({"category": [f"c{place % 4}" for place in places], "price": places})
    people = pl.DataFrame({"segment": [f"s{user % 3}" for user in users]})
    of_users = Attributes.fit(people, getattr(config, "user_attributes", ()), users >= 0)
    return CatalogueInputs(
        attributes=Attributes.fit(items, getattr(config, "item_attributes", ()), trained),
        user_attributes=None if of_users is None else of_users.with_stranger(),
        trained=trained,
        semantic_ids=table,
        features=features,
        words=None,
        listed=np.ones(split.num_items, dtype=bool),
        num_known=split.num_items,
    )


def build_retriever(table, split, features, config):
    """Build an untrained retriever."""
    inputs = build_inputs(split, table, features, config)
    return TrieModel.build(inputs, config)


def fit_retriever(table, split, features, config, **options):
    """Fit a trie model and return its retriever, with the summary of its training."""
    inputs = build_inputs(split, table, features, config)
    found = TrieModel.fit(inputs, split, config, **options)
    summary = found.summary
    return Trained(found.model.network, summary.history, summary.best_epoch, found.model.precision)


def make_batch(histories, targets, supervised):
    """Build a batch from targets and their mask, both ``[B, T]``."""
    return Batch(histories, supervised.flatten().nonzero().squeeze(-1), targets[supervised])


def loss_of(model, histories, targets, supervised):
    """Return the loss of a batch that is planned as in training."""
    return model.loss(plan_step(model, make_batch(histories, targets, supervised)))


def losses_by_weight(model, histories, targets, supervised):
    """Return the loss of a batch with uneven weights, and the mean of the weighted losses."""
    batch = make_batch(histories, targets, supervised)
    weights = torch.linspace(0.1, 3, batch.num_targets)
    found = model.loss(plan_step(model, replace(batch, weights=weights))).value
    alone = []
    for place in range(batch.num_targets):
        only = slice(place, place + 1)
        one = replace(batch, positions=batch.positions[only], targets=batch.targets[only])
        alone.append(model.loss(plan_step(model, one)).value)
    return found, (weights * torch.stack(alone)).mean()


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hierarchy():
    """Draw points ``[N, 16]`` around 8 x 8 centres. `noise` is the noise's mean squared norm."""

    def draw(num_vectors=1024, *, noise=0.02, seed=0):
        generator = torch.Generator().manual_seed(seed)
        planted = torch.Generator().manual_seed(99)
        coarse = torch.randn(8, 1, 16, generator=planted)
        fine = 0.4 * torch.randn(8, 8, 16, generator=planted)
        centres = (coarse + fine).flatten(0, 1)
        chosen = torch.randint(64, (num_vectors,), generator=generator)
        spread = torch.randn(num_vectors, 16, generator=generator) * (noise / 16) ** 0.5
        return centres[chosen] + spread

    return draw


@pytest.fixture(scope="session")
def make_split():
    """Build a leave-one-out split. The last two of three or more items are targets."""

    def make(sequences, num_items=None, targets=True):
        lengths = np.array([len(sequence) for sequence in sequences])
        offsets = np.cumsum([0, *lengths])
        ends = offsets[1:]
        has_targets = (lengths >= 3) & targets
        items = np.concatenate([*sequences, []]).astype(np.int32)
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
def random_codes():
    """Draw unique IDs, int32 ``[num_items, L]``. Branching shrinks from level to level."""

    def draw(num_items, sizes=(4, 4, 4), seed=0):
        rng = np.random.default_rng(seed)
        flat = rng.choice(int(np.prod(sizes)), num_items, replace=False)
        return np.stack(np.unravel_index(flat, sizes), axis=1).astype(np.int32)

    return draw


@pytest.fixture(scope="session")
def make_table():
    def make(codes, sizes=None, disambiguation_level=None):
        names = [f"item {i}" for i in range(len(codes))]
        return SemanticIdTable(
            codes=codes,
            codebook_sizes=tuple(sizes or (codes.max(axis=0) + 1).tolist()),
            disambiguation_level=disambiguation_level,
            item_ids=pl.Series(names),
            titles=pl.Series(names),
        )

    return make


@pytest.fixture(scope="session")
def make_model():
    """Build a retriever in eval mode with weights so large that it strongly prefers some items."""

    def make(codes, sizes=None, *, train_items=None, seed=0, **changes):
        torch.manual_seed(seed)
        codes = np.array(codes, dtype=np.int32)
        values = {
            "disambiguation_level": None,
            "model_dim": 16,
            "num_layers": 2,
            "num_heads": 2,
            "history_length": 8,
            "dropout": 0.0,
            "node_dropout": 0.0,
            "label_smoothing": 0.0,
        }
        model = TrieRetriever(
            codes,
            tuple(sizes or (codes.max(axis=0) + 1).tolist()),
            train_items=(
                torch.ones(len(codes), dtype=torch.bool) if train_items is None else train_items
            ),
            **(values | changes),
        )
        with torch.no_grad():
            for name, parameter in model.nodes.named_parameters():
                if name.endswith("weight"):
                    parameter.normal_(std=0.2)
            for table in (model.nodes.code_embedding, model.nodes.fallback):
                table.weight[0] = 0.0  # Row 0 means that there is no code, so its vector is zero.
            if model.seen_scores is not None:
                model.seen_scores.normal_(std=0.5)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_config():
    """Build the settings of a training that takes seconds."""

    def make(**changes):
        values = {
            "model_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
            "history_length": 10,
            "dropout": 0.1,
            "node_dropout": 0.1,
            "epochs": 3,
            "patience": 3,
            "batch_targets": 128,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "warmup_steps": 5,
            "average_decay": 0.0,
            "label_smoothing": 0.0,
            "neighbours": (),
            "valid_beam_width": 20,
            "valid_users": None,
            "device": "cpu",
            "precision": "float32",
        }
        return RetrieverConfig(**(values | changes))

    return make


@pytest.fixture(scope="session")
def cyclic():
    """Draw sequences in which each item determines the next: item + 7 modulo the catalogue."""

    def draw(num_users=150, num_items=40, length=12, seed=0):
        starts = np.random.default_rng(seed).integers(0, num_items, (num_users, 1))
        return (starts + 7 * np.arange(length)) % num_items

    return draw


@pytest.fixture(scope="session")
def log_probability():
    """Compute log P(item | state, history) by a walk down the trie in plain loops."""

    def compute(model, state, item, *, history=(), training=False):
        trie = model.trie
        starts = torch.from_numpy(model.planner.starts) if training else trie.child_starts
        nodes = torch.arange(trie.num_nodes)
        if training:
            nodes = torch.from_numpy(model.planner.nodes)
        vectors = model.nodes()
        total, node, chosen = 0.0, 0, None
        for level, wanted in enumerate(trie.paths[item].tolist()):
            children = nodes[starts[node] : starts[node + 1]].tolist()
            query = model.decoder(state[None], None if chosen is None else chosen[None], level)[0]
            scores = torch.stack([query @ vectors[child] for child in children])
            for column, child in enumerate(children):
                below = trie.leaf_items[trie.leaf_starts[child] : trie.leaf_ends[child]]
                if model.seen_scores is not None and set(below.tolist()) <= set(history):
                    scores[column] += model.input_scale * model.seen_scores[level]
            total = total + scores.log_softmax(dim=0)[children.index(wanted)]
            node = wanted
            chosen = model.input_scale * vectors[node] + (0 if chosen is None else chosen)
        return total

    return compute


@pytest.fixture(scope="session")
def unseen():
    """Return the seen items of empty histories."""

    def build(model, num_users):
        nothing = torch.zeros(num_users, 1, dtype=torch.long)
        return model.find_seen(nothing, nothing.bool())

    return build
