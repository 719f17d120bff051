"""One pass over one key: gather what is there, plan what to change (pure), apply the difference and write the status.

``finetunejob`` and ``adapterdeployment`` have the same files; the modules beside them are shared. Nothing here knows kopf
or HTTP.
"""
