"""The manifest that makes a set of objects in S3 a whole: it is written last, and names the sha256 of each file."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Lenient, Sha256
from finetune_api.finetunejob import AdapterStatus, EvaluationStatus

MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.json"
REPORT_NAME = "report.html"


class FileEntry(Lenient):
    """One file, by its path below the manifest."""

    path: str = Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class Origin(Lenient):
    """The FineTuneJob that made it."""

    namespace: str
    name: str
    uid: str


class CheckpointManifest(Lenient):
    """``checkpoints/run-0123456789ab/step-00000010/manifest.json``: a checkpoint is complete when it is there and every digest matches."""

    kind: Literal["Checkpoint"] = "Checkpoint"
    job: Origin
    step: int
    total_steps: int
    fingerprint: str = Field(
        description="sha256 of all that decides the next step: settings, base model and data. Another one must not resume from it."
    )
    created_at: str
    files: list[FileEntry]


class StoredFiles(Lenient):
    """What lies beside the adapter, whole because the adapter's manifest names it."""

    uri: str
    files: list[FileEntry]


class AdapterManifest(Lenient):
    """``adapter/manifest.json``. Its own sha256 is the adapter's digest."""

    kind: Literal["Adapter"] = "Adapter"
    job: Origin
    created_at: str
    base_model: str
    base_revision: str | None = None
    peft_type: str
    trained_peft_type: str = Field(
        "",
        description="PEFT's name of the method that it was trained with; another one than peftType for an adapter that was converted.",
    )
    rank: int | None = None
    alpha: float | None = None
    target_modules: list[str] = []
    trainable_parameters: int = 0
    servable_by: list[str] = []
    hub: str | None = Field(None, description="Where it is on the model hub as well: hf://org/name@commit.")
    base_weights_sha256: Sha256 | None = Field(
        None, description="Digest of the frozen base weights, equal before and after the training."
    )
    verification: dict[str, float] = Field(
        {}, description="Measured on a fresh base: the largest logit difference after the reload."
    )
    evaluation: EvaluationStatus | None = None
    versions: dict[str, str] = Field({}, description="Versions of the libraries that made it.")
    trained: StoredFiles | None = Field(
        None, description="The adapter as it was trained, where it is published as a plain LoRA."
    )
    merged: StoredFiles | None = Field(
        None, description="Base and adapter as one model, where spec.output.mergedModel asked for it."
    )
    files: list[FileEntry]

    def status(self, uri: str, digest: str) -> AdapterStatus:
        """``FineTuneJob.status.adapter`` for an adapter of this manifest."""
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


class GoldenSample(Lenient):
    """A prompt of known tokens with what base and adapter make of it in the serving layout, in float32.

    Each list of log-probabilities has one entry fewer than ``token_ids``: the log-probability of token i+1 after the tokens 0..i.
    """

    token_ids: list[int] = Field(min_length=2)
    base_logprobs: list[float]
    adapter_logprobs: list[float]


class GoldenSamples(Lenient):
    """``adapter/golden.json``: with these a pod can prove that the right base and the right adapter answer."""

    samples: list[GoldenSample] = Field(min_length=1)
