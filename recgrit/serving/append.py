"""Adding items to a bundle and removing items from it, without changing any existing ID.

The result is another bundle. It keeps the text encoder, the feature transform, the codebooks and
the retriever's weights of the previous bundle. A new item can be recommended at once. It has no
trained vectors of its own, so the retriever uses its fallback vectors, which are trained by
dropping nodes at random. A removed item keeps its row and its ID, is never listed, and is refused
if it is offered again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.attributes import USER_ATTRIBUTES
from recgrit.data.ids import IdList, list_ids
from recgrit.data.items import ItemTable
from recgrit.disk import clear_up, resolve_links
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import ENCODER_FILES
from recgrit.embedding.vectors import SomeVectors
from recgrit.errors import ArtifactError, DataError
from recgrit.layout import TOKENIZER_NAME, TRANSFORM_NAME
from recgrit.models.registry import find_model
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.serving.bundle import MODEL_FOLDER, USERS_NAME, Bundle, is_bundle
from recgrit.serving.catalogue import Catalogue
from recgrit.serving.delta import Delta, find_delta, measure_ids
from recgrit.serving.new_items import (
    add_words,
    encode_new_pictures,
    require_known_blocks,
    tokenize_new,
    with_all_fields,
)
from recgrit.serving.settings import Ancestor
from recgrit.serving.writing import holds_another, write_bundle

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Appended:
    """The result of `append_items`: the new bundle, and counts of added and removed items.

    Args:
        bundle: The new bundle.
        num_added: Number of new items.
        num_moved: Number of new items that got the next free ID, because another item has their
            first choice.
        num_listed: Number of offered items that the previous bundle lists already. They keep their
            features and their IDs.
        num_changed: Number of the items in ``num_listed`` that were offered with another title.
            They have the new title now.
        num_refused: Number of offered items that an earlier bundle removed, or that ``removed``
            names.
        num_removed: Number of removed items.
        num_unknown: Number of ids to remove that are not in the catalogue.
        delta: The changed items, and the quality of the IDs before and after.
    """

    bundle: Bundle
    num_added: int
    num_moved: int
    num_listed: int
    num_changed: int
    num_refused: int
    num_removed: int
    num_unknown: int
    delta: Delta

    def describe(self) -> str:
        """Return the counts as one line of text."""
        listed = self.bundle.manifest.summary["num_listed"]
        parts = [
            f"{self.num_added:,} item{'s' * (self.num_added != 1)} added ({self.num_moved:,} with "
            "the next free ID, because another item has their own)"
        ]
        for count, what in (
            (self.num_listed, "were already in the bundle"),
            (self.num_changed, "of them got another title"),
            (self.num_refused, "refused because they were removed before"),
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
    blocks: Mapping[str, SomeVectors] | None = None,
    pictures: Path | None = None,
    removed: IdList = (),
) -> Appended:
    """Write another bundle with items added or removed, in which every existing ID stays the same.

    If the same call is repeated with a folder that it wrote before, it returns the bundle that is
    there.

    Args:
        bundle: The previous bundle. It is not changed.
        directory: Folder of the new bundle.
        items: Items to add, with the item columns of the run. None adds no items. An item that the
            bundle lists already gets its new title and nothing else. A removed item is not added
            again, and is counted as refused.
        vectors: Vectors of ``items``, required if the run used the user's own vectors in place of a
            text encoder. Otherwise None.
        blocks: Vectors of ``items`` for further feature blocks, by block name. An item or a block
            without vectors is filled in as the run's settings say.
        pictures: Folder that relative paths of the items' pictures start from. None is the working
            folder. Used if a feature block is made of pictures and ``items`` has their column.
        removed: External ids of items to remove. A bare string is one id.

    Raises:
        ArtifactError: The folder is that of the previous bundle, holds another bundle or other
            files, or cannot be written. Or the bundle's model cannot rank new items, or has
            published IDs.
        DataError: The items cannot be used, or no listed item would be left.
        EncoderError: The encoder that the items need is not on this machine.
    """
    if resolve_links(directory) == resolve_links(bundle.directory):
        raise ArtifactError(
            f"{directory} holds the bundle to append to, which stays unchanged: name another "
            "folder."
        )
    there_before = _find_bundle_after(bundle, directory)
    _require_appendable(bundle)
    # A bundle that cannot recommend is not extended.
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
            f"Removing {len(leaving):,} items would leave no item to recommend, but a bundle needs "
            "at least one. Check the list of items to remove."
        )
    new = with_all_fields(bundle, ItemTable(offered.frame[wanted]))
    require_known_blocks(bundle, blocks or {})
    own = {name: (b.vectors[wanted], b.given[wanted]) for name, b in (blocks or {}).items()}
    own |= encode_new_pictures(bundle, new, pictures or Path(), without=own)
    features, added = tokenize_new(
        bundle, new, None if vectors is None else vectors.vectors[wanted], own
    )
    num_new = len(wanted)
    retitled = _find_retitled(table, offered, there & ~refused)
    titles = added.table.titles.scatter(retitled["row"], retitled["title"])
    after_table = replace(added.table, titles=titles)
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
        counts=np.concatenate([catalogue.counts, np.zeros(num_new, np.int64)]),
    )
    delta = Delta(
        find_delta(
            after_table,
            {
                "added": np.arange(len(table), len(after_table)),
                "removed": np.sort(leaving),
                "changed": retitled["row"].to_numpy(),
            },
        ),
        *(
            measure_ids(ids, vectors, bundle.tokenizer, listed)
            for ids, vectors, listed in (
                (table, bundle.features.vectors, catalogue.listed),
                (after_table, tables["features"].vectors, after.listed),
            )
        ),
    )
    if there_before is not None:
        _require_same(there_before, after_table, after, tables["features"])
        clear_up(resolve_links(directory))  # An earlier call may have been killed at its end.
    written = there_before or write_bundle(
        directory,
        bundle.settings.model_copy(update={"ancestors": (*bundle.settings.ancestors, before)}),
        items=after_table,
        catalogue=after,
        delta=delta,
        tables=tables,
        words=add_words(bundle, new),
        given={
            name: np.concatenate([before, own[name][1] if name in own else np.zeros(num_new, bool)])
            for name, before in bundle.given.items()
        },
        copied={
            name: (bundle.directory / name, record)
            for name, record in manifest.files.items()
            if name.startswith(f"{MODEL_FOLDER}/") or name in COPIED
        },
        device=bundle.device,
        attributes=None if bundle.attributes is None else bundle.attributes.joined_with(new.frame),
        may_replace=False,
    )
    return Appended(
        bundle=written,
        num_added=num_new,
        num_moved=added.num_moved,
        num_listed=int(np.sum(there & ~refused)),
        num_changed=len(retitled),
        num_refused=int(np.sum(refused)),
        num_removed=len(leaving),
        num_unknown=len(set(removed) - known),
        delta=delta,
    )


def _find_retitled(
    table: SemanticIdTable, offered: ItemTable, there: npt.NDArray[np.bool_]
) -> pl.DataFrame:
    """Return the rows of the table whose items were offered with another title, and the new titles.

    An item without a title has its id as its title. An offered title that equals the id therefore
    does not count as another title. The rows are ascending.
    """
    found = offered.frame.filter(there).select("item_id", "title")
    rows = pl.DataFrame({"item_id": table.item_ids, "before": table.titles}).with_row_index("row")
    both = rows.join(found, on="item_id", how="inner", maintain_order="left")
    is_other = (pl.col("title") != pl.col("before")) & (pl.col("title") != pl.col("item_id"))
    return both.filter(is_other).select("row", "title")


def _find_bundle_after(bundle: Bundle, directory: Path) -> Bundle | None:
    """Return the bundle in a folder that was made from this bundle; None if there is no bundle.

    Args:
        bundle: The previous bundle.
        directory: Folder of the new bundle.

    Raises:
        ArtifactError: The folder has a bundle that was not made from the previous bundle.
    """
    if not is_bundle(directory):
        return None
    there = Bundle(directory, device=bundle.device)
    if there.parent != bundle.fingerprint:
        raise holds_another(directory)
    return there


def _require_same(
    there: Bundle, table: SemanticIdTable, catalogue: Catalogue, features: Embeddings
) -> None:
    """Check that the bundle in the folder equals the bundle that would be written there.

    Raises:
        ArtifactError: The bundles differ in items, IDs, features, or added and removed items.
    """
    same = there.semantic_ids.to_polars().equals(table.to_polars()) and np.array_equal(
        there.features.vectors, features.vectors
    )
    for name in ("trained", "added_in", "removed_in"):
        same &= np.array_equal(getattr(there.catalogue, name), getattr(catalogue, name))
    if not same:
        raise holds_another(there.directory)


def _require_appendable(bundle: Bundle) -> None:
    """Check that the bundle's model can rank new items, and that a tokenizer can give them IDs.

    Raises:
        ArtifactError: The model cannot rank new items, or the IDs are published IDs.
    """
    kind = bundle.settings.model
    if not find_model(kind).can_append:
        raise ArtifactError(
            f"The bundle {bundle.directory} has the model {kind}, which cannot rank items that "
            "came after its training: train it again, or export a bundle of a run with "
            "model.kind=trie."
        )
    if bundle.require_ids().tokenizer is None:
        raise ArtifactError(
            f"The bundle {bundle.directory} has published IDs: there is no tokenizer to give IDs "
            "to other items. Unset tokenizer.semantic_ids_path in its run to fit one."
        )


# Files of a bundle that stay the same when items are added.
COPIED = (
    TOKENIZER_NAME,
    TRANSFORM_NAME,
    USERS_NAME,
    f"{USER_ATTRIBUTES}.safetensors",
    *ENCODER_FILES,
)
_EMPTY = {"item_id": pl.String, "title": pl.String}
