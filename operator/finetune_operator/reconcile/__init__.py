"""Make one pass over one key: gather, plan (pure), apply, and write the status.

``finetunejob`` and ``adapterdeployment`` have the same files, and share the modules of this package. It knows neither
kopf nor the HTTP server.
"""
