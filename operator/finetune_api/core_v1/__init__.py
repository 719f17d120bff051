"""Define the structures of Kubernetes' core/v1 that a spec has as in a pod, with the API's names.

They are typed, so that ``kubectl apply``, ``finetune validate`` and the operator refuse a wrong field with its path.
A field that is not here cannot be asked for.
"""
