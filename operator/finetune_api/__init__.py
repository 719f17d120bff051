"""The words that every part of finetune-operator shares: both kinds, their reasons, and each message between processes.

Nothing here knows kopf, the Kubernetes client, torch or S3: it is what one process may say to another, and how it is checked.
"""

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
