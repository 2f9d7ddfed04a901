"""The package's structure: which folder imports which, which files import a library, sizes of files and functions."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

import higgs

PACKAGE = ROOT / "higgs"
BASE = "base"
# Packages -> what of higgs they may import, besides themselves and the base files.
MAY_IMPORT = {
    "checkpoint": set(),
    "data": {"checkpoint", "workflow", "jobs"},
    "codec": {"checkpoint"},
    "model": {"checkpoint"},
    "serve": {"codec", "model", "data", "checkpoint", "workflow", "jobs"},
    "workflow": {"checkpoint"},
    "jobs": {"checkpoint", "workflow"},
    "train": {"codec", "model", "data", "checkpoint", "workflow"},
    "evaluate": {"data", "workflow", "jobs"},
    "comparison": {"evaluate", "data", "workflow"},
    "studio": {"serve", "evaluate", "model", "codec", "data", "workflow"},
}
EVERYTHING = {"__main__.py"}  # and cli/
HTTP = {f"serve/http/{name}.py" for name in ("app", "access", "pages", "references", "speech_response")}
LIBRARIES = {
    "torchaudio": {"audio.py"},
    "soundfile": {"audio.py", "containers.py", "serve/http/audio_encoder.py"},
    "matplotlib": {"workflow/plots.py"},
    "huggingface_hub": {"checkpoint/resolve.py"},
    "s3fs": {"checkpoint/s3.py"},
    "fsspec": {"checkpoint/s3.py"},
    "nbstripout": {"workflow/clean.py"},
    "botocore": {"checkpoint/s3.py"},
    "transformers": {
        "codec/semantic.py", "data/text/tokenizer.py", "evaluate/metrics/error_rates.py", "evaluate/judges/base.py",
        "evaluate/judges/hub.py", "evaluate/judges/moonshine.py", "evaluate/judges/wavlm_ecapa.py",
    },
    "tokenizers": {"data/text/tokenizer.py"},
    "papermill": {"workflow/runner.py"},
    "ipywidgets": {"studio/controls.py"},
    "onnxruntime": {"evaluate/judges/wheels.py", "evaluate/judges/moonshine.py"},
    "pyarrow": {"workflow/tables.py", "data/training/codes.py"},
    "ray": {"jobs/cluster.py"},
    **dict.fromkeys(["fastapi", "starlette", "uvicorn"], HTTP),
    "pydantic": {
        "validation.py", "config.py", "workflow/params.py", "data/chatml_json.py", "data/text/chunks.py",
        "data/training/manifest.py", "data/recordings.py", "data/scripts.py", "data/corpus.py", "jobs/parts.py",
        "serve/http/references.py",
        "serve/http/speech_request.py", "comparison/ratings.py",
    },
    "prometheus_client": {"serve/http/prometheus.py"},
    "typer": {f"cli/{path.name}" for path in (PACKAGE / "cli").glob("*.py")},
}  # fmt: skip
MAY_PRINT = {"workflow/runner.py"}  # and cli/
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS, MAX_FILES = 350, 60, 8, 12
# Longer than that, each for a reason.
LONG = {"serve/engine.py": 420}  # one class that puts codec, model and scheduler together

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= {node.module}
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(higgs._MODULES.get(alias.name, whole) if node.module == "higgs" else whole)
    return names


def folder_of(module: str) -> str:
    """`higgs.codec.weights` -> codec; a file at the top -> base."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else BASE


each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


@each_file
def test_imports_are_those_that_are_allowed(path: Path):
    place = str(path.relative_to(PACKAGE))
    names = imported(ast.parse(path.read_text()))
    own = place.split("/")[0] if "/" in place else BASE
    allowed = {BASE, own} | MAY_IMPORT.get(own, set())
    if place not in EVERYTHING and own != "cli":
        for name in names:
            if name.startswith("higgs."):
                assert folder_of(name) in allowed, f"{place} imports {name}"
    for library, files in LIBRARIES.items():
        if any(name.split(".")[0] == library for name in names):
            assert place in files, f"{place} imports {library}"


@each_file
def test_files_are_small_and_quiet(path: Path):
    place, text = str(path.relative_to(PACKAGE)), path.read_text()
    assert len(text.splitlines()) <= LONG.get(place, MAX_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno <= MAX_FUNCTION, f"{place}: {node.name} is long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counted = [a for a in arguments if a.arg not in ("self", "cls")]
            if not place.startswith("cli/"):  # there they are options
                assert len(counted) <= MAX_ARGUMENTS, f"{place}: {node.name} takes {len(counted)}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            may = place in MAY_PRINT or place.startswith("cli/")
            assert may, f"{place}, line {node.lineno}: print"
    assert path.stem != "utils"


def test_pickles_are_read_with_weights_only():
    for path in [*FILES, *(ROOT / "training").rglob("*.py")]:
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, f"{path.name}: {call}"


def test_no_folder_is_wide():
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__")]
        assert len(files) <= (11 if folder == PACKAGE else MAX_FILES), folder


def test_the_tree_of_the_architecture_page_names_every_file_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"```\nhiggs/\n(.*?)```", text, re.DOTALL)
    assert tree, "docs/architecture.md has no tree"
    named, folders = set(), []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 4 - 1
        if match := re.match(r" +(\w+)/ ", line):
            folders[depth:] = [match[1]]
        above = "".join(f"{name}/" for name in folders[:depth])
        named |= {above + name for name in re.findall(r"\w+\.py\b", line)}
    assert named == {str(p.relative_to(PACKAGE)) for p in FILES if p.name != "__init__.py"}
