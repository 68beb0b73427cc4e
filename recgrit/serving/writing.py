"""Writing of bundles: the first bundle of a run, and the bundles that follow it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recgrit.artifacts import open_artifact, write_artifact
from recgrit.checksums import FileRecord
from recgrit.config import validate
from recgrit.data.attributes import ITEM_ATTRIBUTES, USER_ATTRIBUTES, Attributes
from recgrit.data.items import ItemTable
from recgrit.data.user_histories import UserHistories
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import ENCODER_FILES
from recgrit.embedding.transforms import load_given, save_given
from recgrit.embedding.words import save_words
from recgrit.errors import ArtifactError, ReplacedError
from recgrit.layout import (
    EPOCHS_NAME,
    SOURCE_FOLDER,
    TOKENIZER_NAME,
    TRANSFORM_NAME,
    stage_directory,
)
from recgrit.manifests import Origin
from recgrit.records import BUNDLE
from recgrit.runs import Run
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.semantic_ids.trie import build_trie
from recgrit.serving.bundle import MODEL_FOLDER, TRIE_NAME, USERS_NAME, Bundle, is_bundle
from recgrit.serving.catalogue import Catalogue
from recgrit.serving.delta import Delta
from recgrit.serving.settings import BUNDLE_VERSION, BundleSettings, TokenizerSettings

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def export_bundle(run: Run, directory: Path, *, with_users: bool = False) -> Bundle:
    """Write the first bundle of a finished run.

    Args:
        run: A finished run.
        directory: Folder of the bundle.
        with_users: Whether the bundle keeps the histories of all users of the log, so that it can
            recommend to a user by id.

    Raises:
        ArtifactError: A stage is missing, its parts do not fit together, or the folder cannot be
            written.
    """
    trained = run.manifest("train")
    kind = str(trained.config["model"])
    manifests = {"train": trained, **{name: run.manifest(name) for name in trained.parents}}
    data, tables, words, given = run.data, [], None, {}
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
            "pictures": embed.summary.get("pictures", {}),
        }
        ids = validate(TokenizerSettings, values, f"the run {run.directory}")
        embeddings = stage_directory(run.directory, "embed")
        if run.feature_transform.cooccurrence is not None:
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
        given = run.read("embed", lambda path: load_given(path, len(items)))
    for stage in manifests:  # Files that go into a bundle are compared as a whole.
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
        table=run.config.data.table.model_copy(update={"items_path": None, "users_path": None}),
    )
    catalogue = Catalogue(
        trained=data.split.train_item_counts() > 0,
        added_in=np.zeros(num_items, np.int32),
        removed_in=np.full(num_items, -1, np.int32),
        counts=data.split.train_target_counts().astype(np.int64),
    )
    parts = BundleParts(settings, items, catalogue, dict(tables), words, given)
    if "embed" in manifests and "source" in manifests["embed"].summary:
        parts = _with_source(parts, open_source(run), data.items)
    return write_bundle(
        directory,
        parts.settings,
        items=parts.items,
        catalogue=parts.catalogue,
        tables=parts.tables,
        words=parts.words,
        given=parts.given,
        copied=copied,
        attributes=_attributes(run),
        user_attributes=_user_attributes(run, with_users=with_users),
        users=_all_users(run) if with_users else None,
        device=run.device,
    )


def _attributes(run: Run) -> Attributes | None:
    """Return the attributes of the items, as the run's model reads them."""
    return Attributes.fit(
        run.data.items.frame,
        run.manifest("train").config["settings"].get(ITEM_ATTRIBUTES, ()),
        run.data.split.train_item_counts() > 0,
    )


def _user_attributes(run: Run, *, with_users: bool) -> Attributes | None:
    """Return the attributes of users, or only of an unknown user if the bundle keeps no users."""
    names = run.manifest("train").config["settings"].get(USER_ATTRIBUTES, ())
    found = run.user_attributes(names)
    return found if found is None or with_users else found.only_stranger()


def _all_users(run: Run) -> UserHistories:
    """Return all users of a run's log: the training users, then those that the filters left out."""
    trained = UserHistories(run.data.interactions.user_ids, run.data.split)
    return trained.joined_with(run.data.left_out)


@dataclass(frozen=True)
class BundleParts:
    """The parts that a bundle is written from, except copied files.

    Args:
        settings: Settings for the bundle's manifest.
        items: Ids and titles of all items, with their semantic IDs if they have any.
        catalogue: Which items are trained, added or removed.
        tables: Vectors of all items by name, such as ``features``.
        words: TF-IDF vectors of all items' texts. None if the items have no texts.
        given: By name of a further feature block, which items have a vector of it.
    """

    settings: BundleSettings
    items: SemanticIdTable | ItemTable
    catalogue: Catalogue
    tables: Mapping[str, Embeddings]
    words: csr_array | None
    given: Mapping[str, npt.NDArray[np.bool_]]


