"""Define the chart's values as typed models, from which values.yaml, its schema and the reference are generated."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.base import DnsLabel
from finetune_api.core_v1.network import DnsPolicy
from finetune_operator.pod_defaults import RoleResources
from finetune_operator.settings import ALLOWED_URL as ALLOWED_URL_PATTERN

ALLOWED_URL = f"^{ALLOWED_URL_PATTERN.pattern}$"
KubernetesObject = dict[str, Any]
"""A part of a pod, passed on unchanged: the API server checks it."""


class Section(BaseModel):
    """Base of every section. `helm install` refuses an unknown value, with its path."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Image(Section):
    """An image in a registry that the cluster can pull from."""

    repository: str = Field(
        "", description="Name without a tag, for example registry.example.com/finetune-operator. Must be set."
    )
    tag: str = Field("", description="Tag. Empty: the chart's appVersion.")
    digest: str = Field(
        "", description="sha256:… of the image; it has precedence over the tag.", pattern=r"^(sha256:[0-9a-f]{64})?$"
    )


class OperatorImage(Image):
    """The operator's image, and the pull policy of all images."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Pull policy of every container that the chart or the operator creates."
    )


class PodPolicy(Section):
    """Limits of spec.podTemplate of a FineTuneJob. A job that exceeds them is refused with Accepted=False."""

    security_standard: Literal["restricted", "baseline", "privileged"] = Field(
        "restricted",
        description="Kubernetes' Pod Security Standard up to which a podTemplate may go. restricted: no root, no "
        "capabilities, no NFS. baseline: root in the container. privileged: also host namespaces.",
    )
    host_paths: list[Annotated[str, Field(pattern="^/")]] = Field(
        [], description="Directories of the nodes that volumes and spec.model.cache may mount, with all below them."
    )
    service_account_names: list[Annotated[str, Field(pattern=r"^[a-z0-9*]([-a-z0-9.*]*[a-z0-9*])?$")]] = Field(
        [],
        description="Service accounts that jobs may use besides default, in every namespace. finetune-* is a pattern.",
    )


class Logging(Section):
    """The operator's log."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level of lines that are written."
    )
    format: Literal["text", "json"] = Field(
        "text", description="json: each line is an object with the kind, namespace, name and attempt that it concerns."
    )


class Trainer(Section):
    """What trainer pods may do."""

    allow_remote_code: bool = Field(
        False,
        description="Let FineTuneJobs set spec.model.trustRemoteCode: then Python code of a model runs in trainer "
        "pods, with their Secrets and network. False: such a job is refused with Accepted=False.",
    )
    simulated_gpus: bool = Field(
        False,
        description="The GPUs of the nodes are simulated, as those of the dev cluster: trainer pods use the CPU. "
        "False: a trainer pod that does not see its GPUs fails with the reason GpuNotVisible.",
    )
    pod_policy: PodPolicy = Field(PodPolicy(), description="Limits of spec.podTemplate of a FineTuneJob.")


class ContainerValues(Section):
    """CPU and memory of a container. A quota that demands limits needs both."""

    requests: KubernetesObject = Field({}, description="Amounts that the scheduler reserves on a node.")
    limits: KubernetesObject = Field({}, description="Amounts that the container cannot exceed. null: no limits.")


def _resources(role: str) -> ContainerValues:
    return ContainerValues.model_validate(getattr(RoleResources(), role).to_json())


class PodResources(Section):
    """CPU and memory of the pods that the operator creates."""

    trainer: ContainerValues = Field(
        _resources("trainer"),
        description="Trainer pods, for each of their GPUs; a job without GPUs counts as one. spec.resources has "
        "precedence.",
    )
    preflight: ContainerValues = Field(
        _resources("preflight"),
        description="Preflight and clean-up pods. spec.resources.preflight has precedence.",
    )
    merge: ContainerValues = Field(
        _resources("merge"),
        description="Pods that merge an adapter into its base. A large model raises memory to what it needs; "
        "spec.resources.merge has precedence.",
    )
    agent: ContainerValues = Field(_resources("agent"), description="Agents in inference pods.")


