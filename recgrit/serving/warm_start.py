"""A warm start: a run that continues from the IDs and weights of a bundle or another run.

The embed stage of the new run appends the items of its log to a bundle of the source, and keeps
that bundle. The features and IDs of the run's items come from this bundle, and so do the weights
that its model starts with. Old items therefore keep their IDs, and new items get theirs as in
`recgrit.serving.append`. Items of the source that the new log lacks stay in the bundle with their
IDs, listed or not as before. Each bundle that is exported from the run contains them again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from recgrit.config import Config, validate
from recgrit.data.items import ItemTable
from recgrit.disk import MANIFEST_NAME
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.vectors import SomeVectors
from recgrit.errors import ArtifactError, ConfigError
from recgrit.experiment import ExperimentConfig
from recgrit.manifests import read_manifest
from recgrit.retrieval.config import RetrieverConfig
from recgrit.runs import Run
from recgrit.serving.append import Appended, append_items
from recgrit.serving.bundle import Bundle, is_bundle
from recgrit.serving.settings import TokenizerSettings
from recgrit.serving.writing import export_bundle

# Settings that decide which weights a retriever has, and their shapes.
SHAPES = (
    "model_dim",
    "num_layers",
    "num_heads",
    "history_length",
    "tree_levels",
    "seen_scores",
    "size",
    "node_buckets",
)
# Settings that, with the template, decide which vector an item gets.
ENCODING = ("encoder", "model", "dim", "max_length")


def fingerprint_source(source: Path) -> str:
    """Return the fingerprint of a bundle, or of the model of a run.

    Raises:
        ArtifactError: The path has neither a bundle nor a run.
    """
    if is_bundle(source):
        return read_manifest(source).fingerprint
    return _open_run(source).manifest("train").fingerprint


def take_over(
    config: ExperimentConfig,
    items: ItemTable,
    directory: Path,
    *,
    vectors: Embeddings | None,
    blocks: Mapping[str, SomeVectors],
    pictures: Path,
) -> Appended:
    """Write a bundle with the items of the source and of a run. Equal inputs give equal files.

    Args:
        config: Settings of the run. ``retriever.init_from`` is the path of the source.
        items: Items of the run.
        directory: Folder of the bundle to write.
        vectors: Vectors of the items, if they are the user's own. Otherwise None.
        blocks: Vectors of the items for further feature blocks, by block name.
        pictures: Folder that relative paths of the items' pictures start from.

    Raises:
        ArtifactError: The source is neither a bundle nor a run, has a model of another kind, or has
            no tokenizer to give new IDs.
        ConfigError: The run's settings ask for other vectors, IDs or weights than the source has.
    """
    source = config.retriever.init_from
    assert source is not None
    with tempfile.TemporaryDirectory() as folder:
        if is_bundle(source):
            bundle = Bundle(source, device="cpu")
        else:
            run = _open_run(source)
            bundle = export_bundle(run, Path(folder) / "bundle")
            _stop_clock(bundle.directory, run.manifest("train").created)
            bundle = Bundle(bundle.directory, device="cpu")
        require_fitting(bundle, config, source)
        made = append_items(
            bundle, Path(folder) / "after", items, vectors=vectors, blocks=blocks, pictures=pictures
        )
        _stop_clock(made.bundle.directory, bundle.manifest.created)
        shutil.move(made.bundle.directory, directory)
    return made


def require_fitting(bundle: Bundle, config: ExperimentConfig, source: Path) -> None:
    """Check that the run's settings fit the vectors, IDs and weights of the source.

    Args:
        bundle: Bundle of the source.
        config: Settings of the run.
        source: Path of the source, for messages.

    Raises:
        ArtifactError: The bundle's model is of another kind, or its IDs were published.
        ConfigError: Settings differ. The message names each setting, its value, and the source's
            value.
    """
    if bundle.settings.model != config.model.kind:
        raise ArtifactError(
            f"retriever.init_from: {source} has the model {bundle.settings.model}, but training "
            f"can continue only from the model {config.model.kind}. Name a bundle or a run of "
            "this kind."
        )
    ids = bundle.require_ids()
    if ids.tokenizer is None:
        raise ArtifactError(
            f"retriever.init_from: {source} has published IDs, and no tokenizer to give IDs to new "
            "items. Unset tokenizer.semantic_ids_path in its run to fit one."
        )
    trained = validate(RetrieverConfig, bundle.settings.settings, f"{source}")
    weights = trained.model_dump(mode="json", include=set(SHAPES))
    wrong = [
        *_differences("retriever", config.retriever, weights),
        *_differences("tokenizer", config.tokenizer, ids.tokenizer.model_dump(mode="json")),
        *_differences("embedding", config.embedding, _encoding(ids, config)),
        *_feature_differences(bundle, config),
    ]
    if wrong:
        raise ConfigError(
            "retriever.init_from: training continues only with the model's own features, IDs and "
            f"sizes. {'; '.join(wrong)}. Set them as in {source}, or train from scratch with "
            "retriever.init_from=null."
        )


def _encoding(ids: TokenizerSettings, config: ExperimentConfig) -> dict[str, object]:
    """Return the source's encoder settings that matter for the encoder of the run."""
    values = ids.embedding.model_dump(mode="json", include=set(ENCODING))
    if config.embedding.encoder != "minilm":
        del values["model"]
    if config.embedding.encoder != "lsa":
        del values["dim"]
    # A run without a template uses that of the source, so there is nothing to compare.
    if config.embedding.template is not None:
        values["template"] = ids.embedding.template
    return values


def _feature_differences(bundle: Bundle, config: ExperimentConfig) -> list[str]:
    """Return a message if the features of the run and of the source have different parts.

    The result is a list with one message, or an empty list.
    """
    transform, features = bundle.feature_transform, config.features
    theirs, ours = {*transform.blocks}, {*features.blocks_in_use}
    if transform.cooccurrence is not None:
        theirs.add("cooccurrence")
    if features.cooccurrence_weight > 0:
        ours.add("cooccurrence")
    if theirs == ours:
        return []
    told = (", ".join(["text", *sorted(parts)]) for parts in (ours, theirs))
    return ["features are of {}, in the source of {}".format(*told)]


def _differences(section: str, ours: Config, theirs: Mapping[str, object]) -> list[str]:
    values = ours.model_dump(mode="json")
    return [
        f"{section}.{name} is {values[name]}, in the source {value}"
        for name, value in theirs.items()
        if values[name] != value
    ]


def _open_run(source: Path) -> Run:
    try:
        return Run(source)
    except ArtifactError:
        raise ArtifactError(
            f"No bundle and no run at {source}: retriever.init_from names what 'recgrit export "
            "bundle', 'recgrit append' or 'recgrit run' wrote. Without one, set it to null."
        ) from None


def _stop_clock(directory: Path, created: str) -> None:
    """Set the time in a bundle's manifest to that of its source.

    Without this, equal inputs would give manifests with different times.
    """
    manifest = read_manifest(directory)
    still = manifest.model_copy(update={"created": created, "seconds": 0.0}).signed()
    path = directory / MANIFEST_NAME
    path.write_text(still.model_dump_json(indent=2) + "\n", encoding="utf-8")
