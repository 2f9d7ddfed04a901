"""JupyterLab for this repository: `make lab` puts this folder on JUPYTER_CONFIG_PATH.

Saving a notebook under notebooks/ writes it as it is committed, without outputs, so that running
one and saving it changes nothing that Git or DVC watches. Executed notebooks in reports/ keep
theirs.
"""

import warnings
from pathlib import Path

import nbformat

from higgs.workflow.clean import clean_source

ROOT = Path(__file__).resolve().parent.parent


def strip_sources(model, path, contents_manager, **_):
    """Jupyter's pre-save hook: `model` goes to `path`, relative to the server's root."""
    if model["type"] != "notebook":
        return
    target = Path(contents_manager.root_dir).resolve() / path.strip("/")
    if target.is_relative_to(ROOT / "notebooks"):
        model["content"] = clean_source(nbformat.from_dict(model["content"]))


# The server applies its configuration twice, and warns that the hook replaces itself.
warnings.filterwarnings("ignore", message="Overriding existing pre_save_hook")

c = get_config()  # noqa: F821  (Jupyter defines it)
c.ServerApp.root_dir = str(ROOT)
c.ContentsManager.pre_save_hook = strip_sources
# News and new versions of JupyterLab come from outside: the page asks for neither (labconfig/), and has no question
# about it; the server fetches neither, whatever the settings of a user say.
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
