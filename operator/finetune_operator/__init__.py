"""The kopf process: it knows Kubernetes, and never torch, S3 or the content of a Secret."""
