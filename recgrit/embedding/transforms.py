"""Fitted feature transforms, saved so that items added later get features of the same kind.

Shapes: N items, n selected items, F dimensions of the vectors, k dimensions of the reduced vectors
(k = F without a projection).
"""

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
    """A fitted transform of one kind of vectors into one part of the features.

    Shapes: F dimensions of the vectors, k dimensions of the reduced vectors.

    Args:
        center: Mean that is subtracted before the projection, float32 ``[F]``. None without a
            projection.
        components: Principal components to project on, float32 ``[k, F]``. None keeps all
            dimensions.
        mean: Mean of the reduced vectors, float32 ``[k]``. It is subtracted before scaling.
        scale: Divisor of the reduced vectors: their root mean square norm around the mean, divided
            by the part's weight.
        fill: Reduced vector of an item that has no vector of this kind, float32 ``[k]``. With None,
            such an item gets the mean of the most similar items.
    """

    center: Vectors | None
    components: Vectors | None
    mean: Vectors
    scale: float
    fill: Vectors | None = None

    @property
    def input_dim(self) -> int:
        """Number of dimensions F of the vectors."""
        return len(self.mean if self.center is None else self.center)

    @property
    def dim(self) -> int:
        """Number of dimensions k of this part of the features."""
        return len(self.mean)

    def reduce(self, vectors: Vectors) -> Vectors:
        """Project vectors ``[n, F]`` on the components, without scaling, as ``[n, k]``.

        Shapes: n selected items, F dimensions of the vectors, k dimensions of the reduced vectors.
        """
        if self.components is None or self.center is None:
            return vectors
        centred = (vectors - self.center).astype(np.float32)
        return np.asarray(centred @ self.components.T, dtype=np.float32)

    def scale_reduced(self, vectors: Vectors) -> Vectors:
        """Return this part of the features ``[n, k]`` from reduced vectors ``[n, k]``.

        Shapes: n selected items, k dimensions of the reduced vectors.
        """
        return np.asarray((vectors - self.mean) / self.scale, dtype=np.float32)


@dataclass(frozen=True)
class FeatureTransform:
    """The fitted transforms of all feature parts, which turn vectors into features.

    The transforms are kept so that they can be applied to items added later.

    Args:
        text: Transform of the text vectors.
        cooccurrence: Transform of the co-occurrence vectors. None if the features have no such
            part.
        blocks: Transforms of the further blocks by name, in their order in the features.
    """

    text: PartTransform
    cooccurrence: PartTransform | None
    blocks: Mapping[str, PartTransform]

    @property
    def feature_dim(self) -> int:
        """Length of the features."""
        return sum(part.dim for part in self._parts().values())

    def columns(self) -> dict[str, slice]:
        """Return the column range of each part in the features, by the part's name."""
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
        """Write the transforms to one safetensors file."""
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
        """Read transforms from a file that `save` wrote.

        Raises:
            ArtifactError: Arrays are missing, or their shapes do not fit together.
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
                "again, or use another bundle."
            ) from None


def _read_part(fields: Mapping[str, npt.NDArray[Any]]) -> PartTransform:
    """Build the transform of one part after checking that its arrays fit together.

    Raises:
        KeyError: An array is missing.
        ValueError: An array has an unexpected shape, or values that are not finite.
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
    """Write for each block which items have a vector; write no file if there are no blocks.

    Args:
        given: Whether each item has a vector, bool ``[N]``, by name of the block.
        directory: Folder to write into.
    """
    from safetensors.numpy import save_file

    if given:
        save_file(
            {name: np.ascontiguousarray(has) for name, has in given.items()},
            directory / BLOCKS_NAME,
        )


def load_given(directory: Path, num_items: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Read which items have a vector of each block, from the file that `save_given` wrote.

    Args:
        directory: Folder to read from.
        num_items: Expected number of items N.

    Returns:
        Whether each item has a vector, bool ``[N]``, by name of the block. The mapping is empty if
        there is no file.

    Raises:
        ArtifactError: An array is not bool, or has another number of items than ``num_items``.
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
