"""Print the layers of the package, its import cycles, its long files and its number of lines.

    make graph

A layer has the parts of recgrit that import lower layers only. The first line is the top layer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
FOLDERS = ("recgrit", "pipelines")
LONG_LINES = 400


def read_imports(*, type_checking: bool) -> dict[str, set[str]]:
    """Return the modules of recgrit that each module imports, also inside functions.

    Args:
        type_checking: True also counts imports that only annotations need.
    """
    graph = grimp.build_graph("recgrit", exclude_type_checking_imports=not type_checking)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def join_parts(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Join imports of modules to imports between packages and modules directly below recgrit."""
    joined: dict[str, set[str]] = {}
    for module, imported in imports.items():
        part = ".".join(module.split(".")[:2])
        others = {".".join(other.split(".")[:2]) for other in imported}
        joined.setdefault(part, set()).update(others - {part})
    return joined


def find_floors(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the names by layer, with the lowest layer first.

    Raises:
        CycleError: There is an import cycle, which the second argument of the error names.
    """
    sorter = TopologicalSorter(imports)
    sorter.prepare()
    floors = []
    while sorter.is_active():
        floors.append(sorted(sorter.get_ready()))
        sorter.done(*floors[-1])
    return floors


def find_long_files() -> dict[str, str]:
    """Return the files over the limit, each with its reason from a table in ARCHITECTURE.md."""
    rows = [line.split("|") for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines()]
    reasons = {row[1].strip(" `"): row[2].strip() for row in rows if len(row) == 4}
    return {
        path: reasons.get(path, "no reason in ARCHITECTURE.md")
        for path, lines in sorted(count_lines().items())
        if lines > LONG_LINES
    }


def count_lines() -> dict[str, int]:
    """Return the number of lines of each Python file, by its path from the root."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in paths}


def main() -> None:
    """Print the results. The exit code is 1 if there is an import cycle."""
    lines = count_lines()
    try:
        floors = find_floors(join_parts(read_imports(type_checking=False)))
        find_floors(read_imports(type_checking=True))
    except CycleError as error:
        sys.exit("A circle: " + " imports ".join(reversed(error.args[1])))
    for number, floor in reversed(list(enumerate(floors))):
        print(f"{number:>2}  {', '.join(name.removeprefix('recgrit.') for name in floor)}")
    print("\nCircles between modules: none")
    print(f"\nFiles over {LONG_LINES} lines:")
    for path, reason in find_long_files().items():
        print(f"  {path}, {lines[path]}: {reason}")
    for folder in FOLDERS:
        total = sum(count for path, count in lines.items() if path.startswith(f"{folder}/"))
        print(f"\n{folder}/: {total:,} lines")


if __name__ == "__main__":
    main()