def open_source(run: Run) -> Bundle:
    """Open the bundle that `warm_start.take_over` wrote for a run that continues from a source."""
    return run.read("embed", lambda path: Bundle(path / SOURCE_FOLDER, device="cpu"))


def find_rows(source: Bundle, items: ItemTable) -> npt.NDArray[np.int64]:
    """Return the row of each of N items in a bundle that contains all of them, int64 ``[N]``."""
    rows = source.items.find_items(items.item_ids)
    assert len(rows) == len(items)
    return rows


def _with_source(parts: BundleParts, source: Bundle, items: ItemTable) -> BundleParts:
    """Return the bundle's parts with the source's items that the run lacks, after the run's items.

    The added items keep their IDs and stay listed or removed as in the source.
    """
    own = find_rows(source, items)
    order = np.concatenate([own, np.setdiff1d(np.arange(len(source.items)), own)])
    num_others = len(order) - len(own)
    table, before, now = source.semantic_ids, source.catalogue, parts.catalogue
    settings = {"ids": source.settings.ids, "ancestors": source.settings.ancestors}
    return BundleParts(
        parts.settings.model_copy(update=settings),
        table.take(order),
        Catalogue(
            trained=np.concatenate([now.trained, np.zeros(num_others, bool)]),
            added_in=before.added_in[order],
            removed_in=before.removed_in[order],
            counts=np.concatenate([now.counts, np.zeros(num_others, np.int64)]),
        ),
        {name: Embeddings.load(source.directory, name).take(order) for name in parts.tables},
        None if source.words is None else source.words[order],
        {name: given[order] for name, given in source.given.items()},
    )


def holds_another(directory: Path) -> ArtifactError:
    """Return the error for a folder that holds another bundle, which must not be replaced."""
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
    given: Mapping[str, npt.NDArray[np.bool_]],
    copied: Mapping[str, tuple[Path, FileRecord]],
    device: str,
    attributes: Attributes | None = None,
    user_attributes: Attributes | None = None,
    users: UserHistories | None = None,
    delta: Delta | None = None,
    may_replace: bool = True,
) -> Bundle:
    """Write a bundle and open it.

    Args:
        directory: Folder of the bundle. An existing bundle there is replaced; other files are never
            replaced.
        settings: Settings for the bundle's manifest.
        items: Ids and titles of all items, with their semantic IDs if they have any.
        catalogue: Which items are trained, added or removed.
        tables: Vectors of all items by name, such as ``features``.
        words: TF-IDF vectors of all items' texts. None if the items have no texts.
        given: By name of a further feature block, which items have a vector of it.
        copied: Files to copy unchanged, by their names in the bundle. Each has its path and the
            size and checksum that it must have.
        device: Device of the opened bundle.
        attributes: Attributes of the items. None if the model reads none.
        user_attributes: Attributes of the users. None if the model reads none, or if their file is
            in ``copied``.
        users: Users to keep, with their histories. None for no users, or if their file is in
            ``copied``.
        delta: The difference from the previous bundle. None for the first bundle.
        may_replace: Whether an existing bundle in the folder is replaced. If False, an existing
            bundle is an error.

    Raises:
        ArtifactError: The folder cannot be written, holds something else than a bundle, or is being
            written by another process.
        ReplacedError: A file to copy was replaced meanwhile.
    """
    parents = dict(settings.run)
    if settings.ancestors:
        parents[BUNDLE] = settings.ancestors[-1].fingerprint
    origin = Origin(BUNDLE, BUNDLE_VERSION, settings.model_dump(mode="json"), parents)
    with write_artifact(directory, origin, elsewhere="--out") as writer:
        # The check is inside the lock, so that no other process writes the folder meanwhile.
        if not may_replace and is_bundle(directory):
            raise holds_another(directory)
        items.save(writer.path)
        catalogue.save(writer.path, items.item_ids)
        for name, vectors in tables.items():
            vectors.save(writer.path, name)
        if words is not None:
            save_words(words, writer.path)
        save_given(given, writer.path)
        if attributes is not None:
            attributes.save(writer.path, ITEM_ATTRIBUTES)
        if user_attributes is not None:
            user_attributes.save(writer.path, USER_ATTRIBUTES)
        if users is not None:
            users.save(writer.path / USERS_NAME)
        if delta is not None:
            delta.save(writer.path)
        if isinstance(items, SemanticIdTable):
            build_trie(items.codes).save(writer.path / TRIE_NAME)
        (writer.path / MODEL_FOLDER).mkdir()
        for name, (path, record) in copied.items():
            (writer.path / name).parent.mkdir(exist_ok=True)
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
