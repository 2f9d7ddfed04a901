"""Names in higgs/ are the field's words: no name that is defined there has a word of the list on the left.

`python tests/test_glossary.py` prints what is left; definitions are counted, so names of libraries are not.
"""

import ast
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "higgs"

# Home-made words, as parts of names -> the field's.
WORDS = {
    "anew": "again", "asked": "request", "barred": "logit_bias", "broken": "EngineDead", "burst": "steps_per_sync",
    "busy": "QueueFull", "column": "step, delayed frame", "exam": "held-out evaluation", "halo": "context frames",
    "heard": "context, history, hypothesis", "helps": "auxiliary losses", "journal": "result cache",
    "keep": "write_kv, top_k, decay", "kept": "kv, selected", "listener": "client, Evaluator",
    "narrow": "x32, sampled", "ordinal": "codebook_ids", "pace": "speaking rate", "panel": "metric models",
    "people": "human references", "piece": "chunk, segment", "protocols": "utterance evaluation",
    "ragged": "padding, lengths", "refusal": "ApiError", "row": "slot, record, codebook", "said": "text",
    "seam": "boundary", "sheet": "batch-expanded weights", "spoken": "generated, alignment",
    "spread": "expand_audio_placeholders", "still": "no_rope", "stretch": "segment",
    "take": "sample, attempt", "taken": "sample, used", "teacher": "semantic teacher, source TTS",
    "ticket": "Sequence", "told": "message", "trapezoid": "warmup-stable-decay", "twice": "duplicate",
    "watch": "stop criteria",
}  # fmt: skip

# Home-made names as a whole; as parts of names their words are common.
NAMES = {
    "Clock": "time budget", "CodebookAverages": "VQ-EMA", "CounterNoise": "CounterRng", "GeneratorNoise": "TorchRng",
    "HelpConfig": "auxiliary losses", "JudgeUnavailable": "MetricModelUnavailable", "Kind": "ModalityMask",
    "Noise": "RNG", "Steps": "lengths", "admit": "prefill", "check_room": "check_capacity", "inside": "length_mask",
    "reach": "receptive field", "trim": "mask_padding",
}  # fmt: skip

# File pattern, words, and why they are right there.
EXCEPTIONS = [
    ("workflow/outputs.py", "row column", "of a table that is shown or written as CSV"),
    ("workflow/tables.py", "row column", "of a table in Parquet"),
    ("workflow/lock.py", "row", "of a table in Parquet"),
    ("cli/checkpoint_report.py", "row", "of the printed table"),
    ("cli/compare.py", "row column", "of the printed table"),
    ("comparison/*.py", "row column", "of tables that are shown"),
    ("comparison/*.py", "listener", "a person who rates sounds"),
    ("evaluate/report/*.py", "row column", "of tables that are shown"),
    ("evaluate/statistics/*.py", "row column", "of the tables of results, and of matrices of resamples"),
    ("evaluate/metrics/codec.py", "row column", "of the table of codec metrics"),
    ("data/chatml*.py", "row", "`row_id` of AudioContent, a public name that the reference implementation has"),
    ("studio/*.py", "row column", "of tables and maps that are shown"),
    ("workflow/plots.py", "row panel", "of a figure"),
    ("cli/speak.py", "keep", "--keep-digits, an option of the command line"),
    ("evaluate/*", "spread", "of values: statistics"),
    ("workflow/plots.py", "spread", "the same"),
    ("codec/semantic.py", "teacher", "HuBERT, the semantic teacher; the name of its tensors in checkpoints"),
]


def parts(name: str) -> list[str]:
    """`read_rows`, `KeptTensors` -> their words in lower case, plurals as singulars where the list has those."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    return [word if word in WORDS else word.removesuffix("s") for word in words]


def definitions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of whatever a module binds: variables, arguments, attributes, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def faults() -> list[tuple[str, str, str]]:
    """-> file with line, name and home-made word of every definition that is no exception."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        allowed = {word for pattern, words, _ in EXCEPTIONS if fnmatch(place, pattern) for word in words.split()}
        for line, name in [(1, path.stem), *definitions(ast.parse(path.read_text()))]:
            words = [word for word in parts(name) if word in WORDS] + [name] * (name in NAMES)
            found += [(f"{place}:{line}", name, word) for word in words if word not in allowed]
    return found


def lines() -> list[str]:
    return [f"{place}: {name} ({word}: {(WORDS | NAMES)[word]})" for place, name, word in faults()]


def test_names_are_the_words_of_the_field():
    assert lines() == []


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
