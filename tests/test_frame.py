"""The frame round the package: one set of versions for every way in, and nothing tied to one place."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from higgs.audio import save_audio
from higgs.data.training.codes import save_codes
from higgs.validation import flat
from higgs.workflow import lock, verify
from higgs.workflow.tables import write_rows

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}


def canonical(requirement: str) -> str:
    """`ruamel.yaml==0.19.1  # why` -> `ruamel-yaml`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(path: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line]


def instructions(path: str) -> list[list[str]]:
    """The Dockerfile's instructions as words, comments dropped and continued lines joined."""
    text = "\n".join(x for x in (ROOT / path).read_text().splitlines() if not x.startswith("#"))
    return [line.split() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


VERSIONS = {canonical(x): x.partition("==")[2] for x in requirements("constraints.txt")}


def test_every_dependency_is_pinned_to_one_version():
    pins = requirements("constraints.txt")
    assert len(pins) == len(VERSIONS) and all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["test"] + extras["cluster"] + requirements("requirements-judges.txt")
    assert [name for name in wanted if canonical(name) not in VERSIONS] == []
    fixed = [name.split("==") for name in wanted if "==" in name]
    assert [name for name, version in fixed if VERSIONS[canonical(name)] != version] == []
    # The extra that only training needs stays out of the constraints, and pins itself.
    assert [name for name in extras["train"] if "==" not in name] == []


def test_every_import_is_a_dependency():
    declared = {canonical(name) for name in PROJECT["dependencies"]}
    declared |= {canonical(name) for name in requirements("requirements-judges.txt")}
    providers = packages_distributions() | {"ort_flatbuffers_py": ["onnxruntime"]}
    missing = set()
    for path in (ROOT / "higgs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"higgs"}:
                own = declared | ({"ray"} if path.name == "cluster.py" else set())  # an extra, of that file alone
                if not {canonical(name) for name in providers.get(top, [top])} & own:
                    missing.add(f"{path.relative_to(ROOT)}: {top}")
    assert missing == set()


def test_one_set_of_versions_for_every_way_in():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install.*", makefile)
    training, *installs = (install.replace("'", "") for install in installs)
    assert len(installs) == 2 and installs[1].endswith("--no-deps -r requirements-judges.txt")
    wanted = {"-c constraints.txt", "-e .[test]"}
    assert all(option in installs[0] for option in wanted)
    assert "-c constraints.txt" in training and "-e .[test,train]" in training

    conda = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
    (by_pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert set(by_pip) == wanted

    words = instructions("Dockerfile")
    copied = {word for line in words if line[0] == "COPY" for word in line}
    assert {"Makefile", "constraints.txt", "pyproject.toml", "requirements-judges.txt"} <= copied
    runs = [" ".join(line) for line in words if line[0] == "RUN"]
    assert any(run.endswith("make setup") for run in runs)
    assert not any("pip install" in run for run in runs)


def test_the_image_is_pinned_and_not_run_by_root():
    words = instructions("Dockerfile")
    base = [line[1] for line in words if line[0] == "FROM"]
    assert all(re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-\w+\.?\w*", image) for image in base)
    defaults = dict(line[1].split("=") for line in words if line[0] == "ARG")
    user = [line[1] for line in words if line[0] == "USER"][-1]
    assert int(defaults.get(user.removeprefix("$"), user)) > 0
    assert ["ENTRYPOINT", '["make"]'] in words


def test_hooks_fetch_nothing_and_ci_runs_both_targets():
    hooks = YAML(typ="safe").load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK) and "make repro && make test" in script.read_text()


def test_no_file_names_a_registry_or_a_build_of_torch():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout of Git")
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "anaconda" + ".org", "anaconda" + ".com"]
    hosts += ["download.pytorch" + ".org", "index" + "-url", "2.13.0" + "+c"]
    listed = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True)
    found = []
    for name in filter(None, listed.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            found += [f"{name}: {host}" for host in hosts if host.encode() in content]
    assert found == []


def make_setup(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "requirements-judges.txt"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "setup", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_setup_names_the_python_it_wants_and_has_nothing_to_do_the_second_time(tmp_path):
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for python, fault in {"no-such-python": "no-such-python is not there", old: "is Python 3.9.18"}.items():
        result = make_setup(tmp_path, f"PYTHON={python}")
        assert result.returncode != 0 and fault in result.stderr and "Python 3.11 or later" in result.stderr
    assert make_setup(tmp_path, "--question").returncode == 1
    (tmp_path / ".venv").mkdir()
    # Installed later or earlier than the lists of packages; in this folder or in the one that it was copied from.
    for folder, time, status in ((tmp_path, 2e9, 0), (tmp_path, 1, 1), ("/elsewhere", 2e9, 1)):
        (tmp_path / ".venv/installed").write_text(f"{folder}\n")
        os.utime(tmp_path / ".venv/installed", (time, time))
        assert make_setup(tmp_path, "--question").returncode == status
    assert "rm -rf .venv" in make_setup(tmp_path, "--dry-run").stdout


def stages(code: str, speech: str, metrics: str, seed: int) -> dict:
    def entries(**hashes: str) -> list[dict]:
        return [{"path": path, "md5": md5} for path, md5 in hashes.items()]

    generate = {"deps": entries(code=code, data="b"), "outs": entries(speech=speech)}
    return {
        "generate": generate | {"params": {"params.yaml": {"seed": seed}}},
        "evaluate": {"deps": entries(speech=speech), "outs": entries(metrics=metrics, page="e")},
    }


def test_another_machine_is_distinguished_from_another_input():
    committed = stages("a", "c", "d", seed=0)
    assert lock.compare(committed, committed) == ["dvc.lock: all 3 outputs have the hashes of the commit"]
    lines = lock.compare(committed, stages("a", "C", "D", seed=0))
    assert lines[0] == "dvc.lock: 2 of 3 outputs have other hashes than the commit:"
    assert "  metrics: d -> D" in lines and "  speech: c -> C" in lines
    assert not any("also changed" in line for line in lines)
    lines = lock.compare(committed, stages("A", "C", "D", seed=1))
    assert "    generate was also changed here: code, seed" in lines
    assert sum("also changed" in line for line in lines) == 1


def test_lock_report_in_a_repository(tmp_path, monkeypatch, capsys):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def report(expected: int = 0) -> str:
        assert lock.main() == expected
        return capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("repeatable: true\n")
    (tmp_path / "dvc.lock").write_text("stages: {s: {cmd: run, outs: [{path: o, md5: one}]}}\n")
    git("init")
    assert "no committed one" in report()
    git("add", "dvc.lock")
    git("commit", "-m", "lock")
    assert "all 1 outputs have the hashes" in report()
    (tmp_path / "dvc.lock").write_text("stages: {s: {cmd: run, outs: [{path: o, md5: two}]}}\n")
    assert "  o: one -> two\n" in report()
    monkeypatch.setenv("CI", "true")
    assert "  o: one -> two\n" in report(expected=1)
    (tmp_path / "params.yaml").write_text("repeatable: false\n")
    report()


def test_lock_says_by_how_much_contents_differ(tmp_path):
    here, before = tmp_path / "out", tmp_path / "before"
    for folder, code, sample in ((before, 1, 100), (here, 2, 103)):
        folder.mkdir()
        waveform = torch.full((2400,), 0.25)
        waveform[7] = sample / 32768
        save_audio(folder / "a.flac", waveform, 24_000)
        save_codes(folder / "c.safetensors", {"x": torch.tensor([[code]]), "y": torch.tensor([[3]])})
        write_rows(folder / "r.parquet", [{"name": "x", "n": 1}, {"name": "y", "n": code}])
        (folder / "t.csv").write_text(f"a\n{code}\n")
        (folder / "same.txt").write_text("same")
    (here / "new.txt").write_text("new")
    store, listing = tmp_path / verify.CACHE / "aa", []
    store.mkdir(parents=True)
    for number, path in enumerate(sorted(before.iterdir())):
        listing.append({"relpath": path.name, "md5": f"aa{number}"})
        path.rename(store / str(number))
    (store / ".dir").write_text(json.dumps(listing))
    assert lock.describe_output(tmp_path, "out", "aa.dir") == [
        "new.txt: only here",
        "a.flac: 1 of 2400 samples differ, by at most 3 of 32768",
        "c.safetensors: 1 of 2 differ: x",
        "r.parquet: 1 of 4 differ: row 1, n",
        "t.csv: 1 of 2 differ: line 2",
    ]
    (unknown,) = lock.describe_output(tmp_path, "out", "cc.dir")
    assert "not known" in unknown
    assert flat({"a": {"b": 1, "c": [2, 3]}, "d": None}) == {"a.b": "1", "a.c": "2, 3", "d": "None"}


def test_every_pin_runs_on_the_oldest_python_that_is_promised():
    """A pin that wants a later patch of Python 3.11 than Debian 12 has would not install there."""
    for installed in distributions():
        name = canonical(installed.metadata["Name"])
        wanted = SpecifierSet(installed.metadata["Requires-Python"] or "")
        assert name not in VERSIONS or wanted.contains("3.11.0"), f"{name} wants Python {wanted}"
