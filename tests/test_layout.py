"""The shape of the house: who may import whom, which doors libraries enter by, and how big a room may grow."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

import higgs

PACKAGE = ROOT / "higgs"
BASE = "base"
# Packages -> what of higgs they may import, besides themselves and the base files.
ARROWS = {
    "data": set(),
    "codec": set(),
    "model": set(),
    "serve": {"codec", "model", "data"},
    "train": {"codec", "model", "data"},
    "evaluate": {"data"},
}
EVERYTHING = {"__main__.py", "inspection.py"}
DOORS = {
    "torchaudio": {"audio.py"},
    "soundfile": {"audio.py"},
    "matplotlib": {"plots.py"},
    "huggingface_hub": {"hub.py"},
    "s3fs": {"s3.py"},
    "botocore": {"s3.py"},
    "transformers": {
        "codec/semantic.py",
        "data/text.py",
        "evaluate/text.py",
        "evaluate/hub_judges.py",
        "evaluate/moonshine.py",
        "evaluate/wavlm_ecapa.py",
    },
    "tokenizers": {"data/text.py"},
    "papermill": {"notebook.py"},
    "onnxruntime": {"evaluate/wheels.py", "evaluate/ort_weights.py"},
    "pyarrow": {"evaluate/tables.py", "lock.py"},
    "fastapi": {"serve/server.py"},
    "starlette": {"serve/server.py"},
    "uvicorn": {"serve/server.py"},
    "pydantic": {
        "validation.py",
        "config.py",
        "params.py",
        "data/chatml_json.py",
        "data/chunks.py",
        "data/manifest.py",
        "data/recordings.py",
        "data/scripts.py",
        "serve/speech_request.py",
    },
    "prometheus_client": {"serve/metrics.py"},
}
MAY_PRINT = {"__main__.py", "notebook.py"}
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 430, 62, 8

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
                names.add(higgs._HOMES.get(alias.name, whole) if node.module == "higgs" else whole)
    return names


def room(module: str) -> str:
    """`higgs.codec.weights` -> codec; a file at the top -> base."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else BASE


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows_and_the_doors(path: Path):
    place = str(path.relative_to(PACKAGE))
    names = imported(ast.parse(path.read_text()))
    own = place.split("/")[0] if "/" in place else BASE
    allowed = {BASE, own} | ARROWS.get(own, set())
    if place not in EVERYTHING:
        for name in names:
            if name.startswith("higgs."):
                assert room(name) in allowed, f"{place} imports {name}"
    for library, doors in DOORS.items():
        if any(name.split(".")[0] == library for name in names):
            assert place in doors, f"{place} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_are_small_and_quiet(path: Path):
    place, text = str(path.relative_to(PACKAGE)), path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{place}: {node.name} is long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counted = [a for a in arguments if a.arg not in ("self", "cls")]
            assert len(counted) <= MAX_ARGUMENTS, f"{place}: {node.name} takes {len(counted)}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            assert place in MAY_PRINT, f"{place}, line {node.lineno}: print"
    assert path.stem != "utils"


def test_pickles_are_read_with_weights_only():
    for path in [*FILES, *(ROOT / "training").rglob("*.py")]:
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, f"{path.name}: {call}"


def test_every_file_is_in_the_tree_of_the_readme():
    """The README's tree names every module of the package in its folder, and no other."""
    tree = re.search(r"```\nhiggs/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree, "README.md has no tree"
    named, folder = set(), ""
    for line in tree[1].splitlines():
        if match := re.match(r"    (\w+)/ ", line):
            folder = f"{match[1]}/"
        inside = folder if line.startswith("        ") else ""
        named |= {inside + name for name in re.findall(r"\w+\.py\b", line)}
    assert named == {str(p.relative_to(PACKAGE)) for p in FILES if p.name != "__init__.py"}
