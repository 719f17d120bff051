"""Describe one pod of the benchmark: its addresses, and the files that the kubelet would mount into it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.testing.s3_server import S3Server

SECRET = "s3"


@dataclass(frozen=True)
class Pod:
    """A pod whose containers are processes of this machine, each with an address of loopback as the pod's own.

    Attributes:
        name: Name of the pod.
        address: Address of its agent and of its engine.
        agent_port: Port of the agent's probes.
        directory: The pod's files.
    """

    name: str
    address: str
    agent_port: int
    directory: Path

    @property
    def desired_file(self) -> Path:
        """Return the file that a ConfigMap's volume would have."""
        return self.directory / "desired.json"

    @property
    def log(self) -> Path:
        """Return the log of the agent."""
        return self.directory / "agent.log"

    @property
    def pid_file(self) -> Path:
        """Return the file with the process id of the agent."""
        return self.directory / "pid"

    def mount(self, s3: S3Server, token: str) -> None:
        """Write the files that do not change: the Secret and the token of the service account."""
        self.directory.mkdir(parents=True)
        shutil.copytree(s3.secret, self.directory / "secrets" / SECRET)
        (self.directory / "token").write_text(token)

    def agent_values(self, report_url: str) -> dict[str, str | int]:
        """Return the settings of the agent, as ``bench.rollout.agents`` takes them."""
        return {
            "pod": self.name,
            "report_url": report_url,
            "host": self.address,
            "engine_host": self.address,
            "port": self.agent_port,
            "desired_file": str(self.desired_file),
            "adapters_directory": str(self.directory / "adapters"),
            "secrets_directory": str(self.directory / "secrets"),
            "token_file": str(self.directory / "token"),
            "log": str(self.log),
            "pid_file": str(self.pid_file),
        }


def address_of(number: int) -> str:
    """Return the address of a pod by its number from 0: all of 127.0.0.0/8 is loopback."""
    return f"127.1.{number // 250}.{number % 250 + 1}"
