"""The agent's settings: where its files are, how it reaches others, and how patient it is."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.messages import ADAPTERS_DIRECTORY, DESIRED_DIRECTORY, DESIRED_KEY, SECRETS_DIRECTORY, TOKEN_FILE

PORT = 9480
"""Where the agent answers the kubelet's probes."""


@dataclass(frozen=True)
class Settings:
    """All times are in seconds.

    ``propagation_seconds``: from a probe that found the pod unready until no new request comes in (the kubelet's status, the endpoints, kube-proxy).
    ``probe_seconds``: how long to wait for a probe at all. ``drain_seconds``: how long to wait for running requests; those that
    are left finish on the old weights all the same. ``removal_seconds``: the same for a name that goes for good.
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
    report_seconds: float = 10.0
    propagation_seconds: float = 3.0
    probe_seconds: float = 10.0
    drain_seconds: float = 60.0
    removal_seconds: float = 10.0
    download_patience_seconds: float = 20.0
