"""Everything about a job that can be checked without a GPU, torch or the model's weights, checked side by side."""

import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from finetune_api import targets
from finetune_api.base import SecretRef
from finetune_api.finetunejob import Estimate
from finetune_api.linear import CONV1D_MODEL_TYPES
from finetune_api.manifest import MANIFEST_NAME, AdapterManifest
from finetune_api.messages import PreflightResult, Problem
from finetune_api.methods import Bottleneck, Ia3, Lora, Qlora, Targeted
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_api.uris import HfUri, S3Uri, parse_uri
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.objects import read_object
from finetune_artifacts.s3_connection import find_missing_keys
from finetune_trainer.checkpoints import run_fingerprint
from finetune_trainer.data import files, forgetting_text, rows, sources, tokens
from finetune_trainer.hub import push
from finetune_trainer.methods import starting_adapter
from finetune_trainer.models import base_files, modules, remote_code
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.models.estimate import list_warnings, make_estimate
from finetune_trainer.models.sublayers import UNKNOWN_SUBLAYERS, find_sublayers
from finetune_trainer.runtime import result
from finetune_trainer.runtime.failures import Failure, describe_exception
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session import tracking

T = TypeVar("T")
PATIENCE_SECONDS = 45.0
"""How long a service that does not answer is given before that is called a problem."""
ROWS, BYTES = 1000, 4 * 1024 * 1024
"""So much of a dataset is looked at: whichever of the two is more, so small ones are read whole."""


@dataclass
class Report:
    """What one check found."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    chats: bool = False
    facts: ModelMetadata | None = None
    made_for: str | None = None
    """The commit of the base for which the adapter was made that the training is to go on from."""
    estimate: Estimate | None = None

    def add(self, reason: Reason, path: str, message: str) -> None:
        """Note one problem, and the spec's field that it is about."""
        self.problems.append(Problem(reason=reason, field=path, message=message))


Check = Callable[[Settings, Report, float], None]
"""Adds to the report what is wrong with the settings; the number is its patience in seconds."""


def main(settings: Settings) -> int:
    """Check the job, leave the result in the termination log, and return the exit code."""
    with phase(f"checking FineTuneJob {settings.job.metadata.namespace}/{settings.job.metadata.name}"):
        outcome = check(settings)
    for problem in outcome.problems:
        log.error("%s: %s", problem.reason, problem)
    for warning in outcome.warnings:
        log.warning("%s", warning)
    if not outcome.problems:
        log.info("everything that can be checked without a GPU is in order")
    result.write(outcome, settings.termination_log)
    return EXIT_CODES.get(outcome.problems[0].reason, 1) if outcome.problems else 0


