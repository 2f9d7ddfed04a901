"""Data (by DVC) and checkpoints on S3, against a real server: commands of docs/s3.md, faults, versions, security."""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from s3_server import KEYS, Line, Server, be_user, environment, free_ports, md5, serving

from higgs.checkpoint import s3
from higgs.checkpoint.resolve import resolve

DOCUMENT = (ROOT / "docs" / "s3.md").read_text()
BUCKET = "higgs"
FILES = {"config.json": b'{"marker": 1}', "lexicon.json": b"{}", "notes.txt": b"not asked for"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("s3") / "server", BUCKET) as server:
        yield server


def command(text: str) -> list[str]:
    """A command, as words, that docs/s3.md shows exactly so."""
    assert re.search(rf"^{re.escape(text)}( +#.*)?$", DOCUMENT, re.MULTILINE), f"not in docs: {text}"
    return shlex.split(text)


# Checkpoints by s3://


@pytest.fixture
def surroundings(server, tmp_path, monkeypatch):
    """The settings of a user with the writer's keys, and an empty cache. -> sets others."""

    def use(endpoint: str, key: str | None = "writer", secret: str | None = None) -> None:
        be_user(monkeypatch, endpoint, key, secret)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HIGGS_CACHE", str(tmp_path / "cache"))
    use(server.endpoint)
    return use


@pytest.fixture
def prefix(server, request) -> str:
    """A checkpoint's files under a name that no other test uses. -> `bucket/prefix`."""
    name = re.sub(r"\W+", "-", request.node.name)
    for file, content in FILES.items():
        server.client.put_object(Bucket=BUCKET, Key=f"{name}/{file}", Body=content)
    return f"{BUCKET}/{name}"


