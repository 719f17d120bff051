"""Models that all processes share: both kinds, their reasons, and each message between processes.

Nothing here knows kopf, the Kubernetes client, torch or S3.
"""

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
