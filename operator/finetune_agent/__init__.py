"""Download, load and prove adapters, and gate the pod's readiness, as a sidecar in inference pods.

The agent has no Kubernetes permissions, and must know nothing of the operator or the trainer. A mounted file says what
to serve, reports go out over HTTP, and everything goes on while the operator is down.
"""
