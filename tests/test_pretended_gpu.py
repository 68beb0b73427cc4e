"""Test models and quantizers on a pretended GPU, in a separate process.

Torch must know the device before its first backward pass. Other tests in the same process would
also find this device when they look for an accelerator.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_models_and_quantizers_run_on_a_pretended_gpu():
    checks = Path(__file__).with_name("on_a_pretended_gpu.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, str(checks)],
        cwd=checks.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-8000:]
    assert " passed" in found.stdout or "[100%]" in found.stdout
