"""A stub of the Hugging Face hub on 127.0.0.1, with the few addresses that a download asks for, and faults on demand.

Addresses as huggingface_hub 2.4 requests them: `/api/models/NAME/revision/REV`, `/api/models/NAME/tree/REV`, and
`/NAME/resolve/REV/FILE`, which redirects large files to `/cdn/SHA256` as the hub does.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str) -> bool:
    """Which files the hub keeps in LFS."""
    return path.endswith((".safetensors", ".pth", ".bin"))


class Hub(ThreadingHTTPServer):
    """`repositories[name][commit]` is a dict of files; `branches[name]` says which commit `main` is.

    `log` holds (method, path, Range header) of every request, `trusted` the paths that a token was sent to. `cut`
    lists how many bytes of the next large downloads arrive before the connection breaks. `down` answers 503; `damage`
    flips a bit of large files.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, str] = {}
        self.gated: set[str] = set()
        self.log: list[tuple[str, str, str | None]] = []
        self.trusted: list[str] = []
        self.cut: list[int] = []
        self.down = self.damage = False
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.elsewhere = f"http://localhost:{self.server_port}"  # as the hub's large files are on other hosts
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        """A new commit of a repository, which `main` then is."""
        self.repositories.setdefault(name, {})[commit] = files
        self.branches[name] = commit

    def fetched(self) -> set[str]:
        """The files whose content was asked for; the large ones by their hash."""
        return {path.rsplit("/", 1)[1] for method, path, _ in self.log if method == "GET" and "/api/" not in path}


def point_at(server: Hub, folder: Path, monkeypatch) -> None:
    """huggingface_hub of this process, pointed at the stub and at an empty cache in `folder`."""
    import huggingface_hub.file_download

    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # granularity of a partial file
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.setattr(constants, name, True)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path, self.headers.get("Range")))
        if "Authorization" in self.headers:
            self.server.trusted.append(path)
        if self.server.down:
            return self.answer(503, b"down")
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            return self.content(match[1])
        if not (match := re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)):
            return self.answer(404, b"")
        name, what, revision, file = match.groups()
        if name not in self.server.repositories:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if name in self.server.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        commit = self.server.branches[name] if revision == "main" else revision
        if commit not in self.server.repositories[name]:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.server.repositories[name][commit]
        if what == "revision":
            return self.answer(200, json.dumps({"id": name, "sha": commit, "siblings": []}).encode())
        if what == "tree":
            return self.answer(200, json.dumps([entry(path, files[path]) for path in files]).encode())
        self.resolve(commit, file, files)

    def resolve(self, commit: str, file: str, files: dict[str, bytes]) -> None:
        headers = {"X-Repo-Commit": commit}
        if file not in files:
            return self.answer(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        content = files[file]
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if not is_large(file):
            return self.answer(200, content, headers)
        linked = {"X-Linked-ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        self.answer(302, b"", headers | linked | {"Location": f"{self.server.elsewhere}/cdn/{sha256(content)}"})

    def content(self, digest: str) -> None:
        """A large file, from where the Range header says."""
        every = (
            f for commits in self.server.repositories.values() for files in commits.values() for f in files.values()
        )
        content = next(content for content in every if sha256(content) == digest)
        if self.server.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.send_response(206 if start else 200)
        for key, value in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            until = start + self.server.cut.pop(0) if self.server.cut else len(content)
            self.wfile.write(content[start:until])
            self.close_connection = True

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def entry(path: str, content: bytes) -> dict:
    """One file of a listing."""
    listed = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if is_large(path):
        listed["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return listed
