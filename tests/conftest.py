"""Fixtures of all tests: a small catalogue, a finished run on it, and calls of the command."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

# These fixtures of trained models are used by tests of several packages.
pytest_plugins = ("tests.small_models",)

# Torch reads this variable at import. More threads do not speed up tiny tensors, and they compete
# for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without COLUMNS, tables are as wide as in any pipe. pytest-xdist sets it to the terminal's width.
os.environ.pop("COLUMNS", None)
# Tests name their own tracking store, so a store from the environment must not be used.
os.environ.pop("MLFLOW_TRACKING_URI", None)
# By default MLflow first samples system metrics after the runs of tests have ended.
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")

NUM_USERS, NUM_ITEMS = 60, 40
# Groups of items. Each has its own words, and the position of its flag among the 19 of u.item.
GROUPS = (
    (("Star", "Galaxy", "Robot", "Planet"), 15),
    (("Love", "Wedding", "Heart", "Paris"), 14),
    (("Murder", "Night", "Detective", "Shadow"), 16),
    (("Puppy", "Castle", "Magic", "Forest"), 4),
)

# A test belongs to a kind by a fixture that it uses, by its file or by its folder. The markers
# ``slow`` and ``gpu`` are set in the test files. A test without a kind is a unit test. The command
# `make test-fast` runs unit tests.
KINDS = {
    "pipeline": (
        "tiny_run",
        "new_config",
        "run_command",
        "pipelines/",
        "test_commands.py",
        "test_frames.py",
        "serving/test_own_files.py",
    ),
    "processes": ("test_processes.py", "test_torchrun.py"),
    "ray": ("cluster",),
    "mlflow": ("tracking/test_start.py",),
    "browser": ("browser",),
    "real_data": ("real_data",),
    "notebook": ("notebooks/",),
    "benchmark": ("benchmarks/",),
    "docs": ("test_docs.py",),
}

# A run with these settings takes seconds, and its model is better than popularity.
TINY_SETTINGS = {
    "embedding": {"encoder": "lsa", "dim": 16},
    "features": {"text_dim": 8, "cooccurrence_dim": 8},
    "tokenizer": {"num_levels": 2, "codebook_size": 8, "epochs": 2, "transform_rank": 2},
    "retriever": {
        "model_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "history_length": 20,
        "dropout": 0.1,
        "node_dropout": 0.1,
        "epochs": 4,
        "batch_targets": 128,
        "learning_rate": 0.01,
        "warmup_steps": 5,
        "precision": "float32",
        "device": "cpu",
    },
    "evaluation": {"num_bootstrap": 50, "beam_width": 20},
}


def write_movielens(folder: Path, *, num_users: int = NUM_USERS, seed: int = 0) -> Path:
    """Write files in MovieLens-100K's layout. Users mostly rate the next item of one group.

    Item i (from 1) belongs to group i mod 4. The next item of its group is i + 4.
    """
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for item in range(1, NUM_ITEMS + 1):
        words, place = GROUPS[item % len(GROUPS)]
        title = f"{draw.choice(words)} {draw.choice(words)} {item} ({1960 + item})"
        flags = ["1" if i == place else "0" for i in range(19)]
        date = f"01-Jan-{1960 + item}"
        items.append("|".join([str(item), title, date, "", "http://x", *flags]))
    ratings = []
    for user in range(1, num_users + 1):
        item, time = draw.randrange(NUM_ITEMS), 1000 * user
        for _ in range(draw.randint(12, 20)):
            time += draw.randint(1, 9)
            ratings.append(f"{user}\t{item + 1}\t{draw.randint(1, 5)}\t{time}")
            item = (item + len(GROUPS)) % NUM_ITEMS
            if draw.random() < 0.1:
                item = draw.randrange(NUM_ITEMS)
    draw.shuffle(ratings)
    (folder / "u.data").write_text("\n".join(ratings) + "\n")
    (folder / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")
    return folder


def write_config(path: Path, data: Path, run: Path, /, **sections: dict[str, Any]) -> Path:
    """Write a whole config for files in MovieLens-100K's layout. ``sections`` replace settings."""
    values: dict[str, Any] = {
        "data": {"source": "movielens-100k", "path": str(data)},
        "run": {"dir": str(run)},
        **{name: dict(section) for name, section in TINY_SETTINGS.items()},
        "tracking": {"backend": "none"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its kinds, before ``-m`` selects tests by kind."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        for kind, signs in KINDS.items():
            if any(sign in fixtures or f"/{sign}" in f"/{item.nodeid}" for sign in signs):
                item.add_marker(kind)
        if not any(item.get_closest_marker(kind) for kind in (*KINDS, "slow", "gpu")):
            item.add_marker("unit")


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of one call of the command."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Return the JSON object on the last line of standard output."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value

    def error_message(self) -> str:
        """Return the unwrapped message of the error panel. Fail unless there is one panel."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert "Traceback" not in self.out + self.err
        assert self.err.count("recgrit cannot continue") == 1, self.err
        lines = self.err.splitlines()
        first = next(i for i, line in enumerate(lines) if "recgrit cannot continue" in line)
        last = next(i for i in range(first, len(lines)) if lines[i].startswith("╰"))
        assert not "".join(lines[last + 1 :]).strip(), "something follows the panel"
        return " ".join(line.strip("│ ") for line in lines[first + 1 : last])


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of the command line, with its data and the result of the command."""

    directory: Path
    data: Path
    result: CommandResult


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small catalogue, which tests only read."""
    return write_movielens(tmp_path_factory.mktemp("raw") / "ml-100k")


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Make a finished run with the real command, tracked in SQLite. Tests only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    config = write_config(
        folder / "tiny.yaml", tiny_data, folder / "runs" / "tiny", tracking={"backend": "mlflow"}
    )
    result = run_command("run", config, "--json")
    assert result.code == 0, result.err
    return FinishedRun(folder / "runs" / "tiny", tiny_data, result)


@pytest.fixture
def copied_run(tiny_run: FinishedRun, tmp_path: Path) -> Path:
    """Copy the finished run to a folder that a test may change, with tracking off."""
    directory = tmp_path / "runs" / "copy"
    shutil.copytree(tiny_run.directory, directory)
    path = directory / "config.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(values | {"tracking": {"backend": "none"}}))
    return directory


@pytest.fixture
def new_config(tiny_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the config of a run that does not exist yet, in ``tmp_path / "runs" / "new"``."""

    def write(data: Path | None = None, /, **sections: dict[str, Any]) -> Path:
        run = tmp_path / "runs" / "new"
        return write_config(tmp_path / "new.yaml", data or tiny_data, run, **sections)

    return write


@pytest.fixture(name="write_movielens", scope="session")
def _write_movielens() -> Callable[..., Path]:
    return write_movielens


@pytest.fixture(name="write_config", scope="session")
def _write_config() -> Callable[..., Path]:
    return write_config


@pytest.fixture(name="run_command", scope="session")
def _run_command() -> Callable[..., CommandResult]:
    return run_command


@pytest.fixture(autouse=True)
def _restore_log_handlers() -> Iterator[None]:
    """Undo how a command sets up logging: its handler writes to a stream that the test closes."""
    logger = logging.getLogger("recgrit")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """Call the command line in this process, by the entry point of the installed command."""
    from recgrit import cli

    def call(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["recgrit", *map(str, arguments)])
        capfd.readouterr()
        logger = logging.getLogger("recgrit")
        before = (logger.handlers, logger.level, logger.propagate)
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            logger.handlers, logger.propagate = before[0], before[2]
            logger.setLevel(before[1])
        found = capfd.readouterr()
        return CommandResult(code, found.out, found.err)

    return call


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return the folder of a published data set, or skip the test if it is missing."""

    def find(name: str) -> Path:
        beside = Path(__file__).parents[1].parent / "shared" / "data"
        folder = Path(os.environ.get("RECGRIT_TEST_DATA", beside)) / name
        if not folder.is_dir():
            pytest.skip(f"no real files at {folder}; name their parent in RECGRIT_TEST_DATA")
        return folder

    return find


def run_command(*arguments: object, cwd: Path | None = None, **environment: str) -> CommandResult:
    """Call the command line in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "recgrit", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def stop_in_training(tmp_path: Path) -> Iterator[Callable[..., tuple[int, CommandResult]]]:
    """Start a run that would train for hours, and send it a signal during its training."""
    started: list[subprocess.Popen[str]] = []

    def stop(config: Path, run: Path, number: signal.Signals) -> tuple[int, CommandResult]:
        endless = ("retriever.epochs=1000000", "retriever.patience=1000000")
        with (tmp_path / "err.txt").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "recgrit", "run", str(config), *endless],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        started.append(process)
        deadline = time.monotonic() + 120
        # Wait until the first epoch is done.
        while not list((run / ".training").glob("*.safetensors")):
            assert process.poll() is None, (tmp_path / "err.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        result = CommandResult(process.returncode, out, (tmp_path / "err.txt").read_text())
        return process.pid, result

    yield stop
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
