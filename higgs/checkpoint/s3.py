"""A prefix of S3 -> a local folder, every file of it verified: the one door to s3fs.

Endpoint, keys, region and profile come from where AWS's own tools take them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, AWS_PROFILE with ~/.aws.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnection
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS
from tqdm import tqdm

BLOCK, REQUESTS = 8 * 2**20, 8  # bytes that a request asks for; requests at a time
# A server that refuses is reported after a second or two, a silent address after half a minute.
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 20, 3
SET_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
SET_ENDPOINT = "AWS_ENDPOINT_URL (the server's address, where it is not Amazon's)"


def download(url: str, patterns: Sequence[str] = ("*",)) -> Path:
    """`s3://bucket/prefix` -> the folder under HIGGS_CACHE that holds the objects below it whose names match.

    What is there already is not fetched again, and a broken download goes on where it stopped. Another version under
    the same name has other tags, and gets a folder of its own. A file gets its name only when size and hash are right.

    Raises FileNotFoundError (no bucket, nothing there), PermissionError (no key, wrong key), ConnectionError (no
    server, broken line) and OSError (damaged or changed on the way), each with the address and what to set.
    """
    if not re.match(r"s3://[^/]", url):
        raise ValueError(f"{url!r}: expected s3://bucket/prefix")
    prefix = url.removeprefix("s3://").strip("/") + "/"
    with connected(url) as files:
        objects = listed(files, url, prefix)
        tags = json.dumps([(i["name"], i["ETag"], i["size"]) for i in objects.values()])
        wanted = {n: o for n, o in objects.items() if any(fnmatchcase(n, p) for p in patterns)}
        if not wanted:
            raise FileNotFoundError(
                f"{url} at {files.s3.meta.endpoint_url}: nothing there. No object below {prefix} "
                f"is named like {' or '.join(patterns)}."
            )
        cache = Path(os.environ.get("HIGGS_CACHE", Path.home() / ".cache" / "higgs"))
        folder = cache / prefix / hashlib.sha256(tags.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        size = sum(info["size"] for info in wanted.values())
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=url, disable=None)
        with alone(folder), bar:
            for name, info in wanted.items():
                fetch(files, info, folder / name, bar)
    return folder


@contextmanager
def connected(url: str) -> Iterator[S3FileSystem]:
    """A file system that does not wait for ever; what goes wrong with it says where, and what to set."""
    where = url
    try:
        # Not out of fsspec's pool of instances: keys and endpoint may have changed since.
        files = S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"mode": "standard", "total_max_attempts": 2},
            },
        )
        files.retries = ATTEMPTS
        where = f"{url} at {files.s3.meta.endpoint_url}"
        yield files
    except (OSError, BotoCoreError, *S3_RETRYABLE_ERRORS) as error:
        told = explained(error, where)
        if told is error:
            raise
        raise told from error


def explained(error: Exception, where: str) -> Exception:
    """-> the error to raise: what came from the server in our words; the disk's errors and our own as they are."""
    if isinstance(error, NoCredentialsError):
        return PermissionError(f"{where}: no access key. Set {SET_KEYS}.")
    if isinstance(error, NoConnection | HTTPClientError):
        return ConnectionError(f"{where}: no S3 server answers ({error}). Is it up? Check {SET_ENDPOINT}.")
    if isinstance(error, S3_RETRYABLE_ERRORS):
        return ConnectionError(f"{where}: the line broke ({error}). Run it again: what has arrived is kept.")
    if isinstance(error, PermissionError) and isinstance(error.__cause__, ClientError):
        return PermissionError(
            f"{where}: access denied ({error}). Check {SET_KEYS}; the key must be allowed to list "
            "and to read the bucket."
        )
    if isinstance(error, BotoCoreError) or isinstance(error.__cause__, ClientError):
        return OSError(f"{where}: {error}")
    return error


def listed(files: S3FileSystem, url: str, prefix: str) -> dict[str, dict[str, Any]]:
    """-> name below the prefix -> what the server says of the object (name, size, ETag), in the order of names."""
    try:
        found = files.find(url, detail=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{url} at {files.s3.meta.endpoint_url}: there is no bucket {prefix.split('/')[0]!r}. "
            f"Check the name, and {SET_ENDPOINT}."
        ) from error
    objects = {}
    for key, info in sorted(found.items()):
        name = key.removeprefix(prefix)
        if key == name or key.endswith("/"):  # the URL is itself an object; the marker of a folder
            continue
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"{url}: {key!r} cannot be the path of a file below a folder")
        objects[name] = info
    return objects


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time writes into a folder; another waits, and then finds the work done."""
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(files: S3FileSystem, info: dict[str, Any], target: Path, bar: tqdm) -> None:
    """One object -> one file, by way of `NAME.part`, which a broken download leaves and the next one continues."""
    if target.exists():
        bar.update(info["size"])
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    with partial.open("ab") as sink:
        bar.update(sink.tell())
        while sink.tell() < info["size"]:
            last = min(info["size"], sink.tell() + REQUESTS * BLOCK)
            starts = list(range(sink.tell(), last, BLOCK))
            ends = [min(last, start + BLOCK) for start in starts]
            # Errors come as results, so that the blocks before the first one are kept.
            for block in files.cat_ranges([info["name"]] * len(starts), starts, ends):
                if isinstance(block, Exception):
                    raise block
                bar.update(sink.write(block))
    if complaint := damage(files, info, partial):
        partial.unlink()
        raise OSError(f"s3://{info['name']} {complaint}")
    partial.rename(target)


def damage(files: S3FileSystem, info: dict[str, Any], path: Path) -> str | None:
    """-> what is wrong with the copy of an object, or None."""
    bucket, key, _ = files.split_path(info["name"])
    tag = info["ETag"].strip('"')
    in_parts = {"PartNumber": 1} if "-" in tag else {}  # then the length is that of the first part
    head = files.call_s3("head_object", Bucket=bucket, Key=key, **in_parts)
    if head["ETag"].strip('"') != tag:
        return "was replaced while it was read. Run it again."
    own_key = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerKeyMD5" in head
    if path.stat().st_size == info["size"]:
        if own_key or has_tag(path, tag, head["ContentLength"]):
            return None
    return (
        f"arrived damaged: size or MD5 is not the server's ({info['size']} bytes, ETag {tag}). "
        "Run it again; if that does not help, upload it anew."
    )


def has_tag(path: Path, tag: str, part_size: int) -> bool:
    """Whether an ETag is the file's; True where that cannot be known.

    It is the MD5 of the bytes; of an object uploaded in parts, the MD5 of the parts' MD5s and their number
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html). Of an object
    encrypted with a key of KMS or of the customer it is neither.
    """
    form = re.fullmatch(r"[0-9a-f]{32}(?:-(\d+))?", tag)
    if form is None:
        return True
    with path.open("rb") as file:
        if form[1] is None:
            return hashlib.file_digest(file, _md5).hexdigest() == tag
        size, parts = path.stat().st_size, []
        if part_size <= 0 or -(-size // part_size) != int(form[1]):
            return True  # a server that does not say how long the parts are
        for end in range(part_size, size + part_size, part_size):
            digest = _md5()
            while block := file.read(min(end - file.tell(), 2**20)):
                digest.update(block)
            parts.append(digest.digest())
    return tag == f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _md5(content: bytes = b"") -> Any:
    return hashlib.md5(content, usedforsecurity=False)
