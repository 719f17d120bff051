"""The only place that uses the Kubernetes client: objects in and out are plain dictionaries, errors are ours."""
