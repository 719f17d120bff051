"""`make try`: trains on this machine, shows base and adapter side by side, and returns at once the second time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devcluster.paths import REPOSITORY
from tools.testing.extras import only_extras

pytestmark = pytest.mark.trains


def run_tryout(output: Path, environment: dict[str, str]) -> tuple[str, str]:
    """Run the module of `make try` with a tiny model and one step; return its standard output and error output."""
    command = [sys.executable, "-m", "devcluster.tryout", f"--output={output}", "--steps=1", "--model=tiny-llama"]
    completed = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout, completed.stderr


def test_it_trains_compares_and_reuses_what_is_there(tmp_path: Path) -> None:
    output = tmp_path / "try"
    environment = os.environ | only_extras(["trainer", "demo"], tmp_path)  # as the Makefile installs them
    first, messages = run_tryout(output, environment)
    assert (output / "adapter" / "adapter_config.json").exists()
    assert (output / "report.html").exists()
    table = first[first.index("┏") :]
    assert "shakespeare (adapter)" in table
    assert "To be, or not to be" in table
    adapter_line, next_line = messages.splitlines()[-2:]
    assert f"The adapter is in {output / 'adapter'}, and {output / 'report.html'}" in adapter_line
    assert "make demo" in next_line

    manifest = json.loads((output / "adapter" / "manifest.json").read_text())
    began = time.monotonic()
    second, messages = run_tryout(output, environment)
    assert time.monotonic() - began < 20, "it neither trains nor loads a model again"
    assert second == table
    assert messages.splitlines() == [adapter_line, next_line]
    assert json.loads((output / "adapter" / "manifest.json").read_text()) == manifest
