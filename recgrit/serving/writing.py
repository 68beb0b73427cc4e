"""Writing a bundle: the first of a run, and those that follow it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recgrit.artifacts import open_artifact, write_artifact
from recgrit.checksums import FileRecord
from recgrit.config import validate
from recgrit.data.items import ItemTable
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import ENCODER_FILES
from recgrit.embedding.words import save_words
from recgrit.errors import ArtifactError, ReplacedError
from recgrit.layout import EPOCHS_NAME, TOKENIZER_NAME, TRANSFORM_NAME, stage_directory
from recgrit.manifests import Origin
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
        f"{MODEL_FOLDER}/{name}": (folder / name, record)
        for name, record in trained.files.items()
        if name != EPOCHS_NAME
    }
    ids = None
    names = data.items.to_polars().select("item_id", "title")
    items: SemanticIdTable | ItemTable = ItemTable(names)
    if "tokenize" in manifests:
        items = run.semantic_ids
        tokenizer, embed = manifests["tokenize"], run.manifest("embed")
        manifests["embed"] = embed
        published = "published" in tokenizer.summary
        embedding = run.config.embedding.model_dump(mode="json")
        values = {
            "seed": embed.config["seed"],
            "embedding": {
                **embedding,
                "template": embed.summary.get("template", embedding["template"]),
            },
            "encoder_space": embed.summary["encoder_space"],
            "tokenizer": None if published else tokenizer.config["tokenizer"],
        }
        ids = validate(TokenizerSettings, values, f"the run {run.directory}")
        embeddings = stage_directory(run.directory, "embed")
        if run.feature_transform.cooccurrence_mean is not None:
            kept = run.read("embed", lambda path: Embeddings.load(path, "cooccurrence"))
            tables.append(("cooccurrence", kept))
        copied |= {
            name: (embeddings / name, embed.files[name])
            for name in (TRANSFORM_NAME, *ENCODER_FILES)
            if name in embed.files
        }
        if not published:
            path = stage_directory(run.directory, "tokenize") / TOKENIZER_NAME
            copied[TOKENIZER_NAME] = (path, tokenizer.files[TOKENIZER_NAME])
    if "embed" in manifests:
        tables.append(("features", run.features))
        words = run.words
    for stage in manifests:  # What goes to others is read whole.
        open_artifact(stage_directory(run.directory, stage), whole=True)
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
        table=run.config.data.table.model_copy(update={"items_path": None}),
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


def holds_another(directory: Path) -> ArtifactError:
    """What is said where a bundle would replace one that it must not."""
    return ArtifactError(
        f"{directory} holds another bundle, which may be in use: name a folder that does not exist "
        "yet, or delete this one first."
    )


def write_bundle(
    directory: Path,
    settings: BundleSettings,
    *,
    items: SemanticIdTable | ItemTable,
    catalogue: Catalogue,
    tables: Mapping[str, Embeddings],
    words: csr_array | None,
    copied: Mapping[str, tuple[Path, FileRecord]],
    device: str,
    may_replace: bool = True,
) -> Bundle:
    """Write a bundle and open it.

    Args:
        directory: Where it will be; a bundle that is there already gives way, nothing else does.
        settings: What it says of itself.
        items: What all items are called, with their IDs if they have any.
        catalogue: What became of each of them.
        tables: Vectors of all of them, such as ``features``, by name.
        words: Those of their texts; None where there are none.
        copied: Files taken as they are, by their names in the bundle, and what they have to be.
        device: Of the opened bundle.
        may_replace: Whether a bundle that is there gives way.

    Raises:
        ArtifactError: The folder cannot be written, holds something else than a bundle, or somebody
            else writes it.
        ReplacedError: What is copied was replaced meanwhile.
    """
    parents = dict(settings.run)
    if settings.ancestors:
        parents[BUNDLE] = settings.ancestors[-1].fingerprint
    origin = Origin(BUNDLE, BUNDLE_VERSION, settings.model_dump(mode="json"), parents)
    with write_artifact(directory, origin, elsewhere="--out") as writer:
        # Looked at while nobody else writes it.
        if not may_replace and is_bundle(directory):
            raise holds_another(directory)
        items.save(writer.path)
        catalogue.save(writer.path, items.item_ids)
        for name, vectors in tables.items():
            vectors.save(writer.path, name)
        if words is not None:
            save_words(words, writer.path)
        if isinstance(items, SemanticIdTable):
            build_trie(items.codes).save(writer.path / TRIE_NAME)
        (writer.path / MODEL_FOLDER).mkdir()
        for name, (path, record) in copied.items():
            shutil.copyfile(path, writer.path / name)
            if not record.fits(writer.path / name, whole=True):
                raise ReplacedError(f"{path} was replaced while it was copied: run this again.")
        step = len(settings.ancestors)
        writer.summary = {
            "num_items": len(items),
            "num_listed": int(catalogue.listed.sum()),
            "num_trained": int(catalogue.trained.sum()),
            "num_added": int((catalogue.added_in == step).sum()) if step else 0,
            "num_removed": int((catalogue.removed_in == step).sum()) if step else 0,
        }
    return Bundle(directory, device=device)
