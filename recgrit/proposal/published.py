"""The configurations of published data sets that are part of recgrit."""

from __future__ import annotations

import difflib
from pathlib import Path

import recgrit
from recgrit.config import read_yaml
from recgrit.errors import ConfigError

# The package has a link to the folder of the checkout. On systems without links, the folder itself
# is used.
_PACKAGE = Path(recgrit.__file__).parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def list_configs() -> dict[str, Path]:
    """Return the path of each published data set's YAML by its name, such as ``movielens-100k``."""
    folder = next((path for path in _FOLDERS if path.is_dir()), _FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the path of a published data set's YAML.

    Args:
        name: Name of the YAML in `list_configs`, or name of the data source, such as
            ``amazon2014/Beauty``.

    Raises:
        ConfigError: No YAML has this name. The message lists all names.
    """
    configs = list_configs()
    if name in configs:
        return configs[name]
    for path in configs.values():
        if read_yaml(path)["data"]["source"] == name:
            return path
    close = difflib.get_close_matches(name, configs, n=1, cutoff=0.5)
    raise ConfigError(
        f"recgrit has no YAML for {name!r}."
        + (f" Did you mean {close[0]}?" if close else "")
        + f" There are {', '.join(configs)}. For another published data set use the closest and "
        "set data.source; for your own data, give --events FILE."
    )


def copy_config(name: str, out: Path) -> str:
    """Return the text of a data set's YAML, with ``out`` as the file name in its example command.

    Raises:
        ConfigError: No YAML has this name.
    """
    path = find_config(name)
    return path.read_text(encoding="utf-8").replace(f"configs/{path.name}", str(out))
