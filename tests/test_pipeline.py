"""The workflow: stages list what they use, data and store agree, notebooks are clean, experiments run."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

import higgs
from higgs.params import SCALARS, SECTIONS, load_section

STAGES = ("tokenize", "generate", "evaluate")
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def cells(stage: str) -> list[dict]:
    return json.loads((ROOT / "notebooks" / f"{stage}.ipynb").read_text())["cells"]


def module_file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def imports_of(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            if node.module == "higgs":
                names = {
                    higgs._HOMES.get(alias.name, f"higgs.{alias.name}") for alias in node.names
                }
            found |= {node.module} | names
    return {name for name in found if name.split(".")[0] == "higgs" and module_file(name)}


def reached(stage: str) -> set[Path]:
    """Every file of the package that the notebook imports, directly or not."""
    todo = set().union(
        *(imports_of("".join(c["source"])) for c in cells(stage) if c["cell_type"] == "code")
    )
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= imports_of(module_file(name).read_text()) - seen
    files = {module_file(name).relative_to(ROOT) for name in seen}
    return {path for path in files if path.name != "__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_code_it_imports_and_no_more(stage):
    listed = {Path(dep) for dep in DVC[stage]["deps"] if dep.startswith("higgs")}
    files = reached(stage)
    for path in files:
        assert any(path == dep or dep in path.parents for dep in listed), f"{path} is not listed"
    for dep in listed:
        assert any(path == dep or dep in path.parents for path in files), f"{dep} is not used"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name_everywhere(stage):
    entry = DVC[stage]
    assert entry["cmd"] == f"python -m higgs.notebook run {stage}"
    assert f"notebooks/{stage}.ipynb" in entry["deps"]
    assert set(entry["params"]) == {*SCALARS, stage}
    outs = {name: settings for out in entry["outs"] for name, settings in out.items()}
    assert set(outs) == {f"results/{stage}", f"reports/{stage}.ipynb", f"reports/{stage}.html"}
    assert all(settings == {"push": False} for settings in outs.values())
    assert not any(name.startswith("data") for name in outs)
    assert isinstance(load_section(stage, ROOT / "params.yaml"), SECTIONS[stage])


@pytest.mark.parametrize("stage", [*STAGES, "explore"])
def test_notebooks_are_letters(stage):
    """A title, a question, thin cells, no outputs."""
    first, *rest = cells(stage)
    text = "".join(first["source"])
    assert first["cell_type"] == "markdown" and text.startswith("# ") and "?**" in text
    for cell in rest:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"] and cell["execution_count"] is None
        assert not any(word in source for word in ("def ", "class ", "%matplotlib", "!pip")), source
        assert len(source.splitlines()) <= 20
    tagged = [c for c in rest if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1


def run(*command: str, cwd: Path, timeout: int = 400) -> str:
    environment = os.environ | {
        "DVC_NO_ANALYTICS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_store_holds_what_data_names_and_nothing_else():
    (out,) = YAML(typ="safe").load((ROOT / "data.dvc").read_text())["outs"]
    objects = {
        f"{path.parent.name}{path.name}"
        for path in (ROOT / ".dvc-store" / "files" / "md5").rglob("*")
        if path.is_file()
    }
    listing = ROOT / ".dvc-store" / "files" / "md5" / out["md5"][:2] / out["md5"][2:]
    named = {entry["md5"] for entry in json.loads(listing.read_text())}
    assert objects == named | {out["md5"]}


def test_both_remotes_verify_and_hold_no_key():
    config = (ROOT / ".dvc" / "config").read_text()
    assert config.count("verify = true") == 2
    assert "secret" not in config and "access_key" not in config and "remote = embedded" in config


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The committed tree in a new folder, with its data."""
    folder = tmp_path_factory.mktemp("clone") / "higgs"
    run("git", "clone", "--quiet", str(ROOT), str(folder), cwd=ROOT)
    # DVC commits experiments, and Git wants to know by whom: a fresh machine does not say.
    run("git", "config", "user.name", "test", cwd=folder)
    run("git", "config", "user.email", "test@localhost", cwd=folder)
    run("dvc", "pull", "--quiet", "data.dvc", cwd=folder)
    return folder


SMALL = (
    "tokenize.max_clips=1", "tokenize.codebook_counts=[8]", "tokenize.players=0",
    "generate.max_new_tokens=12", "generate.players=0", "evaluate.players=0", "evaluate.bootstrap_resamples=10",
)  # fmt: skip


@pytest.mark.slow
def test_experiments_run_and_exploring_leaves_no_trace(clone):
    """`dvc exp run -S`, `dvc exp show`; a parameter of one stage re-runs that stage and those after it."""
    settings = [word for setting in SMALL for word in ("-S", setting)]
    first = run("dvc", "exp", "run", "-n", "small", *settings, cwd=clone)
    assert all(f"Running stage '{stage}'" in first for stage in STAGES)
    second = run(
        "dvc", "exp", "run", "-n", "cooler", *settings, "-S", "generate.temperature=0.5", cwd=clone
    )
    assert "Running stage 'tokenize'" not in second
    assert "Running stage 'generate'" in second and "Running stage 'evaluate'" in second
    shown = run("dvc", "exp", "show", "--csv", cwd=clone)
    assert "small" in shown and "cooler" in shown and "generated_wer_percent" in shown
    status = run("git", "status", "--porcelain", cwd=clone)
    assert set(line[3:] for line in status.splitlines()) <= {
        "dvc.lock",
        "params.yaml",
        "metrics.json",
    }
    check_exploring(clone)
    check_repeating(clone)


def check_repeating(clone: Path) -> None:
    """A second run does nothing; a forced one makes the same bytes."""
    assert "Running stage" not in run("dvc", "repro", cwd=clone)
    before = (clone / "dvc.lock").read_bytes()
    again = run("dvc", "repro", "--force", cwd=clone)
    assert all(f"Running stage '{stage}'" in again for stage in STAGES)
    assert (clone / "dvc.lock").read_bytes() == before


def check_exploring(clone: Path) -> None:
    """A notebook as JupyterLab runs it, started in its own folder; saving cleans it as its hook does."""
    before = run("git", "status", "--porcelain", cwd=clone)
    path = clone / "notebooks" / "explore.ipynb"
    run("jupyter", "execute", "--inplace", path.name, cwd=path.parent)
    assert '"output_type"' in path.read_text()
    run(sys.executable, "-m", "higgs.notebook", "clean", str(path), cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == before
    assert "up to date" in run("dvc", "status", cwd=clone)
    assert (clone / "results" / "explore").is_dir()


@pytest.mark.slow
def test_nbval_repeats_an_executed_notebook(clone):
    """Run again, a report's notebook gives the tables that it holds; a changed one is noticed."""
    executed = clone / "reports" / "evaluate.ipynb"
    if not executed.is_file():
        pytest.skip("the experiments test, which makes the report, did not run")
    assert nbval(clone, executed.read_text(), "check.ipynb") == 0
    changed = executed.read_text().replace("<td>generated_n</td>", "<td>generated_m</td>")
    assert changed != executed.read_text()
    assert nbval(clone, changed, "changed.ipynb") == 1


def nbval(clone: Path, notebook: str, name: str) -> int:
    (clone / "reports" / name).write_text(notebook)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--nbval-current-env", f"reports/{name}"]
    environment = os.environ | {"HIGGS_STAGE": "evaluate"}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True).returncode
