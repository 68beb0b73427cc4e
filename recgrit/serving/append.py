"""Items that come and go: another bundle in which no ID of the one before has moved.

The encoder, the components and scales of the features, the codebooks and the retriever's weights
stay as they are. A new item is recommendable at once: the retriever's fallback vectors, trained by
dropping nodes at random, stand in for the vectors it has none of. A removed item keeps its row and
its ID, is never listed, and is refused if it is offered again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recgrit.data.ids import IdList, list_ids
from recgrit.data.items import ItemTable
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import ENCODER_FILES, load_encoder
from recgrit.embedding.features import build_new_features
from recgrit.embedding.text import build_item_texts, with_fields
from recgrit.embedding.words import Terms
from recgrit.errors import ArtifactError, DataError
from recgrit.layout import TOKENIZER_NAME, TRANSFORM_NAME
from recgrit.models.registry import find_model
from recgrit.semantic_ids.addition import AddedIds, add_items
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.serving.bundle import MODEL_FOLDER, Ancestor, Bundle, is_bundle
from recgrit.serving.catalogue import Catalogue
from recgrit.serving.writing import holds_another, write_bundle

if TYPE_CHECKING:
    from scipy.sparse import csr_array

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Appended:
    """What became of the items offered and of those to remove.

    Args:
        bundle: The new bundle.
        num_added: New items.
        num_moved: Of these, such whose own ID was taken.
        num_listed: Offered items that were there already; they stay as they are.
        num_refused: Offered items that were removed before, or are to be removed now.
        num_removed: Items removed.
        num_unknown: Items to remove that are not in the catalogue.
    """

    bundle: Bundle
    num_added: int
    num_moved: int
    num_listed: int
    num_refused: int
    num_removed: int
    num_unknown: int

    def describe(self) -> str:
        """The counts in one line."""
        listed = self.bundle.manifest.summary["num_listed"]
        parts = [f"{self.num_added:,} items added ({self.num_moved:,} beside another's ID)"]
        for count, what in (
            (self.num_listed, "were there already"),
            (self.num_refused, "refused, having been removed"),
            (self.num_removed, "removed"),
            (self.num_unknown, "to remove are unknown"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return f"{', '.join(parts)}; {listed:,} listed"


def append_items(
    bundle: Bundle,
    directory: Path,
    items: ItemTable | None = None,
    *,
    vectors: Embeddings | None = None,
    removed: IdList = (),
) -> Appended:
    """Write another bundle with new items, without removed ones, and with every old ID in place.

    Args:
        bundle: The one before; it stays as it is.
        directory: The folder of the new one.
        items: Items to add, with the columns of the first catalogue; None for none. Those that are
            in the bundle are passed over, removed ones are refused.
        vectors: Vectors of ``items``, where the run took vectors of the user's own.
        removed: External ids of items to remove; a bare string is one.

    The same request again, into the folder that it made, gives the bundle that is there.

    Raises:
        ArtifactError: The folder is that of the bundle, holds another one or anything else, or
            cannot be written.
        DataError: Items cannot be used, or none would be left.
        EncoderError: The encoder that the items need is not on this machine.
    """
    if directory.resolve() == bundle.directory.resolve():
        raise ArtifactError(
            f"{directory} holds the bundle to start from, which never changes: name another folder."
        )
    there_before = _find_bundle_after(bundle, directory)
    _require_appendable(bundle)
    # What cannot recommend is not handed on.
    bundle.recommend_after({"": bundle.items.item_ids.head(1).to_list()}, top_k=1)
    table, catalogue = bundle.semantic_ids, bundle.catalogue
    step = len(bundle.settings.ancestors) + 1
    removed = list_ids(removed, "removed")
    leaving = table.find_items(list(dict.fromkeys(removed)))
    leaving = leaving[catalogue.listed[leaving]]
    removed_in = catalogue.removed_in.copy()
    removed_in[leaving] = step
    offered = ItemTable(pl.DataFrame(schema=_EMPTY)) if items is None else items
    known, gone = set(table.item_ids), {*table.item_ids.filter(removed_in >= 0), *removed}
    there = np.array([item_id in known for item_id in offered.item_ids], dtype=bool)
    refused = np.array([item_id in gone for item_id in offered.item_ids], dtype=bool)
    wanted = np.flatnonzero(~there & ~refused)
    if not len(wanted) and (removed_in >= 0).all():
        raise DataError(
            f"These {len(leaving):,} removals would leave no item to list, and a bundle lists at "
            "least one. Check the list of items to remove."
        )
    new = _with_all_fields(bundle, ItemTable(offered.frame[wanted]))
    features, added = _tokenize(bundle, new, None if vectors is None else vectors.vectors[wanted])
    num_new = len(wanted)
    tables = {
        "features": Embeddings(
            np.concatenate([bundle.features.vectors, features]),
            bundle.features.encoder,
            normalized=False,
        )
    }
    if bundle.cooccurrence is not None:
        nothing = np.zeros((num_new, bundle.cooccurrence.shape[1]), np.float32)
        tables["cooccurrence"] = Embeddings(
            np.concatenate([bundle.cooccurrence, nothing]), "cooccurrence", normalized=True
        )
    manifest = bundle.manifest
    before = Ancestor(
        fingerprint=bundle.fingerprint,
        created=manifest.created,
        num_added=manifest.summary["num_added"],
        num_removed=manifest.summary["num_removed"],
    )
    after = Catalogue(
        trained=np.concatenate([catalogue.trained, np.zeros(num_new, bool)]),
        added_in=np.concatenate([catalogue.added_in, np.full(num_new, step, np.int32)]),
        removed_in=np.concatenate([removed_in, np.full(num_new, -1, np.int32)]),
    )
    if there_before is not None:
        _require_same(there_before, added.table, after, tables["features"])
    written = there_before or write_bundle(
        directory,
        bundle.settings.model_copy(update={"ancestors": (*bundle.settings.ancestors, before)}),
        items=added.table,
        catalogue=after,
        tables=tables,
        words=_add_words(bundle, new),
        copied={
            name: (bundle.directory / name, record)
            for name, record in manifest.files.items()
            if name.startswith(f"{MODEL_FOLDER}/") or name in COPIED
        },
        device=bundle.device,
        may_replace=False,
    )
    return Appended(
        bundle=written,
        num_added=num_new,
        num_moved=added.num_moved,
        num_listed=int(np.sum(there & ~refused)),
        num_refused=int(np.sum(refused)),
        num_removed=len(leaving),
        num_unknown=len(set(removed) - known),
    )


def _find_bundle_after(bundle: Bundle, directory: Path) -> Bundle | None:
    """The bundle that was made of this one and lies there; None where there is none."""
    if not is_bundle(directory):
        return None
    there = Bundle(directory, device=bundle.device)
    if there.parent != bundle.fingerprint:
        raise holds_another(directory)
    return there


def _require_same(
    there: Bundle, table: SemanticIdTable, catalogue: Catalogue, features: Embeddings
) -> None:
    """Refuse a bundle that is not what would be written in its place."""
    same = there.semantic_ids.to_polars().equals(table.to_polars()) and np.array_equal(
        there.features.vectors, features.vectors
    )
    for name in ("trained", "added_in", "removed_in"):
        same &= np.array_equal(getattr(there.catalogue, name), getattr(catalogue, name))
    if not same:
        raise holds_another(there.directory)


def _require_appendable(bundle: Bundle) -> None:
    """Refuse a bundle whose model cannot rank items that it was not trained with."""
    kind = bundle.settings.model
    if not find_model(kind).can_append:
        raise ArtifactError(
            f"The bundle {bundle.directory} has the model {kind}, which cannot rank items that "
            "came after its training: train it anew, or export a bundle of a run with "
            "model.kind=trie."
        )
    if bundle.require_ids().tokenizer is None:
        raise ArtifactError(
            f"The bundle {bundle.directory} has published IDs: there is no tokenizer to give IDs "
            "to other items. Unset tokenizer.semantic_ids_path in its run to fit one."
        )


def _with_all_fields(bundle: Bundle, items: ItemTable) -> ItemTable:
    """New items with the columns that the first ones' texts are made of, empty where they lack."""
    template = bundle.require_ids().embedding.template
    if template is None or not len(items):
        return items
    items, missing = with_fields(items, template)
    if missing:
        logger.warning(
            "The new items lack %s, of which the texts of the first ones are made: they have %s",
            ", ".join(missing),
            ", ".join(name for name in items.frame.columns if name not in missing),
        )
    return items


