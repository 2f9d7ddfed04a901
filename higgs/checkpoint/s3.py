"""s3://bucket/prefix -> a local folder. s3fs copies, with botocore's settings (AWS_ENDPOINT_URL, AWS_PROFILE, ...)."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnection
from fsspec.callbacks import TqdmCallback
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from higgs.files import replacing

# A server that refuses is reported after a second or two, a silent address after half a minute.
RETRIES, ATTEMPTS = {"mode": "standard", "total_max_attempts": 2}, 3
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 20, "retries": RETRIES}
# A job of hours outlives a restart of the server: it gives up after some two minutes.
PATIENT = TIMEOUTS | {"retries": {"mode": "standard", "total_max_attempts": 8}}
SET_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
SET_ENDPOINT = "AWS_ENDPOINT_URL (the server's address, where it is not Amazon's)"


def download(url: str, patterns: Sequence[str] = ("*",)) -> Path:
    """`s3://bucket/prefix` -> the folder under HIGGS_CACHE with the objects below it whose names match.

    The folder's name is a hash over names, ETags and sizes. A file that exists is complete; one process at a time
    writes. Raises FileNotFoundError (no bucket, no objects), PermissionError (no key, wrong key), ConnectionError (no
    server, broken connection) and OSError (changed during the download), with the address and what to set.
    """
    if not re.match(r"s3://[^/]", url):
        raise ValueError(f"{url!r}: expected s3://bucket/prefix")
    prefix = url.removeprefix("s3://").strip("/") + "/"
    with connect(url) as files:
        objects = {name: (size, etag) for name, size, etag in list_keys(files, url)}
        for name in objects:
            if not {"", ".", ".."}.isdisjoint(name.split("/")):
                raise ValueError(f"{url}: {prefix + name!r} cannot be the path of a file below a folder")
        wanted = [name for name in objects if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not wanted:
            missing = f"no object below {prefix} is named like {' or '.join(patterns)}"
            raise FileNotFoundError(f"{url} at {files.s3.meta.endpoint_url}: {missing}")
        version = json.dumps(sorted(objects.items()))
        cache = Path(os.environ.get("HIGGS_CACHE", Path.home() / ".cache" / "higgs"))
        folder = cache / prefix / hashlib.sha256(version.encode()).hexdigest()[:16]
        if any(not (folder / name).exists() for name in wanted):  # a cache that is complete may be read-only
            folder.mkdir(parents=True, exist_ok=True)
            with folder.with_name(f"{folder.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for name in wanted:
                    if not (folder / name).exists():
                        fetch(files, prefix + name, objects[name], folder / name)
    return folder


@contextmanager
def connect(url: str) -> Iterator[S3FileSystem]:
    """A file system with short timeouts; errors of the server name the address and what to set."""
    with explaining(url):
        files = open_files(TIMEOUTS)
    with explaining(f"{url} at {files.s3.meta.endpoint_url}"):
        yield files


def open_files(settings: dict[str, Any]) -> S3FileSystem:
    # Not out of fsspec's pool of instances: keys and endpoint may have changed since.
    files = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=settings)
    files.retries = ATTEMPTS
    files.s3  # noqa: B018 - connects
    return files


@contextmanager
def patient(url: str) -> Iterator[S3FileSystem]:
    """This process's file system for jobs of many objects, which waits for a server that is restarted."""
    with explaining(url):
        files = _patient_files(os.getpid(), tuple(sorted(pair for pair in os.environ.items() if pair[0][:4] == "AWS_")))
    with explaining(f"{url} at {files.s3.meta.endpoint_url}"):
        yield files


@lru_cache(maxsize=4)
def _patient_files(process: int, settings: tuple) -> S3FileSystem:
    return open_files(PATIENT)


@contextmanager
def explaining(where: str) -> Iterator[None]:
    """Errors of the server get the address, and what to set."""
    try:
        yield
    except (OSError, BotoCoreError, *S3_RETRYABLE_ERRORS) as error:
        if (explained := explain(error, where)) is None:
            raise
        raise explained from error


def list_keys(files: S3FileSystem, url: str) -> Iterator[tuple[str, int, str]]:
    """`s3://bucket/prefix` -> (name below the prefix, size, ETag) of each object, page by page, in order of names.

    `find` would hold a dictionary for each of millions of objects.
    """
    bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
    prefix, more = f"{prefix}/" if prefix else "", {}
    while True:
        page = files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry["Key"].removeprefix(prefix), entry["Size"], entry["ETag"].strip('"')
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def explain(error: Exception, where: str) -> Exception | None:
    """A server's error -> the error to raise; None for those of the disk and of this module."""
    if isinstance(error, NoCredentialsError):
        return PermissionError(f"{where}: no access key. Set {SET_KEYS}.")
    if isinstance(error, NoConnection | HTTPClientError):
        return ConnectionError(f"{where}: no S3 server answers ({error}). Is it up? Check {SET_ENDPOINT}.")
    if isinstance(error, S3_RETRYABLE_ERRORS):
        return ConnectionError(f"{where}: the connection broke ({error}). Run it again: finished files stay.")
    if isinstance(error, PermissionError) and isinstance(error.__cause__, ClientError):
        may = "the key must be allowed to list and to read the bucket, and to write where results go"
        return PermissionError(f"{where}: access denied ({error}). Check {SET_KEYS}; {may}.")
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, ClientError):
        bucket = re.split("[/ ]", where.removeprefix("s3://"))[0]
        names = f"the name of the bucket, {bucket!r}, and of the prefix"
        return FileNotFoundError(f"{where}: {error}. Check {names}, and {SET_ENDPOINT}.")
    if isinstance(error, BotoCoreError) or isinstance(error.__cause__, ClientError):
        return OSError(f"{where}: {error}")
    return None


def fetch(files: S3FileSystem, key: str, listed: tuple[int, str], target: Path) -> None:
    """Copies one object to `target`, which exists only once it is complete and of the listed size and ETag."""
    with replacing(target) as partial:
        progress = TqdmCallback({"unit": "B", "unit_scale": True, "desc": target.name, "disable": None})
        files.get_file(key, str(partial), callback=progress)
        if (partial.stat().st_size, files.info(key)["ETag"].strip('"')) != listed:
            raise OSError(f"s3://{key} was replaced while it was read. Run it again.")
