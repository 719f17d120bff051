"""Define the operator's settings, and read them from the environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from finetune_api.validation import problems
from finetune_operator.logs import LogFormat
from finetune_operator.pod_defaults import PodDefaults

SecurityStandard = Literal["restricted", "baseline", "privileged"]
"""Kubernetes' Pod Security Standards, the strictest first."""
PREFIX = "FINETUNE_OPERATOR_"
ALLOWED_URL = re.compile(r"https?://([A-Za-z0-9.{}-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~/{}-]*)?")
"""An address of ``analysis_urls``."""


class SettingsError(ValueError):
    """An environment variable is missing or has a value that cannot be used."""


@dataclass(frozen=True)
class Settings:
    """The settings of one operator.

    Each is the environment variable ``FINETUNE_OPERATOR_<FIELD>``. A setting without a default is required.
    """

    trainer_image: str
    """Image of the trainer pods."""
    operator_image: str
    """The small image: of the operator itself, of preflight and clean-up pods, and of agents."""
    report_url: str = ""
    """Address at which pods reach the operator's server, for example http://finetune-operator.finetune-system:8080.
    Empty: they do not report."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch. Empty: all."""
    allow_remote_code: bool = False
    """Whether spec.model.trustRemoteCode may be set: then a model's own Python code runs in trainer pods."""
    simulated_gpus: bool = False
    """Whether the GPUs of the nodes are simulated, as in the dev cluster: then trainer pods use the CPU. False: a pod
    that does not see its GPUs fails."""
    pod_security_standard: SecurityStandard = "restricted"
    """The Pod Security Standard up to which spec.podTemplate may ask for privileges."""
    pod_host_paths: tuple[str, ...] = ()
    """Directories of the nodes that spec.podTemplate.volumes may mount, with all below them."""
    pod_service_accounts: tuple[str, ...] = ()
    """Names, or patterns like finetune-*, that spec.podTemplate.serviceAccountName may have besides default."""
    analysis_urls: tuple[str, ...] = ()
    """Addresses that analyses of canaries may call, with all below them; {namespace} in one is that of the
    AdapterDeployment. Empty: none."""
    analysis_jobs: bool = False
    """Whether analyses may create Jobs from CronJobs."""
    analysis_runs: bool = False
    """Whether analyses may create AnalysisRuns of Argo Rollouts."""
    model_rewrites: bool = False
    """Whether canaries may divide the requests of a gateway by InferenceModelRewrites."""
    pods: PodDefaults = field(default_factory=PodDefaults)
    """Settings of every pod, as JSON with the fields of the chart's values ``pods``."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy of every container of ours."""
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    """``json`` writes each line of the log as a JSON object."""
    release: str = ""
    """Namespace and name of this installation, as team/finetune-operator: its replicas elect a leader by a Lease.
    Empty: no election; then no other operator may run."""
    pod_name: str = ""
    """Name of the operator's own pod, under which it holds the Lease."""
    pod_ip: str = ""
    """Address at which other replicas reach this one."""
    kubeconfig: Path | None = None
    """Unset: the service account of the operator's own pod."""
    listen_host: str = "0.0.0.0"  # noqa: S104 -- pods of the cluster report here
    listen_port: int = 8080
    """Port of the report endpoint, the probes and the metrics; 0 takes a free one."""
    workers: int = 8
    """Passes that may run at the same time."""
    progress_writes_per_second: float = 10.0
    """Budget of the whole operator for status writes that only carry progress."""
    progress_interval_seconds: float = 5.0
    """Shortest time between two such writes for one object."""
    retry_backoff_seconds: float = 10.0
    """Delay before the first repetition of a failed attempt; it doubles with each one."""
    image_pull_grace_seconds: float = 120.0
    """How long a container may fail to start, for example to pull its image, before the attempt counts as failed."""
    clean_up_start_seconds: float = 600.0
    """How long the pod of a clean-up may take to start before its FineTuneJob is deleted without it."""
    preflight_reuse_seconds: float = 3600.0
    """For how long a passed preflight counts for other jobs of its namespace with the same checks. 0: each job has its
    own."""
    resync_seconds: float = 300.0
    """How often everything is listed again, in case a watch missed something."""

    @property
    def report_address(self) -> str:
        """Return the URL at which other replicas reach this one; empty without ``pod_ip``."""
        host = f"[{self.pod_ip}]" if ":" in self.pod_ip else self.pod_ip
        return f"http://{host}:{self.listen_port}" if host else ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the variables. Raises ``SettingsError`` with the variable, its value and what it must be."""
        text = {
            name: environ[PREFIX + name.upper()]
            for name in cls.__dataclass_fields__
            if PREFIX + name.upper() in environ
        }
        for name in ("trainer_image", "operator_image"):
            if not text.get(name):
                raise SettingsError(f"{PREFIX}{name.upper()} is not set: give the name of an image")
        values: dict[str, object] = {}
        for name, value in text.items():
            try:
                values[name] = _parse(name, value)
            except ValueError as error:
                raise SettingsError(f"{PREFIX}{name.upper()}: found {value!r}, {error}") from None
        return cls(**values)  # type: ignore[arg-type]  # _parse gives each field its type


def _parse(name: str, text: str) -> object:
    match name:
        case "analysis_urls":
            return tuple(_parse_url(part.strip()) for part in text.split(",") if part.strip())
        case "namespaces" | "pod_host_paths" | "pod_service_accounts":
            return tuple(part.strip() for part in text.split(",") if part.strip())
        case "allow_remote_code" | "simulated_gpus" | "analysis_jobs" | "analysis_runs" | "model_rewrites":
            if text not in ("true", "false"):
                raise ValueError("it must be true or false")
            return text == "true"
        case "kubeconfig":
            return Path(text) if text else None
        case "listen_port" | "workers":
            number = int(text)
            if number < (0 if name == "listen_port" else 1):
                raise ValueError("it must be positive")
            return number
        case _ if name.endswith(("_seconds", "_per_second")):
            seconds = float(text)
            if seconds < 0 or (seconds == 0 and name != "preflight_reuse_seconds"):
                raise ValueError("it must be greater than 0")
            return seconds
        case "pods":
            try:
                return PodDefaults.model_validate_json(text)
            except ValidationError as error:
                raise ValueError("; ".join(map(str, problems(error, "pods")))) from None
        case "pod_security_standard":
            if text not in get_args(SecurityStandard):
                raise ValueError("it must be restricted, baseline or privileged")
        case "release":
            if text and len([part for part in text.split("/") if part]) != 2:
                raise ValueError("it must be a namespace and a name, as team/finetune-operator")
        case "image_pull_policy":
            if text not in ("Always", "IfNotPresent", "Never"):
                raise ValueError("it must be Always, IfNotPresent or Never")
        case "log_format":
            if text not in get_args(LogFormat):
                raise ValueError("it must be text or json")
        case "log_level":
            if text not in ("DEBUG", "INFO", "WARNING", "ERROR"):
                raise ValueError("it must be DEBUG, INFO, WARNING or ERROR")
    return text


def _parse_url(text: str) -> str:
    if ALLOWED_URL.fullmatch(text) is None:
        raise ValueError("each address must be like http://prometheus.monitoring:9090 or https://{namespace}.example/x")
    return text