def put(server: Server, prefix: str, name: str, content: bytes) -> None:
    server.client.put_object(Bucket=BUCKET, Key=f"{prefix.split('/')[1]}/{name}", Body=content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Reads(list):
    """A hook that lets everything pass and collects the names of the objects that were read."""

    def __call__(self, up: bool, piece: bytes, passed: int) -> bytes:
        if up and (read := re.match(rb"GET /\S*/([\w.]+)\S* HTTP", piece)):
            self.append(read[1].decode())
        return piece


def test_a_prefix_becomes_a_folder_and_is_fetched_once(server, surroundings, prefix):
    reads = Reads()
    with Line(server.port, reads) as line:
        surroundings(line.endpoint, "reader")
        small = resolve(f"s3://{prefix}/", weights=False)
        assert contents(small) == {name: FILES[name] for name in ("config.json", "lexicon.json")}
        assert sorted(reads) == ["config.json", "lexicon.json"]
        assert resolve(f"s3://{prefix}") == small and len(reads) == 2


def test_a_cache_that_is_complete_is_not_written_to(server, surroundings, prefix):
    """It may be another user's, or lie on a disk for reading only."""
    cache = Path(os.environ["HIGGS_CACHE"])
    folder = resolve(f"s3://{prefix}")
    for lock in cache.rglob("*.lock"):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert resolve(f"s3://{prefix}") == folder
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_changed_object_is_another_version(server, surroundings, prefix):
    before = resolve(f"s3://{prefix}")
    put(server, prefix, "config.json", FILES["config.json"].replace(b"1", b"2"))
    after = resolve(f"s3://{prefix}")
    assert after != before
    assert (after / "config.json").read_bytes() == b'{"marker": 2}'
    assert (before / "config.json").read_bytes() == b'{"marker": 1}'


def test_the_engine_speaks_from_a_bucket(server, surroundings, nano):
    from higgs import Engine, SamplingConfig
    from higgs.data.chatml import smart_voice

    for part in ("model", "codec"):
        server.put(nano / part, BUCKET, f"nano/{part}")
    place = f"s3://{BUCKET}/nano"
    for part in ("model", "codec"):
        assert contents(resolve(f"{place}/{part}")) == contents(nano / part)
    engine = Engine.from_pretrained(f"{place}/model", f"{place}/codec", device="cpu")
    prompt = smart_voice("Good morning.", speaker="feminine")
    codes = engine.generate(prompt, SamplingConfig(seed=0), max_new_tokens=12).codes
    assert codes.shape[0] == 8 and codes.shape[1] > 0


def cut_after(limit: int):
    """A hook that cuts the connections once `limit` bytes have come from the server."""

    def cut(up: bool, piece: bytes, passed: int) -> bytes | None:
        nonlocal limit
        limit -= 0 if up else len(piece)
        return piece if limit > 0 else None

    return cut


def test_after_a_broken_download_finished_files_are_not_fetched_again(server, surroundings, prefix):
    weights = os.urandom(10 * 2**16)
    put(server, prefix, "model.safetensors", weights)
    with Line(server.port, lambda up, piece, passed: piece if up or passed < 2**17 else None) as line:
        surroundings(line.endpoint)
        with pytest.raises(ConnectionError, match=f"s3://{prefix} at {line.endpoint}: the connection broke"):
            resolve(f"s3://{prefix}")
    with Line(server.port, cut_after(2**18)) as line:
        surroundings(line.endpoint)
        with pytest.raises(ConnectionError, match=f"s3://{prefix} at {line.endpoint}: "):
            resolve(f"s3://{prefix}")
    left = contents(Path(os.environ["HIGGS_CACHE"]) / prefix)
    assert {Path(name).name for name in left if not name.endswith(".lock")} == {"config.json", "lexicon.json"}
    reads = Reads()
    with Line(server.port, reads) as line:
        surroundings(line.endpoint)
        folder = resolve(f"s3://{prefix}")
    assert (folder / "model.safetensors").read_bytes() == weights and set(reads) == {"model.safetensors"}


def reads_config(up: bool, piece: bytes) -> bool:
    return up and re.match(rb"GET \S*/config\.json", piece) is not None


def test_an_object_replaced_while_it_is_read(server, surroundings, prefix):
    """The listing names one version, the bytes are of another: no mixture gets a name."""

    def replace(up: bool, piece: bytes, passed: int) -> bytes:
        if reads_config(up, piece):
            put(server, prefix, "config.json", FILES["config.json"].replace(b"1", b"3"))
        return piece

    with Line(server.port, replace) as line:
        surroundings(line.endpoint)
        with pytest.raises(OSError, match=f"s3://{prefix}/config.json was replaced"):
            resolve(f"s3://{prefix}")
    surroundings(server.endpoint)
    assert contents(resolve(f"s3://{prefix}"))["config.json"] == b'{"marker": 3}'


def test_only_one_process_at_a_time_writes_a_folder(server, surroundings, prefix):
    found = []

    def free() -> bool:
        (path,) = Path(os.environ["HIGGS_CACHE"]).rglob("*.lock")
        with path.open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def look(up: bool, piece: bytes, passed: int) -> bytes:
        if reads_config(up, piece):
            found.append(free())
        return piece

    with Line(server.port, look) as line:
        surroundings(line.endpoint)
        resolve(f"s3://{prefix}")
    assert found == [False] and free()


def test_no_object_is_written_outside_the_folder(server, surroundings, prefix, monkeypatch):
    monkeypatch.setattr(s3, "list_keys", lambda files, url: iter([("../../x", 1, "etag")]))
    with pytest.raises(ValueError, match=re.escape(f"{prefix}/../../x")):
        resolve(f"s3://{prefix}")
    assert contents(Path(os.environ["HIGGS_CACHE"])) == {}


# What is wrong -> whose key, its secret.
SETTINGS = {"wrong secret": ("writer", "wrong"), "unknown key": ("nobody", "wrong"), "no key": (None, None)}


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("wrong secret", PermissionError, "signature .* Check AWS_ACCESS_KEY_ID"),
        ("unknown key", PermissionError, "key ID .* Check AWS_ACCESS_KEY_ID"),
        ("no key", PermissionError, "Set AWS_ACCESS_KEY_ID"),
        ("server down", ConnectionError, "Check AWS_ENDPOINT_URL"),
        ("bucket missing", FileNotFoundError, "'no-such-bucket'.* AWS_ENDPOINT_URL"),
        ("nothing under the prefix", FileNotFoundError, "no object"),
    ],
)
def test_a_fault_names_the_address_and_what_to_set(server, surroundings, prefix, fault, error, message):
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}" if fault == "server down" else server.endpoint
    surroundings(endpoint, *SETTINGS.get(fault, ()))
    urls = {"bucket missing": "s3://no-such-bucket/p", "nothing under the prefix": f"s3://{prefix}x"}
    url = urls.get(fault, f"s3://{prefix}")
    with pytest.raises(error, match=f"(?s)^{url} at {endpoint}: .*{message}"):
        resolve(url)
    assert contents(Path(os.environ["HIGGS_CACHE"])) == {}


def test_other_mistakes(surroundings, monkeypatch):
    with pytest.raises(ValueError, match=r"expected s3://bucket/prefix"):
        resolve("s3:///prefix")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(OSError, match=r"^s3://b/p: The config profile \(nobody\) could not be"):
        resolve("s3://b/p")


