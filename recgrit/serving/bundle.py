"""A bundle: one folder with all it takes to recommend and to give IDs to later items.

Nothing in it refers to the run it came from. It is never changed: adding or removing items writes
another bundle (`recgrit.serving.append`), which names the one before. Every file is listed with its
checksum and compared when a bundle is opened.

In it: the item-ID table and which items are trained, added or removed; weights of the tokenizer and
the retriever, neighbours included; what made the items' features, and the features themselves; the
trie's tables for services that walk it on their own.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import Manifest, digest_file, read_manifest, write_artifact
from recgrit.config import Config
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import EmbeddingConfig
from recgrit.embedding.features import FeatureTransform
from recgrit.embedding.frozen import ENCODER_FILES
from recgrit.errors import ArtifactError, DataError, NewerSchemaError, RecgritError
from recgrit.quantization.config import TokenizerConfig
from recgrit.retrieval.config import RetrieverConfig
from recgrit.runs import (
    TOKENIZER_NAME,
    TRANSFORM_NAME,
    WEIGHTS_NAME,
    Run,
    read_tokenizer,
    stage_directory,
)
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.semantic_ids.trie import build_trie

if TYPE_CHECKING:
    from recgrit.data.splits import SequenceSplit
    from recgrit.quantization.autoencoder import QuantizedAutoencoder
    from recgrit.retrieval.model import TrieRetriever
    from recgrit.retrieval.trie_ranker import TrieRanker

logger = logging.getLogger(__name__)

BUNDLE = "bundle"
TRIE_NAME = "trie.safetensors"
CATALOGUE_NAME = "catalogue.parquet"
BUNDLE_VERSION = 1
# Stages whose artifacts go into a bundle.
ORIGINS = ("prepare", "embed", "tokenize", "train")


class Ancestor(Config):
    """One bundle in the line that led to another.

    Args:
        fingerprint: Of that bundle.
        created: When, in UTC.
        num_added: Items it added to the one before.
        num_removed: Items it removed.
    """

    fingerprint: str
    created: str
    num_added: int
    num_removed: int


class BundleSettings(Config):
    """What a bundle says of itself, beside its files.

    Args:
        version: Of the layout of bundles.
        run: Fingerprint of each artifact of the run it came from.
        ancestors: The bundles before it, oldest first.
        seed: Of the run.
        embedding: How item texts become vectors.
        encoder_space: Hash of what decides where those lie; None for vectors of the user's own.
        tokenizer: Settings of the tokenizer.
        retriever: Settings of the retriever.
        beam_width: Prefixes kept at each level, as the run was evaluated.
        num_known_items: The first items, which the catalogue had in training.
    """

    version: int
    run: dict[str, str]
    ancestors: tuple[Ancestor, ...]
    seed: int
    embedding: EmbeddingConfig
    encoder_space: str | None
    tokenizer: TokenizerConfig
    retriever: RetrieverConfig
    beam_width: int
    num_known_items: int


@dataclass(frozen=True)
class Catalogue:
    """What became of each item; row i is ``item_idx`` i.

    Args:
        trained: bool ``[N]``, whether training histories hold it.
        added_in: int32 ``[N]``, number of the bundle that added it, 0 for the first.
        removed_in: int32 ``[N]``, likewise; -1 while it is listed. A removed item keeps its row and
            its ID, so that nothing else ever gets them.
    """

    trained: npt.NDArray[np.bool_]
    added_in: npt.NDArray[np.int32]
    removed_in: npt.NDArray[np.int32]

    @property
    def listed(self) -> npt.NDArray[np.bool_]:
        """Bool ``[N]``, the items that may be recommended."""
        return self.removed_in < 0

    def save(self, directory: Path, item_ids: pl.Series) -> None:
        """Write ``catalogue.parquet``."""
        columns = {"trained": self.trained, "added_in": self.added_in}
        frame = pl.DataFrame({"item_id": item_ids, **columns, "removed_in": self.removed_in})
        frame.write_parquet(directory / CATALOGUE_NAME)

    @classmethod
    def load(cls, directory: Path) -> Catalogue:
        """Read what `save` wrote."""
        frame = pl.read_parquet(directory / CATALOGUE_NAME, glob=False)
        return cls(
            trained=frame["trained"].to_numpy(),
            added_in=frame["added_in"].to_numpy(),
            removed_in=frame["removed_in"].to_numpy(),
        )


class Bundle:
    """A bundle, read-only.

    Args:
        directory: The folder.
        device: Where the retriever runs; "auto" is a GPU if there is one.

    Raises:
        ArtifactError: The folder holds no bundle, or a file is not as it was written.

    Example:
        ``Bundle("bundles/monday").recommend_after({"anyone": ["242", "51"]})``
    """

    def __init__(self, directory: Path | str, *, device: str = "auto") -> None:
        self.directory = Path(directory)
        self.device = device
        self.manifest = _read_verified(self.directory)
        self.settings = BundleSettings.model_validate(self.manifest.config)

    @property
    def fingerprint(self) -> str:
        """Hash of all its content and of where it comes from."""
        return self.manifest.fingerprint

    @property
    def parent(self) -> str | None:
        """Fingerprint of the bundle it was made from; None for the first."""
        return self.settings.ancestors[-1].fingerprint if self.settings.ancestors else None

    @cached_property
    def semantic_ids(self) -> SemanticIdTable:
        """The item-ID table, removed items included."""
        with self._reading():
            return SemanticIdTable.load(self.directory)

    @cached_property
    def catalogue(self) -> Catalogue:
        """Which items are trained, added, removed."""
        with self._reading():
            return Catalogue.load(self.directory)

    @cached_property
    def features(self) -> Embeddings:
        """Features of all items."""
        with self._reading():
            return Embeddings.load(self.directory, "features")

    @cached_property
    def cooccurrence(self) -> npt.NDArray[np.float32] | None:
        """Co-occurrence vectors of all items, zeros where there are none."""
        if self.feature_transform.cooccurrence_mean is None:
            return None
        with self._reading():
            return Embeddings.load(self.directory, "cooccurrence").vectors

    @cached_property
    def feature_transform(self) -> FeatureTransform:
        """How features are made of vectors."""
        with self._reading():
            return FeatureTransform.load(self.directory / TRANSFORM_NAME)

    @cached_property
    def tokenizer(self) -> QuantizedAutoencoder:
        """The fitted tokenizer, in eval mode."""
        with self._reading():
            return read_tokenizer(
                self.directory / TOKENIZER_NAME,
                self.settings.tokenizer,
                self.features.embedding_dim,
            )

    @cached_property
    def retriever(self) -> TrieRetriever:
        """The trained retriever over the whole catalogue, in eval mode."""
        from safetensors.torch import load_file

        from recgrit.retrieval.fit import assemble_retriever
        from recgrit.retrieval.training import choose_device

        model = assemble_retriever(
            self.semantic_ids,
            self.catalogue.trained,
            self.features.vectors if self.settings.retriever.content else None,
            self.settings.retriever,
            num_known_items=self.settings.num_known_items,
        )
        with self._reading():
            state = load_file(self.directory / WEIGHTS_NAME)
            if model.neighbours is not None:
                for name, rows in model.neighbours.state_dict(prefix="neighbours.").items():
                    rows[: len(state[name])] = state[name]
                    state[name] = rows
            model.load_state_dict(state)
        if model.neighbours is not None:
            # Items that came later were never taken near any other.
            known = np.arange(len(self.semantic_ids)) < self.settings.num_known_items
            model.neighbours.add_untaken(
                self.features.vectors, known, ~known & self.catalogue.listed
            )
        return model.to(choose_device(self.device)).eval()

    def ranker(
        self,
        *,
        beam_width: int | None = None,
        allowed_items: Collection[str] | None = None,
        blocked_items: Collection[str] = (),
    ) -> TrieRanker:
        """The retriever, ready to rank; removed items never come out.

        Args:
            beam_width: Prefixes kept at each level; None for as many as the run was evaluated with.
            allowed_items: External ids of the only items that may be listed; None for all.
            blocked_items: External ids of items that are not listed this time.

        Raises:
            DataError: No item is left.
        """
        import torch

        from recgrit.retrieval.listing import find_allowed
        from recgrit.retrieval.trie_ranker import TrieRanker

        allowed = find_allowed(self.semantic_ids, allowed_items, blocked_items)
        allowed &= self.catalogue.listed
        return TrieRanker(
            self.retriever,
            beam_width=self.settings.beam_width if beam_width is None else beam_width,
            allowed=None if allowed.all() else torch.from_numpy(allowed),
        )

    def recommend_after(
        self,
        histories: Mapping[str, Sequence[str]],
        *,
        top_k: int = 10,
        beam_width: int | None = None,
        exclude_seen: bool = True,
        allowed_items: Collection[str] | None = None,
        blocked_items: Collection[str] = (),
    ) -> pl.DataFrame:
        """What is likely to follow these histories; see `Run.recommend_after`.

        A history may hold removed items and items added since the training.
        """
        from recgrit.retrieval.listing import recommend_histories

        return recommend_histories(
            self._search(top_k, beam_width, allowed_items, blocked_items),
            self.semantic_ids,
            histories,
            top_k=top_k,
            exclude_seen=exclude_seen,
        )

    def iterate_recommendations(
        self,
        split: SequenceSplit,
        user_ids: pl.Series,
        *,
        top_k: int = 10,
        beam_width: int | None = None,
        exclude_seen: bool = True,
    ) -> Iterator[pl.DataFrame]:
        """Lists for all users of a split, some users at a time.

        Args:
            split: Histories over this bundle's items, as `recgrit.serving.histories` reads them.
            user_ids: Row i belongs to user i of the split.
            top_k: Items per user.
            beam_width: As for `ranker`, at least ``top_k``.
            exclude_seen: Keep out what a user already has.
        """
        from recgrit.retrieval.listing import name_lists
        from recgrit.retrieval.recommend import recommend_shards

        ranker = self._search(top_k, beam_width, None, ())
        users = np.arange(split.num_users)
        for found in recommend_shards(ranker, split, users, top_k=top_k, masked=exclude_seen):
            yield name_lists(self.semantic_ids, found.to_polars(), user_ids)

    def _search(
        self,
        top_k: int,
        beam_width: int | None,
        allowed_items: Collection[str] | None,
        blocked_items: Collection[str],
    ) -> TrieRanker:
        if top_k < 1:
            raise DataError(f"top_k must be at least 1, got {top_k}.")
        width = self.settings.beam_width if beam_width is None else beam_width
        return self.ranker(
            beam_width=max(width, top_k), allowed_items=allowed_items, blocked_items=blocked_items
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What cannot be read is told as such."""
        try:
            yield
        except RecgritError:
            raise
        # Every format has its own exceptions, and safetensors derives its from Exception.
        except Exception as error:
            raise ArtifactError(
                f"The bundle {self.directory} cannot be read: {error}. Take the bundle before it, "
                "or export it again with 'recgrit export bundle'."
            ) from error


