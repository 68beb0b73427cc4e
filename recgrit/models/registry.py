"""The look-up of model classes by name, or by dotted path for a model of your own."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path

from recgrit.checksums import digest_file
from recgrit.errors import ConfigError
from recgrit.models.model import Model

MODELS: dict[str, str] = {
    "trie": "recgrit.models.trie.TrieModel",
    "sasrec": "recgrit.models.sasrec.SASRecModel",
    "tiger": "recgrit.models.tiger.TigerModel",
    "decoder": "recgrit.models.decoder.DecoderModel",
    "transitions": "recgrit.models.transitions.Transitions",
    "item_knn": "recgrit.models.item_knn.ItemKNN",
    "popularity": "recgrit.models.popularity.Popularity",
}


def find_model(kind: str) -> type[Model]:
    """Return the class of a model.

    Args:
        kind: Name of a model in `MODELS`, or the dotted path ``package.module.Class`` of your own.

    Raises:
        ConfigError: No model has this name, or the dotted path does not lead to a `Model`.
    """
    if kind not in MODELS and "." not in kind:
        close = difflib.get_close_matches(kind, MODELS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"No model {kind!r}.{hint} Choose from {', '.join(MODELS)}, or name your own model as "
            "package.module.Class."
        )
    module, _, name = MODELS.get(kind, kind).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"Cannot import the model {kind}: {error}. Its module must be on the import path: "
            "install its package, or set PYTHONPATH to the folder that holds it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ConfigError(
            f"{kind} is not a model: expected a subclass of recgrit.models.model.Model."
        )
    return found


def digest_code(kind: str) -> str | None:
    """Return the SHA-256 of the source file of a model that is not part of recgrit.

    The digest stands in for a version, so that a changed file makes the training stage run again.
    Modules that the file imports are not covered. The result is None for a model of `MODELS`.
    """
    if kind in MODELS:
        return None
    file = sys.modules[find_model(kind).__module__].__file__
    return None if file is None else digest_file(Path(file))
