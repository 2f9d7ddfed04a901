"""Runs a notebook as a stage. papermill executes; parameters are checked here: papermill ignores a misspelt one.

python -m higgs.workflow.runner run generate --set generate.temperature=0.5
python -m higgs.workflow.runner clean --check notebooks/*.ipynb
"""

import argparse
import ast
import contextlib
import copy
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from higgs.arithmetic import environment
from higgs.files import write_atomically
from higgs.validation import ParamsError, check_keys, parse_yaml
from higgs.workers import CLUSTER, DEVICE, WORK, WORKERS
from higgs.workflow.clean import clean_executed, clean_source, dump
from higgs.workflow.outputs import STAGE_VARIABLE, find_root, record_timing, say
from higgs.workflow.params import SECTIONS, from_section, placement, read_params, select

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LONGEST_SCRATCH = 48  # a socket's path has at most 107 bytes; the kernel's names take about 50


class StageError(RuntimeError):
    """The stage failed. The message is printed without a traceback."""


def run_stage(stage: str, params_path: Path, settings: Sequence[str], output_dir: Path) -> None:
    """Runs notebooks/<stage>.ipynb and writes it to `output_dir`; paths are relative to the root.

    ParamsError before any cell has run; StageError when a cell fails, with <stage>.failed.ipynb.
    """
    with contextlib.chdir(find_root()):
        params = read_params(params_path)
        values, where = stage_values(params, stage, settings), placement(params)
        for other in SECTIONS:  # hours may lie between this stage and the next
            if other != stage and other in params:
                stage_values(params, other, ())
        source, output = Path("notebooks", f"{stage}.ipynb"), Path(output_dir, f"{stage}.ipynb")
        failed = output.with_suffix(".failed.ipynb")
        check_parameters_cell(nbformat.read(source, 4), [*values], source)
        Path(f"results/{stage}/timing.json").unlink(missing_ok=True)
        started = time.monotonic()
        with stage_environment(stage, values["repeatable"], **dict(where)) as scratch:
            write_atomically(output, dump(clean_executed(execute(source, values, scratch, failed))))
            failed.unlink(missing_ok=True)
            record_timing(stage, {"stage_seconds": time.monotonic() - started})
    say(f"{stage}: {output}")


def stage_values(params: Mapping[str, Any], stage: str, settings: Sequence[str]) -> dict[str, Any]:
    """The checked values for a `parameters` cell. `settings` are `seed=1` or `<section>.key=value`, in YAML."""
    values = copy.deepcopy(select(params, stage))
    section = values[stage] if isinstance(values[stage], dict) else {}
    known = [name for name in values if name != stage] + [f"{stage}.{name}" for name in section]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ParamsError(f"--set {setting}: expected key=value")
        check_keys([key], known, required=(), what=f"--set {setting}")
        target = section if key.startswith(f"{stage}.") else values
        target[key.removeprefix(f"{stage}.")] = parse_yaml(text, f"--set {setting}")
    scalars = {name: value for name, value in values.items() if name != stage}
    from_section(SECTIONS[stage], values[stage], **scalars)
    return values


def check_parameters_cell(notebook: NotebookNode, expected: Sequence[str], source: Path) -> None:
    """Raises ParamsError unless the one cell tagged `parameters` assigns the names to be passed."""
    tagged = {"parameters", "injected-parameters"}
    cells = [cell for cell in notebook.cells if tagged & set(cell.metadata.get("tags", []))]
    if [(cell.cell_type, cell.metadata.tags) for cell in cells] != [("code", ["parameters"])]:
        tags = [cell.metadata.tags for cell in cells]
        raise ParamsError(f"{source}: expected one code cell tagged 'parameters', got the tags {tags}")
    what = f"{source}, cell tagged 'parameters'"
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ParamsError(f"{what}: no valid Python: {error}") from error
    names = []
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement]
        if not all(isinstance(target, ast.Name) for target in targets):
            raise ParamsError(f"{what}: more than plain assignments: {ast.unparse(statement)}")
        names += [target.id for target in targets]
    check_keys(names, expected, required=expected, what=what)


