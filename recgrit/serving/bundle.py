"""Reading a bundle: one folder with all that is needed to recommend and to give new items IDs.

A bundle does not refer to the run that it was exported from, so it can be copied anywhere. It is
never changed: adding or removing items writes another bundle (`recgrit.serving.append`), which
names the previous one. The manifest lists each file with its checksum, and opening a bundle
compares all files with it. If another bundle replaces an opened one, further reads raise
`ReplacedError`.

A bundle contains the model, the item names, and which items are trained, added or removed. For
models with semantic IDs it also contains the ID table, the tokenizer, the feature transform, the
item features, and the tables of the trie for services that walk the trie without recgrit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import load_artifact, open_artifact
from recgrit.config import validate
from recgrit.data.attributes import ITEM_ATTRIBUTES, USER_ATTRIBUTES, Attributes
from recgrit.data.ids import IdList
from recgrit.data.items import ItemTable
from recgrit.data.user_histories import UserHistories
from recgrit.disk import MANIFEST_NAME, wait_for
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.transforms import FeatureTransform, load_given
from recgrit.embedding.words import Terms, load_words
from recgrit.errors import ArtifactError, ConfigError, NewerSchemaError, ReplacedError
from recgrit.layout import TOKENIZER_NAME, TRANSFORM_NAME
from recgrit.manifests import Manifest
from recgrit.models.model import CatalogueInputs, Model
from recgrit.models.registry import find_model
from recgrit.recommender import Recommender
from recgrit.records import BUNDLE, require_record
from recgrit.runs import read_tokenizer
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.serving.catalogue import Catalogue
from recgrit.serving.settings import BUNDLE_VERSION, BundleSettings, TokenizerSettings
from recgrit.similar import SimilarItems, Way, Ways
from recgrit.summaries import Summarized

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.quantization.autoencoder import Tokenizer

TRIE_NAME = "trie.safetensors"
USERS_NAME = "users.parquet"
MODEL_FOLDER = "model"

T = TypeVar("T")


class Bundle(Summarized):
    """A bundle that is opened for reading.

    Args:
        directory: Folder of the bundle.
        device: Device that the model runs on, such as "cpu" or "cuda". "auto" is a GPU if there is
            one.

    Raises:
        ArtifactError: The folder holds no bundle, or a file differs from what was written.

    Example:
        ``Bundle("bundles/monday").recommend_after({"anyone": ["242", "51"]})``
    """

    def __init__(self, directory: Path | str, *, device: str = "auto") -> None:
        self.directory = Path(directory)
        self.device = device
        self.manifest = _open_whole(self.directory)
        require_record(self.manifest, BUNDLE, self.directory)
        self.settings = _read_settings(self.manifest, self.directory)

    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """Return a title and a few facts by name, which are shown when the bundle is printed."""
        settings, line = self.settings, self.settings.ancestors
        facts = {
            "model": f"{settings.model}, of {settings.num_known_items:,} items in training",
            "made": f"{self.manifest.created}, by recgrit {self.manifest.recgrit_version}",
            "earlier bundles": f"{len(line)}, the last from {line[-1].created}" if line else "none",
            "fingerprint": self.fingerprint,
        }
        return f"Bundle {self.directory}", facts

    @property
    def fingerprint(self) -> str:
        """The hash of the bundle's content and of the artifacts that it was made from."""
        return self.manifest.fingerprint

    @property
    def parent(self) -> str | None:
        """The fingerprint of the bundle that this one was made from; None if there is none."""
        return self.settings.ancestors[-1].fingerprint if self.settings.ancestors else None

    @cached_property
    def items(self) -> SemanticIdTable | ItemTable:
        """The ids and titles of all items, removed items included."""
        if self.settings.ids is None:
            return self.read(ItemTable.load)
        return self.read(SemanticIdTable.load)

    @property
    def semantic_ids(self) -> SemanticIdTable:
        """The table of semantic IDs of all items, removed items included.

        Raises:
            ArtifactError: The bundle's model has no semantic IDs.
        """
        if not isinstance(self.items, SemanticIdTable):
            raise self._lacks_ids()
        return self.items

    def require_ids(self) -> TokenizerSettings:
        """Return the settings by which items get features and semantic IDs.

        Raises:
            ArtifactError: The bundle's model has no semantic IDs.
        """
        if self.settings.ids is None:
            raise self._lacks_ids()
        return self.settings.ids

    def _lacks_ids(self) -> ArtifactError:
        return ArtifactError(
            f"The bundle {self.directory} has the model {self.settings.model}, which has no "
            "semantic IDs, so items cannot get any. Export a bundle of a run with "
            "model.kind=trie."
        )

    def _unfit(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"The bundle {self.directory} is damaged: {what} do not match its items, features or "
            "settings. Use the bundle before it, or export it again."
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """The table that says which items are trained, added or removed."""
        catalogue = self.read(lambda path: Catalogue.load(path, self.items.item_ids))
        if self.settings.num_known_items > len(self.items):
            raise ArtifactError(
                f"The bundle {self.directory} has {len(self.items)} items, but says that it knew "
                f"{self.settings.num_known_items} in training: it is damaged. Export it again."
            )
        return catalogue

    @cached_property
    def features(self) -> Embeddings:
        """The features of all items, removed items included."""
        return self.read(lambda path: Embeddings.load(path, "features"))

    @cached_property
    def words(self) -> csr_array | None:
        """The TF-IDF vectors of all items' texts; None if the items have vectors and no texts."""
        words = self.read(load_words)
        if words is not None and words.shape[0] != len(self.items):
            raise self._unfit("the words of its items")
        return words

    @cached_property
    def terms(self) -> Terms:
        """The terms that the columns of `words` stand for."""
        terms = self.read(Terms.load)
        if self.words is not None and self.words.shape[1] != len(terms.terms):
            raise self._unfit("the terms of its items' words")
        return terms

    @cached_property
    def cooccurrence(self) -> npt.NDArray[np.float32] | None:
        """The co-occurrence vectors of all items; None if the features have no co-occurrence part.

        An item without a co-occurrence vector has zeros.
        """
        part = self.feature_transform.cooccurrence
        if part is None:
            return None
        vectors = self.read(lambda path: Embeddings.load(path, "cooccurrence").vectors)
        if vectors.shape != (len(self.items), part.dim):
            raise self._unfit("its co-occurrence vectors")
        return vectors

    @cached_property
    def attributes(self) -> Attributes | None:
        """The attributes of all items; None if the model reads no item attributes."""
        return self._read_attributes(ITEM_ATTRIBUTES, len(self.items))

    @cached_property
    def user_attributes(self) -> Attributes | None:
        """The attributes of training users and an unknown user; None if the model reads none."""
        return self._read_attributes(USER_ATTRIBUTES, None)

    def _read_attributes(self, name: str, num_rows: int | None) -> Attributes | None:
        names = tuple(self.settings.settings.get(name, ()))
        if not names:
            return None
        found = self.read(lambda path: Attributes.load(path, name, num_rows))
        if tuple(column.name for column in found.columns) != names:
            raise self._unfit(f"its {name}")
        return found

    @cached_property
    def users(self) -> UserHistories:
        """The users that were exported with the bundle, with their histories; may be empty.

        The training users come first, in the order of the training.
        """
        users = self.read(lambda path: UserHistories.load(path / USERS_NAME, len(self.items)))
        return UserHistories(users.user_ids, users.split.with_own_people())

    @cached_property
    def given(self) -> dict[str, npt.NDArray[np.bool_]]:
        """The items that have a vector in each further feature block: bool ``[N]`` by block name.

        There are N items. Further feature blocks are those beside text and co-occurrence.
        """
        given = self.read(lambda path: load_given(path, len(self.items)))
        if set(given) != set(self.feature_transform.blocks):
            raise ArtifactError(
                f"The bundle {self.directory} has features of the blocks "
                f"{sorted(self.feature_transform.blocks)}, but vectors of {sorted(given)}: it is "
                "damaged. Export it again."
            )
        return given

    @cached_property
    def feature_transform(self) -> FeatureTransform:
        """The transform that computes item features from vectors."""
        transform = self.read(lambda path: FeatureTransform.load(path / TRANSFORM_NAME))
        if transform.feature_dim != self.features.embedding_dim:
            raise self._unfit("the transforms of its features")
        return transform

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The fitted tokenizer, in evaluation mode."""
        config = self.require_ids().tokenizer
        if config is None:
            raise self._lacks_ids()
        width = self.features.embedding_dim
        return self.read(lambda path: read_tokenizer(path / TOKENIZER_NAME, config, width))

    @cached_property
    def model(self) -> Model:
        """The fitted model over the whole catalogue, on the bundle's device."""
        found = find_model(self.settings.model)
        inputs = CatalogueInputs(
            trained=self.catalogue.trained,
            semantic_ids=self.semantic_ids if "tokenize" in found.needs else None,
            features=self.features.vectors if "embed" in found.needs else None,
            words=self.words if "embed" in found.needs else None,
            listed=self.catalogue.listed,
            num_known=self.settings.num_known_items,
            attributes=self.attributes,
            user_attributes=self.user_attributes,
        )
        settings = validate(found.settings_class, self.settings.settings, "the model")
        model = self.read(lambda path: found.load(path / MODEL_FOLDER, inputs, settings))
        return model.to_device(self.device)

    def recommender(self, *, beam_width: int | None = None) -> Recommender:
        """Return a recommender for the items of this bundle, which never lists removed items.

        Histories may contain removed items and items that were added after the training.

        Args:
            beam_width: Number of prefixes that the beam search keeps at each level, for models that
                search. None uses the beam width of the run's evaluation.
        """
        return Recommender(
            self.model,
            self.items,
            beam_width=self.settings.beam_width if beam_width is None else beam_width,
            listed=self.catalogue.listed,
            counts=self.catalogue.counts,
        )

    def recommend_after(self, histories: Mapping[str, IdList], **options: Any) -> pl.DataFrame:
        """Recommend items that are likely to follow histories.

        The arguments are those of `Recommender.recommend_after`.
        """
        return self._recommender.recommend_after(histories, **options)

    @cached_property
    def _recommender(self) -> Recommender:
        return self.recommender()

    def similar_items(
        self, item_id: str, top_k: int = 10, *, by: Way = "embedding"
    ) -> pl.DataFrame:
        """Return the items most similar to one item, added items included.

        Removed items are not listed, but ``item_id`` may be a removed item. The arguments are those
        of `recgrit.runs.Run.similar_items`.
        """
        return self.similar(by).of(item_id, top_k=top_k)

    def similar(self, by: Way = "embedding") -> SimilarItems:
        """Return the object that finds similar items for one item or for all items.

        Args:
            by: Kind of similarity, as in `similar_items`.
        """
        if by not in self._similar:
            has_features = "embed" in find_model(self.settings.model).needs
            ways = Ways(
                f"The bundle {self.directory}",
                model=lambda: self.model,
                features=(lambda: self.features.vectors) if has_features else None,
                ids=None if self.settings.ids is None else self._ids_and_tokenizer,
            )
            self._similar[by] = SimilarItems(
                self.items, ways.make(by), listed=self.catalogue.listed
            )
        return self._similar[by]

    @cached_property
    def _similar(self) -> dict[Way, SimilarItems]:
        return {}

    def _ids_and_tokenizer(self) -> tuple[SemanticIdTable, Tokenizer | None]:
        has_tokenizer = self.require_ids().tokenizer is not None
        return self.semantic_ids, self.tokenizer if has_tokenizer else None

    def read(self, load: Callable[[Path], T]) -> T:
        """Return what ``load`` reads from the bundle's folder.

        Raises:
            ArtifactError: The files cannot be read.
            ReplacedError: Another bundle replaced this one after it was opened.
        """
        try:
            return load_artifact(self.directory, load, expected=self.manifest)
        except ReplacedError:
            raise
        except ArtifactError as error:
            raise ArtifactError(
                f"The bundle {self.directory} cannot be read. {error} Use the bundle before it, "
                "or export it again with 'recgrit export bundle'."
            ) from error


def is_bundle(directory: Path) -> bool:
    """Return whether a folder's manifest says that it is a bundle. Its files are not checked."""
    try:
        if not (directory / MANIFEST_NAME).is_file():  # Reading a pipe would never end.
            return False
        values: Any = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        return bool(values["stage"] == BUNDLE)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _open_whole(directory: Path) -> Manifest:
    """Compare all files of a bundle with its manifest, and return the manifest.

    Raises:
        ArtifactError: The folder is no bundle, or a file has changed.
        NewerSchemaError: The bundle has a layout version that this recgrit does not read.
    """
    wait_for(directory)
    if not is_bundle(directory):
        raise ArtifactError(
            f"No bundle at {directory}: expected a folder that 'recgrit export bundle' or "
            "'recgrit append' wrote."
        )
    try:
        manifest = open_artifact(directory, whole=True)
    except NewerSchemaError:
        raise
    except ArtifactError as error:
        raise ArtifactError(
            f"The bundle {directory} is damaged. {error} Copy it again from its source, or export "
            "it again with 'recgrit export bundle'."
        ) from None
    version = manifest.config.get("version")
    if version != BUNDLE_VERSION:
        raise NewerSchemaError(
            f"The bundle {directory} has layout {version}, this recgrit reads {BUNDLE_VERSION}. "
            "Upgrade recgrit, or export the bundle again."
        )
    return manifest


def _read_settings(manifest: Manifest, directory: Path) -> BundleSettings:
    """Return the validated settings from a bundle's manifest.

    Raises:
        ArtifactError: A setting is missing or invalid.
    """
    try:
        settings = validate(BundleSettings, manifest.config, "the manifest")
        validate(find_model(settings.model).settings_class, settings.settings, "the model")
    except ConfigError as error:
        raise ArtifactError(f"The bundle {directory} cannot be used. {error}") from None
    return settings
