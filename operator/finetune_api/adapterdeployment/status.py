"""The status of an AdapterDeployment: what the operator and the agents report."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Model, S3Location, SecretRef, Sha256
from finetune_api.conditions import Condition
from finetune_api.limits import HISTORY_MESSAGE_CHARACTERS, STATUS_MESSAGE_CHARACTERS
from finetune_api.timestamps import Timestamp


class JobIdentity(Model):
    """One FineTuneJob; another one of the same name has another uid."""

    name: str = Field(description="Its name.")
    uid: str = Field(description="Its metadata.uid.")
    completed_at: Timestamp | None = Field(
        None,
        description="Time at which it had finished, if spec.adapter.selector chose it. Only a newer one replaces it.",
        json_schema_extra={"format": "date-time"},
    )
    selector: str | None = Field(None, description="The selector that chose it, as kubectl writes one.")


class AdapterVersion(Model):
    """One immutable version of an adapter."""

    uri: str = Field(description="s3:// address of its directory.")
    digest: Sha256 = Field(description="sha256 of its manifest.json.")
    fine_tune_job: JobIdentity | None = Field(None, description="FineTuneJob that the version came from.")
    s3: S3Location | None = Field(None, description="S3 service of uri. Unset: AWS.")
    secret_ref: SecretRef | None = Field(
        None, description="Secret with the S3 credentials. Unset: the pod's own identity."
    )
    since: Timestamp | None = Field(
        None,
        description="Time since which every pod serves this version, RFC 3339.",
        json_schema_extra={"format": "date-time"},
    )


class HistoryEntry(AdapterVersion):
    """What became of one version of the adapter."""

    since: Timestamp = Field(
        description="Deployed: the time since which every pod served the version. Failed, RolledBack: the time at "
        "which that was decided. RFC 3339.",
        json_schema_extra={"format": "date-time"},
    )
    until: Timestamp | None = Field(
        None,
        description="Time since which every pod serves another version. Unset: this one was served last.",
        json_schema_extra={"format": "date-time"},
    )
    event: Literal["Deployed", "RolledBack", "Failed"] = Field(
        description="Deployed: every pod served it. Failed: its roll-out failed. RolledBack: the pods went back to an "
        "older version."
    )
    reason: str | None = Field(None, description="Why it failed or was rolled back, as a CamelCase word.")
    message: str | None = Field(None, description="The same as a sentence.", max_length=HISTORY_MESSAGE_CHARACTERS)
    evidence: list[str] = Field(
        default_factory=list, description="What the proofs on pods found, at most three of them."
    )


class RollbackStatus(Model):
    """Why the pods serve an older version than the spec asks for."""

    from_version: AdapterVersion = Field(
        alias="from", description="Version that the spec asks for. status.desired is served in its place."
    )
    at: Timestamp = Field(description="Time of the decision, RFC 3339.", json_schema_extra={"format": "date-time"})
    reason: str = Field(description="RollbackRequested, or why the roll-out failed, as a CamelCase word.")
    message: str = Field(description="The same as a sentence.", max_length=STATUS_MESSAGE_CHARACTERS)


class PodCounts(Model):
    """Progress of the roll-out, as numbers of pods."""

    total: int = Field(0, description="Pods of the Deployment.", ge=0)
    updated: int = Field(0, description="Pods on which the desired version is proven and served.", ge=0)
    ready: int = Field(0, description="Pods that take traffic.", ge=0)


class PodStatus(Model):
    """One pod, as its agent reported it."""

    name: str = Field(description="Name of the pod.")
    digest: str | None = Field(
        None, description="Digest of the version that answers under the served name on this pod."
    )
    state: str = Field(description="Pending, Downloading, Loading, Proving, Draining, Active, Refused or Failed.")
    reason: str | None = Field(None, description="Why it is not Active, as a CamelCase word.")
    message: str | None = Field(
        None, description="Why it is not Active, as a sentence.", max_length=STATUS_MESSAGE_CHARACTERS
    )
    load_seconds: float | None = Field(
        None, description="Seconds from the start of the download to the end of the proof.", ge=0
    )
    proof: str | None = Field(
        None,
        description="What the proof of the version that answers found.",
        max_length=STATUS_MESSAGE_CHARACTERS,
    )
    replaced: int | None = Field(
        None,
        description="Number of times that somebody else loaded an adapter under the served name on this pod.",
        ge=1,
    )


class EngineStatus(Model):
    """Pods whose engine has the same version."""

    version: str | None = Field(None, description="Version, as the engine tells it; absent if it does not.")
    pods: int = Field(description="Pods with this version.", ge=1)
    limits: list[str] = Field(default_factory=list, description="What the version cannot do safely, one sentence each.")


class AdapterDeploymentStatus(Model):
    """What the operator and the agents observed."""

    observed_generation: int | None = Field(
        None, description="The metadata.generation that this status describes.", ge=0
    )
    conditions: list[Condition] = Field(
        default_factory=list, description="Accepted, Injected, Suspended, Ready, Reconciling, Stalled."
    )
    desired: AdapterVersion | None = Field(None, description="Version that every pod is to serve.")
    active: AdapterVersion | None = Field(None, description="The version that every pod served last.")
    rollback: RollbackStatus | None = Field(
        None, description="Why the pods serve an older version than the spec asks for. Unset: they do not."
    )
    progressed_at: Timestamp | None = Field(
        None,
        description="Time at which the roll-out last made progress, by the operator's clock. Unset: none is going on.",
        json_schema_extra={"format": "date-time"},
    )
    pods: PodCounts = Field(default_factory=PodCounts, description="Progress of the roll-out, as numbers of pods.")
    engines: list[EngineStatus] = Field(
        default_factory=list, description="Versions of the engine that the agents found, and what follows from them."
    )
    pod_status: list[PodStatus] = Field(default_factory=list, description="Each pod of the Deployment.")
    history: list[HistoryEntry] = Field(
        default_factory=list, description="What became of the versions so far, the newest entry first."
    )
