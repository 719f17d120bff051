"""A podTemplate with every field that a locked-down cluster asks for, all of it within the restricted standard."""

from typing import Any

SELECTOR = {"matchLabels": {"team": "nlp"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["gpu"]}]}
POD_TEMPLATE: dict[str, Any] = {
    "labels": {"team": "nlp"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "nodeSelector": {"gpu": "a100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]},
                ]
            }
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": SELECTOR, "namespaces": ["team-a"]}
            ],
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 10, "podAffinityTerm": {"topologyKey": "zone", "namespaceSelector": {}}}
            ],
        },
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": SELECTOR},
        {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": SELECTOR},
    ],
    "priorityClassName": "batch",
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
    "serviceAccountName": "default",
    "image": "registry.example.com/trainer@sha256:" + "0" * 64,
    "command": ["accelerate", "launch"],
    "args": ["train.py", "--attempt=$(FINETUNE_ATTEMPT)"],
    "imagePullSecrets": [{"name": "pull"}],
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "envFrom": [{"configMapRef": {"name": "proxy", "optional": True}}, {"prefix": "X_", "secretRef": {"name": "more"}}],
    "volumes": [
        {"name": "ca", "configMap": {"name": "private-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "datasets", "readOnly": True}},
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"serviceAccountToken": {"audience": "vault", "path": "token", "expirationSeconds": 3600}},
                    {"secret": {"name": "keys", "optional": True}},
                    {"configMap": {"name": "settings"}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                ]
            },
        },
        {
            "name": "fast",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "storageClassName": "local",
                        "resources": {"requests": {"storage": "100Gi"}},
                    }
                }
            },
        },
        {"name": "vault", "csi": {"driver": "secrets-store.csi.k8s.io", "readOnly": True}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o440}},
    ],
    "volumeMounts": [
        {"name": "ca", "mountPath": "/etc/ssl/private-ca", "readOnly": True},
        {"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "texts"},
        {"name": "fast", "mountPath": "/scratch"},
    ],
    "securityContext": {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000]},
    "containerSecurityContext": {"readOnlyRootFilesystem": False, "capabilities": {"add": ["NET_BIND_SERVICE"]}},
    "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["hub.example.com"]}],
    "dnsPolicy": "None",
    "dnsConfig": {
        "nameservers": ["10.0.0.53"],
        "searches": ["example.com"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    },
    "terminationGracePeriodSeconds": 300,
}
