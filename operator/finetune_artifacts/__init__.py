"""The S3 protocol: manifests, checkpoints, and verified upload and download.

Used by the trainer, the preflight, the agent and the command line. Nothing here knows torch or Kubernetes.

    store = open_store(location, secret_directory("s3-credentials"), Purpose.OUTPUT)
    files = upload_directory(store, parse_s3_uri("s3://bucket/job/adapter"), directory)
    digest = put_manifest(store, uri, AdapterManifest(..., files=files))
    manifest = download_adapter(store, uri, digest, Path("/adapters/name/digest"))

Whatever goes wrong is an ``ArtifactError`` with a Reason.
"""
