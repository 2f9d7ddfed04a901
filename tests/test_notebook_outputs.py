"""Executed again outside a stage, the notebook with the most outputs shows them again; nbval notices a changed one."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from higgs.workflow.outputs import STAGE_VARIABLE

STAGE = "evaluate"


@pytest.mark.slow
def test_an_executed_notebook_gives_its_outputs_again(clone, first_run, tmp_path):
    """Strict nbval up to the first failure, which is one number that was changed in the last table.

    The notebook runs in the folder that it is in, as in JupyterLab: its files go to results/explore/.
    """
    folder = tmp_path / "higgs"
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git", ".dvc", ".dvc-store"))
    tracked = {path: path.read_bytes() for path in (folder / "results" / STAGE).rglob("*") if path.is_file()}
    path = folder / "reports" / f"{STAGE}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # nbval passes over a cell that was never run, and over those whose only output is progress on the terminal.
    assert all(cell.execution_count for cell in code) and sum(bool(cell.outputs) for cell in code) >= 10
    ignored = [cell for cell in code if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert not any(cell.outputs for cell in ignored)

    number = re.compile(r'(class="number">)(\d)')
    outputs = [(place, output) for place, cell in enumerate(code) for output in cell.outputs]
    place, output = [pair for pair in outputs if number.search(pair[1].get("data", {}).get("text/html", ""))][-1]
    output.data["text/html"] = number.sub(r"\g<1>9\2", output.data["text/html"], count=1)
    nbformat.write(notebook, path)

    command = [sys.executable, "-m", "pytest", "-qx", "--color=no", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if k != STAGE_VARIABLE}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    command += ["--nbval", "--nbval-current-env", str(path.relative_to(folder))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    report = done.stdout + done.stderr
    assert done.returncode == 1 and re.search(rf"\b1 failed, {place} passed", report), report[-3000:]
    assert f"FAILED reports/{STAGE}.ipynb::Cell {place}" in report
    assert list((folder / "results" / "explore" / STAGE).iterdir())
    assert tracked and all(path.read_bytes() == content for path, content in tracked.items())
