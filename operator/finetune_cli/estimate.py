"""Run ``finetune estimate``: calculate what a job needs, from its file and the model's config.json."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_api.dataset import WORKSTATION
from finetune_api.estimate.gpus import Gpu, gpu_named
from finetune_api.estimate.memory import GIB
from finetune_api.estimate.report import GpuEstimate, JobEstimate
from finetune_api.estimate.report import estimate as calculate
from finetune_api.finetunejob import FineTuneJobSpec, ModelSource
from finetune_api.offline import is_ours
from finetune_api.timestamps import format_duration
from finetune_api.uris import ConfigMapUri, HfUri, S3Uri, parse_uri
from finetune_cli.documents import check, read_documents
from finetune_cli.errors import CliError
from finetune_cli.yaml_reader import Document

CONFIG = "config.json"
PATIENCE_SECONDS = 20.0
PIPE_WIDTH = 1000
"""Width of the output in a pipe, in characters: no line is broken."""
PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "reference": "reference: the frozen copy with which dpo and kto compare",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "loss": "loss",
    "communication": "communication: NCCL",
    "overhead": "overhead",
    "total": "in total, at the peak of a training step",
    "verification": "after training, to verify the adapter on a fresh base in bf16",
}


@dataclass(frozen=True)
class Options:
    """The options of ``finetune estimate``."""

    rows: int | None
    tokens: int | None
    gpu: str | None
    price_per_hour: float | None


def estimate(file: str, model_config: str | None, options: Options, output: str) -> None:
    """Print the estimate of each FineTuneJob in a file. Raises CliError, also if a job does not fit on --gpu."""
    gpu = _gpu(options)
    documents = read_documents(file)
    values = [document.value for document in documents]
    jobs = [_spec(file, document) for document in documents if _is_job(document)]
    if not jobs:
        raise CliError(f"{file} has no FineTuneJob in it")
    estimates = [
        (
            name,
            _calculate(
                spec,
                model_config,
                options,
                options.rows or _count_rows(values, spec),
                gpu,
            ),
        )
        for name, spec in jobs
    ]
    if output == "json":
        items = [{"name": name, **result.to_json()} for name, result in estimates]
        sys.stdout.write(json.dumps(items[0] if len(items) == 1 else items, indent=2) + "\n")
    else:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        console = Console(width=width, soft_wrap=width is not None, highlight=False, markup=False)
        for name, result in estimates:
            _print(console, name, result)
    if gpu:
        for name, result in estimates:
            if result.gpus[0].fits == "no":
                raise CliError(
                    f"{name} needs {_gib(result.memory.total)}, and {gpu.name} has {_gib(gpu.bytes)}: "
                    "change the job as listed above"
                )


def _gpu(options: Options) -> Gpu | None:
    if options.price_per_hour is not None and options.gpu is None:
        raise CliError("--gpu-price-per-hour needs --gpu: name the GPU too")
    try:
        return gpu_named(options.gpu) if options.gpu else None
    except ValueError as error:
        raise CliError(f"--gpu: {error}") from error


def _kind(document: Any) -> Any:
    return document.get("kind") if isinstance(document, dict) else None


def _count_rows(documents: list[Any], spec: FineTuneJobSpec) -> int | None:
    """Count the rows of a dataset that is JSON lines in a ConfigMap of the same file; else None."""
    uri = parse_uri(spec.dataset.uri)
    if not isinstance(uri, ConfigMapUri) or not uri.key.endswith(".jsonl"):
        return None
    for document in documents:
        if _kind(document) == "ConfigMap" and (document.get("metadata") or {}).get("name") == uri.name:
            text = (document.get("data") or {}).get(uri.key)
            return sum(1 for line in text.splitlines() if line.strip()) if isinstance(text, str) else None
    return None


def _is_job(document: Document) -> bool:
    return is_ours(document.value) and _kind(document.value) != "AdapterDeployment"


def _spec(file: str, document: Document) -> tuple[str, FineTuneJobSpec]:
    checked = check(document, file, workstation=True)
    if checked.problems:
        raise CliError("\n       ".join(checked.lines))
    metadata = checked.value["metadata"]
    return str(metadata.get("name") or metadata["generateName"]), FineTuneJobSpec.model_validate(
        checked.value["spec"], context={WORKSTATION: True}
    )


def _calculate(
    spec: FineTuneJobSpec, model_config: str | None, options: Options, rows: int | None, gpu: Gpu | None
) -> JobEstimate:
    config = _read_local_config(Path(model_config)) if model_config else _read_config(spec)
    try:
        return calculate(
            spec,
            config,
            rows=rows,
            tokens=options.tokens,
            gpu=gpu,
            price_per_hour=options.price_per_hour,
        )
    except ValueError as error:
        raise CliError(f"{spec.model.uri}: {error}") from error


def _read_local_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG if path.is_dir() else path
    try:
        return _parse_config(file.read_bytes(), str(file))
    except OSError as error:
        raise CliError(f"cannot read the model's configuration: {error}") from error


def _read_config(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Read the model's config.json from the model's address. Raises CliError."""
    parsed = parse_uri(spec.model.uri)
    if isinstance(parsed, HfUri):
        return _parse_config(_read_from_hub(parsed.repo, spec.model), spec.model.uri)
    if isinstance(parsed, S3Uri):
        return _parse_config(_read_from_s3(parsed, spec), spec.model.uri)
    raise CliError(
        f"{spec.model.uri} can be read in the cluster only: give the model's config.json with --model-config PATH"
    )


