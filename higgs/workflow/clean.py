"""Notebooks without what changes from run to run: sources as they are committed, executed ones as stages write them."""

import re
from collections.abc import Iterable

import nbformat
from nbformat import NotebookNode
from nbstripout import strip_output

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=[>\s)])")


def dump(notebook: NotebookNode) -> str:
    """The text of the file, formatted as Jupyter itself saves it."""
    return nbformat.writes(notebook, version=4) + "\n"


def clean_source(notebook: NotebookNode) -> NotebookNode:
    """A notebook as committed: without outputs and counts, of the metadata only tags. Works in place."""
    _clean_metadata(notebook)
    return strip_output(notebook, keep_output=False, keep_count=False, keep_id=True)


def clean_executed(notebook: NotebookNode) -> NotebookNode:
    """An executed notebook without times, random ids, widgets and stderr; equal runs give equal bytes. In place."""
    _clean_metadata(notebook)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:03d}"  # papermill gives the cell that it injects a random id
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)
    return notebook


def _clean_metadata(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    # Without the exact version of Python, which is the environment's.
    language = {"name": "python", "pygments_lexer": "ipython3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": language})


def _join_streams(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Repeatable outputs: adjacent streams as one (where a kernel cuts them depends on time), no object's address."""
    joined: list[NotebookNode] = []
    for output in outputs:
        # stderr has progress and warnings, with paths and times; a file holds of a widget only a name and a random id.
        if output.get("name") == "stderr" or WIDGET in output.get("data", {}):
            continue
        output.pop("transient", None)
        if "text/plain" in output.get("data", {}):
            output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined
