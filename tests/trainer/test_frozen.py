"""A trainer that was frozen wakes when another one has taken its place, and then writes nothing."""

import signal
from collections.abc import Iterator

import pytest

from finetune_api.reasons import EXIT_CODES, Reason
from tools.testing.trainer_jobs import Workbench
from tools.testing.trainer_pods import Listener, Pod, listening


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as running:
        yield running


def contents(bench: Workbench) -> dict[str, bytes]:
    return {key: bench.read(key) for key in bench.objects()}


@pytest.mark.chaos("SIGSTOP of a trainer, another in its place, SIGCONT")
@pytest.mark.parametrize(
    "moment", ["after a checkpoint", pytest.param("before the first step", marks=pytest.mark.exhaustive)]
)
def test_a_frozen_trainer_that_wakes_writes_nothing(bench: Workbench, listener: Listener, moment: str) -> None:
    job = bench.job()
    first = Pod(bench, job, listener, 1)
    if moment == "after a checkpoint":
        listener.wait_for(lambda report: report.checkpoint is not None)
    else:
        listener.wait_for(lambda report: report.progress.step >= 0)
    first.process.send_signal(signal.SIGSTOP)
    second = Pod(bench, job, listener, 2)
    code, output = second.end()
    assert code == 0, output
    assert second.result().reason == "Succeeded"
    before = contents(bench)
    first.process.send_signal(signal.SIGCONT)
    code, output = first.end()
    assert code == EXIT_CODES[Reason.PREEMPTED], output
    assert "this attempt may not write any more" in first.result().message
    assert contents(bench) == before
    assert not [key for key in before if "/claims/" in key]
