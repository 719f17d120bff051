"""Run ``finetune report``: fetch a FineTuneJob's report through a pod that can read the job's storage.

The pod has the image, the Secrets and the identity of the job's preflight, and prints the report into its log. So the
user needs neither credentials for the storage nor a network path to it.
"""

import sys
import time
import uuid
import webbrowser
from pathlib import Path

from finetune_api import API_VERSION
from finetune_api.limits import quote
from finetune_api.messages import SECRETS_DIRECTORY
from finetune_cli.cluster import Cluster, NotFoundError, Object
from finetune_cli.errors import CliError
from finetune_cli.logs import JOB_LABEL, ROLE_LABEL, waiting_reason

PAUSE_SECONDS = 0.5
POD_SECONDS = 300
"""Seconds after which the kubelet ends the pod, even if this command was killed."""
CONTAINER = "report"


def report(cluster: Cluster, name: str, output: Path | None, timeout: float) -> None:
    """Write the report to a file; without ``output`` to ``NAME.html``, and open it in a browser. Raises CliError."""
    job = cluster.find_one("FineTuneJob", name)
    stored = job.get("status", {}).get("report")
    if not stored:
        raise CliError(f"FineTuneJob {job['metadata']['name']} has no report yet; see: finetune status {name}")
    content = _read(cluster, build_pod(job, _find_template(cluster, job), stored["uri"]), timeout)
    file = output or Path(f"{job['metadata']['name']}.html")
    file.write_bytes(content)
    sys.stdout.write(f"{stored['uri']} → {file}\n")
    if output is None and sys.stdout.isatty():
        webbrowser.open(file.resolve().as_uri())


def _find_template(cluster: Cluster, job: Object) -> Object:
    """Return the pod spec of the job's preflight. Raises CliError if its Job is deleted."""
    selector = f"{JOB_LABEL}={job['metadata']['name']},{ROLE_LABEL}=preflight"
    path = f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs"
    jobs = cluster.call("GET", path, {"labelSelector": selector})["items"]
    if not jobs:
        raise CliError(
            f"the preflight Job of {job['metadata']['name']} was deleted, and only its pod spec can read the report. "
            f"Read {job['status']['report']['uri']} with your own credentials"
        )
    template: Object = jobs[0]["spec"]["template"]["spec"]
    return template


def build_pod(job: Object, template: Object, uri: str) -> Object:
    """Return a pod that prints an object of the job's storage.

    Args:
        job: The FineTuneJob.
        template: The pod spec of its preflight.
        uri: Address of the object.
    """
    preflight = next(container for container in template["containers"] if container["name"] == "preflight")
    output = job["spec"]["output"]
    options = [["--endpoint-url", output["s3"].get("endpoint")], ["--region", output["s3"].get("region")]]
    if "secretRef" in output:
        options.append(["--secret-directory", f"{SECRETS_DIRECTORY}/{output['secretRef']['name']}"])
    arguments = [word for option in options if option[1] for word in option]
    meta = job["metadata"]
    owner = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"finetune-report-{uuid.uuid4().hex[:8]}", "ownerReferences": [owner]},
        "spec": {
            **{key: value for key, value in template.items() if key not in ("containers", "initContainers")},
            "restartPolicy": "Never",
            "activeDeadlineSeconds": POD_SECONDS,
            "containers": [
                {
                    **preflight,
                    "name": CONTAINER,
                    "command": ["python", "-m", "finetune_cli.main"],
                    "args": ["read", uri, *arguments],
                }
            ],
        },
    }


def _read(cluster: Cluster, pod: Object, timeout: float) -> bytes:
    """Run the pod, and return what it printed. Raises CliError. The pod is deleted in any case."""
    pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
    path = f"{pods}/{pod['metadata']['name']}"
    cluster.call("POST", pods, None, pod)
    try:
        ended = _wait(cluster, path, timeout)
        content = "\n".join(cluster.lines(f"{path}/log", {"container": CONTAINER}, None))
    finally:
        cluster.call("DELETE", path, {"gracePeriodSeconds": 0})
    if ended["status"]["phase"] != "Succeeded":
        raise CliError(f"the report cannot be read: {quote(content) or ended['status'].get('message', '')}")
    return content.encode()


def _wait(cluster: Cluster, path: str, timeout: float) -> Object:
    deadline = time.monotonic() + timeout
    while True:
        try:
            pod = cluster.call("GET", path)
        except NotFoundError:
            raise CliError("the pod that reads the report was deleted: try again") from None
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return pod
        if time.monotonic() >= deadline:
            raise CliError(f"the pod that reads the report does not run: {waiting_reason(pod, CONTAINER)}")
        time.sleep(PAUSE_SECONDS)
