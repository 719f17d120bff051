"""The trainer as its pod runs it: killed, asked to stop, and run to the end, with its reports received."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from finetune_api.reasons import EXIT_CODES, Reason
from tools.testing.trainer_jobs import Workbench, train
from tools.testing.trainer_pods import Listener, Pod, listening

LONG = {"maxSteps": 150, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 48, "learningRate": 1e-3}


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Yield a report endpoint on loopback."""
    with listening() as listener:
        yield listener


@pytest.mark.exhaustive  # tests/e2e/test_job_faults.py kills the process in a real pod
def test_killed_then_asked_to_stop_the_run_ends_bit_identical(
    workbench: Callable[[], Workbench], listener: Listener
) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    spec = {"training": LONG, "checkpoint": {"everySteps": 5}}
    job = interrupted.job(**spec)

    killed = Pod(interrupted, job, listener, 1)
    listener.wait_for(lambda report: report.checkpoint is not None)
    killed.process.kill()
    killed.end()
    assert not killed.termination_log.exists()

    stopped = Pod(interrupted, job, listener, 2)
    report = listener.wait_for(lambda report: report.resumed_from_step is not None)
    assert report.resumed_from_step is not None
    stopped.process.send_signal(signal.SIGTERM)
    code, log = stopped.end()
    assert code == EXIT_CODES[Reason.PREEMPTED], log
    result = stopped.result()
    assert result.reason is Reason.PREEMPTED
    assert result.checkpoint is not None
    assert result.checkpoint.step > report.resumed_from_step
    assert f"the checkpoint of step {result.checkpoint.step} is saved" in result.message

    last, _ = train(replace(interrupted.settings_of(job), attempt=3))  # an older one is fenced off
    assert (last.reason, last.resumed_from_step) == ("Succeeded", result.checkpoint.step)
    train(uninterrupted.settings(**spec))
    assert interrupted.weights() == uninterrupted.weights()
    assert listener.tokens == {"Bearer token-1", "Bearer token-2"}


def test_asked_to_stop_before_the_loop_it_ends_at_once(bench: Workbench, listener: Listener) -> None:
    pod = Pod(bench, bench.job(training=LONG), listener, 1)
    assert pod.process.stdout is not None
    line = next(line for line in pod.process.stdout if "importing torch" in line)
    pod.process.send_signal(signal.SIGTERM)
    code, log = pod.end()
    assert code == EXIT_CODES[Reason.PREEMPTED], line + log
    assert pod.result().reason is Reason.PREEMPTED
    assert "step 1 " not in log


def test_a_whole_pod_says_success_in_its_exit_code_and_a_readable_log(bench: Workbench, listener: Listener) -> None:
    pod = Pod(bench, bench.job(), listener, 1)
    code, log = pod.end()
    assert code == 0, log
    assert pod.result().reason == "Succeeded"
    assert "step 6 of 6 (100 %): loss " in log
    assert "held-out loss: base " in log
    assert "Traceback" not in log
    assert "Warning" not in log
    assert "test-secret-key" not in log
    report = listener.wait_for(lambda report: report.progress.step == 6)
    assert report.progress.total_steps == 6
