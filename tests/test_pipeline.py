"""The workflow: stages list what they use, data and store agree, notebooks are clean, experiments run."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_SETTINGS, run
from ruamel.yaml import YAML
from test_layout import imported

from higgs.workflow.params import SECTIONS, from_section, read_params, scalars_of, select

STAGES = ("tokenize", "generate", "evaluate")
CODE = ("higgs", "benchmarks")
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def cells(stage: str) -> list[dict]:
    return json.loads((ROOT / "notebooks" / f"{stage}.ipynb").read_text())["cells"]


def module_file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def imports_of(source: str) -> set[str]:
    return {name for name in imported(ast.parse(source)) if name.split(".")[0] in CODE and module_file(name)}


def reached(todo: set[str]) -> set[Path]:
    """Every file of the package that these modules import, directly or not."""
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= imports_of(module_file(name).read_text()) - seen
    files = {module_file(name).relative_to(ROOT) for name in seen}
    return {path for path in files if path.name != "__init__.py"}


@pytest.mark.parametrize("stage", [*STAGES, "page"])
def test_a_stage_lists_the_code_it_imports_and_no_more(stage):
    """What its command and its notebook import: a change to pages, or to reports about runs, starts no other stage."""
    if stage == "page":
        entry, modules = DVC["page"]["do"], {"higgs.workflow.page"}
    else:
        code = ["".join(c["source"]) for c in cells(stage) if c["cell_type"] == "code"]
        entry, modules = DVC[stage], {"higgs.workflow.runner"}.union(*map(imports_of, code))
    listed = {Path(dep) for dep in entry["deps"] if dep.startswith(CODE) and dep != "higgs/workflow/templates"}
    assert Path("higgs/workflow") not in listed
    files = reached(modules)
    for path in files:
        assert any(path == dep or dep in path.parents for dep in listed), f"{path} is not listed"
    for dep in listed:
        assert any(path == dep or dep in path.parents for path in files), f"{dep} is not used"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name_everywhere(stage):
    entry = DVC[stage]
    assert entry["cmd"] == f"python -m higgs.workflow.runner run {stage}"
    assert f"notebooks/{stage}.ipynb" in entry["deps"]
    assert entry["params"] == [*scalars_of(stage), stage]
    outs = {name: settings for out in entry["outs"] for name, settings in out.items()}
    assert outs.pop("evaluation.json", {"cache": False}) == {"cache": False}  # in Git, as metrics.json
    assert set(outs) == {f"results/{stage}", f"reports/{stage}.ipynb"} and stage in DVC["page"]["foreach"]
    assert all(settings == {"push": False} for settings in outs.values())
    assert not any(name.startswith("data") for name in outs)
    values = select(read_params(ROOT / "params.yaml"), stage)
    assert from_section(SECTIONS[stage], values.pop(stage), **values)


@pytest.mark.parametrize("stage", [*STAGES, "explore", "anatomy"])
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
        assert not re.search(r"print\([^\n]*decode\(", source), "a prompt's tokens would be in the log of the stage"
    tagged = [c for c in rest if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1


def test_the_store_holds_what_data_names_and_nothing_else():
    (out,) = YAML(typ="safe").load((ROOT / "data.dvc").read_text())["outs"]
    store = ROOT / ".dvc-store" / "files" / "md5"
    objects = {f"{path.parent.name}{path.name}" for path in store.rglob("*") if path.is_file()}
    listing = store / out["md5"][:2] / out["md5"][2:]
    named = {entry["md5"] for entry in json.loads(listing.read_text())}
    assert objects == named | {out["md5"]}


def test_both_remotes_verify_and_hold_no_key():
    config = (ROOT / ".dvc" / "config").read_text()
    assert config.count("verify = true") == 2
    assert "secret" not in config and "access_key" not in config and "remote = embedded" in config


@pytest.mark.slow
def test_experiments_run_and_exploring_leaves_no_trace(clone, first_run):
    """`dvc exp run -S`, `dvc exp show`; a parameter of one stage re-runs that stage and those after it."""
    assert all(f"Running stage '{stage}'" in first_run for stage in STAGES)
    warmer = [*SMALL_SETTINGS, "-S", "generate.temperature=0.5"]
    second = run("dvc", "exp", "run", "-n", "warmer", *warmer, cwd=clone)
    assert "Running stage 'tokenize'" not in second
    assert "Running stage 'generate'" in second and "Running stage 'evaluate'" in second
    shown = run("dvc", "exp", "show", "--csv", cwd=clone)
    assert "small" in shown and "warmer" in shown and "generated_wer_percent" in shown
    compared = run(sys.executable, "-m", "higgs", "compare", "small", "warmer", cwd=clone)
    assert "B - A [95 % interval]" in compared and (clone / "reports" / "compare.html").is_file()
    same = run(sys.executable, "-m", "higgs", "compare", "warmer", "workspace", cwd=clone)
    assert "The two tables are equal" in same and "equal in every metric" in same
    status = run("git", "status", "--porcelain", cwd=clone)
    expected = {"dvc.lock", "params.yaml", "metrics.json", "evaluation.json"}
    assert set(line[3:] for line in status.splitlines()) <= expected
    check_exploring(clone)
    check_repeating(clone)


def check_repeating(clone: Path) -> None:
    """A second run does nothing, with another number of workers too; a forced one makes the same bytes."""
    params = clone / "params.yaml"
    assert "workers: 1" in params.read_text()
    params.write_text(params.read_text().replace("workers: 1", "workers: 2"))
    assert "Running stage" not in run("dvc", "repro", cwd=clone)
    before = (clone / "dvc.lock").read_bytes()
    again = run("dvc", "repro", "--force", cwd=clone)
    assert all(f"Running stage '{stage}'" in again for stage in STAGES)
    assert (clone / "dvc.lock").read_bytes() == before


def check_exploring(clone: Path) -> None:
    """Notebooks as JupyterLab runs them, started in their own folder; saving cleans them as its hook does."""
    before = run("git", "status", "--porcelain", cwd=clone)
    for path in (clone / "notebooks" / name for name in ("explore.ipynb", "anatomy.ipynb")):
        run("jupyter", "execute", "--inplace", path.name, cwd=path.parent)
        assert '"output_type"' in path.read_text()
        run(sys.executable, "-m", "higgs.workflow.runner", "clean", str(path), cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == before
    assert "up to date" in run("dvc", "status", cwd=clone)
    assert (clone / "results" / "explore").is_dir()
