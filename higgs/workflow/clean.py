"""Notebooks without what changes from run to run: sources to commit, executed ones to repeat."""

import re
from typing import Any

import nbformat
from nbformat import NotebookNode

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=[>\s)])")


def dump(notebook: NotebookNode) -> str:
    """The text of the file, formatted as Jupyter itself saves it."""
    return nbformat.writes(notebook, version=4) + "\n"


def clean_source(notebook: NotebookNode) -> NotebookNode:
    """A notebook as committed: no outputs or counts, of the metadata only tags. Works in place."""
    for cell in notebook.cells:
        _clean_metadata(cell)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    notebook.metadata = _notebook_metadata()
    return notebook


def clean_executed(notebook: NotebookNode) -> NotebookNode:
    """An executed notebook without times, random ids, widgets, stderr: runs give equal bytes.

    Warnings and progress live on stderr, and both hold paths and times: they belong to the
    terminal. Works in place.
    """
    for index, cell in enumerate(notebook.cells):
        _clean_metadata(cell)
        # papermill gives the cell that it injects a random id.
        cell.id = f"cell-{index:03d}"
        if cell.cell_type == "code":
            cell.outputs = _joined(_clean_output(output) for output in cell.outputs if _kept(output))
    notebook.metadata = _notebook_metadata()
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)
    return notebook


def _notebook_metadata() -> NotebookNode:
    # The exact version of Python is left out: it is the environment's to fix, not the notebook's to
    # repeat.
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": language})


def _clean_metadata(cell: NotebookNode) -> None:
    tags = cell.metadata.get("tags")
    cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})


def _kept(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    # A widget's picture lives in the browser; what remains of it in a file is its name and a random
    # id.
    return WIDGET not in output.get("data", {})


def _clean_output(output: NotebookNode) -> NotebookNode:
    output.pop("transient", None)
    if "text/plain" in output.get("data", {}):
        output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
    return output


def _joined(outputs: Any) -> list[NotebookNode]:
    """Adjacent streams as one: where a kernel cuts its output into messages is a matter of time."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined
