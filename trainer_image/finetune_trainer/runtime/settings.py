"""Define the settings of one attempt: the job, and where its Secrets, files and messages are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.base import S3Location, SecretRef
from finetune_api.finetunejob import Adjustment, CachedModel, FineTuneJob, TrainingChoice
from finetune_api.manifest import Origin
from finetune_api.messages import TOKEN_FILE
from finetune_api.uris import DirectoryUri, S3Uri, StorageUri
from finetune_artifacts.directory import DirectoryStorage
from finetune_artifacts.errors import Purpose
from finetune_artifacts.s3 import S3Storage, open_s3
from finetune_artifacts.storage import Storage
from finetune_trainer.runtime.configuration import termination_log
from finetune_trainer.runtime.process import Process

COMPARISON_PREFIX = "comparison"


@dataclass(frozen=True)
class Settings:
    """The settings of one attempt at a job, from the operator or from ``finetune run``.

    ``mounts`` has the directories secrets/, configmaps/ and claims/. ``scratch`` is an empty directory for this
    attempt. With ``workstation`` there is no cluster: credentials come from the environment, and ``output_directory``
    replaces S3.
    """

    job: FineTuneJob
    attempt: int = 1
    model_revision: str | None = None
    cached_model: CachedModel | None = None
    """The model in the cache, as the preflight recorded it."""
    report_url: str | None = None
    hub_endpoint: str | None = None
    mounts: Path = Path("/etc/finetune")
    scratch: Path = Path("/tmp/finetune")  # noqa: S108 -- the pod's emptyDir, which nobody else writes to
    token_file: Path = Path(TOKEN_FILE)
    termination_log: Path = Path("/dev/termination-log")
    workstation: bool = False
    simulated_gpus: bool = False
    """Whether the cluster only pretends to have GPUs, so that the job trains on the CPU instead."""
    output_directory: Path | None = None
    changes: tuple[str, ...] = ()
    """Paths of the fields that ``--set`` replaced."""
    subprefix: str = ""
    """Prefix below that of the job for everything that this training writes; empty for the job's own training."""
    adjustments: tuple[Adjustment, ...] = ()
    """Changes to the user's job because earlier attempts ran out of memory."""
    choice: TrainingChoice | None = None
    """What was chosen for unset fields of the user's job; ``job`` has it already."""

    def with_choice(self, choice: TrainingChoice) -> "Settings":
        """Return the settings with what was chosen for unset fields of the job."""
        job = self.job.model_copy(update={"spec": choice.complete(self.job.spec)})
        return replace(self, job=job, choice=choice)

    @property
    def expects_gpus(self) -> bool:
        """Return whether the job must not train without the GPUs that it asks for."""
        return self.job.spec.resources.gpus_per_node > 0 and not self.workstation and not self.simulated_gpus

    @property
    def model_cache(self) -> Path | None:
        """Return the directory of the model cache; None without one. A workstation has the hub's own cache."""
        cache = self.job.spec.model.cache
        if cache is None or self.workstation:
            return None
        claim, root = cache.persistent_volume_claim, self.mounts / "model-cache"
        return root / claim.path if claim and claim.path else root

    @property
    def process(self) -> Process:
        """Return the first process, with the number of processes that train together."""
        processes = self.job.spec.resources.processes
        return Process(world_size=processes, local_world_size=processes)

    @property
    def origin(self) -> Origin:
        """Return the job as manifests name it."""
        meta = self.job.metadata
        return Origin(namespace=meta.namespace, name=meta.name, uid=meta.uid)

    @property
    def output(self) -> StorageUri:
        """Return the prefix of everything that this job writes."""
        local, bucket = self.output_directory, self.job.spec.output.s3.bucket
        root: StorageUri = DirectoryUri(str(local), "") if local else S3Uri(bucket, self.job.prefix)
        return root.child(self.subprefix) if self.subprefix else root

    @property
    def adapter(self) -> StorageUri:
        """Return the prefix of the finished adapter."""
        return self.output.child("adapter")

    @property
    def merged(self) -> StorageUri:
        """Return the prefix of the merged model."""
        return self.output.child("merged")

    @property
    def rejected(self) -> StorageUri:
        """Return the prefix of an adapter that failed its gate, which is stored but not published."""
        return self.output.child("rejected")

    @property
    def failed(self) -> StorageUri:
        """Return the prefix of a failed attempt's report; in an output directory that is the directory itself."""
        return self.output if self.output_directory else self.output.child("failed")

    @property
    def comparison(self) -> StorageUri:
        """Return the prefix of the full fine-tuning's files, which are deleted at the end."""
        return self.output.child(COMPARISON_PREFIX)

    @property
    def checkpoints(self) -> StorageUri:
        """Return the prefix of the checkpoints."""
        return self.output.child("checkpoints")

    @property
    def claim(self) -> StorageUri:
        """Return the address of the claim with which an attempt prevents earlier ones of this job from writing."""
        return self.checkpoints.child(f"claims/{self.origin.uid}.json")

    @property
    def merge_claim(self) -> StorageUri:
        """Return the address of the claim with which a merge keeps others of this job from writing."""
        return self.checkpoints.child(f"claims/{self.origin.uid}-merge.json")

    @property
    def written_directories(self) -> list[StorageUri]:
        """Return the prefixes below which a training writes; it writes nothing else."""
        return [
            self.adapter,
            self.output.child("trained"),
            self.merged,
            self.rejected,
            self.failed,
            self.comparison,
            self.checkpoints,
        ]

    def secret(self, reference: SecretRef | None) -> Path | None:
        """Return the directory with the keys of a Secret; None if the credentials come from the environment."""
        return self.mounts / "secrets" / reference.name if reference and not self.workstation else None

    @property
    def output_field(self) -> str:
        """Return the option or field with which the user changes the output location."""
        return "--output" if self.output_directory else "spec.output.s3.prefix"

    def output_storage(self, patience_seconds: float) -> Storage:
        """Open the storage of checkpoints and adapter.

        Raises:
            ArtifactError: The Secret lacks a key.
        """
        if self.output_directory:
            return DirectoryStorage(Purpose.OUTPUT)
        return self.store(Purpose.OUTPUT, patience_seconds)

    def store(self, purpose: Purpose, patience_seconds: float) -> S3Storage:
        """Open the object store of the output, dataset, model or starting adapter.

        Raises:
            ArtifactError: The Secret lacks a key.
        """
        spec = self.job.spec
        location: S3Location | None = None
        reference: SecretRef | None = None
        if purpose is Purpose.DATASET:
            location, reference = spec.dataset.s3, spec.dataset.secret_ref
        elif purpose is Purpose.MODEL:
            location, reference = spec.model.s3, spec.model.secret_ref
        elif purpose is Purpose.ADAPTER and spec.model.adapter is not None:
            location, reference = spec.model.adapter.s3, spec.model.adapter.secret_ref
        secret = self.secret(reference or spec.output.secret_ref)
        owner = self.job.metadata.uid if purpose is Purpose.OUTPUT else ""
        return open_s3(location or spec.output.s3, secret, purpose, patience_seconds, owner)


def read_settings(job: FineTuneJob, environment: Mapping[str, str]) -> Settings:
    """Read the settings of an attempt at the job from the environment."""
    cached, choice = environment.get("FINETUNE_CACHED_MODEL"), environment.get("FINETUNE_TRAINING_CHOICE")
    return Settings(
        job=job,
        attempt=int(environment.get("FINETUNE_ATTEMPT", "1")),
        adjustments=tuple(
            Adjustment.model_validate(item) for item in json.loads(environment.get("FINETUNE_ADJUSTMENTS") or "[]")
        ),
        choice=TrainingChoice.model_validate_json(choice) if choice else None,
        model_revision=environment.get("FINETUNE_MODEL_REVISION") or None,
        cached_model=CachedModel.model_validate_json(cached) if cached else None,
        report_url=environment.get("FINETUNE_REPORT_URL") or None,
        hub_endpoint=environment.get("HF_ENDPOINT") or None,
        mounts=Path(environment.get("FINETUNE_MOUNTS", "/etc/finetune")),
        scratch=Path(environment.get("FINETUNE_SCRATCH", "/tmp/finetune")),  # noqa: S108 -- as above
        token_file=Path(environment.get("FINETUNE_TOKEN_FILE", TOKEN_FILE)),
        termination_log=termination_log(environment),
        simulated_gpus=environment.get("FINETUNE_SIMULATED_GPUS") == "true",
    )