class Pods(Section):
    """Settings of every pod that the operator creates. A FineTuneJob's own spec.podTemplate has precedence."""

    fixed_user: bool = Field(
        True,
        description="Run all pods, the operator's own too, as user 65532. False: as the user that the cluster assigns, "
        "as OpenShift demands.",
    )
    env: list[KubernetesObject] = Field(
        [],
        description="Environment variables, also of agents, for example HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE and "
        "AWS_CA_BUNDLE. Reports to the operator never use a proxy.",
    )
    env_from: list[KubernetesObject] = Field(
        [], description="ConfigMaps and Secrets of each namespace as variables, also of agents."
    )
    volumes: list[KubernetesObject] = Field(
        [], description="Volumes, also of agents, for example a ConfigMap with a private CA that each namespace has."
    )
    volume_mounts: list[KubernetesObject] = Field([], description="Mounts of the volumes in containers.")
    image_pull_secrets: list[KubernetesObject] = Field(
        [], description="Secrets of each namespace for pulling images. Agents use those of their pod."
    )
    tolerations: list[KubernetesObject] = Field([], description="Taints that the pods of jobs tolerate.")
    host_aliases: list[KubernetesObject] = Field([], description="Entries of the hosts file; agents do not get them.")
    dns_policy: Literal["", DnsPolicy] = Field(
        "", description="DNS policy of pods; agents use that of their pod. Empty: Kubernetes' default."
    )
    dns_config: KubernetesObject = Field({}, description="Settings of the DNS resolver; agents use those of their pod.")
    preflight_node_selector: dict[str, str] = Field(
        {}, description="Labels that a node must have to run preflight, merge and clean-up pods."
    )
    resources: PodResources = Field(PodResources(), description="CPU and memory of the pods that the operator creates.")


class Crds(Section):
    """Both CustomResourceDefinitions."""

    enabled: bool = Field(True, description="Install and upgrade them with the release.")
    keep: bool = Field(
        True,
        description="Keep them, and with them every FineTuneJob and AdapterDeployment, when the release is "
        "uninstalled. False: `helm uninstall` leaves the cluster as `helm install` found it; with watchNamespaces it "
        "deletes the objects in these namespaces, and keeps the CRDs for the others.",
    )


class ServiceAccount(Section):
    """The identity of the operator's pod."""

    create: bool = Field(True, description="Create it.")
    name: str = Field("", description="Its name. Empty: that of the release.")
    annotations: dict[str, str] = Field({}, description="Its annotations.")


class AdmissionPolicy(Section):
    """Limits of what the operator's account may write."""

    enabled: bool = Field(
        True,
        description="Create ValidatingAdmissionPolicies, so that nobody with the operator's token can create other "
        "Jobs, or change more of a Deployment or StatefulSet, than the operator does. They are objects of the "
        "cluster.",
    )


class UserRoles(Section):
    """What the users of the cluster may do with both kinds."""

    aggregate: bool = Field(
        True,
        description="Add both kinds to Kubernetes' own roles admin, edit and view, for users who have these in a "
        "namespace.",
    )


class ServiceMonitor(Section):
    """For the Prometheus operator."""

    enabled: bool = Field(False, description="Create a ServiceMonitor; its CRD must be there.")
    interval: str = Field("30s", description="How often Prometheus reads the metrics.")
    labels: dict[str, str] = Field({}, description="Labels by which your Prometheus selects it.")


class Metrics(Section):
    """Metrics in Prometheus' format, at port 8080, path /metrics."""

    service_monitor: ServiceMonitor = Field(ServiceMonitor(), description="For the Prometheus operator.")


class NetworkPolicy(Section):
    """Who may reach the operator."""

    enabled: bool = Field(False, description="Let only pods of this cluster reach it, and only port 8080.")


class AnalysisJobs(Section):
    """Analyses that are Jobs."""

    enabled: bool = Field(
        False,
        description="Let the operator create Jobs from CronJobs that an analysis names, and give it the rights to. Who "
        "may create AdapterDeployments can then start these CronJobs. Their pods must meet trainer.podPolicy.",
    )


class AnalysisRuns(Section):
    """Analyses that are AnalysisRuns of Argo Rollouts."""

    enabled: bool = Field(
        False,
        description="Let the operator create AnalysisRuns from AnalysisTemplates that an analysis names, and give it "
        "the rights to. Who may create AdapterDeployments can then start these analyses.",
    )


class Analysis(Section):
    """The analyses of canaries."""

    allowed_urls: list[Annotated[str, Field(pattern=ALLOWED_URL)]] = Field(
        [],
        description="Addresses that the operator calls for users whose canaries have an analysis, with all paths below "
        "them, for example http://prometheus.monitoring:9090. {namespace} in one is the AdapterDeployment's namespace. "
        "Empty: none, so an AdapterDeployment with such an analysis is refused with Accepted=False.",
    )
    jobs: AnalysisJobs = Field(AnalysisJobs(), description="Analyses that are Jobs.")
    analysis_runs: AnalysisRuns = Field(AnalysisRuns(), description="Analyses that are AnalysisRuns of Argo Rollouts.")


