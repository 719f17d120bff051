"""Steps run side by side, each after those that it needs; the first failure ends the programs of the others."""

import sys
import threading
import time
from pathlib import Path

import pytest

from devcluster import commands
from devcluster.errors import DevClusterError
from devcluster.progress import step
from devcluster.taskgroup import TaskGroup


def test_tasks_run_at_the_same_time_and_return_their_results() -> None:
    barrier = threading.Barrier(2, timeout=10)

    def meet(name: str) -> str:
        barrier.wait()
        return name

    with TaskGroup() as group:
        first, second = group.start("first", lambda: meet("one")), group.start("second", lambda: meet("two"))
    assert (first.result(), second.result()) == ("one", "two")


def test_a_task_begins_after_those_that_it_needs() -> None:
    order = []

    def be_slow() -> None:
        time.sleep(0.1)
        order.append("slow")

    with TaskGroup() as group:
        slow = group.start("slow", be_slow)
        group.start("after it", lambda: order.append("after it"), [slow])
    assert order == ["slow", "after it"]


def test_the_first_failure_ends_the_programs_of_the_others_and_is_raised(tmp_path: Path) -> None:
    started = tmp_path / "started"
    sleeping = [sys.executable, "-c", f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"]

    def fail() -> None:
        while not started.exists():
            time.sleep(0.01)
        raise DevClusterError("the disk is full")

    began = time.monotonic()
    with pytest.raises(DevClusterError, match="the disk is full"), TaskGroup() as group:
        group.start("failing", fail)
        sleeper = group.start("sleeping", lambda: commands.run(sleeping))
        never = group.start("waiting for it", lambda: commands.run([sys.executable, "--version"]), [sleeper])
    assert time.monotonic() - began < 30
    for task in (sleeper, never):
        assert "another step failed" in str(task.exception())
    assert commands.run([sys.executable, "--version"]).startswith("Python 3")


def test_a_failed_program_shows_the_end_of_its_output_its_log_and_the_remedy(tmp_path: Path) -> None:
    code = "import sys; [print(f'line {n}.') for n in range(100)]; sys.exit(3)"
    log = tmp_path / "log"
    with pytest.raises(DevClusterError) as failed:
        commands.run([sys.executable, "-c", code], log=log, remedy="Free some space.")
    message = str(failed.value)
    assert "failed with exit status 3" in message
    assert "line 99." in message
    assert "line 50." not in message
    assert message.endswith(f"The full log: {log}\nFree some space.")
    assert log.read_text().splitlines()[0] == "line 0."


def test_a_pipe_gets_a_line_for_each_step_of_each_thread(capfd: pytest.CaptureFixture[str]) -> None:
    def work(title: str) -> None:
        with step(title):
            time.sleep(0.01)

    with TaskGroup() as group:
        for title in ("one", "two"):
            group.start(title, lambda title=title: work(title))  # type: ignore[misc]
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["one", "two"]
    assert all(": done in 0." in line for line in lines)
