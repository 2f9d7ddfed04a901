"""Checkpoints from the hub: against a stub of it on 127.0.0.1, with a cache of its own for every test."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub._tree_cache
import pytest
from conftest import ROOT
from hub_server import Hub, is_large, point_at, sha256
from test_checkpoints import SHARDS, SMALL_MODEL, original_model_config, write

from higgs import AudioTokenizer, HiggsAudio
from higgs.checkpoint.resolve import fingerprint, resolve
from higgs.checkpoint.tensors import INDEX, PICKLE, SINGLE
from higgs.cli.app import main
from higgs.config import ConfigError

NAME, FIRST, SECOND = "some/higgs", "1" * 40, "2" * 40


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The reference's repository as it was, and as it is since it has transformers' layout too."""
    folder = tmp_path_factory.mktemp("repository")
    text = {
        "tokenizer.json": b"{}", "lexicon.json": b'{"phonemes": "", "words": {}}', "chat_template.jinja": b"{{ x }}",
        "README.md": b"# Higgs", "LICENSE": b"...",
    }  # fmt: skip
    original = read(write("model-original", folder / "model-original"))
    both = original | read(write("model-transformers", folder / "model-transformers", seed=1))
    return {
        "original": original | text,
        "both": both | text | {"pytorch_model.bin": b"older", "img/logo.png": b"png"},
        "codec": read(write("codec-original", folder / "codec-original")),
    }


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    """The stub with both commits, and huggingface_hub pointed at it and at an empty cache."""
    server = Hub()
    server.add(NAME, FIRST, dict(files["original"]))
    server.add(NAME, SECOND, dict(files["both"]))
    server.add("some/codec", FIRST, dict(files["codec"]))
    point_at(server, tmp_path, monkeypatch)
    yield server
    server.shutdown()
    server.server_close()


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("models--*/blobs/*"))


def test_the_commit_of_the_original_is_fetched_whole(hub, files):
    folder = resolve(f"{NAME}@{FIRST}")
    assert folder.name == FIRST
    expected = set(files["original"]) - {"README.md", "LICENSE"}
    assert {path.name for path in folder.iterdir()} == expected
    assert all((folder / name).read_bytes() == files["original"][name] for name in expected)
    assert HiggsAudio.from_pretrained(NAME, revision=FIRST).config == SMALL_MODEL
    assert {path.name for path in resolve("some/codec").iterdir()} == {"config.json", PICKLE}
    assert AudioTokenizer.from_pretrained("some/codec").num_codebooks == 8


def test_of_two_layouts_only_that_of_the_config_is_fetched(hub, files):
    """11.5 GB of the release, not 23."""
    folder = resolve(NAME)
    assert folder.name == SECOND
    assert {path.name for path in folder.iterdir()} == {
        "config.json", INDEX, SINGLE, "tokenizer.json", "lexicon.json", "chat_template.jinja",
    }  # fmt: skip
    large = {sha256(files["both"][name]): name for name in files["both"] if is_large(name)}
    assert {large[name] for name in hub.fetched() & large.keys()} == {SINGLE}
    hub.repositories[NAME][SECOND]["config.json"] = files["original"]["config.json"]
    hub.add(NAME, "3" * 40, hub.repositories[NAME][SECOND])
    assert {path.name for path in resolve(NAME).glob("*.safetensors")} == set(SHARDS)


def test_a_commit_in_the_cache_costs_no_request(hub):
    folder = resolve(f"{NAME}@{SECOND}")
    before = fingerprint(folder)
    hub.log.clear()
    assert resolve(f"{NAME}@{SECOND}") == folder
    assert fingerprint(f"{NAME}@{SECOND}") == before
    assert hub.log == []


