"""One experiment: the settings of all stages, as one YAML file holds them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from recgrit.config import Config
from recgrit.data.prepare import DataConfig
from recgrit.embedding.encoders import EmbeddingConfig
from recgrit.embedding.features import FeatureConfig
from recgrit.engines.config import EngineConfig
from recgrit.evaluation.report import EvaluationConfig
from recgrit.quantization.config import TokenizerConfig
from recgrit.retrieval.config import RecommendationConfig, RetrieverConfig
from recgrit.tracking.start import TrackingConfig


class RunConfig(Config):
    """Where an experiment's artifacts go.

    Args:
        dir: The run folder.
        cache_dir: Where embeddings are kept across runs; None for a folder beside the run.
    """

    dir: Path = Path("runs/experiment")
    cache_dir: Path | None = None

    @property
    def cache(self) -> Path:
        """The folder of cached embeddings."""
        return self.cache_dir if self.cache_dir is not None else self.dir.parent / ".cache"


class ExperimentConfig(Config):
    """Settings of a whole run, one section per stage."""

    seed: int = Field(0, ge=0, lt=2**31)
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    features: FeatureConfig = FeatureConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    recommendation: RecommendationConfig = RecommendationConfig()
    tracking: TrackingConfig = TrackingConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _check_codebooks(self) -> ExperimentConfig:
        # Raises where levels and sizes disagree: now, not after minutes of encoding.
        _ = self.tokenizer.codebook_sizes
        return self

    @model_validator(mode="after")
    def _check_buckets(self) -> ExperimentConfig:
        buckets, largest = self.retriever.node_buckets, max(self.tokenizer.codebook_sizes)
        if buckets is not None and self.tokenizer.semantic_ids_path is None and buckets < largest:
            raise ValueError(
                f"retriever.node_buckets is {buckets}, but a codebook has {largest} codes, so that "
                f"children of one node would share an embedding: set it to at least {largest}"
            )
        return self

    @model_validator(mode="after")
    def _check_beam(self) -> ExperimentConfig:
        longest = max(*self.evaluation.ks, self.recommendation.top_k)
        if self.evaluation.beam_width < longest:
            raise ValueError(
                f"evaluation.beam_width is {self.evaluation.beam_width}, but lists of {longest} "
                "items are asked for: a beam finds no more items than its width"
            )
        return self
