"""``finetune run``: the trainer of the pods, in this process, with a person before it instead of an operator."""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from finetune_api import ladder
from finetune_api.dataset import WORKSTATION
from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_api.validation import problems
from finetune_cli.changes import changed
from finetune_cli.errors import CliError
from finetune_cli.mounts import config_maps, directories, mount
from finetune_cli.render import read_documents, rendered_object
from finetune_cli.text import outcome

if TYPE_CHECKING:
    from finetune_trainer.runtime.settings import Settings

NEEDED = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "boto3",
    "huggingface_hub",
    "finetune_trainer",
)
"""What the extra ``trainer`` brings, as far as the trainer imports it."""
DECISIVE = ("model", "dataset", "objective", "preference", "method", "training")
"""The sections of a spec that decide what comes out, as the cluster refuses to change them."""
BESIDE = ("report.html", "metrics.jsonl")
"""Files of the adapter that people look for first: they lie beside it as well."""
INVALID = EXIT_CODES[Reason.SPEC_INVALID]
CREDENTIALS = "AWS_* variables, ~/.aws, HF_TOKEN or `hf auth login`"


@dataclass(frozen=True)
class Request:
    """What was typed."""

    file: str
    output: Path | None
    changes: tuple[str, ...]
    mounts: tuple[str, ...]
    as_json: bool


def run(request: Request, environment: Mapping[str, str]) -> NoReturn:
    """Check the file, train, and end the process with the exit status of the result. Raises CliError for a wrong file."""
    documents = read_documents(request.file)
    job = job_of(request, documents)
    content = config_maps(documents)
    mounted = directories(request.mounts, job.spec, content, INVALID)
    require_trainer()
    work = work_directory(request.output, job, environment)
    with only_one(work):
        mount(work / "mounts", mounted, content)
        settings = settings_of(job, request.output, request.changes, work, environment)
        result = follow(settings, request, environment)
        finish(result, request, work)
    sys.stdout.flush()
    sys.stderr.flush()
    # a thread that is still waiting for a service that is away must not hold up the end
    os._exit(code_of(result))


def job_of(request: Request, documents: list[Any]) -> FineTuneJob:
    """The one FineTuneJob of the file, with the changes made. Raises CliError with every problem and its field.

    Its uid stands for what decides the result, so that another run is never taken for this one.
    """
    found = [item for item in documents if isinstance(item, dict) and item.get("kind") == "FineTuneJob"]
    if len(found) != 1:
        kinds = ", ".join(
            str(item.get("kind")) if isinstance(item, dict) else type(item).__name__ for item in documents
        )
        raise CliError(f"{request.file} must have exactly one FineTuneJob, found: {kinds}", INVALID)
    document = changed(found[0], request.changes, INVALID)
    rendered, wrong = rendered_object(document, {WORKSTATION: True})
    if wrong:
        raise CliError("\n       ".join(f"{request.file}: {problem}" for problem in wrong), INVALID)
    meta = rendered["metadata"]
    spec = rendered["spec"]
    decisive = json.dumps(
        {name: spec.get(name) for name in DECISIVE} | {"selectBest": spec["evaluation"]["selectBest"]}, sort_keys=True
    )
    rendered["metadata"] = {
        "namespace": meta.get("namespace") or "default",
        "name": meta.get("name") or str(meta["generateName"]).rstrip("-"),
        "uid": hashlib.sha256(decisive.encode()).hexdigest()[:32],
    }
    try:
        return FineTuneJob.of(rendered, workstation=True)
    except ValidationError as error:
        raise CliError(
            "\n       ".join(f"{request.file}: {problem}" for problem in problems(error)), INVALID
        ) from error


def require_trainer() -> None:
    """Raise CliError if the libraries that train are not installed. Nothing is imported."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CliError(
            f"this installation cannot train: {', '.join(missing)} not found. Install the trainer's libraries with: "
            "uv pip install 'finetune-operator[trainer]'"
        )


def work_directory(output: Path | None, job: FineTuneJob, environment: Mapping[str, str]) -> Path:
    """Where what is not finished lies: below the output, or in the user's cache."""
    if output is not None:
        from finetune_artifacts.directory import WORK

        return output.resolve() / WORK
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "finetune-operator", "run", job.metadata.uid)


@contextlib.contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the directory for this process; one that is killed lets go of it. Raises CliError if another one has it."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("a")
    except OSError as error:
        raise CliError(f"{work} cannot be written to ({error.strerror}): choose another --output") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(
                f"another `finetune run` is at work in {work}: wait for it, or choose another --output"
            ) from None
        yield


def settings_of(
    job: FineTuneJob, output: Path | None, changes: tuple[str, ...], work: Path, environment: Mapping[str, str]
) -> "Settings":
    """What the trainer is told."""
    from finetune_trainer.runtime.settings import Settings

    return Settings(
        job=job,
        hub_endpoint=environment.get("HF_ENDPOINT") or None,
        mounts=work / "mounts",
        scratch=work / "scratch",
        workstation=True,
        output_directory=output.resolve() if output else None,
        changes=tuple(change.partition("=")[0] for change in changes),
    )


