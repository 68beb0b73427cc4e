"""From items to feature vectors."""

from __future__ import annotations

import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.runs import TRANSFORM_NAME, Run
from recgrit.tracking.tracker import Tracker


def build_embeddings(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    """Text and co-occurrence vectors, and the features made of them."""
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.features import fit_features
    from recgrit.embedding.frozen import encode_items
    from recgrit.embedding.text import build_item_texts
    from recgrit.embedding.vectors import load_vectors

    data = Run(config.run.dir).data
    space = None
    if config.embedding.vectors_path is not None:
        text = load_vectors(config.embedding.vectors_path, data.items.item_ids)
    else:
        texts = build_item_texts(data.items, config.embedding.template)
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
        "features": combined.encoder,
        "text_dim": text.embedding_dim,
        "feature_dim": combined.embedding_dim,
    }
