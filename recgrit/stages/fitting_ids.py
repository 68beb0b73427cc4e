"""The tasks of the stage ``tokenize``: fit codebooks, learn item vectors and assign codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.engines.shards import Report, ShardFunction
from recgrit.experiment import ExperimentConfig
from recgrit.layout import (
    EPOCHS_NAME,
    ID_EPOCHS_NAME,
    LATENTS_NAME,
    TOKENIZER_NAME,
    stage_directory,
)
from recgrit.quantization.config import TokenizerConfig
from recgrit.runs import Run, read_tokenizer

if TYPE_CHECKING:
    import torch

    from recgrit.quantization.autoencoder import Tokenizer
    from recgrit.quantization.fit import FittedCodebooks, TokenizerEpoch


@dataclass(frozen=True)
class FitTokenizer:
    """A task that fits the codebooks to the features in every process.

    The first process writes the weights and the results of the epochs.

    Args:
        config: Settings of all stages, with absolute paths.
        folder: Folder that the first process writes to.
    """

    config: ExperimentConfig
    folder: Path

    def __call__(self, report: Report) -> dict[str, Any]:
        """Fit the codebooks and return the best epoch and the number of vectors in the fit.

        Args:
            report: Progress callback of the engine. It is not called.
        """
        import torch

        from recgrit import distributed
        from recgrit.quantization.fit import fit_codebooks

        # Mode "c" (copy on write) maps the file as writable memory, which torch asks for. Nothing
        # writes to it.
        vectors = np.load(features_path(self.config), mmap_mode="c")
        run = Run(self.config.run.dir)
        fitted = fit_codebooks(
            torch.from_numpy(vectors),
            self.config.tokenizer,
            seed=self.config.seed,
            counts=torch.from_numpy(run.data.split.train_item_counts()),
            columns=run.feature_transform.columns(),
        )
        if distributed.is_first():
            _save_tokenizer(fitted.model, fitted.history, self.folder)
        return _describe_fit(fitted)


@dataclass(frozen=True)
class LearnIds:
    """A task that learns item vectors and codebooks from sequences in every process.

    The first process writes the tokenizer, the latents of the items and the results of the epochs.

    Args:
        config: Settings of all stages, with absolute paths.
        folder: Folder that the first process writes to.
        checkpoint: File that an interrupted training of the item vectors is resumed from.
        kept: Cache file of the trained network, for runs with other codebooks.
    """

    config: ExperimentConfig
    folder: Path
    checkpoint: Path
    kept: Path

    def __call__(self, report: Report) -> dict[str, Any]:
        """Learn the IDs and return the summary of the fit; ``report`` is not called."""
        import torch

        from recgrit import distributed
        from recgrit.models.learned_ids import learn_ids

        run = Run(self.config.run.dir)
        learned = learn_ids(
            torch.from_numpy(np.array(run.features.vectors, dtype=np.float32)),
            run.data.split,
            self.config.tokenizer,
            self.config.item_vectors,
            seed=self.config.seed,
            checkpoint=self.checkpoint,
            kept=self.kept,
        )
        if distributed.is_first():
            _save_tokenizer(learned.tokenizer, learned.fit.history, self.folder)
            np.save(self.folder / LATENTS_NAME, learned.latents.cpu().numpy())
            epochs = pl.DataFrame([asdict(epoch) for epoch in learned.id_epochs])
            epochs.write_parquet(self.folder / ID_EPOCHS_NAME)
        return {
            **_describe_fit(learned.fit),
            "vectors": learned.vectors.to_json(),
            "ids": asdict(learned.id_epochs[learned.best_epoch]),
        }


def _save_tokenizer(model: Tokenizer, history: list[TokenizerEpoch], folder: Path) -> None:
    from safetensors.torch import save_file

    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / TOKENIZER_NAME)
    pl.DataFrame([asdict(epoch) for epoch in history]).write_parquet(folder / EPOCHS_NAME)


def _describe_fit(fitted: FittedCodebooks) -> dict[str, Any]:
    return {"best_epoch": fitted.best_epoch, "num_fitted": fitted.num_fitted}


@dataclass(frozen=True)
class AssignCodes:
    """A task that assigns codes to items with a fitted tokenizer.

    A shard of n items holds their codes at L levels, int32 ``[n, L]``, and for each level the sum
    of the norms of their residuals.

    Args:
        config: Settings of the tokenizer.
        weights: File of the tokenizer's weights.
        features: File of the items' feature vectors.
        latents: File of the items' learned latents. None computes the latents from the features.
    """

    config: TokenizerConfig
    weights: Path
    features: Path
    latents: Path | None

    def __call__(self) -> ShardFunction:
        """Load the tokenizer, and return the function that writes the codes of a range of items."""
        import torch
        from safetensors.torch import save_file

        from recgrit.quantization.fit import assign_codes

        encode, vectors, model = open_tokenizer(self)

        def assign(rows: slice, path: Path) -> None:
            part = torch.from_numpy(np.array(vectors[rows]))
            codes, norms = assign_codes(model.quantizer, part, encode)
            sums = torch.tensor(norms, dtype=torch.float64) * (rows.stop - rows.start)
            save_file({"codes": codes.int(), "residual_norms": sums}, path)

        return assign


def open_tokenizer(
    files: AssignCodes,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], npt.NDArray[np.float32], Tokenizer]:
    """Open the tokenizer and the vectors of the items.

    Args:
        files: Paths of the tokenizer and of the vectors.

    Returns:
        A function that turns rows of the vectors into latents; the vectors, float32 with one row
        per item; and the tokenizer.
    """
    features = np.load(files.features, mmap_mode="r")
    model = read_tokenizer(files.weights, files.config, features.shape[1])
    if files.latents is None:
        return model.encode_latent, features, model
    return lambda latents: latents, np.load(files.latents, mmap_mode="r"), model


def features_path(config: ExperimentConfig) -> Path:
    """Return the path of the feature vectors of a run's items."""
    return stage_directory(config.run.dir, "embed") / "features_vectors.npy"
