"""Features, words and codes of new items, computed as for the items that a bundle has already."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from recgrit.data.items import ItemTable
from recgrit.embedding.encoders import load_encoder
from recgrit.embedding.features import KnownItems, build_new_features
from recgrit.embedding.pictures import PictureEncoder, encode_pictures
from recgrit.embedding.text import build_item_texts, with_fields
from recgrit.embedding.vectors import SomeVectors
from recgrit.errors import DataError, EncoderError
from recgrit.semantic_ids.addition import AddedIds, add_items
from recgrit.serving.bundle import Bundle

if TYPE_CHECKING:
    from scipy.sparse import csr_array

logger = logging.getLogger(__name__)


def with_all_fields(bundle: Bundle, items: ItemTable) -> ItemTable:
    """Return the new items with all columns that the bundle's text template uses.

    A column that the new items lack is added with empty values, and a warning names it.
    """
    template = bundle.require_ids().embedding.template
    if template is None or not len(items):
        return items
    items, missing = with_fields(items, template)
    if missing:
        logger.warning(
            "The new items lack the columns %s, which the texts of the bundle's items contain; the "
            "new items have %s",
            ", ".join(missing),
            ", ".join(name for name in items.frame.columns if name not in missing),
        )
    return items


def add_words(bundle: Bundle, items: ItemTable) -> csr_array | None:
    """Return the TF-IDF vectors of all items' texts, with the new items after the bundle's items.

    The terms are those of the bundle. The result is None if the bundle has no such vectors.
    """
    from scipy.sparse import csr_array, vstack

    words = bundle.words
    if words is None or not len(items):
        return words
    texts = build_item_texts(items, bundle.require_ids().embedding.template)
    return csr_array(vstack([words, bundle.terms.encode(texts)], format="csr"))


def require_known_blocks(bundle: Bundle, blocks: Mapping[str, SomeVectors]) -> None:
    """Check that given vectors belong to feature blocks of the bundle and have the right length.

    Args:
        bundle: The bundle that the items are added to.
        blocks: Vectors of new items by block name.

    Raises:
        DataError: The bundle has no such block, or its vectors have another length.
    """
    known = bundle.feature_transform.blocks
    for name, block in blocks.items():
        if name not in known:
            raise DataError(
                f"The features of this bundle have no block {name!r}; they have "
                f"{', '.join(known) or 'none'}."
            )
        if block.vectors.shape[1] != known[name].input_dim:
            raise DataError(
                f"The vectors of the block {name!r} have {block.vectors.shape[1]} dimensions, "
                f"those of the bundle's items {known[name].input_dim}: take them from the same "
                "encoder."
            )


def encode_new_pictures(
    bundle: Bundle, items: ItemTable, folder: Path, *, without: Container[str]
) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Encode the pictures of new items, for each feature block that is made of pictures.

    Args:
        bundle: The bundle that the items are added to.
        items: New items.
        folder: Folder that relative paths of pictures start from.
        without: Names of blocks to skip, because the caller has their vectors.

    Returns:
        By block name, the vectors and which items have one. A block is missing if the items lack
        its column or have no pictures.

    Raises:
        EncoderError: The picture encoder on this machine is not the one that encoded the bundle's
            items.
    """
    settings = bundle.require_ids()
    found = {}
    for name, block in settings.pictures.items():
        if name in without or not len(items):
            continue
        if block.column not in items.frame.columns:
            logger.warning("%s: the new items have no column %s of pictures", name, block.column)
            continue
        setting = f"features.blocks.{name}.model"
        encoder = PictureEncoder(
            model=block.model,
            setting=setting,
            device=settings.embedding.device,
            batch_size=settings.embedding.batch_size,
        )
        if encoder.fingerprint != block.space:
            raise EncoderError(
                f"The weights of {block.model} on this machine are not those that encoded the "
                f"items' pictures: expected {block.space}, found {encoder.fingerprint}. Restore "
                f"the expected weights, or give vectors with --block {name}=FILE."
            )
        with tempfile.TemporaryDirectory() as store:
            made = encode_pictures(
                items,
                block.column,
                name=name,
                folder=folder,
                store=Path(store),
                encode=encoder.encode,
                encoder=encoder.name,
            )
        if made.given.any():
            found[name] = (made.vectors, made.given)
    return found


def tokenize_new(
    bundle: Bundle,
    items: ItemTable,
    vectors: npt.NDArray[np.float32] | None,
    blocks: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]],
) -> tuple[npt.NDArray[np.float32], AddedIds]:
    """Compute features and IDs of new items.

    Args:
        bundle: The bundle that the items are added to.
        items: New items; there are n.
        vectors: Vectors of the items, if the bundle's items have the user's own vectors. Otherwise
            None.
        blocks: Vectors of further feature blocks, and which items have one, by block name.

    Returns:
        Features of the new items, float32 ``[n, F]``, and the ID table with the new items at its
        end.
    """
    if not len(items):
        width = bundle.features.embedding_dim
        return np.empty((0, width), np.float32), AddedIds(bundle.semantic_ids, 0)
    features = build_new_features(
        bundle.feature_transform,
        _encode(bundle, items, vectors),
        known=KnownItems(bundle.features.vectors, bundle.cooccurrence, bundle.given),
        blocks=blocks,
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
    """Return the text embeddings of new items, or the vectors that the caller gave.

    Raises:
        DataError: The vectors are missing, not allowed, or of another length than the bundle's.
    """
    settings = bundle.require_ids()
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
    width = bundle.feature_transform.text.input_dim
    if vectors.shape[1] != width:
        raise DataError(
            f"The vectors of the new items have {vectors.shape[1]} dimensions, those of the "
            f"bundle's items {width}: take them from the same encoder."
        )
    return vectors
