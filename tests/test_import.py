"""Test which modules imports load, and which functions write and read files."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import recgrit

if TYPE_CHECKING:
    FinishedRun = Any

SOURCES = sorted(Path(recgrit.__file__).parent.rglob("*.py"))
HEAVY = ("torch", "polars", "pandas", "mlflow", "sklearn", "sentence_transformers", "faiss")
# Modules whose files can run code when they are read, and torch functions that use them.
PICKLES = {"pickle", "joblib", "dill", "cloudpickle", "shelve"}


def python(code: str) -> dict[str, Any]:
    """Run code in a new interpreter, and return the JSON object of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    value = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_the_package_imports_no_large_library() -> None:
    code = """
import json, sys
import recgrit
print(json.dumps({"modules": list(sys.modules)}))
"""
    found = python(code)
    assert not set(HEAVY) & set(found["modules"])


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_no_large_library(arguments: list[str]) -> None:
    code = f"""
import json, sys
from recgrit.cli import main
sys.argv = ["recgrit", *{arguments!r}]
try:
    main()
except SystemExit as ended:
    print(json.dumps({{"code": ended.code, "modules": list(sys.modules)}}))
"""
    found = python(code)
    assert found["code"] == 0
    assert not set(HEAVY) & set(found["modules"])


def test_settings_are_read_without_torch(tiny_run: FinishedRun) -> None:
    code = f"""
import json, sys
from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
load_config(ExperimentConfig, {str(tiny_run.directory / "config.yaml")!r})
print(json.dumps({{"modules": list(sys.modules)}}))
"""
    assert not {"torch", "mlflow", "sentence_transformers"} & set(python(code)["modules"])


def test_an_untracked_run_imports_no_mlflow(new_config: Callable[..., Path]) -> None:
    code = f"""
import json, sys
from recgrit.cli import main
sys.argv = ["recgrit", "run", {str(new_config())!r}, "retriever.epochs=1"]
try:
    main()
except SystemExit as ended:
    print(json.dumps({{"code": ended.code, "modules": list(sys.modules)}}))
"""
    found = python(code)
    assert found["code"] == 0
    # No sentence encoder is loaded, because the vectors did not come from one.
    assert not {"mlflow", "sentence_transformers", "transformers"} & set(found["modules"])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_file_is_read_or_written_as_a_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not PICKLES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLES
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.save", "torch.load", "torch.jit.load"}
        elif isinstance(node, ast.keyword):
            allowed = not (isinstance(node.value, ast.Constant) and node.value.value is True)
            assert node.arg != "allow_pickle" or allowed


def test_importing_the_quantization_package_does_not_import_torch() -> None:
    code = (
        "import sys, recgrit.quantization as q; assert 'torch' not in sys.modules; "
        "vq = q.GRITVQ(4, 8); q.ResidualGRITVQ; q.build_quantizer; "
        "assert not hasattr(q, 'Nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
