"""Run ``finetune run``: preflight, training and merge in this process."""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from finetune_api import ladder
from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_cli.changes import apply_changes
from finetune_cli.documents import check, read_documents
from finetune_cli.errors import CliError
from finetune_cli.mounts import Content, mount, parse_mounts, read_config_maps
from finetune_cli.text import outcome
from finetune_cli.yaml_reader import Document

if TYPE_CHECKING:
    from finetune_trainer.runtime.settings import Settings

TRAINER_PACKAGES = (
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
"""Packages of the extra ``trainer`` that the trainer imports."""
IDENTITY_SECTIONS = ("model", "dataset", "objective", "preference", "method", "training")
"""Sections of a spec that decide the result, and so the identity of a run."""
COPIED_FILES = ("report.html", "metrics.jsonl")
"""Files of the adapter that are also copied to the output directory."""
INVALID = EXIT_CODES[Reason.SPEC_INVALID]
SUCCEEDED = "Succeeded"
CREDENTIALS = "AWS_* variables, ~/.aws, HF_TOKEN or `hf auth login`"


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    file: str
    output: Path | None
    changes: tuple[str, ...]
    mounts: tuple[str, ...]
    as_json: bool


def run(request: Request, environment: Mapping[str, str]) -> NoReturn:
    """Check the file, train, and exit with the status of the result. Raises CliError for an invalid file."""
    job, mounted, content = read_request(request)
    require_trainer()
    work = work_directory(request.output, job, environment)
    with lock_directory(work):
        mount(work / "mounts", mounted, content)
        settings = build_settings(job, request.output, request.changes, work, environment)
        result = check_and_train(settings, request, environment)
        finish(result, request, work)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that still waits for a service that does not answer must not delay the exit.
    os._exit(exit_code(result))


def read_request(request: Request) -> tuple[FineTuneJob, dict[str, Path], Content]:
    """Read the file's job, the directories that it mounts by name, and the file's ConfigMaps. Raises CliError."""
    documents = read_documents(request.file)
    job = read_job(request, documents)
    content = read_config_maps([document.value for document in documents])
    return job, parse_mounts(request.mounts, job.spec, content, INVALID), content


def read_job(request: Request, documents: list[Document]) -> FineTuneJob:
    """Read the one FineTuneJob of the file, with the changes of ``--set``. Raises CliError with every problem.

    Its uid is a digest of what decides the result, so that another run never resumes from its checkpoints.
    """
    jobs = [document for document in documents if _kind(document) == "FineTuneJob"]
    if len(jobs) != 1:
        kinds = ", ".join(map(_kind, documents))
        raise CliError(f"{request.file} must have exactly one FineTuneJob, found: {kinds}", INVALID)
    changed = replace(jobs[0], value=apply_changes(jobs[0].value, request.changes, INVALID))
    checked = check(changed, request.file, workstation=True)
    if checked.problems:
        raise CliError("\n       ".join(checked.lines), INVALID)
    rendered = checked.value
    meta = rendered["metadata"]
    spec = rendered["spec"]
    identity = json.dumps(
        {name: spec.get(name) for name in IDENTITY_SECTIONS} | {"selectBest": spec["evaluation"]["selectBest"]},
        sort_keys=True,
    )
    rendered["metadata"] = {
        "namespace": meta.get("namespace") or "default",
        "name": meta.get("name") or str(meta["generateName"]).rstrip("-"),
        "uid": hashlib.sha256(identity.encode()).hexdigest()[:32],
    }
    return FineTuneJob.of(rendered, workstation=True)


def _kind(document: Document) -> str:
    value = document.value
    return str(value.get("kind")) if isinstance(value, dict) else type(value).__name__


def require_trainer() -> None:
    """Raise CliError if the trainer's packages are not installed. Imports none of them."""
    missing = [name for name in TRAINER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CliError(
            f"this installation cannot train: {', '.join(missing)} not found. Install the trainer's libraries with: "
            "uv pip install 'finetune-operator[trainer]'"
        )


def work_directory(output: Path | None, job: FineTuneJob, environment: Mapping[str, str]) -> Path:
    """Return the directory for unfinished files: below the output or, without one, in the user's cache."""
    if output is not None:
        from finetune_artifacts.directory import WORK

        return output.resolve() / WORK
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "finetune-operator", "run", job.metadata.uid)


@contextlib.contextmanager
def lock_directory(work: Path) -> Iterator[None]:
    """Lock a directory until this process ends, even if it is killed. Raises CliError if another process has it."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("a")
    except OSError as error:
        raise CliError(f"{work} cannot be written to ({error.strerror}): choose another --output") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(f"another `finetune run` uses {work}: wait for it, or choose another --output") from None
        yield


def build_settings(
    job: FineTuneJob, output: Path | None, changes: tuple[str, ...], work: Path, environment: Mapping[str, str]
) -> "Settings":
    """Build the trainer's settings."""
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


def check_and_train(settings: "Settings", request: Request, environment: Mapping[str, str]) -> TrainerResult:
    """Run the preflight's checks, then the training and, if the job asks for it, the merge."""
    from finetune_trainer.runtime.libraries import library_environment

    os.environ.update(library_environment(environment, settings.job.spec.resources.processes))
    from finetune_cli.screen import Screen
    from finetune_trainer import preflight
    from finetune_trainer.attempt import run_attempt
    from finetune_trainer.runtime import logs
    from finetune_trainer.runtime.interruption import Interruption
    from finetune_trainer.runtime.phase_clock import CLOCK
    from finetune_trainer.session.run import Run

    screen = Screen()
    logs.configure(screen.handler)
    if names_secrets(settings.job):
        logs.log.info("Secrets are not read here: credentials come from %s", CREDENTIALS)
    checked = preflight.check(settings)
    for problem in checked.problems:
        logs.log.error("%s: %s", problem.reason, problem)
    if checked.problems:
        message = "; ".join(str(problem) for problem in checked.problems)
        return TrainerResult(reason=checked.problems[0].reason, message=message, warnings=checked.warnings)
    state = Run(warnings=list(checked.warnings))
    CLOCK.restart()

    def exit_in_handler() -> NoReturn:
        # The signal may interrupt a write to sys.stdout, which cannot be entered twice: write to the file descriptor.
        result = state.failure or state.result(Reason.PREEMPTED, "asked to stop before there was progress to save")
        os.write(sys.stdout.fileno(), "".join(f"{line}\n" for line in result_lines(result, request)).encode())
        os._exit(exit_code(result))

    def exit_with(result: TrainerResult) -> NoReturn:
        screen.close()
        sys.stdout.write("".join(f"{line}\n" for line in result_lines(result, request)))
        sys.stdout.flush()
        os._exit(exit_code(result))

    interruption = Interruption(settings.job.spec.pod_template.termination_grace_period_seconds, exit_in_handler)
    interruption.install()
    signal.signal(signal.SIGINT, lambda *_: exit_at_once() if interruption.requested else interruption.request())
    try:
        settings = replace(settings, model_revision=checked.model_revision)
        result = explain_end(settings, run_attempt(settings, state, interruption, screen, exit_with))
        if result.adapter and settings.job.spec.output.merged_model:
            result = merge(settings, result)
        # Preflight and trainer may give the same warning.
        return result.model_copy(update={"warnings": list(dict.fromkeys(result.warnings))})
    finally:
        screen.close()


def explain_end(settings: "Settings", result: TrainerResult) -> TrainerResult:
    """Add to the result why a job that ran out of memory cannot be made smaller, as the operator does."""
    spec = settings.job.spec
    smallest = ladder.apply_adjustments(spec, result.adjustments or ())
    if not ladder.needs_less_memory(spec, result.reason) or ladder.reduce_once(smallest):
        return result
    end = ladder.explain_end(smallest, 0)
    return result.model_copy(update={"message": f"{result.message}. Not tried again: {end}"})


def merge(settings: "Settings", result: TrainerResult) -> TrainerResult:
    """Merge the finished adapter, and add the merged model to the result, or why there is none."""
    from finetune_trainer.merge import merge_adapter

    merged = merge_adapter(settings)
    if merged.merged_model is None:
        return result.model_copy(update={"reason": merged.reason, "message": f"no merged model: {merged.message}"})
    return result.model_copy(update={"merged_model": merged.merged_model})


def exit_at_once() -> NoReturn:
    """Exit without a checkpoint, after the second Ctrl-C."""
    os._exit(128 + signal.SIGINT)


def names_secrets(job: FineTuneJob) -> bool:
    """Return whether the job names a Secret, which only a pod can read."""
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
    """Copy the report next to the adapter, print the result, and delete unfinished files."""
    if request.output and result.adapter:
        for name in COPIED_FILES:
            if (source := request.output / "adapter" / name).is_file():
                shutil.copyfile(source, request.output / name)
    for line in result_lines(result, request):
        sys.stdout.write(f"{line}\n")
    shutil.rmtree(work, ignore_errors=True)


def result_lines(result: TrainerResult, request: Request) -> list[str]:
    """Return the result for standard output: sentences, or one line of JSON."""
    return [json.dumps(result.to_json(), ensure_ascii=False)] if request.as_json else describe_result(result, request)


def describe_result(result: TrainerResult, request: Request) -> list[str]:
    """Describe the result and the next steps, one sentence per line."""
    if result.adapter:
        report = [f"report {request.output / 'report.html'}"] if request.output else []
        failure = [] if result.reason == SUCCEEDED else [f"failed: {result.reason}: {result.message}"]
        return [*outcome({"status": result.to_json()}), *report, *failure]
    if result.reason == Reason.PREEMPTED:
        return [result.message, "run the same command again to continue"]
    lines = [f"failed: {result.reason}: {result.message}"]
    if str(result.reason).endswith("AccessDenied"):
        lines.append(f"on a workstation credentials come from {CREDENTIALS}, not from Secrets")
    if result.reason == Reason.GATE_FAILED:
        lines += outcome({"status": result.to_json()})
    elif result.checkpoint:
        lines.append(f"the checkpoint of step {result.checkpoint.step} is kept in {result.checkpoint.uri}")
    if result.report:
        lines.append(f"report {result.report.uri}")
    return lines


def exit_code(result: TrainerResult) -> int:
    """Return the exit status for the result's reason, as in a pod."""
    return 0 if result.reason == SUCCEEDED else EXIT_CODES.get(result.reason, EXIT_CODES[Reason.TRAINER_ERROR])
