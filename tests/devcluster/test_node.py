"""A real node runs pods as any cluster does, is repaired, and leaves nothing on the machine when it is taken down."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import cgroups, cluster, images, node, processes
from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from devcluster.settings import load

pytestmark = pytest.mark.node
REPOSITORY = Path(cluster.__file__).parent.parent
NAMESPACE = "devcluster-test"


@pytest.fixture(scope="module")
def image(node_cluster: Cluster) -> str:
    assert node_cluster.registry
    return images.push(images.base_image(), node_cluster.registry)


@pytest.fixture(scope="module")
def kubectl(node_cluster: Cluster) -> Iterator[Any]:
    def run(*arguments: str, stdin: str | None = None) -> str:
        return node_cluster.kubectl(f"--namespace={NAMESPACE}", *arguments, stdin=stdin)

    node_cluster.kubectl("create", "namespace", NAMESPACE)
    yield run
    node_cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def web(kubectl: Any, image: str) -> str:
    """Run a pod that serves its name over HTTP, with a Service and a headless Service; it holds one GPU."""
    serve = (
        "echo from-web > /tmp/index.html && echo about to serve && exec python3 -m http.server 8080 --directory /tmp"
    )
    objects = [
        pod("web", image, ["sh", "-c", serve], gpus=1),
        {"metadata": {"name": "front"}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]}},
        {"metadata": {"name": "each"}, "spec": {"ports": [{"port": 8080}], "clusterIP": "None"}},
    ]
    for service in objects[1:]:
        service.update(apiVersion="v1", kind="Service")
        service["spec"]["selector"] = {"app": "web"}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    kubectl("wait", "pod/web", "--for=condition=Ready", "--timeout=120s")
    return "web"


def pod(name: str, image: str, command: list[str], gpus: int = 0, restart: str = "Always") -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": image, "command": command}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    metadata = {"name": name, "labels": {"app": name}}
    spec = {"restartPolicy": restart, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def fetch(url: str) -> str:
    return f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=5).read().decode().strip())"


def eventually(kubectl: Any, *arguments: str) -> str:
    """Run kubectl until it succeeds, for what takes the cluster a moment."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return str(kubectl(*arguments))
        except DevClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize(
    "url",
    ["http://front", f"http://front.{NAMESPACE}.svc.cluster.local", f"http://each.{NAMESPACE}.svc.cluster.local:8080"],
    ids=["short name", "full name", "headless"],
)
@pytest.mark.parametrize("client", ["web", "other"], ids=["from itself", "from another pod"])
def test_a_pod_is_reached_by_its_services_names(kubectl: Any, web: str, image: str, client: str, url: str) -> None:
    if client == "other":
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump(pod("other", image, ["sleep", "1000"])))
        kubectl("wait", "pod/other", "--for=condition=Ready", "--timeout=60s")
    assert eventually(kubectl, "exec", client, "--", "python3", "-c", fetch(url)) == "from-web\n"


def test_the_host_reaches_services_and_pods_by_address(kubectl: Any, web: str) -> None:
    service = kubectl("get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
    address = kubectl("get", "pod", "web", "-o", "jsonpath={.status.podIP}")
    for url in (f"http://{service}", f"http://{address}:8080"):
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            assert response.read() == b"from-web\n"


def test_logs_are_read(kubectl: Any, web: str) -> None:
    assert "about to serve" in kubectl("logs", "web")


def test_an_unknown_name_is_refused_at_once(kubectl: Any, web: str) -> None:
    look_up = (
        "import socket\ntry: socket.getaddrinfo('no-such-host.example', 80)\n"
        "except socket.gaierror as e: print(e.errno == socket.EAI_NONAME)"
    )
    assert kubectl("exec", "web", "--", "python3", "-c", look_up) == "True\n"


def test_a_pod_speaks_to_the_api_server_with_its_own_token(kubectl: Any, web: str) -> None:
    code = (
        "import ssl, urllib.request, urllib.error\n"
        "at = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
        "trusted = ssl.create_default_context(cafile=at + 'ca.crt')\n"
        "request = urllib.request.Request('https://kubernetes.default.svc/api/v1/secrets',"
        " headers={'Authorization': 'Bearer ' + open(at + 'token').read()})\n"
        "try: urllib.request.urlopen(request, context=trusted)\n"
        "except urllib.error.HTTPError as refused: print(refused.code, refused.read().decode())"
    )
    output = kubectl("exec", "web", "--", "python3", "-c", code)
    assert output.startswith("403")
    assert f"system:serviceaccount:{NAMESPACE}:default" in output


def test_gpus_are_counted(node_cluster: Cluster, kubectl: Any, web: str, image: str) -> None:
    node_gpus = int(
        node_cluster.kubectl("get", "nodes", "-o", r"jsonpath={.items[0].status.allocatable.nvidia\.com/gpu}")
    )
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(pod("too-many", image, ["true"], gpus=node_gpus)))
    kubectl("wait", "pod/too-many", "--for=condition=PodScheduled=false", "--timeout=20s")
    assert "Insufficient nvidia.com/gpu" in kubectl("get", "pod", "too-many", "-o", "jsonpath={.status.conditions}")
    kubectl("delete", "pod", "too-many")


