"""Define the chart's values as typed models, from which values.yaml, its schema and the reference are generated."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.base import DnsLabel
from finetune_api.core_v1.network import DnsPolicy
from finetune_operator.pod_defaults import RoleResources

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
        "", description="sha256:… of the image; goes before the tag.", pattern=r"^(sha256:[0-9a-f]{64})?$"
    )


class OperatorImage(Image):
    """The operator's image, and the pull policy of all images."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Pull policy of every container that the chart or the operator makes."
    )


class PodPolicy(Section):
    """What spec.podTemplate of a FineTuneJob may ask for. A job that asks for more is refused with Accepted=False."""

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

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Level from which lines are told.")
    format: Literal["text", "json"] = Field(
        "text", description="json: each line is an object, with the kind, namespace, name and attempt that it is about."
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
        description="The nodes only pretend to have GPUs, as those of the dev cluster do: trainer pods use the CPU. "
        "False: a trainer pod that does not see its GPUs fails with the reason GpuNotVisible.",
    )
    pod_policy: PodPolicy = Field(PodPolicy(), description="What spec.podTemplate of a FineTuneJob may ask for.")


class ContainerValues(Section):
    """CPU and memory of a container. A quota that demands limits needs both."""

    requests: KubernetesObject = Field({}, description="What the scheduler sets aside.")
    limits: KubernetesObject = Field({}, description="What the container cannot exceed. null: no limits.")


def _resources(role: str) -> ContainerValues:
    return ContainerValues.model_validate(getattr(RoleResources(), role).to_json())


class PodResources(Section):
    """CPU and memory of the pods that the operator makes."""

    trainer: ContainerValues = Field(
        _resources("trainer"),
        description="Trainer pods, for each of their GPUs; a job without GPUs counts as one. spec.resources has "
        "precedence.",
    )
    preflight: ContainerValues = Field(
        _resources("preflight"),
        description="Preflight and clean-up pods. spec.resources.preflight has precedence.",
    )
    agent: ContainerValues = Field(_resources("agent"), description="Agents in inference pods.")


class Pods(Section):
    """What every pod gets that the operator makes. A FineTuneJob's own spec.podTemplate has precedence."""

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
    volume_mounts: list[KubernetesObject] = Field([], description="Where containers have the volumes.")
    image_pull_secrets: list[KubernetesObject] = Field(
        [], description="Secrets of each namespace for pulling images. Agents use those of their pod."
    )
    tolerations: list[KubernetesObject] = Field([], description="Taints that preflight and trainer pods tolerate.")
    host_aliases: list[KubernetesObject] = Field([], description="Entries of the hosts file, not of agents.")
    dns_policy: Literal["", DnsPolicy] = Field(
        "", description="Where DNS comes from, not of agents. Empty: Kubernetes' default."
    )
    dns_config: KubernetesObject = Field({}, description="Settings of the resolver, not of agents.")
    preflight_node_selector: dict[str, str] = Field(
        {}, description="Labels that a node must have to run preflight and clean-up pods."
    )
    resources: PodResources = Field(PodResources(), description="CPU and memory of the pods that the operator makes.")


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
    """What the operator's account may write."""

    enabled: bool = Field(
        True,
        description="Create ValidatingAdmissionPolicies: with the operator's token nobody creates other Jobs, or "
        "changes more of a Deployment, than the operator does. They are objects of the cluster.",
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


class Uninstall(Section):
    """What `helm uninstall` does before it deletes anything; only while crds.keep is false."""

    clean_up: bool = Field(
        True,
        description="Run a Job (pre-delete hook) that deletes the AdapterDeployments and waits until the operator has "
        "removed its agents from the inference Deployments.",
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
    pods: Pods = Field(Pods(), description="What every pod gets that the operator makes.")
    image_pull_secrets: list[KubernetesObject] = Field(
        [],
        description="Secrets for pulling the operator's image, in the release's namespace: [{name: …}]. "
        "Jobs have pods.imagePullSecrets and spec.podTemplate.imagePullSecrets.",
    )
    watch_namespaces: list[DnsLabel] = Field(
        [], description="Namespaces to look after, with Roles in each of them. Empty: all, with a ClusterRole."
    )
    replicas: Annotated[int, Field(ge=1)] = Field(
        1,
        description="Pods of the operator. One of them works; the others are ready to take over when it ends or falls "
        "silent, which takes up to 15 s.",
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
    admission_policy: AdmissionPolicy = Field(
        AdmissionPolicy(), description="What the operator's account may write, beside its rights."
    )
    user_roles: UserRoles = Field(UserRoles(), description="What the users of the cluster may do with both kinds.")
    metrics: Metrics = Field(Metrics(), description="Metrics in Prometheus' format, at port 8080, path /metrics.")
    network_policy: NetworkPolicy = Field(NetworkPolicy(), description="Who may reach the operator.")
    resources: KubernetesObject = Field(
        {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}},
        description="CPU and memory of the operator.",
    )
    node_selector: dict[str, str] = Field({}, description="Labels that the operator's node must have.")
    tolerations: list[KubernetesObject] = Field([], description="Taints that the operator's pod tolerates.")
    affinity: KubernetesObject = Field({}, description="Affinity of the operator's pod.")
    priority_class_name: str = Field("", description="PriorityClass of the operator's pod.")
    pod_annotations: dict[str, str] = Field({}, description="Annotations of the operator's pod.")
    pod_labels: dict[str, str] = Field({}, description="Labels of the operator's pod, beside ours.")
    extra_env: list[KubernetesObject] = Field(
        [],
        description="More environment variables of the operator, for example HTTPS_PROXY, or a FINETUNE_OPERATOR_… "
        "of docs/install.md.",
    )
    name_override: str = Field("", description="In place of the chart's name.")
    fullname_override: str = Field("", description="In place of the name of everything that the chart makes.")
    globals_: KubernetesObject = Field(
        {}, alias="global", description="Helm sets it when this chart is part of another; nothing here reads it."
    )
