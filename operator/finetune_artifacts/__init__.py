"""Store and load artifacts, with verified uploads and downloads, in S3 or in a directory.

Trainer, preflight, agent and command line use it. It must know neither torch nor Kubernetes, and none of its users.

    storage = open_s3(location, secret_directory("s3-credentials"), Purpose.OUTPUT)
    files = upload_directory(storage, parse_s3_uri("s3://bucket/job/adapter"), directory)
    digest = put_manifest(storage, uri, AdapterManifest(..., files=files))
    manifest = download_adapter(storage, uri, digest, Path("/adapters/name/digest"))

Every error is an ``ArtifactError`` with a Reason; a local disk that is full is an ``OSError``.
"""
