"""To train on from yesterday: the IDs, the tokenizer and the weights of a bundle or of a run.

A run that starts from another carries a bundle of that other in its embed stage, to which the items
of its own log were appended. From there come the features and the IDs of its items, and the weights
that its model starts with. So an old item keeps its ID, and a new one gets its own as by
`recgrit.serving.append`. Items of the source that the log lacks stay in that bundle, with their IDs
and whether they are listed, and are in each bundle of the run again.
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

# Settings that decide which weights a retriever has.
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
# Settings that decide which vector an item gets, beside the template.
ENCODING = ("encoder", "model", "dim", "max_length")


def fingerprint_source(source: Path) -> str:
    """The fingerprint of a bundle, or of the model of a run.

    Raises:
        ArtifactError: There is neither.
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
    """Write a bundle of the source and of a run's items; equal starts give equal files.

    Args:
        config: Of the run; ``retriever.init_from`` names the source.
        items: Of the run.
        directory: The folder of the bundle.
        vectors: Vectors of the items, where they are the user's own.
        blocks: Vectors of the items by the name of their block of features.
        pictures: Where relative paths of the items' pictures start.

    Raises:
        ArtifactError: The source is no bundle and no run, or one whose IDs cannot be continued.
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
    """Refuse settings of other vectors, IDs or weights than those to train on from.

    Raises:
        ArtifactError: The bundle's model is of another kind, or its IDs were published.
        ConfigError: Names each setting, what it is, and what the source has.
    """
    if bundle.settings.model != config.model.kind:
        raise ArtifactError(
            f"retriever.init_from: {source} has the model {bundle.settings.model}, and only one of "
            f"the model {config.model.kind} can be trained on. Name a bundle or a run of this kind."
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
            f"retriever.init_from: a model can be trained on with the features, the IDs and the "
            f"sizes that it has. {'; '.join(wrong)}. Set them as in {source}, or train from "
            "scratch with retriever.init_from=null."
        )


def _encoding(ids: TokenizerSettings, config: ExperimentConfig) -> dict[str, object]:
    """What the vectors of the source were made with, of what can be compared."""
    values = ids.embedding.model_dump(mode="json", include=set(ENCODING))
    if config.embedding.encoder != "minilm":
        del values["model"]
    if config.embedding.encoder != "lsa":
        del values["dim"]
    # Without a template it is found, and the source's is taken.
    if config.embedding.template is not None:
        values["template"] = ids.embedding.template
    return values


def _feature_differences(bundle: Bundle, config: ExperimentConfig) -> list[str]:
    """Parts of the features that only one of both has."""
    transform, features = bundle.feature_transform, config.features
    theirs, ours = {*transform.blocks}, {*features.blocks_in_use}
    if transform.cooccurrence is not None:
        theirs.add("cooccurrence")
    if features.cooccurrence_weight > 0:
        ours.add("cooccurrence")
    if theirs == ours:
        return []
    told = (", ".join(["text", *sorted(parts)]) for parts in (ours, theirs))
    return ["features are of {}, there of {}".format(*told)]


def _differences(section: str, ours: Config, theirs: Mapping[str, object]) -> list[str]:
    values = ours.model_dump(mode="json")
    return [
        f"{section}.{name} is {values[name]}, there {value}"
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
    """Have a bundle say that it is as old as what it is made of, so that its files are as well."""
    manifest = read_manifest(directory)
    still = manifest.model_copy(update={"created": created, "seconds": 0.0}).signed()
    path = directory / MANIFEST_NAME
    path.write_text(still.model_dump_json(indent=2) + "\n", encoding="utf-8")
