"""MLflow and Weights & Biases hear of each logged step, from a thread of their own: a service that is away never holds up the training, nor fails it."""

import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from finetune_api.reasons import Reason
from finetune_api.tracking import Mlflow, Wandb
from finetune_trainer.runtime.effective_settings import list_effective_settings, redact_credentials
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

log = logging.getLogger(__name__)
FAREWELL_SECONDS = 20.0
"""How long the end of an attempt waits for what is still to be told."""
KEYS = {
    "mlflow": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "wandb": ("WANDB_API_KEY",),
}
"""What each library looks for in the environment; a Secret has the same names."""
UID_TAG = "finetune-operator.uid"
Values = dict[str, float]


class Service(Protocol):
    """One service with one run on it, which every attempt of a job goes on with."""

    def tell(self, step: int, values: Values) -> None:
        """The values of a step."""

    def end(self, *, succeeded: bool) -> None:
        """The attempt is over."""


def check(settings: Settings, *, installed: bool) -> None:
    """Raise Failure if a Secret lacks its keys or, where the training is to be (``installed``), if a library is not there."""
    for name, wanted in _wanted(settings):
        secret = settings.secret(wanted.secret_ref)
        if secret and not any((secret / key).is_file() for key in KEYS[name]):
            found = "the Secret has other keys" if secret.is_dir() else "there is no such Secret in the job's namespace"
            raise Failure(
                Reason.SPEC_INVALID,
                f"Secret {secret.name!r} must have {' or '.join(KEYS[name])}: {found}",
                f"spec.tracking.{name}.secretRef",
            )
        if installed and importlib.util.find_spec(name) is None:
            raise Failure(
                Reason.SPEC_INVALID,
                f"the library {name} is not installed where the training runs: take the trainer image of this release, or "
                "uv pip install 'finetune-operator[tracking]'",
                f"spec.tracking.{name}",
            )


def _wanted(settings: Settings) -> Iterator[tuple[str, Mlflow | Wandb]]:
    tracking = settings.job.spec.tracking
    if tracking.mlflow:
        yield "mlflow", tracking.mlflow
    if tracking.wandb:
        yield "wandb", tracking.wandb


class Trackers:
    """All services that the job asks for, each with its own thread."""

    def __init__(self, settings: Settings) -> None:
        self._threads = [
            Tracker(name, lambda opening=opening: opening(settings))  # type: ignore[misc]
            for name, opening in (("mlflow", _open_mlflow), ("wandb", _open_wandb))
            if name in dict(_wanted(settings))
        ]
        self._set_keys(settings)

    def tell(self, step: int, entry: dict[str, Any]) -> None:
        """The numbers of one logged step; returns at once."""
        values = {key: float(value) for key, value in entry.items() if isinstance(value, int | float) and key != "step"}
        for thread in self._threads:
            thread.put((step, values))

    def close(self, *, succeeded: bool, within: float) -> None:
        """Wait a while, at most ``within`` seconds, until all is told."""
        for thread in self._threads:
            thread.put(succeeded)
        deadline = time.monotonic() + min(within, FAREWELL_SECONDS)
        for thread in self._threads:
            thread.wait(deadline - time.monotonic())

    def _set_keys(self, settings: Settings) -> None:
        for name, wanted in _wanted(settings):
            secret = settings.secret(wanted.secret_ref)
            for key in KEYS[name]:
                if secret and (secret / key).is_file():
                    os.environ[key] = (secret / key).read_text(encoding="utf-8").strip()


class Tracker:
    """One service and the thread that talks to it; after its first error it is left alone."""

    def __init__(self, name: str, opening: Callable[[], Service]) -> None:
        self._name, self._opening = name, opening
        self._queue: queue.SimpleQueue[tuple[int, Values] | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def put(self, item: tuple[int, Values] | bool) -> None:
        """Something to tell, or at the end whether the attempt succeeded."""
        self._queue.put(item)

    def wait(self, seconds: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            log.warning("%s has not taken everything in time; the training is not held up for it", self._name)

    def _run(self) -> None:
        service: Service | None = None
        while True:
            item = self._queue.get()
            try:
                if isinstance(item, bool):
                    if service:
                        service.end(succeeded=item)
                    return
                service = service or self._opening()
                service.tell(*item)
            except Exception as error:  # noqa: BLE001 -- whatever a service does, the training goes on
                log.warning(
                    "%s is told nothing more (%s: %s); training goes on",
                    self._name,
                    type(error).__name__,
                    redact_credentials(str(error)),
                )
                return


def _parameters(settings: Settings) -> dict[str, str]:
    return {
        setting.path: setting.value
        for setting in list_effective_settings(settings.job.spec, settings.changes, settings.adjustments)
    }


def _open_mlflow(settings: Settings) -> Service:
    """The job's run on the tracking server: an earlier attempt's, or a new one."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    wanted, meta = settings.job.spec.tracking.mlflow, settings.job.metadata
    assert wanted is not None, "asked for"  # noqa: S101
    client = MlflowClient(tracking_uri=wanted.uri)
    name = wanted.experiment or f"{meta.namespace}/{meta.name}"
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    earlier = client.search_runs([number], filter_string=f"tags.`{UID_TAG}` = '{meta.uid}'", max_results=1)
    if earlier:
        identity = earlier[0].info.run_id
        client.update_run(identity, status="RUNNING")
    else:
        identity = client.create_run(number, run_name=meta.name, tags={UID_TAG: meta.uid}).info.run_id
        parameters = [Param(key, value[:500]) for key, value in _parameters(settings).items()]
        client.log_batch(identity, params=parameters[:100], tags=[RunTag("adapter", str(settings.adapter))])

    class Run:
        def tell(self, step: int, values: Values) -> None:
            moment = int(time.time() * 1000)
            client.log_batch(identity, metrics=[Metric(key, value, moment, step) for key, value in values.items()])

        def end(self, *, succeeded: bool) -> None:
            client.set_terminated(identity, "FINISHED" if succeeded else "KILLED")

    return Run()


def _open_wandb(settings: Settings) -> Service:
    """The job's run on Weights & Biases: its id follows from the job's, so that each attempt goes on with it."""
    import wandb

    wanted, meta = settings.job.spec.tracking.wandb, settings.job.metadata
    assert wanted is not None, "asked for"  # noqa: S101
    # a pod can write to its scratch space only; on a workstation its files are where its users look for them
    directory = None if settings.workstation else settings.scratch / "run"
    run = wandb.init(
        project=wanted.project,
        entity=wanted.entity,
        id=meta.uid or None,
        name=meta.name,
        resume="allow",
        dir=directory,
        config=_parameters(settings),
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            **({"base_url": wanted.base_url} if wanted.base_url else {}),
        ),
    )

    class Run:
        def tell(self, step: int, values: Values) -> None:
            run.log(values, step=step)

        def end(self, *, succeeded: bool) -> None:
            code = 0 if succeeded else 1
            run.finish(exit_code=code)
            # its own process keeps the last records back until it ends
            wandb.teardown(exit_code=code)

    return Run()
