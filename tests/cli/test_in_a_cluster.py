"""Status and watch against a real API server; the test writes the status that the operator would."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Cluster
from finetune_api.finetunejob import FineTuneJob
from finetune_operator.resources.jobs import build_preflight_job
from tests.api.objects import ADAPTER_DEPLOYMENT, DIGEST, FINETUNE_JOB, Object, changed
from tests.cli.run import COMMAND, CommandResult, finetune
from tests.operator.fake_cluster import SETTINGS

pytestmark = pytest.mark.cluster
TRAINING = {
    "phase": "Training",
    "progress": {
        "step": 7,
        "totalSteps": 10,
        "percent": 70,
        "loss": 3.25,
        "tokensPerSecond": 130.4,
        "etaSeconds": 12,
        "updatedAt": "2026-01-01T00:00:00Z",
    },
}
SUCCEEDED = {
    "phase": "Succeeded",
    "evaluation": {"baseLoss": 3.9, "loss": 3.6, "improvementPercent": 7.7, "rows": 200},
    "adapter": {
        "uri": "s3://adapters/a",
        "digest": DIGEST,
        "sizeBytes": 4_900_000,
        "baseModel": "b",
        "peftType": "LORA",
    },
}


class Team:
    """A namespace for one test, and the command line in it."""

    def __init__(self, cluster: Cluster) -> None:
        """Create the namespace."""
        self.cluster = cluster
        self.name = f"cli-{uuid.uuid4().hex[:8]}"
        self.environment = {"KUBECONFIG": str(cluster.kubeconfig)}

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.name, *arguments, stdin=stdin)

    def create(self, item: Object) -> None:
        self.kubectl("create", "-f", "-", stdin=yaml.safe_dump(changed(item, {"metadata.namespace": self.name})))

    def status(self, kind: str, *conditions: tuple[str, str, str, str], **fields: Any) -> None:
        """Write the status of `shakespeare`: conditions as type, status, reason and message."""
        items = [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind, status, reason, message in conditions
        ]
        body = json.dumps({"status": {"observedGeneration": 1, "conditions": items, **fields}})
        self.kubectl("patch", kind, "shakespeare", "--subresource=status", "--type=merge", "-p", body)

    def finetune(self, *arguments: str) -> CommandResult:
        return finetune(*arguments, "--namespace", self.name, environment=self.environment)

    def watching(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, "watch", *arguments, "--namespace", self.name],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def cluster(cluster_with_crds: Cluster) -> Cluster:
    """Return a control plane with both CRDs."""
    return cluster_with_crds


@pytest.fixture
def team(cluster: Cluster) -> Iterator[Team]:
    """Create a namespace for the test."""
    namespace = Team(cluster)
    cluster.kubectl("create", "namespace", namespace.name)
    yield namespace
    cluster.kubectl("delete", "namespace", namespace.name, "--wait=false")


def test_an_empty_namespace_is_said_to_be_empty(team: Team) -> None:
    assert team.finetune("status").out == f"no FineTuneJobs and no AdapterDeployments in namespace {team.name}\n"


def test_the_tables_show_both_kinds(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.status("ftj", ("Ready", "Unknown", "Training", "training"), **TRAINING)
    team.create(changed(ADAPTER_DEPLOYMENT, {"spec.servedName": "bard"}))
    team.status("adp", ("Ready", "Unknown", "RollingOut", "1 of 3"), pods={"total": 3, "updated": 1, "ready": 3})
    job, deployment = [
        line.split() for line in team.finetune("status").out.splitlines() if line.startswith("shakespeare")
    ]
    assert job[:7] == ["shakespeare", "Training", "7/10", "3.250", "12s", "Unknown", "Training"]
    assert deployment[:6] == ["shakespeare", "bard", "vllm", "1/3", "Unknown", "RollingOut"]


def test_json_has_the_objects(team: Team) -> None:
    team.create(FINETUNE_JOB)
    (item,) = json.loads(team.finetune("status", "--output", "json").out)["items"]
    assert (item["kind"], item["metadata"]["name"]) == ("FineTuneJob", "shakespeare")
    assert json.loads(team.finetune("status", "shakespeare", "--output", "json").out)["spec"] == item["spec"]


def test_the_details_say_first_why_it_failed_and_then_what_was_done(team: Team) -> None:
    team.create(FINETUNE_JOB)
    why = "the loss is not finite: lower spec.training.learningRate"
    attempt = {
        "number": 1,
        "jobName": "shakespeare-train-1",
        "reason": "LossDiverged",
        "exitCode": 32,
        "message": why,
        "resumedFromStep": 5,
    }
    team.status(
        "ftj",
        ("Ready", "False", "LossDiverged", why),
        ("Stalled", "True", "LossDiverged", why),
        phase="Failed",
        attempts=[attempt],
        report={"uri": f"s3://adapters/{'long-' * 30}/failed/report.html"},
    )
    shown = team.finetune("status", "shakespeare").out.splitlines()
    assert shown[:3] == [
        f"FineTuneJob {team.name}/shakespeare: Failed",
        f"  LossDiverged: {why}",
        f"  report s3://adapters/{'long-' * 30}/failed/report.html",
    ]
    assert "Attempt 1, shakespeare-train-1: LossDiverged, exit 32, from step 5" in shown
    assert sum(why in line for line in shown) == 2, "the reason, and that of the attempt"
    assert sum(why in line for line in team.finetune("status", "shakespeare", "-o", "wide").out.splitlines()) == 4


def test_the_details_fit_into_a_terminal_of_80_columns(team: Team) -> None:
    team.create(FINETUNE_JOB)
    why = "the bucket adapters does not exist: create it, or correct spec.output.s3.bucket " * 3
    address = f"s3://adapters/{'a' * 90}"
    team.status("ftj", ("Ready", "False", "BucketNotFound", why), report={"uri": address})
    lines = on_a_terminal(team, "status", "shakespeare").splitlines()
    assert [line for line in lines if len(line) > 80] == [f"  {address}"]
    assert lines[1].startswith("  BucketNotFound: the bucket adapters does not exist")


def on_a_terminal(team: Team, *arguments: str) -> str:
    """Return what the command line shows on a terminal of 80 columns."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--namespace", team.name], stdout=child, env={**environment, **team.environment}
    )
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while block := os.read(parent, 4096):
            shown += block
    os.close(parent)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


