"""Debian's packages are installed by one caller at a time: apt-get refuses a second one."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devcluster import debian

APT_GET = """#!/bin/sh
mkdir "$ROOM/running" || exit 100
echo "$@" >> "$ROOM/log"
sleep 0.2
for package; do :; done
test "$1" = update || { echo > "$ROOM/bin/$package"; chmod +x "$ROOM/bin/$package"; }
rmdir "$ROOM/running"
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an apt-get on PATH that fails while another one runs, and installs a program with the package's name."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(APT_GET)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("ROOM", str(tmp_path))
    monkeypatch.setenv("FINETUNE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def test_two_callers_install_one_after_another_and_neither_twice(room: Path) -> None:
    wanted = [{"program-a": "program-a"}, {"program-b": "program-b"}, {"program-a": "program-a"}]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda packages: debian.install(packages, "a test"), wanted))
    installed = [line.split()[-1] for line in (room / "log").read_text().splitlines() if line != "update"]
    assert sorted(installed) == ["program-a", "program-b"]
