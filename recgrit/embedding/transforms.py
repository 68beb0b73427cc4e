"""How item features were made of vectors, kept so that later items get such features too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recgrit.errors import ArtifactError
from recgrit.layout import BLOCKS_NAME

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PartTransform:
    """How one part of the features is made of vectors.

    Args:
        center: float32 ``[F]``, taken off before components; None without components.
        components: float32 ``[k, F]``, principal components; None for all dimensions as they are.
        mean: float32 ``[k]`` or ``[F]``, of the reduced vectors.
        scale: What they are divided by, the part's weight included.
        fill: float32, reduced vector of an item that has none; None where it gets that of the
            items most like it.
    """

    center: Vectors | None
    components: Vectors | None
    mean: Vectors
    scale: float
    fill: Vectors | None = None

    @property
    def input_dim(self) -> int:
        """F."""
        return len(self.mean if self.center is None else self.center)

    @property
    def dim(self) -> int:
        """k, the dimensions of this part."""
        return len(self.mean)

    def reduce(self, vectors: Vectors) -> Vectors:
        """The components of vectors ``[n, F]``, not yet scaled."""
        if self.components is None or self.center is None:
            return vectors
        centred = (vectors - self.center).astype(np.float32)
        return np.asarray(centred @ self.components.T, dtype=np.float32)

    def scale_reduced(self, vectors: Vectors) -> Vectors:
        """This part of the features, of reduced vectors ``[n, k]``."""
        return np.asarray((vectors - self.mean) / self.scale, dtype=np.float32)


@dataclass(frozen=True)
class FeatureTransform:
    """How features were made of vectors, to be repeated on other items.

    Args:
        text: The text part.
        cooccurrence: The co-occurrence part; None where there is none.
        blocks: The further parts by name, in the order in which they stand in the features.
    """

    text: PartTransform
    cooccurrence: PartTransform | None
    blocks: Mapping[str, PartTransform]

    @property
    def feature_dim(self) -> int:
        """Length of the features that it makes."""
        return sum(part.dim for part in self._parts().values())

    def columns(self) -> dict[str, slice]:
        """Where each part stands in the features."""
        found, start = {}, 0
        for name, part in self._parts().items():
            found[name] = slice(start, start + part.dim)
            start += part.dim
        return found

    def _parts(self) -> dict[str, PartTransform]:
        parts = {"text": self.text}
        if self.cooccurrence is not None:
            parts["cooccurrence"] = self.cooccurrence
        return parts | dict(self.blocks)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        from safetensors.numpy import save_file

        arrays = {
            f"{name}.{field}": np.ascontiguousarray(value)
            for name, part in self._parts().items()
            for field, value in (
                ("center", part.center),
                ("components", part.components),
                ("mean", part.mean),
                ("scale", np.array(part.scale, np.float64)),
                ("fill", part.fill),
            )
            if value is not None
        }
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> FeatureTransform:
        """Read what `save` wrote.

        Raises:
            ArtifactError: Its arrays do not fit together.
        """
        from safetensors.numpy import load_file

        fields: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for key, value in load_file(path).items():
            name, _, field = key.partition(".")
            fields.setdefault(name, {})[field] = value
        try:
            parts = {name: _read_part(found) for name, found in sorted(fields.items())}
            return cls(
                text=parts.pop("text"),
                cooccurrence=parts.pop("cooccurrence", None),
                blocks=parts,
            )
        except (KeyError, ValueError) as error:
            raise ArtifactError(
                f"{path} is damaged ({error}): its parts do not fit together. Run the embed stage "
                "again, or take another bundle."
            ) from None


def _read_part(fields: Mapping[str, npt.NDArray[Any]]) -> PartTransform:
    """A part whose arrays fit together.

    Raises:
        KeyError: An array is missing.
        ValueError: One has another shape or type than expected.
    """
    mean, scale = fields["mean"], fields["scale"]
    center, components = fields.get("center"), fields.get("components")
    width = mean.shape if components is None else (len(components),)
    fits = (
        mean.ndim == 1
        and mean.size > 0
        and mean.shape == width
        and scale.size == 1
        and (center is None) == (components is None)
        and fields.get("fill", mean).shape == mean.shape
        and all(np.isfinite(value).all() for value in fields.values())
        and (components is None or center is None or components.shape[1:] == center.shape)
    )
    if not fits or scale.item() <= 0:
        raise ValueError(", ".join(f"{name} {list(v.shape)}" for name, v in fields.items()))
    return PartTransform(center, components, mean, float(scale.item()), fields.get("fill"))


def save_given(given: Mapping[str, npt.NDArray[np.bool_]], directory: Path) -> None:
    """Write which items have a vector of each block, bool ``[N]`` by name; nothing for none."""
    from safetensors.numpy import save_file

    if given:
        save_file(
            {name: np.ascontiguousarray(has) for name, has in given.items()},
            directory / BLOCKS_NAME,
        )


def load_given(directory: Path, num_items: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Read what `save_given` wrote; empty where nothing was written.

    Raises:
        ArtifactError: It is of another number of items.
    """
    from safetensors.numpy import load_file

    path = directory / BLOCKS_NAME
    found = load_file(path) if path.is_file() else {}
    for name, has in found.items():
        if has.shape != (num_items,) or has.dtype != np.bool_:
            raise ArtifactError(
                f"{path} has {has.dtype} {list(has.shape)} for {name}, expected bool "
                f"[{num_items}]: it is damaged."
            )
    return found
