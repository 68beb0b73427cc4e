"""Without the extras, the core works, and other parts name the extra that they need."""

from __future__ import annotations

import functools
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recgrit.__main__ import main

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {hidden!r}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
COMMAND = """
sys.argv = ["recgrit", "run", "some.yaml"]
from recgrit.__main__ import main
main()
"""


def needed_by(requirements: list[str]) -> set[str]:
    """Return the names of the distributions for these requirements and for their dependencies."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            left += map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


@functools.cache
def modules_beyond_the_core() -> set[str]:
    core = needed_by(PROJECT["project"]["dependencies"]) | {"recgrit"}
    return {
        module
        for module, names in metadata.packages_distributions().items()
        if not core & set(map(canonicalize_name, names))
    }


def run_without(hidden: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that does not find these modules."""
    command = [sys.executable, "-c", HIDE.replace("{hidden!r}", repr(hidden)) + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the text of the panel, which must be the only output of the command."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "… still working" not in line]
    assert lines[0].startswith("╭─")
    assert done.stderr.count("recgrit cannot continue") == 1
    return " ".join(line.strip("│ ") for line in lines)


def test_the_core_does_not_include_large_packages() -> None:
    heavy = {"mlflow", "transformers", "sentence_transformers", "polars", "sklearn", "faiss"}
    assert heavy <= modules_beyond_the_core()


def test_quantizers_train_save_and_load_with_the_core_alone(tmp_path: Path) -> None:
    code = f"""
import torch
from recgrit.quantization import GRITVQ, ResidualGRITVQ, build_quantizer

torch.manual_seed(0)
vectors = torch.randn(200, 8)
for make in (
    lambda: GRITVQ(dim=8, codebook_size=16),
    lambda: ResidualGRITVQ(dim=8, num_levels=2, codebook_size=8),
):
    vq, encoder = make(), torch.nn.Linear(8, 8)
    vq.fit_init(vectors)
    optimizer = torch.optim.Adam([*encoder.parameters(), *vq.parameters()], lr=0.01)
    losses = []
    for _ in range(20):
        result = vq(encoder(vectors))
        loss = (result.quantized - vectors).square().mean() + result.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        vq.after_step(optimizer)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert result.diagnostics.unique_share > 0
    vq.eval().save({str(tmp_path / "vq.safetensors")!r})
    loaded = type(vq).load({str(tmp_path / "vq.safetensors")!r}).eval()
    assert torch.equal(loaded.encode(vectors), vq.encode(vectors))
"""
    done = run_without(modules_beyond_the_core(), code)
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_is_fitted_with_the_core_alone() -> None:
    code = """
import torch
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fit import fit_tokenizer

fit_tokenizer(torch.randn(100, 8), TokenizerConfig(num_levels=2, codebook_size=8, epochs=1), seed=0)
"""
    done = run_without(modules_beyond_the_core(), code)
    assert done.returncode == 0, done.stderr


def test_the_command_says_what_to_install() -> None:
    told = refusal(run_without(modules_beyond_the_core(), COMMAND))
    assert "recgrit.cli needs packages that are not installed" in told
    assert "recgrit[cpu] or, with an NVIDIA GPU, recgrit[gpu]" in told


def test_one_absent_package_is_named(new_config: Callable[..., Path]) -> None:
    command = COMMAND.replace('"run", "some.yaml"', f'"prepare", {str(new_config())!r}')
    told = refusal(run_without({"pandas"}, command))
    assert "recgrit needs pandas, which is not installed" in told
    assert "recgrit[cpu]" in told


def test_a_missing_module_of_recgrit_itself_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'recgrit.gone'", name="recgrit.gone")

    monkeypatch.setattr("recgrit.cli.main", fail)
    with pytest.raises(ModuleNotFoundError):
        main()


@pytest.mark.parametrize(
    "imported",
    ["runs import Run", "semantic_ids.table import SemanticIdTable"],
)
def test_imports_from_python_say_what_to_install(imported: str) -> None:
    done = run_without(modules_beyond_the_core(), f"from recgrit.{imported}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("recgrit.errors.MissingExtraError: recgrit.")
    assert "pip install -e '.[cpu]'" in last


def test_the_import_contract_forbids_all_of_the_pipeline() -> None:
    contracts: list[dict[str, Any]] = PROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if "recgrit.extras" in one.get("source_modules", ()))
    pipeline = PROJECT["project"]["optional-dependencies"]["pipeline"]
    names = {canonicalize_name(Requirement(text).name) for text in pipeline}
    modules = metadata.packages_distributions()
    forbidden = [set(map(canonicalize_name, modules[m])) for m in contract["forbidden_modules"]]
    assert names == {name for found in forbidden for name in found & names}
    assert len(forbidden) == len(names)