def test_an_error_of_the_disk_stays_one(server, surroundings, prefix, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HIGGS_CACHE", str(tmp_path / "file"))
    with pytest.raises(NotADirectoryError):
        resolve(f"s3://{prefix}")


# Data by DVC


def run(folder: Path, *words: str, settings: dict | None = None) -> tuple[int, str]:
    """A command with nothing of this machine's settings -> exit code, stdout and stderr."""
    home = os.environ["S3_TEST_HOME"]
    variables = (settings or {}) | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": home,
        "DVC_SITE_CACHE_DIR": f"{home}/site",
        "DVC_NO_ANALYTICS": "1",
        **{f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    result = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def done(folder: Path, *words: str, settings: dict | None = None) -> str:
    code, output = run(folder, *words, settings=settings)
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def repository(server, tmp_path_factory) -> Path:
    """A small repository with this one's settings of Git, DVC and make; its data are pushed by `make s3`."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S3_TEST_HOME", str(home))
        folder = new_repository(home / "repository")
        for name in ("Makefile", "constraints.txt", "pyproject.toml", "requirements-judges.txt"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        (folder / ".venv" / "installed").write_text(f"{folder.resolve()}\n")  # later than what it hangs on
        for name in ("ada", "ben", "eva"):
            (folder / "data" / f"{name}.flac").write_bytes(os.urandom(300_000))
        done(folder, "dvc", "add", "--quiet", "data")
        done(folder, "git", "add", "--all")
        done(folder, "git", "commit", "--quiet", "--message", "data")
        address = [f"URL=s3://{BUCKET}/team", f"ENDPOINT={server.endpoint}"]
        assert f"now use s3://{BUCKET}/team" in done(folder, "make", "s3", *address)
        output = done(folder, *command("dvc push"), settings=environment("http://unused"))
        assert "4 files pushed" in output
        yield folder


def new_repository(folder: Path) -> Path:
    (folder / ".dvc").mkdir(parents=True)
    (folder / "data").mkdir()
    for name in (".gitignore", ".dvcignore", ".dvc/config"):
        shutil.copy(ROOT / name, folder / name)
    done(folder, "git", "init", "--quiet", "--initial-branch=main")
    return folder


def point(folder: Path, url: str, endpoint: str) -> Path:
    """What `make s3` writes."""
    config = f"[core]\nremote = s3\n['remote \"s3\"']\nurl = {url}\nendpointurl = {endpoint}\n"
    (folder / ".dvc" / "config.local").write_text(config)
    return folder


def clone(repository: Path, folder: Path, url: str, endpoint: str) -> Path:
    """A fresh one: its cache is empty, and it has the data of `url`."""
    done(repository, "git", "clone", "--quiet", str(repository), str(folder))
    return point(folder, url, endpoint)


def copy(repository: Path, folder: Path, url: str, endpoint: str) -> Path:
    """One with the data in its cache, about to push them to `url`."""
    shutil.copytree(repository, folder, symlinks=True)
    return point(folder, url, endpoint)


def data(folder: Path) -> dict[str, bytes]:
    return contents(folder / "data")


def check_md5(objects: dict[str, bytes]) -> dict[str, bytes]:
    """Every object has the bytes that its name says."""
    for key, content in objects.items():
        assert md5(content) == key.rpartition("md5/")[2].replace("/", "").removesuffix(".dir"), key
    return objects


def check_cache(folder: Path) -> None:
    check_md5(contents(folder / ".dvc" / "cache" / "files" / "md5"))


def check_bucket(server: Server, prefix: str) -> dict[str, bytes]:
    return check_md5(server.objects(BUCKET, f"{prefix}/files/md5/"))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_switch_changes_nothing_tracked_and_has_a_way_back(server, repository, tmp_path):
    local = (repository / ".dvc" / "config.local").read_text()
    assert f"url = s3://{BUCKET}/team" in local and "remote = s3" in local
    assert not any(secret in local for secret in (*KEYS.values(), "key"))
    assert done(repository, "git", "status", "--porcelain") == ""
    folder = tmp_path / "clone"
    shutil.copytree(repository, folder, symlinks=True)
    for words in (["URL=http://somewhere"], ["URL=s3://"], []):
        code, output = run(folder, "make", "s3", *words, settings={"URL": "s3://from/outside"})
        assert code != 0 and "make s3 URL=s3://bucket/prefix" in output
    assert "now use the store in the repository" in done(folder, "make", "s3", "URL=")
    assert "remote = " not in (folder / ".dvc" / "config.local").read_text()
    assert done(folder, "git", "status", "--porcelain") == ""


def test_pull_into_a_fresh_clone_with_a_key_that_only_reads(server, repository, tmp_path):
    folder = clone(repository, tmp_path / "clone", f"s3://{BUCKET}/team", server.endpoint)
    done(folder, *command("dvc pull data.dvc"), settings=environment("http://unused", "reader"))
    assert data(folder) == data(repository) and len(data(folder)) == 3
    check_cache(folder)
    check_bucket(server, "team")


def test_an_altered_object_is_noticed_named_and_repaired(server, repository, tmp_path):
    """Same name, same size, other bytes: `verify = true` is what notices."""
    settings = environment(server.endpoint)
    url = f"s3://{BUCKET}/altered"
    folder = copy(repository, tmp_path / "copy", url, server.endpoint)
    done(folder, "dvc", "push", settings=settings)
    good = check_bucket(server, "altered")
    bad = next(key for key, content in good.items() if len(content) == 300_000)
    server.client.put_object(Bucket=BUCKET, Key=bad, Body=bytes(300_000))

    fresh = clone(repository, tmp_path / "fresh", url, server.endpoint)
    code, _ = run(fresh, "dvc", "pull", settings=settings)
    assert code != 0 and data(fresh) == {}
    check_cache(fresh)
    words = command("dvc fetch -v 2>&1 | grep 'corrupted cache file'")
    output = run(fresh, *words[:3], settings=settings)[1]
    (named,) = re.findall(r"corrupted cache file '.*/(files/md5/\w\w/\w+)'", output)
    assert bad == f"altered/{named}"
    check_cache(fresh)

    # A push trusts its notes of what the bucket holds, until the folder's own object is missing.
    assert "up to date" in done(folder, "dvc", "push", settings=settings)
    (listing,) = (key for key in good if key.endswith(".dir"))
    words = command("python -c \"import s3fs; s3fs.S3FileSystem().rm(['bucket/OBJECT', 'bucket/LISTING'])\"")
    code = words[2].replace("bucket/OBJECT", f"{BUCKET}/{bad}").replace("bucket/LISTING", f"{BUCKET}/{listing}")
    done(folder, sys.executable, "-c", code, settings=settings)
    assert "2 files pushed" in done(folder, "dvc", "push", settings=settings)
    assert check_bucket(server, "altered") == good
    done(fresh, "dvc", "pull", settings=settings)
    assert data(fresh) == data(repository)


def test_garbage_is_collected_and_nothing_else(server, repository, tmp_path):
    """Versions of an earlier commit and of another branch stay; one that was never committed goes."""
    settings = environment(server.endpoint)
    author = new_repository(tmp_path / "author")
    point(author, f"s3://{BUCKET}/versions", server.endpoint)
    clip = author / "data" / "clip.flac"
    for text in ("never committed", "on another branch", "on main"):
        clip.write_text(text)
        done(author, "dvc", "add", "--quiet", "data")
        if text == "never committed":
            done(author, "dvc", "push", settings=settings)
            continue
        done(author, "git", "add", "--all")
        done(author, "git", "commit", "--quiet", "--message", text)
        if "branch" in text:
            done(author, "git", "branch", "--quiet", "other")
    done(author, *command("dvc push --all-commits --remote s3"), settings=settings)
    before = check_bucket(server, "versions")
    assert len(before) == 6 and b"never committed" in before.values()

    # Someone else tidies up, from a clone that has never held the data.
    folder = clone(author, tmp_path / "clone", f"s3://{BUCKET}/versions", server.endpoint)
    done(folder, *command("git fetch --all --tags"))
    done(folder, *command("dvc fetch --all-commits --remote s3"), settings=settings)
    dry = command("dvc gc --all-commits --cloud --remote s3 --dry")
    output = done(folder, *dry, settings=settings)
    assert len(re.findall("^Removing", output, re.MULTILINE)) == 2
    assert check_bucket(server, "versions") == before
    done(folder, *command("dvc gc --all-commits --cloud --remote s3 --force"), settings=settings)
    after = check_bucket(server, "versions")
    assert len(after) == 4 and {b"on another branch", b"on main"} <= set(after.values())
    assert b"never committed" not in after.values()

    # Why not `--workspace`, and not in a shallow clone: both would take the version of the branch.
    output = done(folder, "dvc", "gc", "--workspace", "--cloud", "--dry", settings=settings)
    assert len(re.findall("^Removing.*versions", output, re.MULTILINE)) == 2
