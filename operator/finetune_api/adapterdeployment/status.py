"""Define the status of an AdapterDeployment: what the operator and the agents report."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Model, S3Location, SecretRef, Sha256
from finetune_api.conditions import Condition
from finetune_api.limits import HISTORY_MESSAGE_CHARACTERS, STATUS_MESSAGE_CHARACTERS
from finetune_api.timestamps import Timestamp


class JobIdentity(Model):
    """Identity of a FineTuneJob: one that was created again under the same name has another uid."""

    name: str = Field(description="Its name.")
    uid: str = Field(description="Its metadata.uid.")
    completed_at: Timestamp | None = Field(
        None,
        description="Time at which the job finished, if spec.adapter.selector chose it. Only a job that finished later "
        "replaces it.",
        json_schema_extra={"format": "date-time"},
    )
    selector: str | None = Field(None, description="Selector that chose it, in kubectl's notation.")


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
    """What happened to one version of the adapter."""

    since: Timestamp = Field(
        description="Deployed: the time since which every pod served the version. Failed, RolledBack: the time of the "
        "decision. RFC 3339.",
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
        default_factory=list,
        description="What let the version pass each step of its canary, and what the proofs on at most three pods "
        "found.",
    )


class RollbackStatus(Model):
    """Why the pods serve an older version than the spec asks for."""

    from_version: AdapterVersion = Field(
        alias="from", description="Version that the spec asks for. status.desired is served in its place."
    )
    at: Timestamp = Field(description="Time of the decision, RFC 3339.", json_schema_extra={"format": "date-time"})
    reason: str = Field(description="RollbackRequested, or why the roll-out failed, as a CamelCase word.")
    message: str = Field(description="The same as a sentence.", max_length=STATUS_MESSAGE_CHARACTERS)


class AnalysisStatus(Model):
    """Why the analysis of a canary's step did not pass."""

    result: Literal["Failed", "Inconclusive"] = Field(
        description="Failed: the version is not good. Inconclusive: there is no clear result, so a person decides."
    )
    message: str = Field(description="What was found, as a sentence.", max_length=HISTORY_MESSAGE_CHARACTERS)
    at: Timestamp = Field(description="Time of the result, RFC 3339.", json_schema_extra={"format": "date-time"})
    observed_generation: int = Field(
        description="The metadata.generation that it was made for: another one is analysed again.", ge=0
    )


class CanaryStatus(Model):
    """How far the canary of a version is. Which pods take part is in status.podStatus."""

    digest: Sha256 = Field(description="Digest of the version.")
    started_at: Timestamp = Field(
        description="Time at which the canary began, RFC 3339.", json_schema_extra={"format": "date-time"}
    )
    passed_steps: int = Field(0, description="Number of steps that are over.", ge=0)
    pods: int | None = Field(
        None, description="Number of pods that are to serve the version at the present step. Unset: all.", ge=1
    )
    traffic_percent: int | None = Field(
        None,
        description="Percentage of the requests that the version gets at the present step. Unset: pods count.",
        ge=0,
        le=100,
    )
    reached_at: Timestamp | None = Field(
        None,
        description="Time since which the pods of the present step serve the version and take traffic. Unset: not yet.",
        json_schema_extra={"format": "date-time"},
    )
    analysis: AnalysisStatus | None = Field(
        None, description="Why the analysis of the present step did not pass. Unset: it was not made, or it passed."
    )
    evidence: list[str] = Field(
        default_factory=list, description="What let the version pass each step that is over, one sentence each."
    )

    @property
    def is_at_a_step(self) -> bool:
        """Return whether a step is going on; after the last one the other pods, or requests, follow."""
        return self.pods is not None or self.traffic_percent is not None


class PodCounts(Model):
    """Progress of the roll-out, as numbers of pods."""

    total: int = Field(0, description="Pods of the target.", ge=0)
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
        description="Number of times that another client loaded an adapter under the served name on this pod.",
        ge=1,
    )
    failed_reproofs: int | None = Field(
        None,
        description="Number of times that a proven version on this pod failed a later proof "
        "(spec.verification.everyMinutes). Each time the pod left its Service and loaded the version again.",
        ge=1,
    )


class EngineStatus(Model):
    """Pods whose engine has the same version."""

    version: str | None = Field(None, description="Version that the engine reports. Unset: it reports none.")
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
    target: str | None = Field(
        None, description="Name of the Deployment or StatefulSet that serves, or the selector of the pods as text."
    )
    desired: AdapterVersion | None = Field(None, description="Version that every pod is to serve.")
    active: AdapterVersion | None = Field(None, description="The version that every pod served last.")
    rollback: RollbackStatus | None = Field(
        None, description="Why the pods serve an older version than the spec asks for. Unset: they do not."
    )
    canary: CanaryStatus | None = Field(
        None, description="How far the canary of the desired version is. Unset: there is none, or it is over."
    )
    progressed_at: Timestamp | None = Field(
        None,
        description="Time at which the roll-out last made progress, by the operator's clock. Unset: no roll-out is "
        "going on.",
        json_schema_extra={"format": "date-time"},
    )
    pods: PodCounts = Field(default_factory=PodCounts, description="Progress of the roll-out, as numbers of pods.")
    engines: list[EngineStatus] = Field(
        default_factory=list, description="Versions of the engine that the agents found, with their limits."
    )
    pod_status: list[PodStatus] = Field(default_factory=list, description="Each pod of the target.")
    history: list[HistoryEntry] = Field(
        default_factory=list, description="What happened to the versions so far, the newest entry first."
    )