def export_bundle(run: Run, directory: Path) -> Bundle:
    """Write the first bundle of a finished run.

    Raises:
        ArtifactError: A stage is missing, its parts do not fit together, or the folder cannot be
            written.
    """
    manifests = {stage: run.manifest(stage) for stage in ORIGINS}
    transform, table = run.feature_transform, run.semantic_ids
    embedding = run.config.embedding
    settings = BundleSettings(
        version=BUNDLE_VERSION,
        run={stage: manifest.fingerprint for stage, manifest in manifests.items()},
        ancestors=(),
        seed=manifests["embed"].config["seed"],
        embedding=embedding,
        encoder_space=manifests["embed"].summary["encoder_space"],
        tokenizer=TokenizerConfig.model_validate(manifests["tokenize"].config["tokenizer"]),
        retriever=RetrieverConfig.model_validate(manifests["train"].config["retriever"]),
        beam_width=run.evaluated_beam_width(),
        num_known_items=len(table),
    )
    catalogue = Catalogue(
        trained=run.data.split.train_item_counts() > 0,
        added_in=np.zeros(len(table), np.int32),
        removed_in=np.full(len(table), -1, np.int32),
    )
    embeddings = stage_directory(run.directory, "embed")
    copied = {
        TOKENIZER_NAME: stage_directory(run.directory, "tokenize"),
        WEIGHTS_NAME: stage_directory(run.directory, "train"),
        TRANSFORM_NAME: embeddings,
        **{name: embeddings for name in ENCODER_FILES if (embeddings / name).is_file()},
    }
    cooccurrence = None
    if transform.cooccurrence_mean is not None:
        cooccurrence = Embeddings.load(embeddings, "cooccurrence")
    return write_bundle(
        directory,
        settings,
        table=table,
        catalogue=catalogue,
        features=run.features,
        cooccurrence=cooccurrence,
        copied=copied,
        device=run.device,
    )


