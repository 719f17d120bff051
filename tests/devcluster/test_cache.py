"""The cache makes each thing once, and a kill in the middle leaves nothing that looks complete."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devcluster.cache import cached

SLOW_MAKER = """
import sys, time
from pathlib import Path
from devcluster.cache import cached

def make(target):
    (target / "half").write_text("half")
    print("making", flush=True)
    time.sleep(60)

cached("thing", "recipe", "making", "", make)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE_DIR", str(tmp_path))
    return tmp_path


def writing(text: str) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        (target / "whole").write_text(text)

    return make


def test_the_same_recipe_is_made_once_and_another_one_again() -> None:
    first = cached("thing", "recipe", "making", "", writing("first"))
    assert cached("thing", "recipe", "making", "", writing("second")) == first
    assert (first / "whole").read_text() == "first"
    other_entry = cached("thing", "another recipe", "making", "", writing("other"))
    assert (other_entry / "whole").read_text() == "other"


def test_a_maker_that_was_killed_leaves_nothing_incomplete(cache: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_MAKER], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout
        assert maker.stdout.readline() == "making\n"
        os.kill(maker.pid, signal.SIGKILL)
    directory = cached("thing", "recipe", "making", "", writing("new"))
    assert [file.name for file in directory.iterdir()] == ["whole"]
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == [directory.name]


def test_a_maker_that_fails_leaves_nothing_incomplete() -> None:
    def fail(target: Path) -> None:
        (target / "half").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        cached("thing", "recipe", "making", "", fail)
    directory = cached("thing", "recipe", "making", "", writing("new"))
    assert [file.name for file in directory.iterdir()] == ["whole"]
