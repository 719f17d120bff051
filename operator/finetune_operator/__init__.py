"""The operator: a kopf process that turns FineTuneJobs into batch/v1 Jobs and AdapterDeployments into agents.

It knows Kubernetes, and never torch, S3 or the content of a Secret.
"""
