"""Define the spec of an AdapterDeployment: which adapter to serve, and where."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.adapterdeployment.canary import Canary, Traffic
from finetune_api.base import DnsLabel, Model, NameRef, S3Location, SecretRef, Sha256
from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.engines import EngineName
from finetune_api.label_selector import build_selector_rules, check_selector
from finetune_api.limits import MAX_COUNT, MAX_HISTORY, MAX_NUMBER
from finetune_api.uris import BUCKET

ONE_SOURCE = "exactly one of fineTuneJobRef, selector and uri must be set"
EMPTY_SELECTOR = "an empty selector chooses every FineTuneJob: write matchLabels or matchExpressions"
ONE_TARGET = "exactly one of deploymentRef, statefulSetRef and selector must be set"
EVERY_POD = "an empty selector chooses every pod: write matchLabels or matchExpressions"
UNCHANGED = (
    "has(self.target.{0}) == has(oldSelf.target.{0}) "
    "&& (!has(self.target.{0}) || self.target.{0} == oldSelf.target.{0})"
)
"""CEL: a reference is unchanged. Optional values would exceed the cost that the API server allows."""
ROLLS_DEPLOYMENTS = (
    "with Rolling, target needs deploymentRef: Kubernetes takes no StatefulSet back from a pod that never becomes "
    "ready. Set type: Hot"
)
NO_CANARY = "a canary needs type Hot: with Rolling the Deployment replaces all pods. Remove canary, or set type: Hot"
OWN_PACE = (
    "with Rolling the Deployment's own spec.strategy sets the pace: remove maxUnavailable and pauseSeconds, and set "
    "rollingUpdate and minReadySeconds of the Deployment"
)
NAMED_CONTAINER = "engine merged stands for any engine without LoRA: container must name the one that runs it"
MERGED_ROLLS = (
    "engine merged needs strategy.type: Rolling, because an engine without LoRA loads a model only when it starts"
)
TRAFFIC_BY_VLLM = (
    "canary.traffic needs engine vllm: clients of SGLang name the base too, which a rewrite of the adapter's name loses"
)
TRAFFIC_IS_KEPT = (
    "canary.traffic cannot be added or removed, because it decides under which names the pods serve: create another "
    "AdapterDeployment"
)
_HAS_TRAFFIC = "(has({0}.strategy) && has({0}.strategy.canary) && has({0}.strategy.canary.traffic))"
FOLLOWS_NEWEST = "digest names one adapter, and selector follows the newest: remove one of the two"


class AdapterSource(Model):
    """The adapter to serve: that of a FineTuneJob, of the newest with a label, or an S3 directory with a manifest."""

    finetune_job_ref: NameRef | None = Field(
        None, alias="fineTuneJobRef", description="Serve the adapter of this FineTuneJob, once it is Ready."
    )
    selector: LabelSelector | None = Field(
        None,
        description="Serve the adapter of the newest Succeeded FineTuneJob with these labels, then of each newer one. "
        "If that job is deleted, its adapter stays. A version that was rolled back is not chosen again.",
    )
    uri: str | None = Field(None, description="s3:// URI of the adapter's directory.", pattern=rf"^s3://{BUCKET}/.+")
    digest: Sha256 | None = Field(
        None,
        description="sha256 of the directory's manifest.json. Required with uri. With fineTuneJobRef: serve the job's "
        "adapter only if it has this digest. Unset: the job's first adapter, even after the job is created again.",
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
        *build_selector_rules(EMPTY_SELECTOR),
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
            check_selector(self.selector, EMPTY_SELECTOR)
            if self.digest is not None:
                raise ValueError(FOLLOWS_NEWEST)
        if self.uri is not None and self.digest is None:
            raise ValueError("uri needs digest: an adapter is pinned by the sha256 of its manifest.json")
        if self.s3 is not None and self.uri is None:
            raise ValueError("s3 belongs to uri: remove it, because a FineTuneJob names its own S3 service")
        return self


class Target(Model):
    """The workload whose pods serve the adapter."""

    deployment_ref: NameRef | None = Field(None, description="Deployment whose pods serve the adapter.")
    stateful_set_ref: NameRef | None = Field(None, description="StatefulSet whose pods serve the adapter.")
    selector: LabelSelector | None = Field(
        None,
        description="Pods that serve the adapter, by their labels, whose owner the operator may not change: that of a "
        "LeaderWorkerSet, for example. Put the agent into them yourself (docs/own-agent.md).",
    )
    container: DnsLabel | None = Field(
        None, description="Container that runs the inference engine. Default: the engine's name."
    )
    engine: EngineName = Field(
        "vllm",
        description="Inference engine. merged: one without LoRA, which serves the merged model of a FineTuneJob with "
        "output.mergedModel (docs/engines.md).",
    )
    port: int | None = Field(
        None,
        description="Port of the engine's HTTP interface. Default: 8000 for vLLM, 30000 for SGLang, 8000 for a merged "
        "model.",
        ge=1,
        le=65535,
    )
    api_key_secret_ref: SecretRef | None = Field(
        None,
        description="Secret with API_KEY, if the engine requires one (--api-key), and with ADMIN_API_KEY, if SGLang "
        "requires one (--admin-api-key).",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "[has(self.deploymentRef), has(self.statefulSetRef), has(self.selector)].filter(given, given)"
            ".size() == 1",
            "message": ONE_TARGET,
        },
        {
            "rule": "!has(self.engine) || self.engine != 'merged' || has(self.container)",
            "message": NAMED_CONTAINER,
            "fieldPath": ".container",
        },
        *build_selector_rules(EVERY_POD),
    ]

    @model_validator(mode="after")
    def _check_workload(self) -> "Target":
        if sum(ref is not None for ref in (self.deployment_ref, self.stateful_set_ref, self.selector)) != 1:
            raise ValueError(ONE_TARGET)
        if self.selector is not None:
            check_selector(self.selector, EVERY_POD)
        if self.engine == "merged" and self.container is None:
            raise ValueError(NAMED_CONTAINER)
        return self


class Strategy(Model):
    """How a new version of the adapter replaces the old one."""

    type: Literal["Hot", "Rolling"] = Field(
        "Hot",
        description="Hot: load it into the running engine, without restarting the pod. Rolling: write the version into "
        "the pod template, so that the Deployment replaces its pods by its own rolling update.",
    )
    max_unavailable: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        1,
        description="Maximum number of pods that may be out of the Service at once while they change the version. "
        "A pod that refuses the version also counts, so this many refusals stop the roll-out.",
    )
    pause_seconds: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        0,
        description="Seconds to wait between one pod's change of the version and the next pod's. A rollback does not "
        "wait.",
    )
    progress_deadline_seconds: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        600,
        description="Seconds without progress on any pod, not counting pauseSeconds, after which the roll-out fails "
        "with ProgressDeadlineExceeded.",
    )
    canary: Canary | None = Field(
        None, description="Let a few pods serve a new version first. Unset: the pods take it one after another."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            # the API server also evaluates the rules for the default of strategy, whose fields have no defaults yet
            "rule": "!has(self.type) || self.type != 'Rolling' || !has(self.canary)",
            "message": NO_CANARY,
            "fieldPath": ".canary",
        },
        {
            "rule": "!has(self.type) || self.type != 'Rolling' || "
            "((!has(self.maxUnavailable) || self.maxUnavailable == 1) "
            "&& (!has(self.pauseSeconds) || self.pauseSeconds == 0))",
            "message": OWN_PACE,
            "fieldPath": ".type",
        },
    ]

    @model_validator(mode="after")
    def _check_rolling(self) -> "Strategy":
        if self.type == "Rolling" and self.canary is not None:
            raise ValueError(NO_CANARY)
        if self.type == "Rolling" and (self.max_unavailable, self.pause_seconds) != (1, 0):
            raise ValueError(OWN_PACE)
        return self


class Rollback(Model):
    """What happens when the roll-out of a version fails."""

    automatic: bool = Field(
        True,
        description="Go back to the version that every pod served last, until the spec changes. False: each pod keeps "
        "the version that it serves.",
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
    every_minutes: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        60,
        description="Minutes after which each pod proves its version again, with one request at a time beside those of "
        "its clients. 0: only after a load, after a restart of the engine, and after it woke from sleep.",
    )


class AdapterDeploymentSpec(Model):
    """Which adapter is served under which name, on which workload."""

    adapter: AdapterSource = Field(description="Adapter to serve.")
    served_name: str = Field(
        description="Model name that clients send.",
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
    )
    target: Target = Field(description="Workload that serves it.")
    strategy: Strategy = Field(default_factory=Strategy, description="How a new version replaces the old one.")
    verification: Verification = Field(default_factory=Verification, description="How strictly the weights are proved.")
    rollback: Rollback = Field(default_factory=Rollback, description="What happens when a roll-out fails.")
    revision_history_limit: Annotated[int, Field(ge=0, le=MAX_HISTORY)] = Field(
        10, description="Number of older entries of status.history to keep, for a rollback."
    )
    suspend: bool = Field(
        False,
        description="Pause the roll-out: no further pod changes its version. All pods keep serving what they serve, "
        "also those that start or restart.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.servedName == oldSelf.servedName",
            "message": "servedName cannot be changed: create another AdapterDeployment",
            "fieldPath": ".servedName",
        },
        {
            "rule": " && ".join(map(UNCHANGED.format, ("deploymentRef", "statefulSetRef", "selector"))),
            "message": "the workload of target cannot be changed: create another AdapterDeployment",
            "fieldPath": ".target",
        },
        {
            "rule": "!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'Rolling' "
            "|| has(self.target.deploymentRef)",
            "message": ROLLS_DEPLOYMENTS,
            "fieldPath": ".strategy.type",
        },
        {
            "rule": "!has(self.target.engine) || self.target.engine != 'merged' "
            "|| (has(self.strategy) && has(self.strategy.type) && self.strategy.type == 'Rolling')",
            "message": MERGED_ROLLS,
            "fieldPath": ".target.engine",
        },
        {
            "rule": f"!{_HAS_TRAFFIC.format('self')} || !has(self.target.engine) || self.target.engine == 'vllm'",
            "message": TRAFFIC_BY_VLLM,
            "fieldPath": ".strategy.canary.traffic",
        },
        {
            "rule": f"{_HAS_TRAFFIC.format('self')} == {_HAS_TRAFFIC.format('oldSelf')}",
            "message": TRAFFIC_IS_KEPT,
            "fieldPath": ".strategy.canary",
        },
    ]

    @property
    def traffic(self) -> Traffic | None:
        """Return who divides the requests between two versions; None if the pods do."""
        return self.strategy.canary.traffic if self.strategy.canary is not None else None

    @model_validator(mode="after")
    def _check_rolling(self) -> "AdapterDeploymentSpec":
        if self.strategy.type == "Rolling" and self.target.deployment_ref is None:
            raise ValueError(ROLLS_DEPLOYMENTS)
        if self.target.engine == "merged" and self.strategy.type != "Rolling":
            raise ValueError(MERGED_ROLLS)
        if self.traffic is not None and self.target.engine != "vllm":
            raise ValueError(TRAFFIC_BY_VLLM)
        return self
