"""Write the configuration files of a real node (kubelet, containerd, CNI, DNS, registry) from its settings."""

import json
from pathlib import Path
from typing import Any

import yaml

from devcluster import cgroups
from devcluster.node import REGISTRY_PORT, registry_address
from devcluster.paths import cache_dir
from devcluster.settings import Settings

# Below /run, which is the node's own: short enough for sockets, whose paths may have at most 107 characters.
KUBELET_ROOT = "/run/kubelet"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DISABLED_PLUGINS = ("internal.v1.opt", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper")


def write_files(settings: Settings) -> None:
    """Write all configuration files into the state directory."""
    state = settings.state_dir
    for name, content in {
        "kubelet.yaml": kubelet(settings),
        "Corefile": corefile(settings),
        "resolv.conf": f"nameserver {settings.address}\n",
        "containerd.toml": containerd(settings),
        "registry.yaml": registry(),
        "cni/10-pods.conflist": cni(settings),
        f"certs.d/{registry_address(settings)}/hosts.toml": registry_hosts(settings),
    }.items():
        file = state / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def kubelet(settings: Settings) -> str:
    """Return the KubeletConfiguration; it works with cgroup v1, with swap, and next to other kubelets."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(settings.state_dir / "pki" / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroups.name(settings.state_dir)}",
            "clusterDNS": [settings.address],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            # The machine is the developer's: how full its disk is must not evict pods, nor remove images.
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
            },
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "localStorageCapacityIsolation": False,
            "maxPods": 250,
            "registryPullQPS": 0,
            "resolvConf": str(settings.state_dir / "resolv.conf"),
            "serializeImagePulls": False,
            "volumePluginDir": "/run/kubelet-plugins",
        }
    )


def containerd(settings: Settings) -> str:
    """Return containerd's configuration, with images in the image store and its state below the node's own /run."""
    disabled = ", ".join(f'"io.containerd.{plugin}"' for plugin in DISABLED_PLUGINS)
    return f"""version = 2
root = "{settings.image_store}"
state = "/run/containerd"
disabled_plugins = [{disabled}]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause_image()}"
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
# The registry still has them; an image of 6 GB need not be here packed and unpacked.
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{settings.state_dir / "cni"}"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{settings.state_dir / "certs.d"}"
"""


def pause_image() -> str:
    """Return the name of the image that every pod's sandbox runs; it is imported, never pulled."""
    return "localhost/devcluster/pause:1"


def cni(settings: Settings) -> str:
    """Return the pod network: a bridge inside the node's network namespace."""
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods0",
                    "isGateway": True,
                    # The host has a route to the pods, so that it can see them by their own addresses.
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": settings.pod_cidr}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": "/run/cni",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )


def corefile(settings: Settings) -> str:
    """Return the DNS configuration; names outside of the cluster get an immediate NXDOMAIN."""
    return f"""cluster.local in-addr.arpa {{
    bind {settings.address}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {settings.kubeconfig("coredns")}
        pods insecure
    }}
    cache 5
}}
. {{
    bind {settings.address}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def registry() -> str:
    """Return the registry's configuration; all clusters share its storage."""
    return yaml.safe_dump(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(cache_dir() / "registry")}, "delete": {"enabled": True}},
            "http": {"addr": f":{REGISTRY_PORT}"},
        }
    )


def registry_hosts(settings: Settings) -> str:
    """Return containerd's hosts.toml for pulling from the registry over plain HTTP."""
    address = registry_address(settings)
    return f'server = "http://{address}"\n\n[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'


def dns_access() -> list[tuple[str, dict[str, Any]]]:
    """Return path and body of the objects that let CoreDNS read what it serves."""
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "system:coredns"}, "rules": rules}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "system:coredns"}],
    }
    base = Path("/apis") / group / "v1"
    return [(f"{base}/clusterroles/system:coredns", role), (f"{base}/clusterrolebindings/system:coredns", binding)]
