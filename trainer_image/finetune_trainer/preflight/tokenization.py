"""Check that the model's tokenizer and chat template can encode the first rows of the dataset."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.data_counts import Counts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reasons import Reason
from finetune_api.uris import HfUri, S3Uri, parse_uri
from finetune_artifacts.errors import Purpose
from finetune_artifacts.models import list_model_files
from finetune_artifacts.objects import read_object
from finetune_trainer.data.chat_template import find_training_template
from finetune_trainer.data.columns import Layout
from finetune_trainer.data.lost_content import describe_lost
from finetune_trainer.data.rows import Findings, refuse_bad_rows
from finetune_trainer.data.tokenizer import TOKENIZER_FILES, check_config, load_tokenizer, make_encoding
from finetune_trainer.data.tokens import CHAT_LAYOUTS, CUT_AWAY, Encoder, Refuse
from finetune_trainer.data.values import Row
from finetune_trainer.hub import client
from finetune_trainer.models import base_files
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings


def check_tokenization(dataset: CheckResult, settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Encode the first rows as the trainer does.

    Args:
        dataset: The findings of the dataset's check, with the first rows.
        settings: The attempt's settings.
        result: Gets warnings.
        patience_seconds: How long requests to S3 are repeated while it does not answer.

    Raises:
        Failure: MODEL_UNSUPPORTED for a tokenizer that cannot be loaded or does not belong to the model,
            DATASET_INVALID for rows that the chat template refuses, with their locations.
        ArtifactError: S3 fails or refuses.
    """
    spec = settings.job.spec
    if spec.model.trust_remote_code:
        result.warnings.append(
            "spec.model.trustRemoteCode: the tokenizer and the chat template are first used by the training, because "
            "the preflight runs no code of the model"
        )
        return
    directory = fetch_tokenizer(settings, settings.scratch / "tokenizer", patience_seconds)
    check_config(directory)
    tokenizer = load_tokenizer(directory)
    if not dataset.sample:
        return
    findings = Findings()

    def rows() -> Iterator[Row]:
        for location, row in dataset.sample:
            findings.rows += 1
            findings.location = location
            yield row

    assert dataset.layout is not None, "a sample has a layout"  # noqa: S101
    counts = Counts()
    encoder = make_encoder(spec, directory, tokenizer, dataset.layout, counts, findings.refuse)
    encoded = sum(1 for _ in encoder.encode(rows()))
    refuse_bad_rows(findings, dataset.layout, spec.dataset.uri)
    if not encoded and encoder.left_out != CUT_AWAY:
        raise Failure(
            Reason.DATASET_INVALID,
            f"none of the first {findings.rows} rows of {spec.dataset.uri} can be learned from: of the last one, "
            f"{encoder.left_out} (finetune preview shows what the model sees)",
            "spec.dataset.uri",
        )
    if not encoded:
        raise Failure(
            Reason.DATASET_INVALID,
            f"none of the first {findings.rows} rows of {spec.dataset.uri} has anything to learn within "
            f"{spec.training.max_length} tokens: what is learned begins later, or is empty. The longest row has "
            f"{counts.longest} tokens: raise it, or shorten what comes before",
            "spec.training.maxLength",
        )
    result.warnings += describe_lost(counts)


def make_encoder(
    spec: FineTuneJobSpec,
    directory: Path,
    tokenizer: Any,
    layout: Layout,
    counts: Counts,
    refuse: Refuse,
) -> Encoder:
    """Make the encoder that the trainer would make.

    Args:
        spec: The job.
        directory: The model's directory, with at least what ``fetch_tokenizer`` fetches.
        tokenizer: The model's tokenizer.
        layout: What the rows are.
        counts: Updated with what happens to each row.
        refuse: Called with the problem of a row that cannot be encoded.
    """
    template = find_training_template(tokenizer) if layout in CHAT_LAYOUTS else None
    encoding = replace(make_encoding(directory, template), assistant_only_loss=spec.dataset.assistant_only_loss)
    return Encoder(tokenizer, layout, spec.training.max_length, counts, encoding, refuse)


def fetch_tokenizer(settings: Settings, directory: Path, patience_seconds: float) -> Path:
    """Return a directory with the tokenizer and the configuration of the model, without its weights."""
    parsed = parse_uri(settings.job.spec.model.uri)
    if isinstance(parsed, HfUri):
        api = base_files.open_hub_client(settings)
        revision = settings.model_revision or settings.job.spec.model.revision
        model = client.resolve_model(api, parsed.repo, revision)
        paths = [
            client.download_file(api, model, name, directory) for name in model.files if _is_tokenizer_or_config(name)
        ]
        return paths[0].parent
    if not isinstance(parsed, S3Uri):
        return base_files.local_directory(settings)
    store = settings.store(Purpose.MODEL, patience_seconds)
    directory.mkdir(parents=True, exist_ok=True)
    for info in list_model_files(store, parsed):
        name = info.uri.key.rsplit("/", 1)[-1]
        if _is_tokenizer_or_config(name):
            (directory / name).write_bytes(read_object(store, info.uri))
    return directory


def _is_tokenizer_or_config(name: str) -> bool:
    return "/" not in name and (name == "config.json" or name.startswith(TOKENIZER_FILES))
