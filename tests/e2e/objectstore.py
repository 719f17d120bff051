"""Run the S3 server of the fault tests in the cluster; its buckets outlive its pod, so that it can be stopped."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config

from devcluster.demo import EXAMPLES
from tests.e2e.namespace import Namespace, Object
from tests.e2e.users_cluster import address

USER = 65532
SECRET = "s3-credentials"
BUCKET = "work"


@dataclass(frozen=True)
class ObjectStore:
    """A Deployment `s3` over a directory of the node. `address` is the one for pods."""

    namespace: Namespace
    directory: Path

    @property
    def address(self) -> str:
        """Return the server's URL for pods."""
        return f"http://s3.{self.namespace.name}:9000"

    def install(self, image: str) -> None:
        """Apply the example's S3 server, its data in the directory."""
        self.directory.mkdir(parents=True)
        os.chown(self.directory, USER, USER)
        documents = [document for document in yaml.safe_load_all((EXAMPLES / "s3.yaml").read_text()) if document]
        for document in documents:
            if document["kind"] == "Deployment":
                pod = document["spec"]["template"]["spec"]
                pod["containers"][0]["image"] = image
                pod["volumes"] = [{"name": "data", "hostPath": {"path": str(self.directory)}}]
                pod["terminationGracePeriodSeconds"] = 0
        self.namespace.apply(*documents)
        self.await_ready()
        self.client().create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        """Stop the server, which cuts off its connections."""
        self.namespace.kubectl("scale", "deployment/s3", "--replicas=0")
        self.namespace.until("the S3 server's pod is gone", lambda: not self._pods(), 60)

    def start(self) -> None:
        """Start the server again, with its data."""
        self.namespace.kubectl("scale", "deployment/s3", "--replicas=1")
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until the server answers."""
        self.namespace.kubectl("rollout", "status", "deployment/s3", "--timeout=120s")

    def client(self) -> Any:
        """Return a boto3 client that reaches the server from this machine."""
        return _client(self.namespace, "s3")

    def upload(self, directory: Path, prefix: str) -> str:
        """Upload the files of a directory and return their URI."""
        client = self.client()
        for file in sorted(directory.iterdir()):
            client.upload_file(str(file), BUCKET, f"{prefix}/{file.name}")
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, text: str) -> str:
        """Write one object and return its URI."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=text.encode())
        return f"s3://{BUCKET}/{key}"

    def read(self, key: str) -> bytes:
        """Return the content of one object."""
        return bytes(self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix from the server's directory, which works while the server is stopped too."""
        root = self.directory / BUCKET
        keys = (path.relative_to(root).as_posix() for path in (root / prefix).rglob("*") if path.is_file())
        return sorted(keys)

    def remove(self) -> None:
        """Delete the data; the namespace takes the rest."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _pods(self) -> list[Object]:
        return self.namespace.all("pods", "app=s3")


def _client(namespace: Namespace, service: str) -> Any:
    secret = next(yaml.safe_load_all((EXAMPLES / "s3.yaml").read_text()))["stringData"]
    return boto3.client(
        "s3",
        endpoint_url=address(namespace, service, 9000),
        region_name="us-east-1",
        aws_access_key_id=secret["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"max_attempts": 5, "mode": "standard"}, s3={"addressing_style": "path"}, proxies={}),
    )


def demo_client(namespace: Namespace) -> Any:
    """Return a boto3 client for the demo's own S3 server."""
    return _client(namespace, "s3")
