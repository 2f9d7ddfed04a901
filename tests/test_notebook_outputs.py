"""What an executed notebook shows, it shows again; and a notebook runs from the folder it lies in."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from ruamel.yaml import YAML

from higgs.workflow.outputs import STAGE_VARIABLE

STAGES = tuple(YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"])
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(clone, first_run, tmp_path_factory) -> Path:
    """The stages' notebooks as the runner left them, in a repository that nobody else uses."""
    folder = tmp_path_factory.mktemp("executed") / "higgs"
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git", ".dvc", ".dvc-store"))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """That of somebody who opens notebooks: no stage runs. The package is that of `folder`."""
    return {k: v for k, v in os.environ.items() if k != STAGE_VARIABLE} | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def nbval(folder: Path, *notebooks: str) -> tuple[int, str]:
    """Strict nbval, up to the first failure: every output but pictures comes again -> (exit status, what it says)."""
    command = [sys.executable, "-m", "pytest", "-qx", "--color=no", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", *(f"reports/{name}.ipynb" for name in notebooks)]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout + done.stderr


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_executed_notebooks_give_their_outputs_again(executed):
    status, said = nbval(executed, *STAGES)
    assert status == 0, said[-3000:]
    cells = [cell for stage in STAGES for cell in code_cells(executed / f"reports/{stage}.ipynb")]
    assert re.search(rf"\b{len(cells)} passed", said), said[-3000:]
    # nbval passes over a cell that was never run, and over those whose only output is progress on the terminal.
    assert all(cell.execution_count for cell in cells)
    unseen = [c for c in cells if "nbval-ignore-output" in c.metadata.get("tags", [])]
    assert not any(cell.outputs for cell in unseen)
    assert sum(bool(cell.outputs) for cell in cells) >= 20


def test_a_changed_output_is_noticed(executed):
    """One number of a table that the strict run above found unchanged."""
    notebook = nbformat.read(executed / "reports" / "tokenize.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    place = next(i for i, cell in enumerate(cells) if "read_recordings(" in cell.source)
    (output,) = cells[place].outputs
    shown = output.data["text/html"]
    number = re.search(r'class="number">(\d+)<', shown)
    output.data["text/html"] = f"{shown[: number.start(1)]}9{shown[number.start(1) :]}"
    nbformat.write(notebook, executed / "reports" / "changed.ipynb")
    status, said = nbval(executed, "changed")
    assert status == 1, said[-3000:]
    assert re.search(rf"\b1 failed, {place} passed", said), said[-3000:]
    assert f"FAILED reports/changed.ipynb::Cell {place}" in said


@pytest.fixture(scope="module")
def smaller(executed) -> Path:
    """The same repository with parameters for a quick look: a clip, an utterance."""
    path, yaml = executed / "params.yaml", YAML()
    params = yaml.load(path.read_text())
    params["tokenize"] |= {"languages": ["it"], "max_clips": 1}
    params["set"] = "data/scripts/one.jsonl"
    yaml.dump(params, path)
    scripts = executed / "data/scripts"
    (first, *_) = (scripts / "default.jsonl").read_text().splitlines()
    (scripts / "one.jsonl").write_text(first + "\n")
    return executed


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_runs_from_its_own_folder(smaller, stage, monkeypatch):
    for name, value in environment(smaller).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(STAGE_VARIABLE, raising=False)
    before = {path: path.read_bytes() for path in (smaller / "results" / stage).rglob("*.parquet")}
    notebook = nbformat.read(smaller / "notebooks" / f"{stage}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(smaller / "notebooks")}}
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    closing = [output for cell in notebook.cells[-2:] for output in cell.get("outputs", [])]
    assert any("<table" in output.get("data", {}).get("text/html", "") for output in closing)
    assert list((smaller / "results/explore" / stage).glob("*.parquet"))
    assert before and all(path.read_bytes() == data for path, data in before.items())
    assert not (smaller / "notebooks" / "results").exists()