@contextlib.contextmanager
def stage_environment(
    stage: str,
    repeatable: bool = True,
    workers: int | None = None,
    cluster: str | None = None,
    work: str | None = None,
    device: str | None = None,
) -> Iterator[Path]:
    """Sets the variables that a stage's kernel inherits -> a scratch folder for its sockets and IPython profile."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="higgs-") as scratch:
        changes = environment(repeatable) | {
            STAGE_VARIABLE: stage, "PYTHONHASHSEED": "0", "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # A kernel named python3 in the home folder may belong to another Python, and a profile may run anything.
            "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_RUNTIME_DIR": scratch, "IPYTHONDIR": scratch,
        }  # fmt: skip
        where = {WORKERS: workers, CLUSTER: cluster, WORK: work, DEVICE: device}
        for name in (*where, "COLUMNS", "PYTHONSTARTUP"):  # what is null is null, whatever the caller has
            os.environ.pop(name, None)
        os.environ.update(changes | {name: str(value) for name, value in where.items() if value})
        try:
            yield Path(scratch)
        finally:
            os.environ.clear()
            os.environ.update(before)


def execute(source: Path, values: dict[str, Any], scratch: Path, failed: Path) -> NotebookNode:
    """Runs every cell. When one fails, writes the notebook so far to `failed` and raises StageError with the cause."""
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    # Sockets in the scratch folder are private; a long TMPDIR exceeds the limit on their paths, which begin with `ip`.
    is_short = len(str(scratch)) <= LONGEST_SCRATCH
    manager = {"transport": "ipc", "ip": str(scratch / "kernel")} if is_short else {"transport": "tcp"}
    output = scratch / "executed.ipynb"
    try:
        execute_notebook(
            str(source), str(output), values, kernel_name="python3", progress_bar=False, iopub_timeout=60,
            stdout_file=sys.stdout, stderr_file=sys.stderr, config=Config({"KernelManager": manager}),
            # Without the message of a kernel that is shut down that it was interrupted.
            extra_arguments=["--IPKernelApp.log_level=50"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        cause = f"{source}: {_describe(error.source)} failed: {error.ename}"
        problem = f"{concise_traceback(error.traceback)}\n\n{cause}"
    except DeadKernelError:
        problem = f"{source}: the kernel died (out of memory?) in {_last_cell(output)}"
    else:
        executed = nbformat.read(output, 4)
        problem = unfinished(executed, source)
        if problem is None:
            return executed
    if output.is_file():
        write_atomically(failed, output.read_bytes())
        problem += f"\nThe notebook as far as it got: {failed}"
    raise StageError(problem)


def unfinished(executed: NotebookNode, source: Path) -> str | None:
    """The error that papermill ignores, if any: `exit()`, and errors that a cell's tags allow."""
    for cell in executed.cells:
        if cell.cell_type == "code" and cell.source.strip():
            what = f"{source}: {_describe(cell.source)}"
            if errors := [output.ename for output in cell.outputs if output.output_type == "error"]:
                return f"{what} ended in {errors[0]}; a stage runs every cell to its end"
            if cell.execution_count is None:
                return f"{what} was never run"
    return None


def _describe(code: str) -> str:
    lines = [line for line in code.strip().splitlines() if not line.startswith("#")] or [""]
    return f"the cell that begins `{lines[0]}`"


def _last_cell(output: Path) -> str:
    """The cell that papermill saw end last, if only by its kernel's death."""
    cells = nbformat.read(output, 4).cells if output.is_file() else []
    finished = [cell for cell in cells if cell.metadata.get("papermill", {}).get("end_time")]
    return _describe(finished[-1].source) if finished else "an unknown cell"


def concise_traceback(frames: Sequence[str]) -> str:
    """IPython's traceback without colours and without frames of installed packages, except for the last."""
    frames = [ANSI.sub("", frame).rstrip("\n") for frame in frames]
    installed = re.compile(r"File .*(site-packages|lib/python3[^/]*)/")
    shown = [frame for frame in frames[:-2] if not installed.match(frame)] + frames[-2:]
    omitted = len(frames) - len(shown)
    return "\n".join(shown) + (f"\n({omitted} frames in installed packages not shown)" if omitted else "")


def clean_files(paths: Sequence[Path], check: bool = False) -> list[Path]:
    """Rewrites notebooks as they are committed -> those that were not clean. `check` changes nothing."""
    changed = []
    for path in paths:
        text = dump(clean_source(nbformat.read(path, 4)))
        if path.read_text(encoding="utf-8") != text:
            changed.append(path)
            if not check:
                write_atomically(path, text)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done. 1: a cell failed, or a notebook is not clean. 2: wrong parameters. 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m higgs.workflow.runner", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run notebooks/STAGE.ipynb as a stage")
    run.add_argument("stage", metavar="STAGE", help=", ".join(SECTIONS))
    run.add_argument("--params", default="params.yaml", type=Path, metavar="FILE")
    run.add_argument("--set", default=[], action="append", metavar="KEY=VALUE", dest="settings")
    run.add_argument("--output-dir", default="reports", type=Path, metavar="FOLDER")
    clean = commands.add_parser("clean", help="strip notebooks of outputs and volatile metadata")
    clean.add_argument("notebooks", nargs="+", type=Path)
    clean.add_argument("--check", action="store_true", help="change nothing; fail if there is something to do")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            run_stage(options.stage, options.params, options.settings, options.output_dir)
            return 0
        changed = clean_files(options.notebooks, options.check)
        for path in changed:
            say(f"{path}: {'is not clean' if options.check else 'cleaned'}")
        return int(bool(changed) and options.check)
    except ParamsError as error:
        say(f"error: {error}")
        return 2
    except (StageError, FileNotFoundError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted: run again, the stage goes on with the parts that it has")
        return 130


if __name__ == "__main__":
    sys.exit(main())
