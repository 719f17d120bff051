"""The sidecar in inference pods: it fetches adapters, checks them, loads them into the engine, proves them, and is the pod's gate.

It has no Kubernetes permissions: what is wanted comes as a mounted file, what was found goes out over HTTP, and all work goes on while
the operator is down.
"""
