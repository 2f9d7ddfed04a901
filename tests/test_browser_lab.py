"""Explore and anatomy in a real JupyterLab: widgets work, nobody outside is asked, saving leaves Git clean."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run
from s3_server import free_ports

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 300  # seconds, for a machine that is busy
TREE = ("notebooks", ".jupyter", ".gitignore", ".gitattributes", "params.yaml", "dvc.yaml")
OWN = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
OUTSIDE = re.compile(r"/lab/api/(news|update|extensions)\b")  # what the server answers by asking others
# Runs all cells -> of each code cell: its number and its outputs.
RUN = """async () => {
  const notebook = jupyterapp.shell.currentWidget;
  await notebook.context.ready;
  await notebook.sessionContext.ready;
  await jupyterapp.commands.execute("notebook:run-all-cells");
  const cells = notebook.content.model.toJSON().cells.filter((cell) => cell.cell_type === "code");
  return cells.map((cell) => [cell.execution_count, cell.outputs]);
}"""
DIRTY = "jupyterapp.shell.currentWidget.context.model.dirty"
SAVE = """(patience) => Promise.race([
  jupyterapp.commands.execute("docmanager:save"), new Promise((_, refuse) => setTimeout(refuse, patience))
])"""
# An <audio> -> its sound, once the browser has decoded how long it is.
SOUND = """async (audio) => {
  while (!(audio.duration > 0)) await new Promise((done) => setTimeout(done, 20));
  return audio.currentSrc;
}"""
# Of each field and button that is seen: what it is, its width, and how far it goes beyond its pane, in pixels.
FIELDS = """() => {
  const pane = document.querySelector(".widget-tab");
  const fields = pane.querySelectorAll("input, textarea, select, button, .slider-container");
  return [...fields].filter((field) => field.checkVisibility()).map((field) => {
    const { width, right } = field.getBoundingClientRect();
    return [field.className, width, right - pane.getBoundingClientRect().right];
  });
}"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory, nano) -> Path:
    """What the notebooks need of the working tree, committed in a repository of its own; the data are linked."""
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "data").symlink_to((ROOT / "data").resolve())
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "x", cwd=folder)
    return folder


def listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def lab(tree, tmp_path_factory):
    """The address of a JupyterLab as `make lab` starts it, for a user who has never used one."""
    (port,), home = free_ports(1), tmp_path_factory.mktemp("home")
    environment = os.environ | {name: str(home / name) for name in OWN} | {"PYTHONPATH": str(ROOT)}
    environment |= {"JUPYTER_CONFIG_PATH": str(tree / ".jupyter")}
    environment.pop("HIGGS_STAGE", None)
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=secret"]
    command = [sys.executable, "-m", "jupyterlab", *options, "--LabApp.expose_app_in_browser=True"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not listening(port):
            assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture
def opened(browser, lab, tree):
    """Name of a notebook -> the page where all of it has run; when the test ends it is saved, and all is in order."""
    faults, asked = [], []
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda connection: asked.append(connection.url.replace("ws:", "http:", 1)))

        def run_all(name: str):
            page.goto(f"{lab}lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token=secret")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            for number, (count, outputs) in enumerate(page.evaluate(RUN), 1):
                wrong = [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
                assert count == number and not wrong
            return page

        yield run_all
        assert page.evaluate(DIRTY)
        page.keyboard.press("Control+s")
        page.wait_for_function(f"!{DIRTY}")
        page.evaluate(SAVE, PATIENCE * 1000)  # again: what the hook wrote is not taken for another's change
        assert run("git", "status", "--porcelain", cwd=tree) == ""
        assert page.locator(".jp-Dialog, .Toastify__toast").all_inner_texts() == [] == faults
    assert asked and not [url for url in asked if not url.startswith((lab, "data:", "blob:")) or OUTSIDE.search(url)]


def test_fields_of_explore_fit_speak_and_play(opened):
    page = opened("explore")
    tabs = page.locator(".widget-tab").get_by_role("tab")
    for pixels in (900, 1280):
        page.set_viewport_size({"width": pixels, "height": 900})
        for tab in tabs.all():
            tab.click()
            fields = page.evaluate(FIELDS)
            assert fields and not [field for field in fields if field[1] < 60 or field[2] > 0], pixels
    tabs.first.click()
    entries, speak = page.locator(".widget-html:has(audio)"), page.get_by_role("button", name="Speak", exact=True)
    sounds = [entries.first.locator("audio").evaluate(SOUND)]
    for field, value, shown in ((None, "", "seed 0"), ("seed", "1", "seed 1"), ("text", "Hello.", ": Hello.")):
        if field:
            page.get_by_label(field, exact=True).fill(value)
        speak.click()
        api.expect(entries).to_have_count(len(sounds) + 1, timeout=PATIENCE * 1000)
        api.expect(entries.first).to_contain_text(shown, timeout=PATIENCE * 1000)
        sounds.append(entries.first.locator("audio").evaluate(SOUND))
    assert sounds[0] == sounds[1] and len(set(sounds)) == 3


def test_anatomy_shows_its_sounds_and_pictures(opened):
    page = opened("anatomy")
    sounds = [audio.evaluate(SOUND) for audio in page.locator(".jp-OutputArea audio").all()]
    assert len(sounds) == 8 and len(set(sounds)) == 7  # what was spoken is there again, beside what was changed
    pictures = page.locator(".jp-OutputArea img").all()
    assert [picture.evaluate("picture => picture.naturalWidth > 0") for picture in pictures] == [True] * 4