class ModelRewrites(Section):
    """Shares of the requests by InferenceModelRewrites of the Gateway API Inference Extension."""

    enabled: bool = Field(
        False,
        description="Let the operator write an InferenceModelRewrite for an AdapterDeployment with canary.traffic, and "
        "give it the rights to. Who may create AdapterDeployments then decides what answers to a model's name at the "
        "gateway of their namespace.",
    )


class TrafficValues(Section):
    """Canaries that divide the requests of a gateway."""

    inference_model_rewrites: ModelRewrites = Field(
        ModelRewrites(),
        description="Shares of the requests by InferenceModelRewrites of the Gateway API Inference Extension.",
    )


class Uninstall(Section):
    """What `helm uninstall` does before it deletes anything; only while crds.keep is false."""

    clean_up: bool = Field(
        True,
        description="Run a Job (pre-delete hook) that deletes the AdapterDeployments and waits until the operator has "
        "removed its agents from the inference workloads.",
    )
    timeout_seconds: Annotated[int, Field(ge=10)] = Field(
        180,
        description="How long it may take. After that the uninstall fails and deletes nothing; --no-hooks skips it.",
    )


class ChartValues(Section):
    """Every value of the chart."""

    image: OperatorImage = Field(
        OperatorImage(),
        description="The operator's image, also for preflight pods and agents. Built from Dockerfile, target operator.",
    )
    trainer_image: Image = Field(Image(), description="The trainer's image. Built from Dockerfile, target trainer.")
    trainer: Trainer = Field(Trainer(), description="What trainer pods may do.")
    pods: Pods = Field(Pods(), description="Settings of every pod that the operator creates.")
    image_pull_secrets: list[KubernetesObject] = Field(
        [],
        description="Secrets for pulling the operator's image, in the release's namespace: [{name: …}]. "
        "Jobs have pods.imagePullSecrets and spec.podTemplate.imagePullSecrets.",
    )
    watch_namespaces: list[DnsLabel] = Field(
        [], description="Namespaces that the operator watches, with Roles in each. Empty: all, with a ClusterRole."
    )
    replicas: Annotated[int, Field(ge=1)] = Field(
        1,
        description="Pods of the operator. One of them works. If it ends or does not respond, another one takes over "
        "within 15 s.",
    )
    logging: Logging = Field(Logging(), description="The operator's log.")
    report_url: str = Field(
        "",
        description="Address under which pods reach the operator. Empty: that of its Service.",
        pattern=r"^(https?://.+)?$",
    )
    crds: Crds = Field(Crds(), description="Both CustomResourceDefinitions.")
    uninstall: Uninstall = Field(
        Uninstall(), description="What `helm uninstall` does first; only while crds.keep is false."
    )
    service_account: ServiceAccount = Field(ServiceAccount(), description="The identity of the operator's pod.")
    analysis: Analysis = Field(Analysis(), description="The analyses of canaries.")
    traffic: TrafficValues = Field(TrafficValues(), description="Canaries that divide the requests of a gateway.")
    admission_policy: AdmissionPolicy = Field(
        AdmissionPolicy(), description="Limits of what the operator's account may write, in addition to its Roles."
    )
    user_roles: UserRoles = Field(UserRoles(), description="What the users of the cluster may do with both kinds.")
    metrics: Metrics = Field(Metrics(), description="Metrics in Prometheus' format, at port 8080, path /metrics.")
    network_policy: NetworkPolicy = Field(NetworkPolicy(), description="Who may reach the operator.")
    resources: KubernetesObject = Field(
        {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}},
        description="CPU and memory of the operator.",
    )
    node_selector: dict[str, str] = Field({}, description="Labels that the operator's node must have.")
    tolerations: list[KubernetesObject] = Field([], description="Taints that the operator's pod tolerates.")
    affinity: KubernetesObject = Field({}, description="Affinity of the operator's pod.")
    priority_class_name: str = Field("", description="PriorityClass of the operator's pod.")
    pod_annotations: dict[str, str] = Field({}, description="Annotations of the operator's pod.")
    pod_labels: dict[str, str] = Field({}, description="Additional labels of the operator's pod.")
    extra_env: list[KubernetesObject] = Field(
        [],
        description="Additional environment variables of the operator, for example HTTPS_PROXY, or a "
        "FINETUNE_OPERATOR_… of docs/install.md.",
    )
    name_override: str = Field("", description="Replaces the chart's name in names and labels.")
    fullname_override: str = Field("", description="Replaces the prefix of the names of all objects of the chart.")
    globals_: KubernetesObject = Field(
        {}, alias="global", description="Helm sets it when this chart is part of another; nothing here reads it."
    )
