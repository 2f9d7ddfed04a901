"""Data and results are the files that DVC recorded: before the stages run, and after."""

import json
import os
import re
import subprocess
import sys
from hashlib import md5
from pathlib import Path

import pytest
from conftest import ROOT

from higgs.workflow import verify


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """data/ and results/ of two files each, metrics.json, and the cache, as DVC leaves them."""
    outs = []
    for folder in ("data", "results"):
        entries = [{"md5": stored(tmp_path / folder / name, name), "relpath": name} for name in ("a.bin", "b c.bin")]
        content = json.dumps(entries)
        digest = md5(content.encode()).hexdigest()
        write(verify.cached(tmp_path, f"{digest}.dir"), content)
        outs.append({"md5": f"{digest}.dir", "path": folder})
    outs.append({"md5": stored(tmp_path / "metrics.json", "{}"), "path": "metrics.json"})
    verify.cached(tmp_path, outs[-1]["md5"]).unlink()  # `cache: false`
    write(tmp_path / "data.dvc", json.dumps({"outs": outs[:1]}))
    write(tmp_path / "dvc.lock", json.dumps({"stages": {"evaluate": {"outs": outs[1:]}, "page": {}}}))
    write(tmp_path / "dvc.yaml", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def stored(path: Path, content: str) -> str:
    """The file, and its copy in the cache -> the md5."""
    digest = md5(content.encode()).hexdigest()
    write(path, content)
    write(verify.cached(root_of(path), digest), content)
    return digest


def root_of(path: Path) -> Path:
    return path.parent if path.name == "metrics.json" else path.parent.parent


def object_of(path: Path) -> Path:
    return verify.cached(root_of(path), md5(path.read_bytes()).hexdigest())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


# Recorded in, the damaged file, whether its copy in the cache is damaged too, words of the message.
DAMAGE = [
    ("data.dvc", "data/a.bin", True, "data/a.bin has the md5"),
    ("data.dvc", "data/b c.bin", False, "data/b c.bin has the md5"),
    ("data.dvc", "data", True, "which lists the files of data, is damaged"),
    ("dvc.lock", "results/a.bin", True, "results/a.bin has the md5"),
    ("dvc.lock", "metrics.json", False, "metrics.json has the md5"),
]  # fmt: skip


@pytest.mark.parametrize(("recorded", "name", "in_cache", "words"), DAMAGE)
def test_a_damaged_file_is_named_and_its_removal(repository, capsys, recorded, name, in_cache, words):
    assert verify.main(["data.dvc", "dvc.lock"]) == 0 and capsys.readouterr().err == ""
    path = repository / name
    delete = [path] if path.is_file() else []
    if path.is_dir():
        (out,) = verify.outputs(repository / recorded)
        delete = [verify.cached(repository, out["md5"])]
    elif in_cache:
        delete.append(object_of(path))
    good = [file.read_bytes() for file in delete]
    for file in delete:
        flip(file)
    assert verify.main([recorded]) == 1
    message = capsys.readouterr().err
    assert words in message and message.endswith(" && make repro\n")
    (line,) = re.findall(r"^    (rm .*) && make repro$", message, re.M)
    subprocess.run(line, shell=True, cwd=repository, check=True)
    assert not any(file.exists() for file in delete)
    for file, content in zip(delete, good, strict=True):
        file.write_bytes(content)
    assert verify.main([recorded]) == 0


def test_what_is_missing_is_named_and_what_cannot_be_compared_is_said(repository, capsys):
    (repository / "results" / "a.bin").unlink()
    assert verify.main(["dvc.lock"]) == 1 and "results/a.bin is missing" in capsys.readouterr().err
    (out,) = verify.outputs(repository / "data.dvc")
    verify.cached(repository, out["md5"]).unlink()
    assert verify.main(["data.dvc"]) == 0 and "data is not compared" in capsys.readouterr().err


def test_make_repro_looks_before_and_after():
    done = subprocess.run(["make", "-n", "repro"], cwd=ROOT, capture_output=True, text=True, check=True)
    steps = re.findall(r"dvc pull|dvc repro|verify data.dvc|verify dvc.lock|workflow.lock", done.stdout)
    # After a pull that fails, too: it may be for a change of one's own.
    assert steps == ["dvc pull", "verify data.dvc", "verify data.dvc", "dvc repro", "verify dvc.lock", "workflow.lock"]


@pytest.mark.slow
def test_a_flipped_bit_in_the_cache_of_dvc(tmp_path):
    """DVC checks the damaged object out and calls it up to date; the line to type brings the file back."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}

    def run(line: str, status: int = 0) -> str:
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    (tmp_path / ".dvc").mkdir()
    for name in (".dvc/config", ".dvcignore", ".gitignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    weights = tmp_path / "data" / "model.safetensors"
    write(weights, "weights" * 1000)
    write(tmp_path / "dvc.yaml", "stages: {}")
    run("git init -q && dvc add -q data && dvc push -q -r embedded data.dvc")
    check = f"{sys.executable} -m higgs.workflow.verify data.dvc"
    run(check)
    good, stored = weights.read_bytes(), object_of(weights)
    flip(stored)
    stored.chmod(0o444)
    weights.unlink()
    run("dvc checkout data.dvc")
    assert "up to date" in run("dvc pull data.dvc") and weights.read_bytes() != good
    message = run(check, status=1)
    assert "data/model.safetensors has the md5" in message
    (line,) = re.findall(r"^    (rm .*) && make repro$", message, re.M)
    run(f"{line} && dvc pull data.dvc && {check}")
    assert weights.read_bytes() == good


@pytest.mark.slow
def test_an_archive_without_git_says_what_to_type(tmp_path):
    """`git archive`, unpacked; after the line that is told, DVC finds the data in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is an archive itself")
    git = ["git", "-C", str(ROOT), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    stash = subprocess.run([*git, "stash", "create"], capture_output=True, text=True)  # of a clean tree there is none
    tree = stash.stdout.strip() or "HEAD"
    archive = subprocess.run([*git, "archive", tree], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv" / "installed").write_text(f"{tmp_path.resolve()}\n")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "GIT_"))}
    variables |= {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "DVC_SITE_CACHE_DIR": str(tmp_path.parent / "site")}

    def make(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["make", *words], cwd=tmp_path, env=variables, capture_output=True, text=True)

    for target in ("repro", "test", "lab"):
        refused = make(target)
        assert refused.returncode and refused.stdout == "", target
    (line,) = re.findall(r"^    (git init .*)$", refused.stderr, re.M)
    subprocess.run(line, shell=True, cwd=tmp_path, env=variables, check=True)
    pulled = make("repro", "WITH=echo")
    assert pulled.returncode == 0 and "dvc pull data.dvc" in pulled.stdout, pulled.stderr
    dvc = [str(tmp_path / ".venv/bin/dvc"), "pull", "-q", "data.dvc"]
    subprocess.run(dvc, cwd=tmp_path, env=variables, check=True)
    assert (tmp_path / "data/checkpoints/nano/model/model.safetensors").is_file()