def test_wide_and_yaml(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.status("ftj", ("Ready", "True", "AdapterVerified", "done"), **SUCCEEDED)
    (row,) = [line for line in team.finetune("status", "-o", "wide").out.splitlines() if "shakespeare" in line]
    assert row.split()[-1] == "s3://adapters/a"
    (item,) = yaml.safe_load(team.finetune("status", "-o", "yaml").out)["items"]
    assert (item["kind"], item["status"]["phase"]) == ("FineTuneJob", "Succeeded")


def test_files_are_validated_against_what_serves_and_the_jobs_of_the_cluster(team: Team) -> None:
    container = {"name": "vllm", "image": "vllm", "args": ["--model=/m", "--enable-lora", "--max-lora-rank=4"]}
    template = {"metadata": {"labels": {"app": "vllm"}}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "vllm"}}, "template": template}
    team.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "vllm"}, "spec": spec})
    team.create(FINETUNE_JOB)
    arguments = ("validate", "-", "--against", "vllm", "-n", team.name)
    serving = yaml.safe_dump(ADAPTER_DEPLOYMENT)
    checked = finetune(*arguments, stdin=serving, environment=team.environment)
    assert checked.code == 1
    assert "the adapter's rank is 8, the maximum of container 'vllm'" in checked.out
    missing = finetune(*arguments[:3], "web", *arguments[4:], stdin=serving, environment=team.environment)
    assert (missing.code, '"web" not found' in missing.err) == (1, True)
    meta = {"name": "vllm-0", "labels": {"app": "vllm"}}
    team.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}})
    serving = yaml.safe_dump(
        changed(ADAPTER_DEPLOYMENT, {"spec.target": {"selector": {"matchLabels": {"app": "vllm"}}}})
    )
    checked = finetune(*arguments[:3], "pod/vllm-0", *arguments[4:], stdin=serving, environment=team.environment)
    assert checked.code == 1
    assert "the maximum of container 'vllm' of Pod 'vllm-0' (--max-lora-rank) is 4" in checked.out


