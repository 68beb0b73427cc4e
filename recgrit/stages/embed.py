"""From items to feature vectors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.engines.engine import Engine
from recgrit.errors import DataError
from recgrit.experiment import ExperimentConfig
from recgrit.layout import TRANSFORM_NAME
from recgrit.runs import Run
from recgrit.stages.stage import Stage, as_settings
from recgrit.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


def _find_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """Vectors of the user's own, or the weights of a model in a folder."""
    from recgrit.embedding.weights import find_folder_weights

    path = config.embedding.vectors_path
    if path is None:
        return find_folder_weights(config.embedding.model)
    if not path.is_file():
        raise DataError(f"No vectors at {path}. Check embedding.vectors_path.")
    return (path,)


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    excluded = {"device", "batch_size", "vectors_path"}
    if _find_inputs(config):
        excluded.add("model")  # A folder, told apart by its content instead.
    return as_settings(
        config.seed,
        embedding=config.embedding.model_dump(mode="json", exclude=excluded),
        features=config.features.model_dump(mode="json"),
    )


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    from recgrit.data.sources import TABLE
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.encoders import encode_items
    from recgrit.embedding.features import fit_features
    from recgrit.embedding.text import build_item_texts, choose_text
    from recgrit.embedding.vectors import load_vectors
    from recgrit.embedding.words import Terms, has_words, save_words

    data = Run(config.run.dir).data
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
    fitted = fit_features(
        text,
        cooccurrence,
        text_dim=features.text_dim,
        cooccurrence_weight=features.cooccurrence_weight,
    )
    combined = fitted.embeddings
    combined.save(writer.path, "features")
    fitted.transform.save(writer.path / TRANSFORM_NAME)
    writer.summary = {
        "encoder": text.encoder,
        "encoder_space": space,
        "template": template,
        "features": combined.encoder,
        "text_dim": text.embedding_dim,
        "feature_dim": combined.embedding_dim,
    }


EMBED = Stage(
    name="embed",
    version=3,
    parents=("prepare",),
    settings=_settings,
    inputs=_find_inputs,
    build=_build,
    describe=lambda summary: "{feature_dim} features per item ({features})".format(**summary),
    is_large=True,
)
