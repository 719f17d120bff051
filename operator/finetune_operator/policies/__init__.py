"""Decisions, one in each file: pure functions of what was observed, each with a table test.

They know neither the Kubernetes client nor the operator's context.
"""