def test_a_job_is_suspended_and_resumed(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.create(ADAPTER_DEPLOYMENT)

    def is_suspended() -> bool:
        return team.kubectl("get", "ftj", "shakespeare", "-o", "jsonpath={.spec.suspend}") == "true"

    assert team.finetune("suspend", "shakespeare").out == "FineTuneJob shakespeare suspended\n"
    assert is_suspended()
    assert team.finetune("suspend", "ftj/shakespeare").out == "FineTuneJob shakespeare is suspended already\n"
    assert team.finetune("resume", "shakespeare").out == "FineTuneJob shakespeare resumed\n"
    assert not is_suspended()


def test_cancel_deletes_the_job_and_only_the_job(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.create(ADAPTER_DEPLOYMENT)
    assert "FineTuneJob shakespeare is deleted" in team.finetune("cancel", "shakespeare").out
    assert team.kubectl("get", "ftj,adp", "-o", "name").split() == [
        "adapterdeployment.finetune-operator.io/shakespeare"
    ]


def test_a_report_is_read_by_a_pod_of_the_preflights_kind_which_never_stays(team: Team, tmp_path: Path) -> None:
    team.create(
        changed(FINETUNE_JOB, {"spec.output.secretRef": {"name": "s3"}, "spec.output.s3.endpoint": "http://s3"})
    )
    assert "has no report yet" in team.finetune("report", "shakespeare").err
    team.status("ftj", ("Ready", "True", "AdapterVerified", "done"), report={"uri": "s3://adapters/a/report.html"})
    assert "the preflight Job of shakespeare was deleted" in team.finetune("report", "shakespeare").err
    resource = json.loads(team.kubectl("get", "ftj", "shakespeare", "-o", "json"))
    preflight = build_preflight_job(resource, FineTuneJob.of(resource), 1, SETTINGS)
    team.kubectl("create", "-f", "-", stdin=yaml.safe_dump(preflight))
    with watched_pods(team) as events:
        timed_out = team.finetune("report", "shakespeare", "-o", str(tmp_path / "report.html"), "--timeout", "1")
        assert (timed_out.code, timed_out.err) == (
            1,
            "error: the pod that reads the report does not run: no nodes available to schedule pods\n",
        )
        pod = next(json.loads(line)["object"] for line in events if "finetune-report-" in line)
    assert pod["spec"]["containers"][0]["args"] == [
        *("read", "s3://adapters/a/report.html", "--endpoint-url", "http://s3"),
        *("--secret-directory", "/etc/finetune/secrets/s3"),
    ]
    assert pod["spec"]["containers"][0]["image"] == SETTINGS.operator_image
    assert {"name": "s3", "path": "/etc/finetune/secrets/s3"} in [
        {"name": "s3", "path": mount["mountPath"]} for mount in pod["spec"]["containers"][0]["volumeMounts"]
    ]
    assert "finetune-report-" not in team.kubectl("get", "pods", "-o", "name")


@contextlib.contextmanager
def watched_pods(team: Team) -> Iterator[Iterator[str]]:
    """Yield the events of the namespace's pods from now on."""
    path = f"/api/v1/namespaces/{team.name}/pods?watch=true&timeoutSeconds=60"
    command = [str(team.cluster.bin("kubectl")), f"--kubeconfig={team.cluster.kubeconfig}", "get", "--raw", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield iter(process.stdout)
        process.terminate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nobody"], "there is no FineTuneJob and no AdapterDeployment 'nobody'"),
        (["watch", "adp/nobody"], "there is no AdapterDeployment 'nobody'"),
        (["logs", "nobody"], "there is no FineTuneJob and no AdapterDeployment 'nobody'"),
        (["watch", "pod/nobody"], "there is no kind 'pod'; write ftj/nobody or adp/nobody"),
        (["compare", "nobody"], "there is no FineTuneJob and no AdapterDeployment 'nobody'"),
    ],
)
def test_what_is_not_there_is_named(team: Team, arguments: list[str], message: str) -> None:
    refused = team.finetune(*arguments)
    assert refused.code == 1
    assert message in refused.err


def test_watch_prints_each_change_once_and_ends_well(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.status("ftj", ("Ready", "Unknown", "PreflightRunning", "checking"), phase="Preflight")
    with team.watching("shakespeare") as process:
        assert process.stdout
        assert process.stdout.readline() == "FineTuneJob shakespeare: Preflight: checking\n"
        team.status("ftj", ("Ready", "Unknown", "Training", "training"), **TRAINING)
        assert (
            process.stdout.readline()
            == "FineTuneJob shakespeare: Training: step 7/10 (70%), loss 3.250, 130 tok/s, 12s left\n"
        )
        team.kubectl("annotate", "ftj", "shakespeare", "nothing=new")
        team.status("ftj", ("Ready", "True", "AdapterVerified", "done"), **SUCCEEDED)
        printed = process.stdout.read().splitlines()
    assert printed == [
        "FineTuneJob shakespeare: Succeeded: done",
        "held-out loss 3.900 → 3.600 (7.7% lower, 200 rows)",
        "adapter s3://adapters/a",
        f"digest {DIGEST} (4.9 MB)",
    ]
    assert process.returncode == 0


def test_watch_ends_with_the_reason_of_a_failure(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.status(
        "ftj",
        ("Ready", "False", "BucketNotFound", "no bucket"),
        ("Stalled", "True", "BucketNotFound", "no bucket"),
        phase="Failed",
    )
    result = team.finetune("watch", "shakespeare")
    assert result.code == 1
    assert "error: FineTuneJob shakespeare: BucketNotFound: no bucket" in result.err


def test_watch_does_not_take_an_older_success_for_the_present_one(team: Team) -> None:
    team.create(FINETUNE_JOB)
    team.status("ftj", ("Ready", "True", "AdapterVerified", "done"), **SUCCEEDED)
    team.kubectl(
        "patch", "ftj", "shakespeare", "--type=merge", "-p", '{"spec":{"failurePolicy":{"retries":{"onError":3}}}}'
    )
    assert team.finetune("watch", "shakespeare", "--timeout", "1").code == 1


def test_watch_ends_when_the_object_is_deleted(team: Team) -> None:
    team.create(FINETUNE_JOB)
    with team.watching("shakespeare") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        team.kubectl("delete", "ftj", "shakespeare")
        assert "error: FineTuneJob shakespeare was deleted" in process.stderr.read()
    assert process.returncode == 1


def test_watch_of_a_name_that_both_kinds_have_waits_for_both(team: Team) -> None:
    for item in (FINETUNE_JOB, ADAPTER_DEPLOYMENT):
        team.create(item)
    team.status("ftj", ("Ready", "True", "AdapterVerified", "done"), **SUCCEEDED)
    assert team.finetune("watch", "ftj/shakespeare").code == 0
    assert team.finetune("watch", "shakespeare", "--timeout", "1").code == 1
    team.status("adp", ("Ready", "True", "Serving", "served"), active={"uri": "s3://adapters/a", "digest": DIGEST})
    assert "shakespeare is served from s3://adapters/a" in team.finetune("watch", "shakespeare").out


def test_logs_of_a_job_without_a_pod_say_how_the_job_is(team: Team) -> None:
    team.create(FINETUNE_JOB)
    refused = team.finetune("logs", "shakespeare")
    assert refused.code == 1
    assert "FineTuneJob shakespeare has no such pod (any more). Its state: Pending" in refused.err


def test_logs_of_a_pod_that_cannot_start_say_why(team: Team) -> None:
    team.create(FINETUNE_JOB)
    labels = {
        "finetune-operator.io/finetunejob": "shakespeare",
        "finetune-operator.io/role": "trainer",
        "batch.kubernetes.io/job-name": "shakespeare-train-1",
    }
    team.status("ftj", attempts=[{"number": 1, "jobName": "shakespeare-train-1"}])
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "shakespeare-train-1", "labels": labels},
        "spec": {"containers": [{"name": "trainer", "image": "none"}]},
    }
    team.create(pod)
    team.kubectl("wait", "pod/shakespeare-train-1", "--for=condition=PodScheduled=False", "--timeout=60s")
    refused = team.finetune("logs", "shakespeare", "--attempt", "1")
    assert refused.code == 1
    assert "pod shakespeare-train-1 has not started: no nodes available" in refused.err
    assert "no such pod" in team.finetune("logs", "shakespeare", "--attempt", "2").err


def test_a_clean_up_that_the_operator_does_not_follow_says_what_is_left(team: Team) -> None:
    team.create(ADAPTER_DEPLOYMENT)
    team.kubectl("create", "configmap", "finetune-adapters-vllm")
    team.kubectl("label", "configmap", "finetune-adapters-vllm", "finetune-operator.io/role=desired-state")
    refused = team.finetune("clean-up", "--timeout", "0")
    assert refused.code == 1
    assert f"ConfigMap {team.name}/finetune-adapters-vllm" in refused.err
    assert team.kubectl("get", "adp", "-o", "name") == ""
    team.kubectl("delete", "configmap", "finetune-adapters-vllm")
    assert team.finetune("clean-up", "--timeout", "0").code == 0


def test_the_clean_up_takes_jobs_along_that_the_garbage_collector_does_not_know_the_owner_of(team: Team) -> None:
    team.create(FINETUNE_JOB)
    pod = {"containers": [{"name": "trainer", "image": "none"}], "restartPolicy": "Never"}
    labels = {"finetune-operator.io/role": "preflight"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": pod}}}
    own_job = {**job, "metadata": {"name": "shakespeare-preflight", "labels": labels}}
    other_job = {**job, "metadata": {"name": "somebody-elses"}}
    team.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([own_job, other_job]))
    result = team.finetune("clean-up", "--timeout", "20")
    assert result.code == 0, result.err
    assert f"deleting FineTuneJob {team.name}/shakespeare" in result.out
    assert team.kubectl("get", "ftj,jobs", "-o", "name").split() == ["job.batch/somebody-elses"]


def test_a_clean_up_releases_what_nobody_cleans_up_in_time_and_names_it(team: Team) -> None:
    retained = changed(FINETUNE_JOB, {"metadata.name": "retained"})
    resource = changed(FINETUNE_JOB, {"spec.output.deletionPolicy": "Delete"})
    finalizers = ["finetune-operator.io/delete-output"]
    team.create(retained)
    team.create({**resource, "metadata": {**resource["metadata"], "finalizers": finalizers}})
    result = team.finetune("clean-up", "--timeout", "2")
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if "in time" in line]
    assert line.startswith(f"FineTuneJob {team.name}/shakespeare was not cleaned up in time: its objects in s3://")
    assert team.kubectl("get", "ftj", "-o", "name") == ""


def test_a_clean_up_leaves_the_jobs_of_those_that_are_cleaned_up(team: Team) -> None:
    resource = changed(FINETUNE_JOB, {"spec.output.deletionPolicy": "Delete"})
    finalizers = ["finetune-operator.io/delete-output"]
    team.create({**resource, "metadata": {**resource["metadata"], "finalizers": finalizers}})
    pod = {"containers": [{"name": "clean-up", "image": "none"}], "restartPolicy": "Never"}
    meta = {"name": "shakespeare-clean-up", "labels": {"finetune-operator.io/role": "clean-up"}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"template": {"spec": pod}}}
    team.kubectl("create", "-f", "-", stdin=yaml.safe_dump(job))
    with subprocess.Popen(
        [*COMMAND, "clean-up", "--timeout", "60", "--namespace", team.name],
        env={**os.environ, **team.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "deleting FineTuneJob" in process.stdout.readline()
        time.sleep(2)
        assert process.poll() is None
        assert "shakespeare-clean-up" in team.kubectl("get", "jobs", "-o", "name")
        team.kubectl("patch", "ftj", "shakespeare", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        assert process.wait(30) == 0
    assert team.kubectl("get", "ftj,jobs", "-o", "name") == ""
