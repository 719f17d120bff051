"""Define the manifest of a directory in storage: the sha256 of each file. It is written last."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Lenient, Sha256
from finetune_api.finetunejob import AdapterStatus, EvaluationStatus, MergedModelStatus

MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.json"
REPORT_NAME = "report.html"


class FileEntry(Lenient):
    """A file; ``path`` is relative to the manifest."""

    path: str = Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class Origin(Lenient):
    """The FineTuneJob that wrote a directory."""

    namespace: str
    name: str
    uid: str


class CheckpointManifest(Lenient):
    """``checkpoints/run-0123456789ab/step-00000010/manifest.json``.

    A checkpoint is complete if this file exists and every digest matches.
    """

    kind: Literal["Checkpoint"] = "Checkpoint"
    job: Origin
    step: int
    total_steps: int
    fingerprint: str = Field(
        description="sha256 of everything that decides the next step: settings, base model and data. "
        "A run with another fingerprint must not resume from this checkpoint."
    )
    created_at: str
    files: list[FileEntry]


class StoredFiles(Lenient):
    """A directory beside the adapter. The adapter's manifest lists its files, so it is complete."""

    uri: str
    files: list[FileEntry]


class AdapterManifest(Lenient):
    """``adapter/manifest.json``. The sha256 of this file is the adapter's digest."""

    kind: Literal["Adapter"] = "Adapter"
    job: Origin
    created_at: str
    base_model: str
    base_revision: str | None = None
    peft_type: str
    trained_peft_type: str = Field(
        "",
        description="PEFT's name of the training method. It differs from peftType if the adapter was converted.",
    )
    folded: list[str] = Field(
        [],
        description="Options of the trained LoRA that are folded into the published weights: use_rslora, rank_pattern, "
        "alpha_pattern. The published scale is alpha / rank for every module.",
    )
    rank: int | None = None
    alpha: float | None = None
    target_modules: list[str] = []
    trainable_parameters: int = 0
    servable_by: list[str] = []
    hub: str | None = Field(None, description="Address of its copy on the model hub: hf://org/name@commit.")
    base_weights_sha256: Sha256 | None = Field(
        None, description="Digest of the frozen base weights, equal before and after training."
    )
    verification: dict[str, float] = Field(
        {}, description="Differences between the published and the trained adapter, measured on a fresh base."
    )
    evaluation: EvaluationStatus | None = None
    versions: dict[str, str] = Field({}, description="Versions of the libraries that made it.")
    trained: StoredFiles | None = Field(
        None, description="The adapter as it was trained. Only if it is published as a plain LoRA."
    )
    merged: StoredFiles | None = Field(
        None,
        description="Base and adapter as one model, if a trainer of an older version merged them. Since then the "
        "merged model has a manifest of its own.",
    )
    precision: str | None = Field(
        None, description="Precision of the training, in which a merged model is stored: bf16, fp16 or fp32."
    )
    files: list[FileEntry]

    def status(self, uri: str, digest: str) -> AdapterStatus:
        """Return ``FineTuneJob.status.adapter`` for the adapter of this manifest."""
        return AdapterStatus(
            uri=uri,
            digest=digest,
            size_bytes=sum(file.size_bytes for file in self.files),
            base_model=self.base_model,
            base_revision=self.base_revision,
            peft_type=self.peft_type,
            rank=self.rank,
            target_modules=self.target_modules,
            servable_by=self.servable_by,
            hub=self.hub,
        )


class MergedManifest(Lenient):
    """``merged/manifest.json``: base and adapter as one model."""

    kind: Literal["MergedModel"] = "MergedModel"
    job: Origin
    created_at: str
    adapter_digest: Sha256 = Field(description="Digest of the adapter that was merged.")
    base_model: str
    base_revision: str | None = None
    precision: str = Field(description="Precision of the weights: bf16, fp16 or fp32.")
    verification: dict[str, float] = Field({}, description="Differences between the merged model and the adapter.")
    versions: dict[str, str] = Field({}, description="Versions of the libraries that made it.")
    files: list[FileEntry]

    def status(self, uri: str, digest: str) -> MergedModelStatus:
        """Return ``FineTuneJob.status.mergedModel`` for the model of this manifest."""
        return MergedModelStatus(uri=uri, digest=digest, size_bytes=sum(file.size_bytes for file in self.files))


class CachedFile(Lenient):
    """A file of a model in the cache; ``path`` is relative to the manifest."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    sample_sha256: Sha256 = Field(description="sha256 of a few blocks of the file, which is read in milliseconds.")


class ModelManifest(Lenient):
    """``manifest.json`` of a model in the cache. The same files have the same manifest, whichever job wrote it."""

    kind: Literal["Model"] = "Model"
    uri: str
    revision: str | None = Field(None, description="Commit of an hf:// model.")
    files: list[CachedFile]


class GoldenSample(Lenient):
    """A sequence of tokens with the log-probabilities that base and adapter give it, as they are served, in float32.

    Each list of log-probabilities is one entry shorter than ``token_ids``: entry i is that of token i+1 after the
    tokens 0..i.
    """

    token_ids: list[int] = Field(min_length=2)
    base_logprobs: list[float]
    adapter_logprobs: list[float]


class GoldenSamples(Lenient):
    """``adapter/golden.json``: samples with which a pod proves that the right base and adapter answer."""

    samples: list[GoldenSample] = Field(min_length=1)