def write_bundle(
    directory: Path,
    settings: BundleSettings,
    *,
    table: SemanticIdTable,
    catalogue: Catalogue,
    features: Embeddings,
    cooccurrence: Embeddings | None,
    copied: Mapping[str, Path],
    device: str,
) -> Bundle:
    """Write a bundle and open it.

    Args:
        directory: Where it will be; a bundle that is there already gives way, nothing else does.
        settings: What it says of itself.
        table: All items' IDs.
        catalogue: What became of each of them.
        features: Of all of them.
        cooccurrence: Likewise, None where features have no such part.
        copied: Files taken as they are, and the folders they are in.
        device: Of the opened bundle.

    Raises:
        ArtifactError: The folder cannot be written, or holds something else than a bundle.
    """
    if directory.exists() and not is_bundle(directory):
        raise ArtifactError(
            f"{directory} is there already and is no bundle: name a folder that does not exist yet."
        )
    parents = dict(settings.run)
    if settings.ancestors:
        parents[BUNDLE] = settings.ancestors[-1].fingerprint
    values = settings.model_dump(mode="json")
    with write_artifact(directory, BUNDLE, values, parents, elsewhere="--out") as writer:
        table.save(writer.path)
        catalogue.save(writer.path, table.item_ids)
        features.save(writer.path, "features")
        if cooccurrence is not None:
            cooccurrence.save(writer.path, "cooccurrence")
        build_trie(table.codes).save(writer.path / TRIE_NAME)
        for name, folder in copied.items():
            shutil.copyfile(folder / name, writer.path / name)
        writer.summary = {
            "num_items": len(table),
            "num_listed": int(catalogue.listed.sum()),
            "num_trained": int(catalogue.trained.sum()),
            "num_added": int((catalogue.added_in == len(settings.ancestors)).sum())
            if settings.ancestors
            else 0,
            "num_removed": int((catalogue.removed_in == len(settings.ancestors)).sum())
            if settings.ancestors
            else 0,
        }
    return Bundle(directory, device=device)


