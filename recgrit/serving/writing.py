"""Writing a bundle: the first of a run, and those that follow it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recgrit.artifacts import Origin, write_artifact
from recgrit.data.items import ItemTable
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import ENCODER_FILES
from recgrit.embedding.words import save_words
from recgrit.errors import ArtifactError
from recgrit.layout import EPOCHS_NAME, TOKENIZER_NAME, TRANSFORM_NAME, stage_directory
from recgrit.quantization.config import TokenizerConfig
from recgrit.runs import Run
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.semantic_ids.trie import build_trie
from recgrit.serving.bundle import (
    BUNDLE,
    BUNDLE_VERSION,
    MODEL_FOLDER,
    TRIE_NAME,
    Bundle,
    BundleSettings,
    TokenizerSettings,
    is_bundle,
)
from recgrit.serving.catalogue import Catalogue

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def export_bundle(run: Run, directory: Path) -> Bundle:
    """Write the first bundle of a finished run.

    Raises:
        ArtifactError: A stage is missing, its parts do not fit together, or the folder cannot be
            written.
    """
    trained = run.manifest("train")
    kind = str(trained.config["model"])
    manifests = {"train": trained, **{name: run.manifest(name) for name in trained.parents}}
    data, tables, words = run.data, [], None
    folder = stage_directory(run.directory, "train")
    copied = {
        f"{MODEL_FOLDER}/{name}": folder / name for name in trained.files if name != EPOCHS_NAME
    }
    ids = None
    names = data.items.to_polars().select("item_id", "title")
    items: SemanticIdTable | ItemTable = ItemTable(names)
    if "tokenize" in manifests:
        items = run.semantic_ids
        tokenizer, embed = manifests["tokenize"], run.manifest("embed")
        manifests["embed"] = embed
        published = "published" in tokenizer.summary
        ids = TokenizerSettings(
            seed=embed.config["seed"],
            embedding=run.config.embedding,
            encoder_space=embed.summary["encoder_space"],
            tokenizer=(
                None if published else TokenizerConfig.model_validate(tokenizer.config["tokenizer"])
            ),
        )
        embeddings = stage_directory(run.directory, "embed")
        if run.feature_transform.cooccurrence_mean is not None:
            tables.append(("cooccurrence", Embeddings.load(embeddings, "cooccurrence")))
        copied |= {
            name: embeddings / name
            for name in (TRANSFORM_NAME, *ENCODER_FILES)
            if (embeddings / name).is_file()
        }
        if not published:
            copied[TOKENIZER_NAME] = stage_directory(run.directory, "tokenize") / TOKENIZER_NAME
    if "embed" in manifests:
        tables.append(("features", run.features))
        words = run.words
    num_items = len(items)
    settings = BundleSettings(
        version=BUNDLE_VERSION,
        run={stage: manifest.fingerprint for stage, manifest in manifests.items()},
        ancestors=(),
        model=kind,
        settings=trained.config["settings"],
        ids=ids,
        beam_width=run.evaluated_beam_width(),
        num_known_items=num_items,
    )
    catalogue = Catalogue(
        trained=data.split.train_item_counts() > 0,
        added_in=np.zeros(num_items, np.int32),
        removed_in=np.full(num_items, -1, np.int32),
    )
    return write_bundle(
        directory,
        settings,
        items=items,
        catalogue=catalogue,
        tables=dict(tables),
        words=words,
        copied=copied,
        device=run.device,
    )


def write_bundle(
    directory: Path,
    settings: BundleSettings,
    *,
    items: SemanticIdTable | ItemTable,
    catalogue: Catalogue,
    tables: Mapping[str, Embeddings],
    words: csr_array | None,
    copied: Mapping[str, Path],
    device: str,
) -> Bundle:
    """Write a bundle and open it.

    Args:
        directory: Where it will be; a bundle that is there already gives way, nothing else does.
        settings: What it says of itself.
        items: What all items are called, with their IDs if they have any.
        catalogue: What became of each of them.
        tables: Vectors of all of them, such as ``features``, by name.
        words: Those of their texts; None where there are none.
        copied: Files taken as they are, by their names in the bundle.
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
    origin = Origin(BUNDLE, BUNDLE_VERSION, settings.model_dump(mode="json"), parents)
    with write_artifact(directory, origin, elsewhere="--out") as writer:
        items.save(writer.path)
        catalogue.save(writer.path, items.item_ids)
        for name, vectors in tables.items():
            vectors.save(writer.path, name)
        if words is not None:
            save_words(words, writer.path)
        if isinstance(items, SemanticIdTable):
            build_trie(items.codes).save(writer.path / TRIE_NAME)
        (writer.path / MODEL_FOLDER).mkdir()
        for name, path in copied.items():
            shutil.copyfile(path, writer.path / name)
        step = len(settings.ancestors)
        writer.summary = {
            "num_items": len(items),
            "num_listed": int(catalogue.listed.sum()),
            "num_trained": int(catalogue.trained.sum()),
            "num_added": int((catalogue.added_in == step).sum()) if step else 0,
            "num_removed": int((catalogue.removed_in == step).sum()) if step else 0,
        }
    return Bundle(directory, device=device)
