"""Log metrics to MLflow and Weights & Biases from threads that never delay or fail the training."""

import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from finetune_api.reasons import Reason
from finetune_api.tracking import Mlflow, Wandb
from finetune_trainer.runtime.effective_settings import list_effective_settings, redact_credentials
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

log = logging.getLogger(__name__)
CLOSE_SECONDS = 20.0
"""Seconds that the end of an attempt waits for metrics that are not sent yet."""
SECRET_KEYS = {
    "mlflow": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "wandb": ("WANDB_API_KEY",),
}
"""Environment variables that each library reads; the keys of a Secret have the same names."""
UID_TAG = "finetune-operator.uid"
Values = dict[str, float]


class Service(Protocol):
    """A run on a tracking service; all attempts of a job continue the same run."""

    def log_metrics(self, step: int, values: Values) -> None:
        """Log the values of a step."""

    def finish(self, *, succeeded: bool) -> None:
        """End the attempt's part of the run."""


def check(settings: Settings, *, installed: bool) -> None:
    """Check the Secrets of the tracking services and, where the training runs, the libraries.

    Args:
        settings: The attempt's settings.
        installed: Whether the libraries must be installed here.

    Raises:
        Failure: SPEC_INVALID: a Secret lacks the service's keys, or a library is missing.
    """
    for name, service in _configured_services(settings):
        secret = settings.secret(service.secret_ref)
        if secret and not any((secret / key).is_file() for key in SECRET_KEYS[name]):
            details = (
                "the Secret has other keys" if secret.is_dir() else "there is no such Secret in the job's namespace"
            )
            raise Failure(
                Reason.SPEC_INVALID,
                f"Secret {secret.name!r} must have {' or '.join(SECRET_KEYS[name])}: {details}",
                f"spec.tracking.{name}.secretRef",
            )
        if installed and importlib.util.find_spec(name) is None:
            raise Failure(
                Reason.SPEC_INVALID,
                f"the library {name} is not installed where the training runs: use the trainer image of this release, "
                "or uv pip install 'finetune-operator[tracking]'",
                f"spec.tracking.{name}",
            )


def _configured_services(settings: Settings) -> Iterator[tuple[str, Mlflow | Wandb]]:
    tracking = settings.job.spec.tracking
    if tracking.mlflow:
        yield "mlflow", tracking.mlflow
    if tracking.wandb:
        yield "wandb", tracking.wandb


class Trackers:
    """All tracking services of the job, each with its own thread."""

    def __init__(self, settings: Settings) -> None:
        """Start a thread for each service; the connections are made with the first metrics."""
        self._threads = [
            ServiceThread(name, partial(open_service, settings))
            for name, open_service in (("mlflow", _open_mlflow), ("wandb", _open_wandb))
            if name in dict(_configured_services(settings))
        ]
        self._set_keys(settings)

    def log_metrics(self, step: int, entry: dict[str, Any]) -> None:
        """Queue the numbers of one logged step; returns at once."""
        values = {key: float(value) for key, value in entry.items() if isinstance(value, int | float) and key != "step"}
        for thread in self._threads:
            thread.put((step, values))

    def close(self, *, succeeded: bool, timeout: float) -> None:
        """Send what is queued and end the runs; wait at most ``timeout`` seconds."""
        for thread in self._threads:
            thread.put(succeeded)
        deadline = time.monotonic() + min(timeout, CLOSE_SECONDS)
        for thread in self._threads:
            thread.wait(deadline - time.monotonic())

    def _set_keys(self, settings: Settings) -> None:
        for name, service in _configured_services(settings):
            secret = settings.secret(service.secret_ref)
            for key in SECRET_KEYS[name]:
                if secret and (secret / key).is_file():
                    os.environ[key] = (secret / key).read_text(encoding="utf-8").strip()


class ServiceThread:
    """The thread that talks to one service; it stops after its first error."""

    def __init__(self, name: str, open_service: Callable[[], Service]) -> None:
        """Start the thread; ``open_service`` is called with the first metrics."""
        self._name, self._open_service = name, open_service
        self._queue: queue.SimpleQueue[tuple[int, Values] | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def put(self, item: tuple[int, Values] | bool) -> None:
        """Queue a step's values or, at the end, whether the attempt succeeded."""
        self._queue.put(item)

    def wait(self, seconds: float) -> None:
        """Wait for the thread's end, at most ``seconds``."""
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            log.warning("%s did not take all metrics in time: the attempt ends without them", self._name)

    def _run(self) -> None:
        service: Service | None = None
        while True:
            item = self._queue.get()
            try:
                if isinstance(item, bool):
                    if service:
                        service.finish(succeeded=item)
                    return
                service = service or self._open_service()
                service.log_metrics(*item)
            except Exception as error:  # noqa: BLE001 -- whatever a service does, the training continues
                log.warning(
                    "no more metrics are sent to %s (%s: %s); training continues",
                    self._name,
                    type(error).__name__,
                    redact_credentials(str(error)),
                )
                return


def _list_parameters(settings: Settings) -> dict[str, str]:
    return {
        setting.path: setting.value
        for setting in list_effective_settings(settings.job.spec, settings.changes, settings.adjustments)
    }


def _open_mlflow(settings: Settings) -> Service:
    """Open the job's run on the MLflow server: an earlier attempt's, or a new one."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    mlflow, meta = settings.job.spec.tracking.mlflow, settings.job.metadata
    assert mlflow is not None, "the job asks for it"  # noqa: S101
    client = MlflowClient(tracking_uri=mlflow.uri)
    name = mlflow.experiment or f"{meta.namespace}/{meta.name}"
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    earlier = client.search_runs([experiment_id], filter_string=f"tags.`{UID_TAG}` = '{meta.uid}'", max_results=1)
    if earlier:
        run_id = earlier[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(experiment_id, run_name=meta.name, tags={UID_TAG: meta.uid}).info.run_id
        parameters = [Param(key, value[:500]) for key, value in _list_parameters(settings).items()]
        client.log_batch(run_id, params=parameters[:100], tags=[RunTag("adapter", str(settings.adapter))])

    class Run:
        def log_metrics(self, step: int, values: Values) -> None:
            moment = int(time.time() * 1000)
            client.log_batch(run_id, metrics=[Metric(key, value, moment, step) for key, value in values.items()])

        def finish(self, *, succeeded: bool) -> None:
            client.set_terminated(run_id, "FINISHED" if succeeded else "KILLED")

    return Run()


def _open_wandb(settings: Settings) -> Service:
    """Open the job's run on Weights & Biases; its id is the job's uid, so that each attempt continues it."""
    import wandb

    service, meta = settings.job.spec.tracking.wandb, settings.job.metadata
    assert service is not None, "the job asks for it"  # noqa: S101
    # A pod can only write to its scratch space. On a workstation, users expect the files in the usual directory.
    directory = None if settings.workstation else settings.scratch / "run"
    run = wandb.init(
        project=service.project,
        entity=service.entity,
        id=meta.uid or None,
        name=meta.name,
        resume="allow",
        dir=directory,
        config=_list_parameters(settings),
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            **({"base_url": service.base_url} if service.base_url else {}),
        ),
    )

    class Run:
        def log_metrics(self, step: int, values: Values) -> None:
            run.log(values, step=step)

        def finish(self, *, succeeded: bool) -> None:
            code = 0 if succeeded else 1
            run.finish(exit_code=code)
            # the library's own process sends its last records when it ends
            wandb.teardown(exit_code=code)

    return Run()