def is_bundle(directory: Path) -> bool:
    """Whether a folder says it is a bundle, whole or not."""
    try:
        values: Any = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return bool(values["stage"] == BUNDLE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_verified(directory: Path) -> Manifest:
    """The manifest of a bundle whose files are all as they were written."""
    if not is_bundle(directory):
        raise ArtifactError(
            f"No bundle at {directory}: expected a folder that 'recgrit export bundle' or "
            "'recgrit append' wrote."
        )
    try:
        manifest = read_manifest(directory)
    except NewerSchemaError:
        raise
    except ArtifactError as error:
        raise ArtifactError(f"The bundle {directory} is damaged. {error}") from None
    version = manifest.config.get("version")
    if version != BUNDLE_VERSION:
        raise NewerSchemaError(
            f"The bundle {directory} has layout {version}, this recgrit reads {BUNDLE_VERSION}. "
            "Upgrade recgrit, or export the bundle again."
        )
    try:
        digests = {name: digest_file(directory / name) for name in manifest.files}
    except OSError as error:
        raise ArtifactError(f"Cannot read {error.filename}: {error.strerror}.") from None
    changed = [name for name, digest in manifest.files.items() if digests[name] != digest]
    if changed:
        raise ArtifactError(
            f"The bundle {directory} is not as it was written: {', '.join(changed)} changed since "
            "(checksums differ). Copy it again from where it came, or export it again."
        )
    return manifest
