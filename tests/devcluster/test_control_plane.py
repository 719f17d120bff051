"""A control plane comes up, is repaired, keeps its data, stands beside others and goes away completely."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from devcluster import cluster, controlplane, processes, settings
from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError

pytestmark = pytest.mark.cluster
REPOSITORY = Path(cluster.__file__).parent.parent
PARTS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "devcluster", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def pids(name: str) -> dict[str, int]:
    return {part["name"]: part["pid"] for part in cluster.status(name)["processes"]}


def mentioning(text: str) -> list[str]:
    """Return the command lines of all processes in which `text` occurs."""
    problems = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            problems.append(line)
    return problems


def gone(pid: int) -> bool:
    return processes.start_time(pid) is None


def test_pods_can_be_created_as_soon_as_up_returns(control_plane: Cluster) -> None:
    control_plane.kubectl("run", "first", "--image=none")
    assert control_plane.kubectl("get", "pod", "first", "-o", "jsonpath={.status.phase}") == "Pending"
    control_plane.kubectl("delete", "pod", "first", "--now")


def test_jobs_get_their_pods(control_plane: Cluster) -> None:
    control_plane.kubectl("create", "job", "work", "--image=none", "--", "true")
    control_plane.kubectl("wait", "job/work", "--for=jsonpath={.status.active}=1", "--timeout=20s")
    control_plane.kubectl("delete", "job", "work")


def test_a_second_up_starts_nothing(control_plane: Cluster) -> None:
    before = pids(control_plane.name)
    cluster.up(control_plane.name, "control-plane")
    assert pids(control_plane.name) == before


@pytest.mark.parametrize("part", PARTS)
def test_up_restarts_only_the_part_that_was_killed_and_keeps_the_data(control_plane: Cluster, part: str) -> None:
    control_plane.kubectl("create", "configmap", f"kept-{part}")
    before = pids(control_plane.name)
    os.kill(before[part], signal.SIGKILL)
    while not gone(before[part]):
        time.sleep(0.01)
    assert not cluster.status(control_plane.name)["ready"]
    cluster.up(control_plane.name, "control-plane")
    after = pids(control_plane.name)
    assert {name for name in after if after[name] != before[name]} == {part}
    assert cluster.status(control_plane.name)["ready"]
    control_plane.kubectl("get", "configmap", f"kept-{part}")


def test_who_wrote_what_is_on_record(control_plane: Cluster) -> None:
    control_plane.kubectl("create", "configmap", "recorded")
    audit = control_plane.state_dir / "logs" / "audit.log"
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [event["user"]["username"] for event in events if event["objectRef"].get("name") == "recorded"] == ["admin"]


def test_other_users_cannot_read_the_credentials(control_plane: Cluster) -> None:
    state = control_plane.state_dir
    secrets = [
        control_plane.kubeconfig,
        state / "cluster.json",
        state / "tokens.csv",
        state / "pki",
        *(state / "kubeconfigs").iterdir(),
    ]
    assert [file for file in secrets if file.stat().st_mode & 0o077] == []


def test_two_clusters_side_by_side_and_a_complete_end(home: Path) -> None:
    first, second = cluster.up("one", "control-plane"), cluster.up("two", "control-plane")
    first.kubectl("create", "configmap", "only-in-one")
    assert "only-in-one" not in second.kubectl("get", "configmaps")
    assert cluster.down("one")
    assert second.kubectl("get", "--raw", "/readyz") == "ok"
    assert not list(home.glob("one*"))
    assert mentioning(str(home / "one")) == []
    assert not cluster.down("one")
    assert not list(home.glob("one*"))


def test_down_ends_a_cluster_that_is_half_dead_and_has_lost_its_settings(home: Path) -> None:
    cluster.up("half", "control-plane")
    for part in ("etcd", "kube-scheduler"):
        os.kill(pids("half")[part], signal.SIGKILL)
    (home / "half" / "cluster.json").write_text("{")
    with pytest.raises(DevClusterError, match=r"cluster\.json is damaged .*devcluster down --name half"):
        cluster.status("half")
    assert cluster.down("half")
    assert mentioning(str(home / "half")) == []


def test_down_ends_what_an_up_that_was_killed_had_started(home: Path) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", "devcluster", "up", "--name", "torn"], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    while not (home / "torn" / "run" / "kube-apiserver.pid").exists():
        assert starting.poll() is None
        time.sleep(0.01)
    starting.kill()
    starting.wait()
    assert cluster.down("torn")
    assert mentioning(str(home / "torn")) == []


def test_a_taken_port_is_reported_with_the_end_of_the_log(home: Path) -> None:
    settings = cluster._new_settings("taken", "control-plane")
    settings.save()
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", settings.ports["etcd"]))
        occupant.listen()
        with pytest.raises(
            DevClusterError,
            match=r"(?s)etcd ended right after its start; the end of .*etcd\.log:.*address already in use",
        ):
            cluster.up("taken", "control-plane")


def test_corrupt_data_is_reported_with_the_end_of_the_log(home: Path) -> None:
    cluster._new_settings("corrupt", "control-plane").save()
    log = home / "corrupt" / "etcd" / "member" / "wal" / "0000000000000000-0000000000000000.wal"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"not a log" * 100)
    with pytest.raises(
        DevClusterError,
        match=r"(?s)etcd ended right after its start; the end of .*etcd\.log:.*\.wal\.broken.*panic: .*"
        r"devcluster down --name corrupt",
    ):
        cluster.up("corrupt", "control-plane")


def test_another_mode_needs_a_down_first(control_plane: Cluster) -> None:
    with pytest.raises(DevClusterError, match=rf"exists with --mode control-plane; .*down --name {control_plane.name}"):
        cluster.up(control_plane.name, "kwok")


def test_the_command_line_shows_where_and_how_the_cluster_is(control_plane: Cluster) -> None:
    name = control_plane.name
    assert command("kubeconfig", "--name", name).stdout == f"{control_plane.kubeconfig}\n"
    ran = command("status", "--name", name, "--output", "json")
    status: dict[str, Any] = json.loads(ran.stdout)
    assert (ran.returncode, status["ready"], status["mode"]) == (0, True, "control-plane")
    assert [part["name"] for part in status["processes"]] == PARTS
    assert all(Path(part["log"]).is_file() for part in status["processes"])
    assert "etcd" in command("status", "--name", name).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["kubeconfig", "--name", "absent"],
            "there is no cluster 'absent'; bring it up by: python -m devcluster up --name absent",
        ),
        (["up", "--name", "No_Name"], "cluster name 'No_Name': use up to 40 lower-case letters, digits and dashes"),
        (["up", "--gpus", "-1"], "'-1' is not a whole number of zero or more"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(home: Path, arguments: list[str], message: str) -> None:
    ran = command(*arguments)
    assert ran.returncode != 0
    assert message in ran.stderr


@pytest.mark.exhaustive  # it builds kwok, which the benchmarks alone use
def test_fake_nodes_run_and_end_pods(kwok_cluster: Cluster) -> None:
    kwok_cluster.kubectl("create", "job", "fake", "--image=none", "--", "true")
    kwok_cluster.kubectl("wait", "pod", "-l", "job-name=fake", "--for=condition=Ready", "--timeout=30s")
    outcome = [
        "devcluster.finetune-operator.io/exit-code=0",
        'devcluster.finetune-operator.io/termination-message={"step": 3}',
    ]
    kwok_cluster.kubectl("annotate", "pod", "-l", "job-name=fake", *outcome)
    kwok_cluster.kubectl("wait", "job/fake", "--for=condition=Complete", "--timeout=30s")
    termination_message = "jsonpath={.items[0].status.containerStatuses[0].state.terminated.message}"
    assert kwok_cluster.kubectl("get", "pods", "-l", "job-name=fake", "-o", termination_message) == '{"step": 3}'
    kwok_cluster.kubectl("delete", "job", "fake")


@pytest.mark.exhaustive  # it builds kwok, which the benchmarks alone use
def test_the_number_of_fake_nodes_follows_the_flag(home: Path) -> None:
    fakes = cluster.up("fakes", "kwok", nodes=3, gpus=8)
    cluster.up("fakes", "kwok", nodes=2, gpus=8)
    nodes = json.loads(fakes.kubectl("get", "nodes", "-o", "json"))["items"]
    assert [(node["metadata"]["name"], node["status"]["allocatable"]["nvidia.com/gpu"]) for node in nodes] == [
        ("fake-0", "8"),
        ("fake-1", "8"),
    ]
    assert controlplane.api(settings.load("fakes") or pytest.fail()).problem() is None
