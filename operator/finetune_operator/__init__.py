"""The operator process: it runs FineTuneJobs as batch/v1 Jobs and puts agents into inference workloads.

It knows Kubernetes, and never torch, S3 or the content of a Secret.
"""