def _read_from_hub(repo: str, model: ModelSource) -> bytes:
    """Read config.json with the hub's client, and with HF_TOKEN of the environment if it is set."""
    import httpx2
    from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    url = hf_hub_url(repo, CONFIG, revision=model.revision)
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    page = url.partition("/resolve/")[0]
    remedy = "or give the model's config.json with --model-config PATH"
    try:
        response = get_session().get(url, headers=headers, timeout=PATIENCE_SECONDS, follow_redirects=True)
        hf_raise_for_status(response)
    except GatedRepoError as error:
        raise CliError(
            f"{model.uri} is a gated model: accept its licence at {page}, and set HF_TOKEN, {remedy}"
        ) from error
    except EntryNotFoundError as error:
        raise CliError(f"{model.uri} has no {CONFIG}: it is no transformers model. See {page}, {remedy}") from error
    except RevisionNotFoundError as error:
        raise CliError(f"{model.uri} has no revision {model.revision!r}: see {page}/tree/main, {remedy}") from error
    except RepositoryNotFoundError as error:
        raise CliError(
            f"{model.uri} does not exist, or is private: correct the name, or set HF_TOKEN, {remedy}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise CliError(f"the model hub answered {status} for {url}: check HF_TOKEN and the name, {remedy}") from error
    except httpx2.HTTPError as error:
        raise CliError(
            f"the model hub cannot be reached at {url} ({type(error).__name__}): "
            f"check HF_ENDPOINT and the network, {remedy}"
        ) from error
    return bytes(response.content)


def _read_from_s3(uri: S3Uri, spec: FineTuneJobSpec) -> bytes:
    """Read config.json with the credentials of the environment; the job's Secrets are in the cluster."""
    from finetune_artifacts.errors import ArtifactError, Purpose
    from finetune_artifacts.objects import read_object
    from finetune_artifacts.s3 import open_s3

    try:
        store = open_s3(spec.model.s3 or spec.output.s3, None, Purpose.MODEL, PATIENCE_SECONDS)
        return read_object(store, uri.child(CONFIG))
    except ArtifactError as error:
        raise CliError(f"{error}. Or give the model's config.json with --model-config PATH") from error


def _parse_config(content: bytes, location: str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise CliError(f"{CONFIG} of {location} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CliError(f"{CONFIG} of {location} is not a JSON object")
    return config


def _print(console: Console, name: str, result: JobEstimate) -> None:
    trained_share = result.trainable_parameters / result.total_parameters
    console.print(f"{name}: {result.method} on {result.model} ({result.model_type})")
    console.print(
        f"  {result.trainable_parameters:,} of {result.total_parameters:,} parameters are trained ({trained_share:.2%})"
    )
    steps = f"{result.total_steps:,}" if result.total_steps else "an unknown number of"
    console.print(f"  {steps} steps of at most {result.tokens_per_step:,} tokens")
    console.print()
    _table(
        console,
        ["Bytes", "On one GPU"],
        [[_gib(size), words] for key, words in PARTS.items() if (size := getattr(result.memory, key)) or key == "loss"],
        "rl",
    )
    console.print()
    _table(
        console,
        ["GPU", "Memory", "Tokens/s", "Time", "Cost", "Fits"],
        [_gpu_cells(gpu) for gpu in result.gpus],
        "lrrrrl",
    )
    if result.changes:
        console.print()
        _table(
            console,
            ["Then needs", "Fits from", "What to change, one after another"],
            [
                [_gib(change.bytes), (change.fits or ["none"])[0], f"{_fields(change.fields)} ({change.effect})"]
                for change in result.changes
            ],
            "rll",
        )
    console.print()
    for assumption in result.assumptions:
        console.print(f"  {assumption}")


def _gpu_cells(gpu: GpuEstimate) -> list[str]:
    return [
        gpu.name,
        _gib(gpu.bytes),
        "" if gpu.tokens_per_second is None else f"{gpu.tokens_per_second:,}",
        "" if gpu.seconds is None else format_duration(gpu.seconds),
        "" if gpu.cost is None else f"{gpu.cost:,.2f}",
        f"{gpu.fits}, recomputing" if gpu.gradient_checkpointing else gpu.fits,
    ]


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('spec.')}: {json.dumps(value)}" for key, value in fields.items())


def _gib(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number < GIB else f"{number / GIB:.1f} GiB"


def _table(console: Console, headers: list[str], rows: list[list[str]], sides: str) -> None:
    """Print a table. ``sides`` has l (left) or r (right) for each column; only the last column may be broken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (header, side) in enumerate(zip(headers, sides, strict=True)):
        table.add_column(
            header, no_wrap=number < len(headers) - 1, overflow="fold", justify="right" if side == "r" else "left"
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)
