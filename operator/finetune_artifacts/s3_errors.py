"""Translate boto3's exceptions into that of this package."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 -- botocore's base class, which is not the builtin
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from finetune_api.limits import quote
from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault, Purpose

_INVALID_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "XAdminUserNotFound",
}
_DENIED = {"AccessDenied", "AllAccessDisabled", "Forbidden", "401", "403", *_INVALID_CREDENTIALS}
_NO_SPACE = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301", "307"}
_TRANSIENT = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "TooManyRequests",
}


def status_of(error: BaseException) -> int:
    """Return the HTTP status of a boto3 error; 0 if it has none."""
    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0


def code_of(error: BaseException) -> str:
    """Return the S3 error code of a boto3 error, such as ``NoSuchKey``, or else the exception's name."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or str(status_of(error))
    return type(error).__name__


def classify_error(error: BaseException) -> Fault:
    """Return the fault for an exception of boto3."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return Fault.DENIED
    if isinstance(error, ResponseParserError | SSLError):
        return Fault.NOT_S3
    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError):
        return Fault.UNREACHABLE
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return Fault.NO_BUCKET
    if code in ("NoSuchKey", "NotFound", "404"):
        return Fault.NO_OBJECT
    if code in _DENIED:
        return Fault.DENIED
    if code in _NO_SPACE:
        return Fault.NO_SPACE
    if code in _REGION:
        return Fault.WRONG_REGION
    if code in ("PreconditionFailed", "412"):
        return Fault.CHANGED
    if code == "NotImplemented":
        return Fault.NO_CONDITIONS
    if code in ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"):
        return Fault.CORRUPT
    if code in _TRANSIENT or status >= 500 or status == 429:
        return Fault.UNREACHABLE
    if status in (401, 403):
        return Fault.DENIED
    return Fault.OTHER


def explain_error(
    purpose: Purpose, endpoint: str, uri: StorageUri, error: ClientError | BotoCoreError | ResponseParserError
) -> ArtifactError:
    """Return the ArtifactError for an exception that boto3 raised for ``uri``. Its message names the remedy."""
    fault, code = classify_error(error), code_of(error)
    if fault is Fault.NO_OBJECT and not uri.key:
        fault = Fault.NO_BUCKET
    location = f"at {endpoint}"
    match fault:
        case Fault.NO_BUCKET:
            text = (
                f"bucket {uri.root!r} does not exist {location}: "
                "create it, or correct the bucket's name or the endpoint"
            )
        case Fault.NO_OBJECT:
            text = f"{uri} does not exist {location}: put it there, or correct the address"
        case Fault.DENIED if isinstance(error, NoCredentialsError | PartialCredentialsError):
            text = (
                f"no credentials for {uri} {location}: "
                "name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in secretRef"
            )
        case Fault.DENIED if code in _INVALID_CREDENTIALS:
            text = (
                f"the credentials are not valid for {uri} {location} ({code}): "
                "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the Secret"
            )
        case Fault.DENIED:
            text = (
                f"access to {uri} is denied {location} ({code}): "
                "allow it for these credentials, or name another Secret in secretRef"
            )
        case Fault.UNREACHABLE if code.isdigit():
            # an answer without an S3 error code, such as a web page
            text = (
                f"the service {location} that answers for {uri} is not an S3 service, or is out of order ({code}): "
                "correct the endpoint, or try again later"
            )
        case Fault.UNREACHABLE:
            text = (
                f"the S3 service {location} does not answer for {uri} ({code}): "
                "check that it runs and that the endpoint can be reached from the pod"
            )
        case Fault.NOT_S3:
            text = (
                f"the service {location} is not an S3 service ({code}): "
                "correct the endpoint, for example https://minio.example.com:9000"
            )
        case Fault.WRONG_REGION:
            text = (
                f"bucket {uri.root!r} is in another region ({code}, {location}): set s3.region to the bucket's region"
            )
        case Fault.NO_SPACE:
            text = f"there is no space left for {uri} {location} ({code}): free some, or raise the quota"
        case Fault.CORRUPT:
            text = (
                f"{uri} arrived damaged {location} ({code}): "
                "try again; if it happens again, check the network and the storage"
            )
        case _:
            text = f"S3 refused the request for {uri} {location}: {quote(str(error))}"
    return ArtifactError(purpose, fault, text)
