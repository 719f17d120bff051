"""Run all checks of a job in parallel, and write the result to the termination log."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from finetune_api.messages import PreflightResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_trainer.data import tokens
from finetune_trainer.methods import starting_adapter
from finetune_trainer.preflight.adapter import check_adapter
from finetune_trainer.preflight.cache import CACHE_FIELD, check_cache
from finetune_trainer.preflight.dataset import check_dataset
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.preflight.hardware import check_settings
from finetune_trainer.preflight.model import check_model
from finetune_trainer.preflight.output import check_output
from finetune_trainer.preflight.tokenization import check_tokenization
from finetune_trainer.runtime import result
from finetune_trainer.runtime.failures import Failure, describe_exception
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.settings import Settings

PATIENCE_SECONDS = 45.0
"""How long an unavailable service is retried before that is a problem."""

Check = Callable[[Settings, CheckResult, float], None]
"""Adds the problems of the settings to the result; the number is the patience in seconds."""


def main(settings: Settings) -> int:
    """Check the job, write the result to the termination log, and return the exit code."""
    with phase(f"checking FineTuneJob {settings.job.metadata.namespace}/{settings.job.metadata.name}"):
        outcome = check(settings)
    for problem in outcome.problems:
        log.error("%s: %s", problem.reason, problem)
    for warning in outcome.warnings:
        log.warning("%s", warning)
    if not outcome.problems:
        log.info("all checks that need no GPU have passed")
    result.write(outcome, settings.termination_log)
    return EXIT_CODES.get(outcome.problems[0].reason, 1) if outcome.problems else 0


def check(settings: Settings, patience_seconds: float = PATIENCE_SECONDS) -> PreflightResult:
    """Run all checks and return their problems, those of the settings first; raises nothing."""
    checks: list[tuple[str, Check]] = [
        ("spec", check_settings),
        ("spec.output", check_output),
        ("spec.dataset", check_dataset),
        ("spec.model", check_model),
        (starting_adapter.FIELD, check_adapter),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        results = list(pool.map(lambda item: run_check(item[0], item[1], settings, patience_seconds), checks))
    dataset, model, adapter = results[2:5]
    check_chat_template(dataset, model)
    check_revision(adapter, model)
    if not (dataset.problems or model.problems):
        check_tokens = partial(check_tokenization, dataset)
        results.append(run_check("spec.model", check_tokens, settings, patience_seconds))
    cache = CheckResult()
    if settings.model_cache and not any(result.problems for result in results):
        commit = model.metadata.commit if model.metadata else None
        cache = run_check(CACHE_FIELD, check_cache, replace(settings, model_revision=commit), patience_seconds)
        results.append(cache)
    return PreflightResult(
        problems=[problem for result in results for problem in result.problems],
        warnings=[warning for result in results for warning in result.warnings],
        estimate=model.estimate,
        model_revision=model.metadata.commit if model.metadata else None,
        cached_model=cache.cached_model,
    )


def run_check(section: str, check_section: Check, settings: Settings, patience_seconds: float) -> CheckResult:
    """Run the check of one section of the job; an error that it raises becomes a problem."""
    findings = CheckResult()
    try:
        check_section(settings, findings, patience_seconds)
    except Failure as error:
        findings.add(error.reason, error.field or section, error.message)
    except ArtifactError as error:
        local = settings.output_directory is not None and error.purpose is Purpose.OUTPUT
        findings.add(error.reason, settings.output_field if local else field_of_fault(error, section), error.message)
    except Exception as error:
        logging.getLogger(__name__).exception("the check of %s failed", section)
        findings.add(Reason.PREFLIGHT_ERROR, section, f"the check itself failed: {describe_exception(error)}")
    return findings


def field_of_fault(error: ArtifactError, section: str) -> str:
    """Return the path of the field that causes a fault of the storage."""
    output = section == "spec.output"
    match error.fault:
        case Fault.DENIED:
            return f"{section}.secretRef"
        case Fault.NOT_S3 | Fault.UNREACHABLE:
            return f"{section}.s3.endpoint"
        case Fault.WRONG_REGION:
            return f"{section}.s3.region"
        case Fault.EXISTS:
            return f"{section}.s3.prefix"
        case Fault.NO_BUCKET:
            return "spec.output.s3.bucket" if output else f"{section}.uri"
    return "spec.output.s3" if output else f"{section}.uri"


def check_chat_template(dataset: CheckResult, model: CheckResult) -> None:
    """Add a problem if the dataset has chat messages and the model has no chat template."""
    if dataset.chats and model.metadata and not model.metadata.has_chat_template:
        missing = tokens.missing_chat_template()
        dataset.add(missing.reason, missing.field, missing.message)


def check_revision(adapter: CheckResult, model: CheckResult) -> None:
    """Add a problem if the starting adapter was trained on another commit of the base."""
    refusal = starting_adapter.compare_base_revisions(
        adapter.adapter_base_revision, model.metadata.commit if model.metadata else None
    )
    if refusal:
        adapter.add(refusal.reason, refusal.field, refusal.message)
