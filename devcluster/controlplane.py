"""Run etcd, API server, controller manager and scheduler of one cluster; needs no root."""

import base64
import ipaddress
import json
import time
from pathlib import Path
from typing import Any

import yaml

from devcluster import pki, processes
from devcluster.api import Api, http_problem
from devcluster.binaries import program
from devcluster.errors import DevClusterError
from devcluster.processes import Daemon
from devcluster.settings import USERS, Settings

READY_WITHIN_SECONDS = 60.0

# Who wrote what, for counting writes in benchmarks; reads are not recorded.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]}],
}


def bring_up(settings: Settings) -> list[str]:
    """Start the parts of the control plane that do not run, wait for all, and return the names of those started."""
    write_files(settings)
    started = processes.ensure(settings.state_dir, [etcd(settings)])
    started += processes.ensure(settings.state_dir, [apiserver(settings)])
    started += processes.ensure(settings.state_dir, [controller_manager(settings), scheduler(settings)])
    _await_default_service_account(api(settings))
    return started


def api(settings: Settings) -> Api:
    """Return access to the API server as its administrator."""
    return Api(settings.server, (settings.state_dir / "pki" / "ca.crt").read_text(), settings.tokens["admin"])


def write_files(settings: Settings) -> None:
    """Write keys, certificates, tokens, the audit policy and the kubeconfigs."""
    state = settings.state_dir
    pki.ensure(state / "pki", sorted({"127.0.0.1", settings.address, _first_address(settings.service_cidr)}))
    rows = [
        f'{settings.tokens[key]},{user.format(node=settings.node_name)},{key},"{group}"'
        for key, (user, group) in USERS.items()
    ]
    _write_private(state / "tokens.csv", "\n".join(rows) + "\n")
    _write_private(state / "audit-policy.yaml", yaml.safe_dump(AUDIT_POLICY))
    ca = (state / "pki" / "ca.crt").read_bytes()
    for user in USERS:
        _write_private(settings.kubeconfig(user), yaml.safe_dump(_kubeconfig(settings, user, ca)))


def etcd(settings: Settings) -> Daemon:
    """Return the process of the data store, without fsync: a dev cluster need not survive a power cut."""
    client, peer = (f"http://127.0.0.1:{settings.ports[port]}" for port in ("etcd", "etcd-peer"))
    return Daemon(
        "etcd",
        [
            str(program("etcd")),
            f"--data-dir={settings.state_dir / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=10000",
            "--log-level=warn",
        ],
        lambda: http_problem(f"{client}/health"),
    )


def apiserver(settings: Settings) -> Daemon:
    """Return the API server's process."""
    state, keys = settings.state_dir, settings.state_dir / "pki"
    with_node = settings.mode == "node"
    return Daemon(
        "kube-apiserver",
        [
            str(program("kube-apiserver")),
            f"--etcd-servers=http://127.0.0.1:{settings.ports['etcd']}",
            f"--secure-port={settings.ports['kube-apiserver']}",
            f"--bind-address={'0.0.0.0' if with_node else settings.address}",
            f"--advertise-address={settings.address}",
            # A loopback address is refused as an endpoint of the Service `kubernetes`, which only pods need.
            *([] if with_node else ["--endpoint-reconciler-type=none"]),
            f"--cert-dir={keys}",
            f"--tls-cert-file={keys / 'apiserver.crt'}",
            f"--tls-private-key-file={keys / 'apiserver.key'}",
            f"--client-ca-file={keys / 'ca.crt'}",
            f"--kubelet-client-certificate={keys / 'kubelet-client.crt'}",
            f"--kubelet-client-key={keys / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--token-auth-file={state / 'tokens.csv'}",
            f"--service-account-key-file={keys / 'sa.pub'}",
            f"--service-account-signing-key-file={keys / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={settings.service_cidr}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--audit-policy-file={state / 'audit-policy.yaml'}",
            f"--audit-log-path={state / 'logs' / 'audit.log'}",
            "--audit-log-maxsize=200",
            "--audit-log-maxbackup=1",
        ],
        lambda: api(settings).problem(),
        environment=_FEWER_COLLECTIONS,
        configuration=json.dumps(AUDIT_POLICY),
    )


def controller_manager(settings: Settings) -> Daemon:
    """Return the controller manager's process."""
    keys, port = settings.state_dir / "pki", settings.ports["kube-controller-manager"]
    return Daemon(
        "kube-controller-manager",
        [
            str(program("kube-controller-manager")),
            f"--kubeconfig={settings.kubeconfig('kube-controller-manager')}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--service-account-private-key-file={keys / 'sa.key'}",
            f"--root-ca-file={keys / 'ca.crt'}",
            "--use-service-account-credentials",
            "--allocate-node-cidrs=false",
            "--leader-elect=false",
            *_FAST_CLIENT,
        ],
        lambda: http_problem(f"https://127.0.0.1:{port}/healthz"),
    )


def scheduler(settings: Settings) -> Daemon:
    """Return the scheduler's process."""
    port = settings.ports["kube-scheduler"]
    return Daemon(
        "kube-scheduler",
        [
            str(program("kube-scheduler")),
            f"--kubeconfig={settings.kubeconfig('kube-scheduler')}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
            *_FAST_CLIENT,
        ],
        lambda: http_problem(f"https://127.0.0.1:{port}/healthz"),
    )


# A fresh heap is small, so Go collects it all the time. With more room an API server takes a quarter less CPU time.
_FEWER_COLLECTIONS = {"GOGC": "400"}

# The defaults (20 requests a second) would be what a test of thousands of jobs measures.
_FAST_CLIENT = ("--kube-api-qps=500", "--kube-api-burst=1000")


def _await_default_service_account(server: Api) -> None:
    """Wait for the service account that every pod needs, so that pods can be created as soon as `up` returns."""
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while server.get("/api/v1/namespaces/default/serviceaccounts/default") is None:
        if time.monotonic() > deadline:
            raise DevClusterError(
                "the controller manager made no service account `default` in 60 s; see logs/kube-controller-manager.log"
            )
        time.sleep(0.05)


def _kubeconfig(settings: Settings, user: str, ca: bytes) -> dict[str, Any]:
    cluster = {"server": settings.server, "certificate-authority-data": base64.b64encode(ca).decode()}
    context_name = f"devcluster-{settings.name}"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context_name, "cluster": cluster}],
        "users": [{"name": user, "user": {"token": settings.tokens[user]}}],
        "contexts": [{"name": context_name, "context": {"cluster": context_name, "user": user}}],
        "current-context": context_name,
    }


def _first_address(cidr: str) -> str:
    return str(ipaddress.ip_network(cidr)[1])


def _write_private(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    if file.read_text() != content:
        file.write_text(content)
