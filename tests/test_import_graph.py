"""No module of recgrit imports itself through other modules."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from graphlib import CycleError

import pytest

from tests.import_graph import find_floors, join_parts, read_imports


@pytest.mark.parametrize("type_checking", [False, True])
def test_no_modules_import_one_another_in_a_circle(type_checking: bool) -> None:
    imports = read_imports(type_checking=type_checking)
    assert len(imports) > 100
    find_floors(imports)


def test_packages_form_layers_with_the_command_on_top() -> None:
    floors = find_floors(join_parts(read_imports(type_checking=False)))
    assert "recgrit.errors" in floors[0]
    assert floors[-1] == ["recgrit.__main__"]


def test_a_circle_is_named() -> None:
    with pytest.raises(CycleError) as caught:
        find_floors({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert set(caught.value.args[1]) == {"a", "b", "c"}


def test_every_module_can_be_imported_first() -> None:
    """Each module is imported first in turn, because a cycle fails only from some starts."""
    script = (
        "import importlib, sys\n"
        "for name in sys.stdin.read().split():\n"
        "    for known in [m for m in sys.modules if m.partition('.')[0] == 'recgrit']:\n"
        "        del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )
    modules = set(read_imports(type_checking=False)) - {"recgrit.__main__"}
    if importlib.util.find_spec("lenskit") is None:
        # This module needs LensKit, because it defines a subclass of LensKit's classes.
        modules.remove("recgrit.adapters.lenskit")
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(sorted(modules)),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
