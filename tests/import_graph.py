"""The shape of the house: floors of the package, circles of imports, long files, lines in all.

    make graph

A floor holds the parts of recgrit that import lower floors only; the first line is the top.
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
    """Which modules of recgrit each of them imports, inside functions too.

    Args:
        type_checking: Count imports that serve annotations only.
    """
    graph = grimp.build_graph("recgrit", exclude_type_checking_imports=not type_checking)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def join_parts(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between the packages and modules directly below recgrit."""
    joined: dict[str, set[str]] = {}
    for module, imported in imports.items():
        part = ".".join(module.split(".")[:2])
        others = {".".join(other.split(".")[:2]) for other in imported}
        joined.setdefault(part, set()).update(others - {part})
    return joined


def find_floors(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Names by floor, the lowest first.

    Raises:
        CycleError: Some import one another in a circle, which its second argument names.
    """
    sorter = TopologicalSorter(imports)
    sorter.prepare()
    floors = []
    while sorter.is_active():
        floors.append(sorted(sorter.get_ready()))
        sorter.done(*floors[-1])
    return floors


def find_long_files() -> dict[str, str]:
    """Files over the limit, each with its reason: a row of a table in ARCHITECTURE.md."""
    rows = [line.split("|") for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines()]
    reasons = {row[1].strip(" `"): row[2].strip() for row in rows if len(row) == 4}
    return {
        path: reasons.get(path, "no reason in ARCHITECTURE.md")
        for path, lines in sorted(count_lines().items())
        if lines > LONG_LINES
    }


def count_lines() -> dict[str, int]:
    """Lines of each Python file, by its path from the root."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in paths}


def main() -> None:
    """Print all of it; exit code 1 if there is a circle."""
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
