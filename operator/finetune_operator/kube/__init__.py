"""Calls to the API server: plain dictionaries in and out, with errors of our own.

Only this package uses the Kubernetes client; it does not know what the operator decides.
"""
