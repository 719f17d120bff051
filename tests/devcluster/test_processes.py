"""Processes are started once, found again, restarted when they must be, and never mistaken for another."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from devcluster import processes
from devcluster.errors import DevClusterError
from devcluster.processes import Daemon


def sleeper(name: str = "sleeper", seconds: str = "300", configuration: str = "") -> Daemon:
    return Daemon(name, ["sleep", seconds], lambda: None, configuration=configuration)


@pytest.fixture
def state(tmp_path: Path) -> object:
    yield tmp_path
    for name in processes.names(tmp_path):
        processes.stop(tmp_path, name, gently=False)


def test_a_running_process_is_kept(state: Path) -> None:
    assert processes.ensure(state, [sleeper()]) == ["sleeper"]
    pid = processes.pid_of(state, "sleeper")
    assert processes.ensure(state, [sleeper()]) == []
    assert processes.pid_of(state, "sleeper") == pid


def test_a_killed_process_is_started_again(state: Path) -> None:
    processes.ensure(state, [sleeper()])
    pid = processes.pid_of(state, "sleeper")
    assert pid is not None
    os.kill(pid, 9)
    while processes.start_time(pid) is not None:
        time.sleep(0.01)
    assert processes.pid_of(state, "sleeper") is None
    assert processes.ensure(state, [sleeper()]) == ["sleeper"]
    assert processes.pid_of(state, "sleeper") not in (None, pid)


@pytest.mark.parametrize(
    "changed", [sleeper(seconds="301"), sleeper(configuration="another")], ids=["command", "configuration"]
)
def test_a_changed_process_is_restarted(state: Path, changed: Daemon) -> None:
    processes.ensure(state, [sleeper()])
    before = processes.pid_of(state, "sleeper")
    assert before is not None
    processes.ensure(state, [changed])
    assert processes.pid_of(state, "sleeper") not in (None, before)
    assert processes.start_time(before) is None


def test_an_unhealthy_process_is_restarted(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ADOPT_WITHIN_SECONDS", 0.1)
    processes.ensure(state, [sleeper()])
    before = processes.pid_of(state, "sleeper")
    answers = iter(["hangs"] * 3)
    recovers = Daemon("sleeper", ["sleep", "300"], lambda: next(answers, None))
    assert processes.ensure(state, [recovers]) == ["sleeper"]
    assert processes.pid_of(state, "sleeper") not in (None, before)


def test_a_stranger_with_the_recorded_pid_is_neither_adopted_nor_killed(state: Path) -> None:
    processes.ensure(state, [sleeper()])
    own_pid = processes.pid_of(state, "sleeper")
    time.sleep(0.05)  # the kernel tells start times in hundredths of a second
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        record = state / "run" / "sleeper.pid"
        record.write_text(record.read_text().replace(f"\n{own_pid} (", f"\n{stranger.pid} ("))
        assert processes.pid_of(state, "sleeper") is None
        processes.stop(state, "sleeper")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        os.kill(own_pid or 0, 9)


def test_a_process_that_ends_at_once_is_an_error_with_its_log(state: Path) -> None:
    broken = Daemon("broken", ["sh", "-c", "echo no such flag: --frobnicate >&2; exit 2"], lambda: "does not answer")
    with pytest.raises(
        DevClusterError,
        match=r"broken ended right after its start; the end of .*broken\.log:\n +no such flag: --frobnicate",
    ):
        processes.ensure(state, [broken])


def test_a_process_that_never_gets_healthy_is_an_error_with_the_reason(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "HEALTHY_WITHIN_SECONDS", 0.2)
    with pytest.raises(DevClusterError, match=r"hung runs but is not healthy .*\(503 from /healthz\)"):
        processes.ensure(state, [Daemon("hung", ["sleep", "300"], lambda: "503 from /healthz")])


def test_a_process_that_ignores_sigterm_is_ended(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_WITHIN_SECONDS", 0.5)
    deaf = Daemon("deaf", ["sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.1; done'], lambda: None)
    processes.ensure(state, [deaf])
    pid = processes.pid_of(state, "deaf")
    assert pid is not None
    while "ready" not in processes.log_file(state, "deaf").read_text():
        time.sleep(0.01)
    processes.stop(state, "deaf")
    assert processes.start_time(pid) is None
