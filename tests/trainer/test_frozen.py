"""A trainer that was frozen wakes when another one has taken its place, and then writes nothing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from finetune_api.reasons import EXIT_CODES, Reason
from tools.testing.faulty_proxy import running_faulty_proxy
from tools.testing.trainer_jobs import Workbench
from tools.testing.trainer_pods import Listener, Pod, listening


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as running:
        yield running


def contents(bench: Workbench) -> dict[str, bytes]:
    return {key: bench.read(key) for key in bench.objects()}


@contextmanager
def started_and_frozen(bench: Workbench, listener: Listener, key: str) -> Iterator[Pod]:
    """Start attempt 1, and stop it with SIGSTOP while its first write to a key with this text is on its way."""
    starting, frozen = threading.Lock(), threading.Event()

    def freeze(method: str, path: str) -> None:
        if method == "PUT" and key in path and not frozen.is_set():
            with starting:
                pod.process.send_signal(signal.SIGSTOP)
            frozen.set()

    with running_faulty_proxy(bench.server.port) as proxy:
        proxy.choose_fault = freeze
        job = bench.job()
        job["spec"]["output"]["s3"]["endpoint"] = proxy.endpoint
        with starting:
            pod = Pod(bench, job, listener, 1)
        assert frozen.wait(240), f"it wrote no {key}"
        yield pod


@pytest.mark.chaos("SIGSTOP of a trainer, another in its place, SIGCONT")
@pytest.mark.parametrize(
    "key",
    [
        pytest.param("/adapter/", id="while it publishes"),
        pytest.param("/claims/", id="before the first step", marks=pytest.mark.exhaustive),
    ],
)
def test_a_frozen_trainer_that_wakes_writes_nothing(bench: Workbench, listener: Listener, key: str) -> None:
    with started_and_frozen(bench, listener, key) as first:
        second = Pod(bench, bench.job(), listener, 2)
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
