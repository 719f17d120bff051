"""Run in inference pods as a sidecar: download adapters, check and load them, prove their answers, and gate the pod.

The agent has no Kubernetes permissions, and must know nothing of the operator or the trainer. A mounted file says what
to serve, reports go out over HTTP, and everything goes on while the operator is down.
"""
