"""The spec of an AdapterDeployment: which adapter to serve, and where."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.base import DnsLabel, Model, S3Location, SecretRef, Sha256
from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.engines import EngineName
from finetune_api.limits import MAX_COUNT, MAX_HISTORY, MAX_NUMBER

ONE_SOURCE = "exactly one of fineTuneJobRef, selector and uri must be set"
EMPTY_SELECTOR = "an empty selector chooses every FineTuneJob: write matchLabels or matchExpressions"
WRONG_VALUES = "the operators In and NotIn need values, and Exists and DoesNotExist have none"
FOLLOWS_NEWEST = "digest names one adapter, and selector follows the newest: remove one of the two"


class NameRef(Model):
    """The name of another object in the same namespace."""

    name: DnsLabel = Field(description="Name, in the same namespace.")


class AdapterSource(Model):
    """The adapter to serve: that of a FineTuneJob, of the newest with a label, or an S3 directory with a manifest."""

    finetune_job_ref: NameRef | None = Field(
        None, alias="fineTuneJobRef", description="Serve the adapter of this FineTuneJob, once it is Ready."
    )
    selector: LabelSelector | None = Field(
        None,
        description="Serve the adapter of the newest Succeeded FineTuneJob with these labels, then of each newer one. "
        "A job that is deleted moves nothing back, and a version that was rolled back is not taken again.",
    )
    uri: str | None = Field(None, description="s3:// URI of the adapter's directory.", pattern=r"^s3://[^/]+/.+")
    digest: Sha256 | None = Field(
        None,
        description="sha256 of the directory's manifest.json. Required with uri. With fineTuneJobRef: serve the job's "
        "adapter only if it is this one. Unset: the first one that the job has, also when the job is created anew.",
    )
    s3: S3Location | None = Field(None, description="S3 service of uri. Unset: AWS.")
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Unset: spec.output.secretRef of the "
        "FineTuneJob, or the pod's own identity.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "[has(self.fineTuneJobRef), has(self.selector), has(self.uri)].filter(given, given).size() == 1",
            "message": ONE_SOURCE,
        },
        {
            "rule": "!has(self.selector) || (has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0) "
            "|| (has(self.selector.matchExpressions) && self.selector.matchExpressions.size() > 0)",
            "message": EMPTY_SELECTOR,
            "fieldPath": ".selector",
        },
        {
            "rule": "!has(self.selector) || !has(self.selector.matchExpressions) || self.selector.matchExpressions.all("
            "item, (has(item.values) && item.values.size() > 0) == (item.operator in ['In', 'NotIn']))",
            "message": WRONG_VALUES,
            "fieldPath": ".selector.matchExpressions",
        },
        {"rule": "!has(self.selector) || !has(self.digest)", "message": FOLLOWS_NEWEST, "fieldPath": ".digest"},
        {
            "rule": "!has(self.uri) || has(self.digest)",
            "message": "uri needs digest: an adapter is pinned by the sha256 of its manifest.json",
            "fieldPath": ".digest",
        },
        {
            "rule": "!has(self.s3) || has(self.uri)",
            "message": "s3 belongs to uri: remove it, because a FineTuneJob names its own S3 service",
            "fieldPath": ".s3",
        },
    ]

    @model_validator(mode="after")
    def _check_source(self) -> "AdapterSource":
        if sum(source is not None for source in (self.finetune_job_ref, self.selector, self.uri)) != 1:
            raise ValueError(ONE_SOURCE)
        if self.selector is not None:
            expressions = self.selector.match_expressions or []
            if not self.selector.match_labels and not expressions:
                raise ValueError(EMPTY_SELECTOR)
            if any(bool(item.values) != (item.operator in ("In", "NotIn")) for item in expressions):
                raise ValueError(WRONG_VALUES)
            if self.digest is not None:
                raise ValueError(FOLLOWS_NEWEST)
        if self.uri is not None and self.digest is None:
            raise ValueError("uri needs digest: an adapter is pinned by the sha256 of its manifest.json")
        if self.s3 is not None and self.uri is None:
            raise ValueError("s3 belongs to uri: remove it, because a FineTuneJob names its own S3 service")
        return self


class Target(Model):
    """The inference Deployment whose pods serve the adapter."""

    deployment_ref: NameRef = Field(description="Deployment whose pods serve the adapter.")
    container: DnsLabel | None = Field(
        None, description="Container that runs the inference engine. Default: the engine's name."
    )
    engine: EngineName = Field("vllm", description="Inference engine.")
    port: int | None = Field(
        None,
        description="Port of the engine's HTTP interface. Default: 8000 for vLLM, 30000 for SGLang.",
        ge=1,
        le=65535,
    )
    api_key_secret_ref: SecretRef | None = Field(
        None,
        description="Secret with API_KEY, if the engine requires one (--api-key), and with ADMIN_API_KEY, if SGLang "
        "requires one (--admin-api-key).",
    )


class Strategy(Model):
    """How a new version of the adapter replaces the old one."""

    type: Literal["Hot"] = Field("Hot", description="Hot: load it into the running engine, without restarting the pod.")
    max_unavailable: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        1,
        description="Maximum number of pods that may be out of the Service at once while they change the version. "
        "A pod that refuses the version counts too: so many refusals stop the roll-out.",
    )
    pause_seconds: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        0,
        description="Seconds that pass after a pod has taken the version before the next pod takes it. A rollback does "
        "not pause.",
    )
    progress_deadline_seconds: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        600,
        description="Seconds without progress on any pod, beside pauseSeconds, after which the roll-out has failed "
        "(ProgressDeadlineExceeded).",
    )


class Rollback(Model):
    """What happens when the roll-out of a version fails."""

    automatic: bool = Field(
        True,
        description="Go back to the version that every pod served last. It stays so until the spec changes. False: "
        "each pod keeps what it serves.",
    )


class Verification(Model):
    """How strictly a pod must prove that it answers with the right weights."""

    tolerance: float = Field(
        0.25,
        description="Largest mean difference, in nats per token, between the pod's log-probabilities and the "
        "trainer's.",
        gt=0,
        le=MAX_NUMBER,
    )


class AdapterDeploymentSpec(Model):
    """Which adapter is served under which name, on which Deployment."""

    adapter: AdapterSource = Field(description="Adapter to serve.")
    served_name: str = Field(
        description="Model name that clients send.",
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
    )
    target: Target = Field(description="Deployment that serves it.")
    strategy: Strategy = Field(default_factory=Strategy, description="How a new version replaces the old one.")
    verification: Verification = Field(default_factory=Verification, description="How strictly the weights are proved.")
    rollback: Rollback = Field(default_factory=Rollback, description="What happens when a roll-out fails.")
    revision_history_limit: Annotated[int, Field(ge=0, le=MAX_HISTORY)] = Field(
        10, description="Older entries of status.history that are kept, for a rollback."
    )
    suspend: bool = Field(
        False,
        description="Hold the roll-out where it is: no further pod takes another version. What the pods serve stays, "
        "also on pods that start or restart.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.servedName == oldSelf.servedName",
            "message": "servedName cannot be changed: create another AdapterDeployment",
            "fieldPath": ".servedName",
        },
        {
            "rule": "self.target.deploymentRef == oldSelf.target.deploymentRef",
            "message": "target.deploymentRef cannot be changed: create another AdapterDeployment",
            "fieldPath": ".target",
        },
    ]
