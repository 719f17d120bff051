"""Make decisions, one in each file: pure functions of the observed state, each with a table test.

They know neither the Kubernetes client nor the operator's context.
"""
