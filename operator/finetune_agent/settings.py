"""Define the agent's settings: paths, addresses, and how long it waits."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.messages import ADAPTERS_DIRECTORY, DESIRED_DIRECTORY, DESIRED_KEY, SECRETS_DIRECTORY, TOKEN_FILE

PORT = 9480
"""Default port of the agent's probes."""


@dataclass(frozen=True)
class Settings:
    """The agent's settings. All times are in seconds.

    Attributes:
        pod: Name of the agent's pod.
        report_url: Address of the operator's report endpoint; None: no reports.
        engine_host: Host of the engine, whose port the desired state names.
        host: Address on which the probes listen.
        port: Port on which the probes listen.
        desired_file: The mounted desired state.
        adapters_directory: The volume that agent and engine share.
        secrets_directory: The mounted Secrets, a directory each.
        token_file: The service account's token for reports.
        tick_seconds: Pause between two ticks.
        idle_seconds: The same while nothing is to be done, unless the desired state changes or a probe finds a change.
        report_seconds: Longest pause between two reports.
        propagation_seconds: From a probe that found the pod unready until no new request arrives
            (the kubelet's status, the endpoints, kube-proxy).
        probe_seconds: Longest wait for a probe.
        drain_seconds: Longest wait for running requests. Those that still run finish on the old weights.
        removal_seconds: The same for a served name that goes for good.
        download_patience_seconds: How long a download waits for an S3 service that does not answer.
    """

    pod: str
    report_url: str | None = None
    engine_host: str = "127.0.0.1"
    host: str = "0.0.0.0"  # noqa: S104 -- the kubelet probes the pod's address
    port: int = PORT
    desired_file: Path = Path(DESIRED_DIRECTORY) / DESIRED_KEY
    adapters_directory: Path = Path(ADAPTERS_DIRECTORY)
    secrets_directory: Path = Path(SECRETS_DIRECTORY)
    token_file: Path = Path(TOKEN_FILE)
    tick_seconds: float = 0.5
    idle_seconds: float = 3.0
    report_seconds: float = 10.0
    propagation_seconds: float = 3.0
    probe_seconds: float = 10.0
    drain_seconds: float = 60.0
    removal_seconds: float = 10.0
    download_patience_seconds: float = 20.0
