"""Run a real S3 service (versitygw over a directory) on loopback, which tests can stop and start again."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from devcluster.binaries import program
from finetune_api.base import S3Location
from finetune_artifacts.errors import Purpose
from finetune_artifacts.s3 import S3Storage, open_s3

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-key"


class S3Server:
    """A versitygw process. ``directory`` holds its buckets as plain directories, where a test may damage files."""

    def __init__(self, directory: Path, *, versions: bool = False) -> None:
        """Create the directory of the buckets; nothing runs yet."""
        self.directory = directory
        self.options = ["--versioning-dir", str(directory / "versions")] if versions else []
        (directory / "versions").mkdir(parents=True)
        self.buckets = directory / "buckets"
        self.buckets.mkdir(parents=True)
        self.secret = write_secret(directory / "secrets" / "s3-credentials", ACCESS_KEY, SECRET_KEY)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Return the URL of the service."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def location(self) -> S3Location:
        """Return endpoint and region, as a spec has them."""
        return S3Location(endpoint=self.endpoint, region="us-east-1")

    def store(self, purpose: Purpose = Purpose.OUTPUT, patience_seconds: float = 60) -> S3Storage:
        """Open the service as the product does."""
        return open_s3(self.location, self.secret, purpose, patience_seconds)

    def create_bucket(self, name: str) -> str:
        """Create a bucket, and return its name."""
        self.store().client.create_bucket(Bucket=name)
        return name

    def start(self) -> None:
        """Start the process, and wait until it listens.

        Raises:
            RuntimeError: It ended; the message is the end of its log.
        """
        with (self.directory / "versitygw.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program("versitygw"), "--port", f"127.0.0.1:{self.port}", "posix", *self.options, str(self.buckets)],
                env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "versitygw.log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it, whatever it does at the moment."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> "S3Server":
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()
        shutil.rmtree(self.buckets, ignore_errors=True)


def write_secret(directory: Path, access_key: str, secret_key: str) -> Path:
    """Write a Secret as a pod sees it: a file for each key."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "AWS_ACCESS_KEY_ID").write_text(access_key)
    (directory / "AWS_SECRET_ACCESS_KEY").write_text(secret_key)
    return directory


@contextmanager
def running_s3(directory: Path) -> Iterator[S3Server]:
    """Run an ``S3Server`` below ``directory`` for the length of a ``with`` block."""
    with S3Server(directory) as server:
        yield server