def follow(settings: "Settings", request: Request, environment: Mapping[str, str]) -> TrainerResult:
    """The preflight's checks, then the training."""
    from finetune_trainer.runtime.libraries import library_environment

    os.environ.update(library_environment(environment, settings.job.spec.resources.processes))
    from finetune_cli.screen import Screen
    from finetune_trainer import preflight
    from finetune_trainer.attempt import run_attempt
    from finetune_trainer.runtime import logs
    from finetune_trainer.runtime.interruption import Interruption
    from finetune_trainer.session.run import Run

    screen = Screen()
    logs.configure(screen.handler)
    if names_secrets(settings.job):
        logs.log.info("Secrets are not read here: credentials come from %s", CREDENTIALS)
    found = preflight.check(settings)
    for problem in found.problems:
        logs.log.error("%s: %s", problem.reason, problem)
    if found.problems:
        message = "; ".join(str(problem) for problem in found.problems)
        return TrainerResult(reason=found.problems[0].reason, message=message, warnings=found.warnings)
    state = Run(warnings=list(found.warnings))

    def leave() -> NoReturn:
        # the signal may have come in the middle of a line, whose stream must not be entered twice
        ended = state.failure or state.result(Reason.PREEMPTED, "asked to stop, and nothing would be lost")
        os.write(sys.stdout.fileno(), "".join(f"{line}\n" for line in told(ended, request)).encode())
        os._exit(code_of(ended))

    def abandon(ended: TrainerResult) -> NoReturn:
        screen.close()
        sys.stdout.write("".join(f"{line}\n" for line in told(ended, request)))
        sys.stdout.flush()
        os._exit(code_of(ended))

    interruption = Interruption(settings.job.spec.pod_template.termination_grace_period_seconds, leave)
    interruption.install()
    signal.signal(signal.SIGINT, lambda *_: at_once() if interruption.requested else interruption.request())
    try:
        settings = replace(settings, model_revision=found.model_revision)
        result = until_it_fits(settings, lambda smaller: run_attempt(smaller, state, interruption, screen, abandon))
        # preflight and trainer may say the same
        return result.model_copy(update={"warnings": list(dict.fromkeys(result.warnings))})
    finally:
        screen.close()


def until_it_fits(settings: "Settings", attempt: "Callable[[Settings], TrainerResult]") -> TrainerResult:
    """Attempts at a job, each with less memory than the one before, as the operator makes them; the result of the last."""
    from finetune_trainer.runtime.logs import log

    spec, made = settings.job.spec, 0
    result = attempt(settings)
    while ladder.needs_less_memory(spec, result.reason) and made < spec.failure_policy.retries.on_out_of_memory:
        made += 1
        smaller = ladder.reduce_memory(spec, made)
        if smaller is None:
            end = ladder.explain_end(spec, made)
            return result.model_copy(update={"message": f"{result.message}. Not tried again: {end}"})
        changes = tuple(ladder.list_adjustments(spec, smaller))
        log.warning("trying again with %s", ", ".join(str(change) for change in changes))
        job = settings.job.model_copy(update={"spec": smaller})
        result = attempt(replace(settings, job=job, adjustments=changes))
    return result


def at_once() -> NoReturn:
    """The second Ctrl-C: end without waiting for the checkpoint."""
    os._exit(128 + signal.SIGINT)


def names_secrets(job: FineTuneJob) -> bool:
    """Whether the job names a Secret, which only a pod can read."""
    spec = job.spec
    services = (spec.model.adapter, spec.output.hub, spec.tracking.mlflow, spec.tracking.wandb)
    return any(
        (
            spec.model.secret_ref,
            spec.dataset.secret_ref,
            spec.output.secret_ref,
            *(service.secret_ref for service in services if service),
        )
    )


def finish(result: TrainerResult, request: Request, work: Path) -> None:
    """Clear up, put beside the adapter what people look for first, and say what came out."""
    if request.output and result.adapter:
        for name in BESIDE:
            if (made := request.output / "adapter" / name).is_file():
                shutil.copyfile(made, request.output / name)
    for line in told(result, request):
        sys.stdout.write(f"{line}\n")
    shutil.rmtree(work, ignore_errors=True)


def told(result: TrainerResult, request: Request) -> list[str]:
    """The result for standard output: for people, or one line of JSON."""
    return [json.dumps(result.to_json(), ensure_ascii=False)] if request.as_json else lines(result, request)


def lines(result: TrainerResult, request: Request) -> list[str]:
    """What came out, and what can be done next, a line each."""
    if result.adapter:
        report = [f"report {request.output / 'report.html'}"] if request.output else []
        return [*outcome({"status": result.to_json()}), *report]
    if result.reason == Reason.PREEMPTED:
        return [result.message, "run the same command again to go on"]
    said = [f"failed: {result.reason}: {result.message}"]
    if str(result.reason).endswith("AccessDenied"):
        said.append(f"on a workstation credentials come from {CREDENTIALS}, not from Secrets")
    if result.reason == Reason.GATE_FAILED:
        said += outcome({"status": result.to_json()})
    elif result.checkpoint:
        said.append(f"the checkpoint of step {result.checkpoint.step} is kept in {result.checkpoint.uri}")
    if result.report:
        said.append(f"report {result.report.uri}")
    return said


def code_of(result: TrainerResult) -> int:
    """The exit status that says the reason, as in a pod."""
    return 0 if result.adapter else EXIT_CODES.get(Reason(result.reason), EXIT_CODES[Reason.TRAINER_ERROR])
