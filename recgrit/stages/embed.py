"""The stage ``embed``, which turns the items of a run into feature vectors."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.data.prepare import PreparedData
from recgrit.engines.engine import Engine
from recgrit.errors import DataError
from recgrit.experiment import ExperimentConfig
from recgrit.layout import SOURCE_FOLDER, TOKENIZER_NAME, TRANSFORM_NAME
from recgrit.runs import Run
from recgrit.stages.stage import Stage, as_settings
from recgrit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from recgrit.data.items import ItemTable
    from recgrit.embedding.config import FeatureBlock
    from recgrit.embedding.features import Block
    from recgrit.embedding.vectors import SomeVectors

logger = logging.getLogger(__name__)


def _find_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """Return the files of given vectors and the weights of models that are in local folders.

    Raises:
        DataError: A file of vectors is missing.
    """
    from recgrit.embedding.weights import find_folder_weights

    own = config.embedding.vectors_path
    paths = {} if own is None else {"embedding.vectors_path": own}
    blocks = config.features.blocks_in_use
    paths |= {f"features.blocks.{name}.path": b.path for name, b in blocks.items() if b.path}
    for setting, path in paths.items():
        if not path.is_file():
            raise DataError(f"No vectors at {path}. Check {setting}.")
    beside = [file for path in paths.values() for file in _find_numbers(path)]
    weights = find_folder_weights(config.embedding.model) if own is None else ()
    pictures = [
        file
        for block in blocks.values()
        if block.column is not None
        for file in find_folder_weights(block.model)
    ]
    return (*weights, *paths.values(), *beside, *pictures)


def _find_numbers(path: Path) -> tuple[Path, ...]:
    """Return the files with the item numbers of a published table of codes; none for others."""
    from recgrit.semantic_ids.published import find_published_files

    return find_published_files(path)[1:] if path.suffix == ".json" else ()


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    from recgrit.embedding.weights import find_folder_weights

    excluded = {"device", "batch_size", "vectors_path"}
    if config.embedding.vectors_path or find_folder_weights(config.embedding.model):
        # The model is not used, or is a folder whose content is part of the key through `inputs`.
        excluded.add("model")
    features = config.features.model_dump(mode="json")
    for block in features["blocks"].values():
        # A block has either a file of vectors or a column of pictures, which `column` tells. Paths
        # are not recorded, because the content of the files is part of the key through `inputs`. A
        # block of vectors does not use `model`.
        if block["column"] is None:
            del block["path"], block["model"]
        else:
            del block["folder"]
            if find_folder_weights(block["model"]):
                del block["model"]
    settings = as_settings(
        config.seed,
        embedding=config.embedding.model_dump(mode="json", exclude=excluded),
        features=features,
    )
    if config.retriever.init_from is not None:
        from recgrit.serving.warm_start import fingerprint_source

        settings["source"] = fingerprint_source(config.retriever.init_from)
    return settings


def _take_over(config: ExperimentConfig, folder: Path, data: PreparedData) -> dict[str, Any]:
    """Write the features of a warm start, and return the summary of the artifact.

    Items that the source of the warm start has keep their features. New items get features in the
    same way as the items of the source did.

    Args:
        config: Settings of all stages.
        folder: Folder of the artifact.
        data: The prepared data of the run.
    """
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.transforms import save_given
    from recgrit.embedding.vectors import load_some_vectors, load_vectors
    from recgrit.embedding.words import save_words
    from recgrit.serving.append import COPIED
    from recgrit.serving.bundle import Bundle
    from recgrit.serving.warm_start import take_over
    from recgrit.serving.writing import find_rows

    own, items = config.embedding.vectors_path, data.items
    made = take_over(
        config,
        items,
        folder / SOURCE_FOLDER,
        vectors=None if own is None else load_vectors(own, items.item_ids),
        blocks={
            name: load_some_vectors(block.path, items.item_ids)
            for name, block in config.features.blocks_in_use.items()
            if block.path is not None  # Blocks of pictures have no path; the items name the files.
        },
        pictures=_folder_of(config.data.table.items_path),
    )
    logger.info("%s: %s", config.retriever.init_from, made.describe())
    logger.info("%s", made.delta.describe())
    source = Bundle(folder / SOURCE_FOLDER, device="cpu")
    rows, transform = find_rows(source, items), source.feature_transform
    names = ["features"] if transform.cooccurrence is None else ["features", "cooccurrence"]
    for name in names:
        Embeddings.load(source.directory, name).take(rows).save(folder, name)
    if source.words is not None:
        save_words(source.words[rows], folder)
    given = {name: found[rows] for name, found in source.given.items()}
    save_given(given, folder)
    for name in COPIED:
        if name != TOKENIZER_NAME and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    ids = source.require_ids()
    return {
        "encoder": source.features.encoder,
        "encoder_space": ids.encoder_space,
        "template": ids.embedding.template,
        "features": source.features.encoder,
        "text_dim": transform.text.input_dim,
        "feature_dim": transform.feature_dim,
        "blocks": {name: int(found.sum()) for name, found in given.items()},
        "source": source.parent,
        "num_new": made.num_added,
    }


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    from recgrit.data.sources import TABLE
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.encoders import encode_items
    from recgrit.embedding.features import fit_features
    from recgrit.embedding.text import build_item_texts, choose_text
    from recgrit.embedding.transforms import save_given
    from recgrit.embedding.vectors import load_vectors
    from recgrit.embedding.words import Terms, has_words, save_words

    data = Run(config.run.dir).data
    if config.retriever.init_from is not None:
        writer.summary = _take_over(config, writer.path, data)
        return
    space, template = None, None
    if config.embedding.vectors_path is not None:
        text = load_vectors(config.embedding.vectors_path, data.items.item_ids)
    else:
        template = config.embedding.template
        if template is None and config.data.source == TABLE:
            chosen = choose_text(data.items)
            logger.info("%s", chosen.describe())
            template = chosen.template
        texts = build_item_texts(data.items, template)
        encoded = encode_items(
            texts,
            config.embedding,
            config.seed,
            cache_dir=config.run.cache,
            directory=writer.path,
            engine=engine,
        )
        text = Embeddings(encoded.vectors, encoded.encoder, normalized=True)
        space = encoded.space
        pl.DataFrame({"item_id": data.items.item_ids, "text": texts}).write_parquet(
            writer.path / "texts.parquet"
        )
        if has_words(texts):
            terms = Terms.fit(texts)
            terms.save(writer.path)
            save_words(terms.encode(texts), writer.path)
    text.save(writer.path, "text")
    features = config.features
    cooccurrence = None
    if features.cooccurrence_weight > 0:
        cooccurrence = build_cooccurrence_vectors(
            data.split,
            dim=features.cooccurrence_dim,
            window=features.cooccurrence_window,
            seed=config.seed,
        )
        cooccurrence.save(writer.path, "cooccurrence")
    blocks, pictures = _build_blocks(config, data.items, engine)
    fitted = fit_features(
        text,
        cooccurrence,
        blocks=blocks,
        text_dim=features.text_dim,
        cooccurrence_weight=features.cooccurrence_weight,
    )
    combined = fitted.embeddings
    combined.save(writer.path, "features")
    fitted.transform.save(writer.path / TRANSFORM_NAME)
    save_given({name: block.given for name, block in blocks.items()}, writer.path)
    writer.summary = {
        "encoder": text.encoder,
        "encoder_space": space,
        "template": template,
        "features": combined.encoder,
        "text_dim": text.embedding_dim,
        "feature_dim": combined.embedding_dim,
        "blocks": {name: int(block.given.sum()) for name, block in blocks.items()},
        "pictures": pictures,
    }


def _build_blocks(
    config: ExperimentConfig, items: ItemTable, engine: Engine
) -> tuple[dict[str, Block], dict[str, dict[str, str]]]:
    """Return the further feature blocks, and what is needed to encode pictures of later items.

    Both are dictionaries by the name of the block.
    """
    from recgrit.embedding.features import Block
    from recgrit.embedding.vectors import load_some_vectors

    blocks: dict[str, Block] = {}
    pictures: dict[str, dict[str, str]] = {}
    for name, block in config.features.blocks_in_use.items():
        if block.path is not None:
            found = load_some_vectors(block.path, items.item_ids)
        else:
            found, pictures[name] = _encode_pictures(config, name, block, items, engine)
        logger.info("%s: %d of %d items have a vector", name, found.given.sum(), len(found.given))
        blocks[name] = Block(
            found.vectors, found.given, found.encoder, block.dim, block.weight, block.missing
        )
    return blocks, pictures


def _encode_pictures(
    config: ExperimentConfig, name: str, block: FeatureBlock, items: ItemTable, engine: Engine
) -> tuple[SomeVectors, dict[str, str]]:
    """Return the vectors of a block of pictures, and what is needed to encode those of later items.

    Raises:
        DataError: No item has a usable picture.
    """
    from recgrit.embedding.cache import encode_cached
    from recgrit.embedding.pictures import PictureEncoder, encode_pictures

    assert block.column is not None
    model = block.model
    if Path(model).is_dir():  # An absolute path cannot be mistaken for a name on the model hub.
        model = str(Path(model).absolute())
    build = partial(
        PictureEncoder,
        model=model,
        setting=f"features.blocks.{name}.model",
        device=config.embedding.device,
        batch_size=config.embedding.batch_size,
    )
    encoder, cache = build(), config.run.cache
    found = encode_pictures(
        items,
        block.column,
        name=name,
        folder=block.folder or _folder_of(config.data.table.items_path),
        store=cache / "pictures",
        encode=partial(encode_cached, encoder=encoder, cache_dir=cache, engine=engine, build=build),
        encoder=encoder.name,
    )
    if not found.given.any():
        raise DataError(
            f"None of the {len(items)} items has a usable picture: check the names in "
            f"{block.column}, and the folder of relative paths, features.blocks.{name}.folder."
        )
    return found, {"column": block.column, "model": model, "space": encoder.fingerprint}


def _folder_of(items_path: Path | None) -> Path:
    """Return the folder of the item table, or the current folder without an item table."""
    if items_path is None:
        return Path()
    return items_path if items_path.is_dir() else items_path.parent


EMBED = Stage(
    name="embed",
    version=4,
    parents=("prepare",),
    settings=_settings,
    inputs=_find_inputs,
    build=_build,
    describe=lambda summary: "{feature_dim} features per item ({features})".format(**summary),
    is_large=True,
)
