"""Functions that only POSIX systems have are imported where they are used, with alternatives."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import recgrit

PACKAGE = Path(recgrit.__file__).parent
# Modules that do not exist on Windows.
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# Names of os and signal that do not exist on Windows. `hasattr` may check for them.
NAMES = {
    "fork", "forkpty", "getgid", "getuid", "geteuid", "getpgid", "killpg", "mkfifo", "nice",
    "posix_fadvise", "posix_fallocate", "pread", "pwrite", "register_at_fork", "setsid", "statvfs",
    "sync_file_range", "sysconf", "uname", "wait", "waitpid", "sched_getaffinity", "SIGALRM",
    "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask",
}  # fmt: skip

# Make this interpreter look like Windows to recgrit: these imports fail, and the names are deleted.
PRELUDE = f"""
import builtins, os, signal, sys

MODULES, NAMES = {MODULES!r}, {NAMES!r}
real = builtins.__import__

def without(name, globals=None, *args, **kwargs):
    importer = (globals or {{}}).get("__name__", "")
    if name in MODULES and importer.split(".")[0] == "recgrit":
        raise ImportError(f"No module named {{name!r}} for {{importer}}")
    return real(name, globals, *args, **kwargs)

builtins.__import__ = without
from recgrit.cli import main
from recgrit import pipeline
"""
HIDDEN = """
for name in ("posix_fallocate", "sync_file_range", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + HIDDEN + code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_small_run_needs_nothing_that_windows_lacks(
    new_config: Callable[..., Path], tmp_path: Path
) -> None:
    overrides = [
        f"run.dir={tmp_path / 'run'}",
        "embedding.encoder=lsa",
        "embedding.dim=8",
        "features.text_dim=4",
        "features.cooccurrence_dim=4",
        "tokenizer.num_levels=2",
        "tokenizer.codebook_size=4",
        "tokenizer.epochs=1",
        "retriever.model_dim=8",
        "retriever.num_layers=1",
        "retriever.num_heads=1",
        "retriever.epochs=1",
        "tracking.backend=none",
    ]
    done = run("sys.argv[0] = 'recgrit'\nmain()", "run", str(new_config()), *overrides)
    assert done.returncode == 0, done.stderr
    assert "of memory at most" in done.stdout + done.stderr
    assert (tmp_path / "run" / "recommendations").is_dir()


def test_the_peak_of_memory_is_known_without_the_module_resource() -> None:
    done = run("print(pipeline.peak_memory_mb())")
    assert done.returncode == 0, done.stderr
    assert 20 < float(done.stdout) < 10_000


def test_a_file_is_fetched_without_the_module_fcntl(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from recgrit.data.transfer import _alone
with _alone(Path({str(tmp_path / "data.zip")!r})):
    print("alone")
"""
    done = run(code)
    assert done.stdout == "alone\n", done.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_imports_at_its_head_what_windows_lacks(path: Path) -> None:
    """Such an import is allowed within a function or a `try`, where an alternative exists."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.Try | ast.If)
        for inner in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(node.module)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("os", "signal")
            and node.attr in NAMES
        ):
            found.append(f"{node.value.id}.{node.attr}")
    assert found == []