def check(settings: Settings, patience_seconds: float = PATIENCE_SECONDS) -> PreflightResult:
    """All problems of a job, those of its settings first. Raises nothing."""
    checks: list[tuple[str, Check]] = [
        ("spec", check_settings),
        ("spec.output", check_output),
        ("spec.dataset", check_dataset),
        ("spec.model", check_model),
        (starting_adapter.FIELD, check_adapter),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        reports = list(pool.map(lambda item: guarded(item[0], item[1], settings, patience_seconds), checks))
    dataset, model = reports[2], reports[3]
    check_chat_template(dataset, model)
    check_revision(reports[4], model)
    return PreflightResult(
        problems=[problem for report in reports for problem in report.problems],
        warnings=[warning for report in reports for warning in report.warnings],
        estimate=model.estimate,
        model_revision=model.facts.commit if model.facts else None,
    )


def guarded(section: str, one: Check, settings: Settings, patience_seconds: float) -> Report:
    """Run one check of a section of the job; what it raises becomes a problem."""
    report = Report()
    try:
        one(settings, report, patience_seconds)
    except Failure as error:
        report.add(error.reason, error.field or section, error.message)
    except ArtifactError as error:
        local = settings.output_directory is not None and error.purpose is Purpose.OUTPUT
        report.add(error.reason, settings.output_field if local else field_of(error, section), error.message)
    except Exception as error:
        logging.getLogger(__name__).exception("the check of %s failed", section)
        report.add(Reason.PREFLIGHT_ERROR, section, f"the check itself failed: {describe_exception(error)}")
    return report


def field_of(error: ArtifactError, section: str) -> str:
    """The field to look at for a fault of S3."""
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


def check_settings(settings: Settings, report: Report, patience_seconds: float) -> None:
    """Settings that do not go together on the hardware that the job asks for."""
    spec = settings.job.spec
    tracking.check(settings, installed=settings.workstation)
    if spec.resources.gpus_per_node:
        return
    if spec.training.precision == "fp16":
        report.add(
            Reason.SPEC_INVALID,
            "spec.training.precision",
            "fp16 needs a GPU, and resources.gpusPerNode is 0: choose auto, bf16 or fp32",
        )
    if spec.training.optimizer == "paged_adamw_8bit":
        report.add(
            Reason.SPEC_INVALID,
            "spec.training.optimizer",
            "paged_adamw_8bit needs a GPU, and resources.gpusPerNode is 0: choose auto",
        )


def require_keys(settings: Settings, reference: SecretRef | None, path: str, reason: Reason) -> None:
    """Raise Failure if the Secret that the user named lacks a key that S3 needs."""
    secret = settings.secret(reference)
    if secret is None or not (missing := find_missing_keys(secret)):
        return
    found = (
        sorted(entry.name for entry in secret.iterdir() if not entry.name.startswith(".")) if secret.is_dir() else []
    )
    what = (
        f"its keys are: {', '.join(found)}"
        if found
        else "there is no such Secret in the job's namespace, or it is empty"
    )
    raise Failure(reason, f"Secret {secret.name!r} must have {' and '.join(missing)}: {what}", path)


def check_output(settings: Settings, report: Report, patience_seconds: float) -> None:
    """The bucket is there, may be written to, and holds no other job's adapter at this prefix."""
    require_keys(settings, settings.job.spec.output.secret_ref, "spec.output.secretRef", Reason.OUTPUT_ACCESS_DENIED)
    store = settings.output_storage(patience_seconds)
    store.check_root(settings.output)
    if not store.probe_write(settings.output):
        report.warnings.append(
            f"the S3 service at {store.endpoint} does not honour If-None-Match: two jobs with the same prefix could overwrite each other's adapter"
        )
    if settings.job.spec.output.hub:
        push.check_write_access(settings, settings.job.spec.output.hub)
    if others := run_fingerprint.list_other_jobs(store, settings.checkpoints, settings.origin):
        report.warnings.append(
            f"{settings.output} has checkpoints of FineTuneJob {', '.join(others)} too: they are left alone, but only the first to finish can publish its adapter there"
        )
    place = settings.adapter.child(MANIFEST_NAME)
    if store.head(place) is None:
        return
    try:
        manifest = AdapterManifest.model_validate_json(read_object(store, place))
    except ValidationError:
        owner = "something else"
    else:
        if manifest.job == settings.origin:
            return
        owner = f"FineTuneJob {manifest.job.namespace}/{manifest.job.name} (uid {manifest.job.uid})"
    report.add(
        Reason.OUTPUT_EXISTS,
        settings.output_field,
        f"{settings.adapter} has an adapter already, of {owner}: choose another one, or delete what lies there",
    )


def check_dataset(settings: Settings, report: Report, patience_seconds: float) -> None:
    """The dataset can be read, and its first rows have what format and objective need."""
    source = settings.job.spec.dataset
    train, held_out = sources.find_splits(source)
    apart = (held_out, forgetting_text.find_source(settings.job.spec))
    if any(isinstance(parse_uri(part.uri), S3Uri) for part in (train, *apart) if part):
        require_keys(settings, source.secret_ref, "spec.dataset.secretRef", Reason.DATASET_ACCESS_DENIED)
    found = sources.list_files(settings, train, patience_seconds)
    reader = rows.make_reader(found, source, settings.job.spec.objective, train.uri)
    report.chats = check_rows(reader, found, train.uri)
    if source.format == "auto" and source.template is None:
        report.warnings.append(f"spec.dataset.format auto: the dataset is taken as {reader.layout}")
    if held_out:
        report.chats |= check_rows(reader, sources.list_files(settings, held_out, patience_seconds), held_out.uri)
    forgetting_text.check_readable(settings, patience_seconds)


def check_rows(reader: rows.Reader, found: list[sources.DataFile], uri: str) -> bool:
    """Look at the first rows, and say whether there are chats among them. Raises Failure(DATASET_INVALID) with their places and what was found."""
    if reader.layout == "plain text":
        for _ in first(itertools.chain.from_iterable(files.read_text(file) for file in found)):
            pass
        return False
    findings = rows.Findings()
    looked_at = first(itertools.chain.from_iterable(files.read_rows(file) for file in found))
    usable, chats = 0, False
    for row in reader.read(looked_at, findings):
        usable += 1
        chats |= rows.is_chat(row)
    rows.refuse_bad_rows(findings, reader.layout, uri)
    log.info("dataset %s: %s, %d rows looked at, %d of them usable", uri, reader.layout, findings.rows, usable)
    return chats


def first(found: Iterator[T]) -> Iterator[T]:
    """The first ``ROWS`` rows or about ``BYTES`` bytes, whichever is more."""
    size = 0
    for number, one in enumerate(found):
        if number >= ROWS and size >= BYTES:
            return
        size += len(str(one))
        yield one


def check_model(settings: Settings, report: Report, patience_seconds: float) -> None:
    """The model can be read and trained, and has the modules that are to get an adapter."""
    spec = settings.job.spec
    if isinstance(parse_uri(spec.model.uri), S3Uri):
        require_keys(settings, spec.model.secret_ref, "spec.model.secretRef", Reason.MODEL_ACCESS_DENIED)
    facts = base_files.read_metadata(settings, patience_seconds)
    report.facts = facts
    remote_code.check_remote_code(facts.config, spec.model)
    if problem := unsupported(facts, quantised=spec.method.quantization is not None):
        raise Failure(Reason.MODEL_UNSUPPORTED, problem, "spec.model.uri")
    longest = facts.config.get("max_position_embeddings")
    if isinstance(longest, int) and spec.training.max_length > longest:
        report.warnings.append(
            f"spec.training.maxLength {spec.training.max_length} is more than the model's {longest} positions"
        )
    check_modules(settings, facts, report)
    add_estimate(settings, facts, report)
    if isinstance(parse_uri(spec.model.uri), HfUri):
        log.info("model %s at commit %s", spec.model.uri, facts.commit)


def check_adapter(settings: Settings, report: Report, patience_seconds: float) -> None:
    """The adapter to go on from is there, of this base and of this method."""
    source = settings.job.spec.model.adapter
    if source is None:
        return
    require_keys(settings, source.secret_ref, f"{starting_adapter.FIELD}.secretRef", Reason.ADAPTER_ACCESS_DENIED)
    found = starting_adapter.find_adapter(settings, patience_seconds)
    report.made_for = found.manifest.base_revision if found else None
    if found and source.digest is None:
        report.warnings.append(
            f"the training goes on from {source.uri} with the digest {found.digest}: write it down as spec.model.adapter.digest"
        )


def unsupported(facts: ModelMetadata, *, quantised: bool) -> str | None:
    """Why this model cannot be trained, or None. ``quantised``: the method holds the base so."""
    config = facts.config
    if config.get("is_encoder_decoder"):
        return f"the model ({config.get('model_type')}) has an encoder and a decoder: objective sft needs a causal language model"
    if not facts.has_tokenizer:
        return "the model's directory has no tokenizer (tokenizer.json or tokenizer.model): put it beside config.json"
    found = (config.get("quantization_config") or {}).get("quant_method")
    if found and not (found == "bitsandbytes" and quantised):
        return f"the model's weights are quantised already ({found}): take the model that it was made from"
    return None


def check_modules(settings: Settings, facts: ModelMetadata, report: Report) -> None:
    """The modules that the method names exist; from their shapes follows how much is trained."""
    method = settings.job.spec.method
    block, path = method.config, f"spec.method.{method.name}"
    model_type = str(facts.config.get("model_type"))
    linear = modules.list_linear_modules(facts.tensors)
    if isinstance(block, Bottleneck) and not find_sublayers(linear, block):
        report.add(Reason.MODEL_UNSUPPORTED, path, UNKNOWN_SUBLAYERS.format(model_type))
    if model_type in CONV1D_MODEL_TYPES and isinstance(block, Targeted) and not block.adapts_conv1d:
        report.add(
            Reason.MODEL_UNSUPPORTED,
            path,
            f"PEFT's {method.name} does not adapt the Conv1D layers of a model of type {model_type!r}: use lora, dora, adalora, ia3 or vera",
        )
    if not isinstance(block, Targeted):
        return
    if not linear:
        report.add(
            Reason.TARGET_MODULES_NOT_FOUND,
            f"{path}.targetModules",
            "the model has no linear layers that could get an adapter",
        )
        return
    try:
        chosen = targets.select_modules(list(linear), block, method.name, model_type)
        if isinstance(block, Ia3):
            targets.select_feedforward(chosen, block, model_type)
        targets.check_expression(modules.list_modules(facts.tensors), linear, block.target_modules)
        targets.check_saved(modules.list_modules(facts.tensors), block.modules_to_save)
    except targets.TargetError as error:
        report.add(Reason.TARGET_MODULES_NOT_FOUND, f"{path}.{error.field}", str(error))
        return
    log.info("%d modules get an adapter: %s", len(chosen), ", ".join(targets.suffixes(chosen)))
    if isinstance(block, Lora | Qlora) and block.bias == "none" and not block.modules_to_save:
        trainable = modules.count_lora_parameters(linear, chosen, block)
        total = modules.count_parameters(facts.tensors) + trainable
        report.estimate = Estimate(trainable_parameters=trainable, total_parameters=total)
        log.info("%s parameters, %s of them trainable", f"{total:,}", f"{trainable:,}")


def add_estimate(settings: Settings, facts: ModelMetadata, report: Report) -> None:
    """What the job needs, where it can be calculated. A model that the estimate does not know can be trained all the same."""
    if report.problems:
        return
    try:
        report.estimate = make_estimate(settings.job.spec, facts)
        report.warnings += list_warnings(report.estimate)
    except ValueError as error:
        report.warnings.append(f"GPU memory is not estimated: {error}")


def check_chat_template(dataset: Report, model: Report) -> None:
    """Chat messages need a template, which comes with the model."""
    if dataset.chats and model.facts and not model.facts.has_chat_template:
        missing = tokens.missing_chat_template()
        dataset.add(missing.reason, missing.field, missing.message)


def check_revision(adapter: Report, model: Report) -> None:
    """The adapter to go on from was made for the very commit of the base."""
    refusal = starting_adapter.compare_base_revisions(adapter.made_for, model.facts.commit if model.facts else None)
    if refusal:
        adapter.add(refusal.reason, refusal.field, refusal.message)
