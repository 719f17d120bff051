"""Run FineTuneJobs as batch/v1 Jobs, and put agents into inference workloads: the operator process.

It knows Kubernetes, and never torch, S3 or the content of a Secret.
"""