def test_a_container_says_its_last_words(kubectl: Any, image: str) -> None:
    last = pod("last", image, ["sh", "-c", "echo why > /dev/termination-log; exit 3"], restart="Never")
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(last))
    kubectl("wait", "pod/last", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s")
    terminated = json.loads(
        kubectl("get", "pod", "last", "-o", "jsonpath={.status.containerStatuses[0].state.terminated}")
    )
    assert (terminated["exitCode"], terminated["message"]) == (3, "why\n")


def test_load_image_prints_a_reference_that_pods_can_run(node_cluster: Cluster, kubectl: Any, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("loaded\n")
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY words /words\nCMD cat /words\n")
    name = images.build(tmp_path / "Dockerfile", tmp_path, "devcluster-test:dev", base=images.base_image())
    completed = subprocess.run(
        [sys.executable, "-m", "devcluster", "load-image", "--name", node_cluster.name, name],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    kubectl("run", "loaded", f"--image={completed.stdout.strip()}", "--restart=Never")
    kubectl("wait", "pod/loaded", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert kubectl("logs", "loaded") == "loaded\n"


def pids(name: str) -> dict[str, int]:
    return {part["name"]: part["pid"] for part in cluster.status(name)["processes"]}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while processes.start_time(pid) is not None:
        time.sleep(0.01)


def traces(own_home: Path) -> dict[str, object]:
    """Return all that the clusters below `own_home` could leave on the machine; others may come and go meanwhile."""

    def shown(*command: str) -> list[str]:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        # Comments have the time, and counters count.
        return [line.split("[")[0] for line in lines if not line.startswith("#")]

    directory = own_home / "own"
    settings = load("own")
    marks = [
        str(directory),
        cgroups.name(directory),
        node._link_name(directory),
        *([settings.cidr.split(".0.0/")[0] + "."] if settings else []),
    ]
    traces_by_kind = {
        "links": shown("ip", "-oneline", "-brief", "link"),
        "routes": shown("ip", "route"),
        "cgroups": [str(path) for path in cgroups.ROOT.glob("**/finetune-devcluster-*")],
        "mounts": Path("/proc/self/mounts").read_text().splitlines(),
        "processes": shown("ps", "-eww", "-o", "args"),
    }
    traces: dict[str, object] = {
        kind: [line for line in lines if any(mark in line for mark in marks)] for kind, lines in traces_by_kind.items()
    }
    traces["iptables"] = shown("iptables-save")
    traces["mounts on"] = [
        line
        for line in traces_by_kind["mounts"]
        if line.split()[1].startswith(("/run", "/var/log", "/var/lib/cni", "/proc"))
    ]
    traces["sysctls"] = [
        Path("/proc/sys", name).read_text() for name in ("vm/overcommit_memory", "kernel/panic", "net/ipv4/ip_forward")
    ]
    return traces


def network_namespaces() -> set[str]:
    """Return the network namespaces that some process is in."""
    mounts = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            mounts.add(str(link.readlink()))
    return mounts


@pytest.mark.skipif(os.geteuid() != 0, reason="a real node needs root")
def test_a_node_is_repaired_and_leaves_nothing(home: Path) -> None:
    before = traces(home)
    own_cluster = cluster.up("own", "node", gpus=1)
    assert own_cluster.registry
    image = images.push(images.base_image(), own_cluster.registry)
    own_cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(pod("steady", image, ["sleep", "100000"], gpus=1)))
    own_cluster.kubectl("wait", "pod/steady", "--for=condition=Ready", "--timeout=60s")
    assert (
        len(
            node.run_inside(
                cluster._settings_of("own"), ["ip", "-oneline", "link", "show", "pods0"]
            ).stdout.splitlines()
        )
        == 1
    )

    for part in ("kubelet", "containerd"):
        pids_before = pids("own")
        kill(pids_before[part])
        cluster.up("own", "node", gpus=1)
        now = pids("own")
        assert {name for name in now if now[name] != pids_before[name]} == {part}
        assert (
            own_cluster.kubectl("get", "pod", "steady", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
            == "0"
        )
        allocatable = r"jsonpath={.items[0].status.allocatable.nvidia\.com/gpu}"
        assert own_cluster.kubectl("get", "nodes", "-o", allocatable) == "1"

    kill(pids("own")["node"])
    assert cluster.status("own")["problem"] == "the node's namespaces are gone"
    cluster.up("own", "node", gpus=1)
    own_cluster.kubectl(
        "wait", "pod/steady", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "--timeout=60s"
    )
    own_cluster.kubectl("wait", "pod/steady", "--for=condition=Ready", "--timeout=60s")

    namespace = str(Path(f"/proc/{pids('own')['kubelet']}/ns/net").readlink())
    during = traces(home)
    assert [kind for kind in ("links", "routes", "cgroups", "processes") if not during[kind]] == []
    assert cluster.down("own")
    assert traces(home) == before
    assert namespace not in network_namespaces()
    assert not (home / "own").exists()
