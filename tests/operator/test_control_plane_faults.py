"""The API server goes away and comes back, or comes back as it was minutes ago: a job ends as without faults."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cluster as clusters
from devcluster import processes
from devcluster.cluster import Cluster
from tests.operator.test_killed import a_hard_life, comparable
from tools.testing.crds import install_crds
from tools.testing.kubernetes_api import Api, Object
from tools.testing.operator_messages import PREFLIGHT_PASSED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.exhaustive]
PROGRAMS = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """Yield a control plane of this module's own, which it may break."""
    name = f"test-broken-{os.getpid()}"
    try:
        cluster = clusters.up(name, "control-plane")
        install_crds(cluster)
        yield cluster
    finally:
        clusters.down(name)


def start_operator(cluster: Cluster, name: str, directory: Path) -> tuple[Operator, Api]:
    cluster.kubectl("create", "namespace", name)
    operator = Operator(cluster.kubeconfig, name, directory / "log")
    return operator.start(), Api(cluster.kubeconfig, name)


def finish(api: Api) -> Object:
    """Let the pods of job a end, and return its final status."""
    with a_hard_life(api):
        return api.await_condition("a", "Ready", "True")


@pytest.fixture(scope="module")
def expected(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Object:
    """Return the final status without faults."""
    operator, api = start_operator(own_cluster, "undisturbed", tmp_path_factory.mktemp("undisturbed"))
    try:
        api.create_job("a")
        return finish(api)
    finally:
        operator.end()


@pytest.mark.chaos("the API server is killed while a trainer runs, and restarted")
def test_the_operator_waits_for_the_api_server_and_the_end_is_the_same(
    own_cluster: Cluster, expected: Object, tmp_path: Path
) -> None:
    operator, api = start_operator(own_cluster, "restarted", tmp_path)
    try:
        api.create_job("a")
        api.end_pod("a-preflight", 0, PREFLIGHT_PASSED)
        api.run_pod("a-train-1")
        processes.stop(own_cluster.state_dir, "kube-apiserver", gently=False)
        clusters.up(own_cluster.name, own_cluster.mode)
        final = finish(api)
        assert comparable(final) == comparable(expected)
        assert api.job_names("a") == ["a-preflight", "a-train-1", "a-train-2"]
        assert operator.process is not None
        assert operator.process.poll() is None, "it is the same process"
    finally:
        operator.end()


@pytest.mark.chaos("etcd is restored to a state before the trainer's Job was created")
def test_after_a_restore_the_operator_begins_anew_and_the_end_is_the_same(
    own_cluster: Cluster, expected: Object, tmp_path: Path
) -> None:
    data, backup = own_cluster.state_dir / "etcd", tmp_path / "etcd"
    operator, api = start_operator(own_cluster, "restored", tmp_path)
    try:
        api.create_job("a")
        api.await_pod("a-preflight")
        stop(own_cluster)
        shutil.copytree(data, backup)
        clusters.up(own_cluster.name, own_cluster.mode)
        api.end_pod("a-preflight", 0, PREFLIGHT_PASSED)
        api.run_pod("a-train-1")
        api.await_condition("a", "Running", "True")
        stop(own_cluster)
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        clusters.up(own_cluster.name, own_cluster.mode)
        assert api.job_names("a") == ["a-preflight"]
        process = operator.process
        assert process is not None
        until("the operator ends, for its Deployment to start it again", lambda: process.poll() is not None)
        assert "earlier state" in operator.log.read_text()
        operator.start()
        final = finish(api)
        assert comparable(final) == comparable(expected)
        assert api.job_names("a") == ["a-preflight", "a-train-1", "a-train-2"]
    finally:
        operator.end()


def stop(cluster: Cluster) -> None:
    for program in PROGRAMS:
        processes.stop(cluster.state_dir, program)