def _add_words(bundle: Bundle, items: ItemTable) -> csr_array | None:
    """The words of all items' texts, in the terms of the first ones."""
    from scipy.sparse import csr_array, vstack

    words = bundle.words
    if words is None or not len(items):
        return words
    texts = build_item_texts(items, bundle.require_ids().embedding.template)
    terms = bundle.read(Terms.load)
    return csr_array(vstack([words, terms.encode(texts)], format="csr"))


# Files of a bundle that new items do not change.
COPIED = (TOKENIZER_NAME, TRANSFORM_NAME, *ENCODER_FILES)
_EMPTY = {"item_id": pl.String, "title": pl.String}


def _tokenize(
    bundle: Bundle, items: ItemTable, vectors: npt.NDArray[np.float32] | None
) -> tuple[npt.NDArray[np.float32], AddedIds]:
    """Features of new items ``[n, F]``, and the table with their IDs."""
    if not len(items):
        width = bundle.features.embedding_dim
        return np.empty((0, width), np.float32), AddedIds(bundle.semantic_ids, 0)
    transform = bundle.feature_transform
    text_dim = len(transform.text_mean)
    features = build_new_features(
        transform,
        _encode(bundle, items, vectors),
        known_text=bundle.features.vectors[:, :text_dim],
        known_cooccurrence=bundle.cooccurrence,
    )
    tokenizer, rows = bundle.tokenizer, torch.from_numpy(features)
    with torch.inference_mode():
        latent = tokenizer.encode_latent(rows)
        codes = tokenizer.quantizer.encode(latent)
        residuals, last_codes = tokenizer.quantizer.last_level(latent)

        def errors_of(row: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            gaps = tokenizer.quantizer.decode(torch.from_numpy(ids)) - latent[row]
            return np.asarray(gaps.square().sum(dim=-1))

        added = add_items(
            bundle.semantic_ids,
            codes.numpy(),
            items.item_ids,
            items.titles,
            residuals_of=lambda chosen: residuals.numpy()[chosen],
            last_codes=last_codes.numpy(),
            errors_of=errors_of,
        )
    return features, added


def _encode(
    bundle: Bundle, items: ItemTable, vectors: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32]:
    """Text embeddings of new items, or the vectors that come with them."""
    settings, transform = bundle.require_ids(), bundle.feature_transform
    own = settings.encoder_space is None
    if own != (vectors is not None):
        raise DataError(
            "The items of this bundle came with vectors of your own: give those of new items too, "
            "with --vectors FILE."
            if own
            else "The items of this bundle are encoded from their texts: vectors cannot be used."
        )
    if vectors is None:
        assert settings.encoder_space is not None
        space = settings.encoder_space
        encoder = bundle.read(
            lambda path: load_encoder(
                settings.embedding, settings.seed, directory=path, space=space
            )
        )
        vectors = encoder.encode(build_item_texts(items, settings.embedding.template))
    center = transform.text_mean if transform.text_center is None else transform.text_center
    if vectors.shape[1] != len(center):
        raise DataError(
            f"The vectors of the new items have {vectors.shape[1]} dimensions, those of the "
            f"bundle's items {len(center)}: take them from the same encoder."
        )
    return vectors