def test_a_token_goes_to_the_hub_and_nowhere_else(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    resolve(NAME)
    assert f"/{NAME}/resolve/{SECOND}/{SINGLE}" in hub.trusted
    assert any(path.startswith("/cdn/") for _, path, _ in hub.log)
    assert not [path for path in hub.trusted if path.startswith("/cdn/")]


def test_a_later_run_goes_on_where_the_last_one_broke(hub, files, monkeypatch, tmp_path):
    content = files["both"][SINGLE]
    hub.cut = [1000, 500, 0, 0, 0, 0, 0, 0]  # the library tries again as long as something comes, then five times
    with pytest.raises(OSError) as error:
        resolve(NAME)
    assert f"{NAME}@{SECOND}: {SINGLE}: 1,500 of {len(content):,} bytes" in str(error.value)
    assert [path.name for path in blobs(tmp_path) if is_large(path.name) or path.stat().st_size == 1500] == [
        f"{sha256(content)}.incomplete"
    ]
    hub.cut, hub.log = [], []
    folder = resolve(NAME)
    assert (folder / SINGLE).read_bytes() == content
    ranges = [span for method, path, span in hub.log if path == f"/cdn/{sha256(content)}"]
    assert ranges == ["bytes=1500-"]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    HiggsAudio.from_pretrained(NAME)


def test_a_damaged_download_is_named_and_not_kept(hub, files, tmp_path):
    hub.damage = True
    digest = sha256(files["both"][SINGLE])
    with pytest.raises(OSError, match=f"{SINGLE} arrived damaged: its sha256 is .*, on the hub {digest}"):
        resolve(NAME)
    assert not [path for path in blobs(tmp_path) if path.name.startswith(digest)]
    hub.damage = False
    assert (resolve(NAME) / SINGLE).read_bytes() == files["both"][SINGLE]


@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json"])
def test_a_file_cut_short_in_the_cache_is_named_and_fetched_again(hub, files, name):
    path, content = resolve(NAME) / name, files["both"][name]
    os.truncate(path, 1)
    with pytest.raises(OSError, match=rf"{name} has 1 bytes, on the hub {len(content):,}"):
        resolve(NAME)
    assert (resolve(NAME) / name).read_bytes() == content


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (f"{NAME}@v9", FileNotFoundError, f"no revision 'v9'.*{NAME}@COMMIT"),
        (f"{NAME}@{'9' * 40}", FileNotFoundError, f"no revision '{'9' * 40}'"),
        ("some/nothing", FileNotFoundError, "no folder 'some/nothing' here, and no some/nothing on http"),
        ("some/gated", PermissionError, "some/gated on .* accept its terms.*HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_named(hub, source, error, message):
    hub.add("some/gated", FIRST, {})
    hub.gated.add("some/gated")
    for _ in range(2):
        with pytest.raises(error, match=message):
            resolve(source)
        resolve(NAME)  # another revision in the cache is no replacement


def test_a_config_that_is_not_run_is_refused_before_weights_are_fetched(hub, files):
    config = original_model_config(SMALL_MODEL) | {"skip_audio_tower": False}
    hub.add("some/whisper", FIRST, files["original"] | {"config.json": json.dumps(config).encode()})
    hub.add("some/bert", FIRST, files["original"] | {"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(ConfigError, match="skip_audio_tower is False"):
        resolve("some/whisper")
    with pytest.raises(ConfigError, match="some/bert@main: config.json: not a Higgs Audio V2 config"):
        resolve("some/bert")
    assert not {sha256(content) for content in files["original"].values()} & hub.fetched()


@pytest.mark.parametrize(
    ("missing", "message"),
    [(["config.json"], "holds no config.json"), ([SHARDS[1]], "missing shards"), ([*SHARDS, INDEX], "no model.pth")],
)
def test_a_repository_that_lacks_files_is_named(hub, files, missing, message):
    hub.add("some/half", FIRST, {k: v for k, v in files["original"].items() if k not in missing})
    with pytest.raises(FileNotFoundError, match=message):
        resolve("some/half")


def go_offline(hub: Hub, monkeypatch, how: str) -> None:
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif how == "down":
        hub.down = True
    else:
        hub.shutdown()
        hub.server_close()
    hub.log.clear()


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "down", "unreachable"])
def test_offline_the_cache_has_to_do(hub, monkeypatch, how, tmp_path):
    folder = resolve(NAME)
    resolve("some/codec", weights=False)
    go_offline(hub, monkeypatch, how)
    huggingface_hub.utils.close_session()
    assert resolve(NAME) == resolve(f"{NAME}@{SECOND}") == folder
    HiggsAudio.from_pretrained(NAME)
    with monkeypatch.context() as hurry, pytest.raises(FileNotFoundError) as error:
        hurry.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("it waits to try again"))
        resolve(f"{NAME}@{FIRST}")
    message = str(error.value)
    assert f"{NAME} on {hub.url}" in message and f"does not hold all of revision '{FIRST}'" in message
    assert str(tmp_path / "cache") in message
    assert "HF_HUB_OFFLINE is set" in message if how == "HF_HUB_OFFLINE" else "no answer" in message
    with pytest.raises(
        OSError, match=f"{PICKLE} is not in the cache, and cannot be fetched: .* Run it again with network"
    ):
        resolve("some/codec")
    huggingface_hub.utils.close_session()


def test_a_cache_without_listing_is_read_as_it_is(hub, monkeypatch, tmp_path):
    """As a library before version 2 leaves it."""
    folder = resolve(NAME)
    shutil.rmtree(folder.parent.parent / "trees")
    huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE.clear()
    go_offline(hub, monkeypatch, "HF_HUB_OFFLINE")
    assert resolve(NAME) == folder
    (folder / SINGLE).unlink()
    (folder.parent.parent / "blobs" / "abc.incomplete").touch()
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors.*broken off .*abc.incomplete"):
        resolve(NAME)


@pytest.mark.parametrize(
    ("source", "revision", "error", "message"),
    [
        ("no/such/folder", None, FileNotFoundError, "no such folder, and not a hub id"),
        ("data/nothing/here", None, FileNotFoundError, "root `dvc pull data.dvc` fetches it"),
        ("a/b@1", "2", ValueError, "two revisions"),
        (".", "1", ValueError, "is a folder: it has no revision"),
        ("s3://bucket/a", "1", ValueError, "is a prefix of S3: it has no revision"),
        ("a b/c", None, ValueError, "Repo id must"),
    ],
)
def test_what_is_no_source_is_named(source, revision, error, message):
    with pytest.raises(error, match=message):
        resolve(source, revision)


def test_from_the_command_line(hub, tmp_path, monkeypatch, capsys):
    """In a process of its own, by environment variables alone: what a user does."""
    place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-m", "higgs", "inspect", f"{NAME}@{SECOND}", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | place | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["checkpoints"]
    assert report["config"]["hidden_size"] == 12 and not report["weights"]
    assert "the weights are not in the cache: this is what the config says" in report["notes"]
    assert not [path for _, path, _ in hub.log if path.startswith("/cdn/")]
    monkeypatch.setattr("sys.argv", ["higgs", "inspect", f"{NAME}@v9"])
    assert main() == 1 and f"Error: {NAME} on {hub.url} has no revision" in capsys.readouterr().err.splitlines()[-1]
