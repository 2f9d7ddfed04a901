"""Notebooks as stages: what goes in arrives, what comes out repeats, what fails leaves nothing."""

import ast
import base64
import io
import json
import os
import re
import runpy
import subprocess
import sys
import wave
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from higgs import workers
from higgs.workflow import outputs as cells
from higgs.workflow.clean import clean_source, dump
from higgs.workflow.page import NotSelfContained, check_self_contained
from higgs.workflow.page import main as render
from higgs.workflow.params import read_params
from higgs.workflow.runner import main, stage_environment, stage_values

PARAMS = """
seed: 0
repeatable: true
workers: 1
checkpoint: nano
set: "é 'single' \\"double\\" \\\\ back"
generate: {temperature: 1e-4, top_k: null, top_p: 1, ras_window: 7, ras_max_repeats: 2, strict_eos: null,
  max_new_tokens: 400, seeds: [0, 1], repeated_texts: null, players: 2}
"""
SETUP = """from higgs.workflow.outputs import *
from higgs.workflow.params import *

values = select(read_params(enter_root() / 'params.yaml'), 'generate')"""
PARAMETERS = "\n".join(f"{name} = values['{name}']" for name in ("seed", "repeatable", "checkpoint", "set", "generate"))
SCALARS = "seed=seed, repeatable=repeatable, checkpoint=checkpoint, set=set"
WORK = [
    f"""params = from_section(GenerateParams, generate, {SCALARS})
write_json(output_path('results/generate/params.json'), {{**vars(params), 'raw': generate}})""",
    """import sys
for index in progress(range(3), 'speaking'):
    print('step', index, flush=True)
    print('a warning', file=sys.stderr)""",
    """record_timing('generate', {'rtf': 1.25})
print({'b', 'a'}, hash('x'))
object()""",
    """sound = audio_player([0.0, 0.5, -0.5], 24000, 'tone')
table([{'clip': 'one', 'sound': sound, 'sdr': 1 / 3}])""",
    """import time
print('one', flush=True)
time.sleep(0.3)
print('two')""",
]


def make_notebook(code, parameters=PARAMETERS):
    contents = [
        new_markdown_cell("# Does it speak?\n\n[licence](https://example.org)"),
        new_code_cell(SETUP),
        new_code_cell(parameters or PARAMETERS, metadata={"tags": ["parameters" if parameters else "untagged"]}),
        *(new_code_cell(source) for source in code),
    ]
    for index, cell in enumerate(contents):
        cell.id = f"source-{index}"
    return clean_source(new_notebook(cells=contents))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a params.yaml, and `write(code)` for its one notebook."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Left over from the shell that runs the tests, it would make them look like a stage.
    monkeypatch.delenv(cells.STAGE_VARIABLE, raising=False)

    def write(code, parameters=PARAMETERS):
        path = tmp_path / "notebooks" / "generate.ipynb"
        path.write_text(dump(make_notebook(code, parameters)), encoding="utf-8")
        return path

    return SimpleNamespace(root=tmp_path, write=write, reports=tmp_path / "reports")


def read_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_what_is_null_does_not_come_from_the_environment(monkeypatch):
    names = (workers.WORKERS, workers.CLUSTER, workers.WORK, workers.DEVICE, "PYTHONSTARTUP")
    for name in names:
        monkeypatch.setenv(name, "of another run")
    with stage_environment("generate", workers=3):
        assert [os.environ.get(name) for name in names] == ["3", None, None, None, None]
    assert all(os.environ[name] == "of another run" for name in names)


def test_a_stage_gets_its_parameters_and_repeats_byte_for_byte(repository, monkeypatch, capfd):
    source = repository.write(WORK)
    committed = source.read_bytes()
    before = dict(os.environ)
    assert main(["run", "generate", "--set", "seed=7"]) == 0
    log = capfd.readouterr()
    assert "step 0\nstep 1\nstep 2\n" in log.out
    assert re.search(r"speaking: .* 3/3", log.err) and "generate: rtf 1.25" in log.err and "a warning" in log.err
    first = {path.name: path.read_bytes() for path in repository.reports.iterdir()}
    assert set(first) == {"generate.ipynb"}

    # From another folder, another terminal width and another hash seed, the bytes stay.
    monkeypatch.chdir(repository.root / "notebooks")
    monkeypatch.setenv("COLUMNS", "41")
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    assert main(["run", "generate", "--set", "seed=7"]) == 0
    assert {path.name: path.read_bytes() for path in repository.reports.iterdir()} == first
    monkeypatch.undo()
    assert {name for name in os.environ if os.environ[name] != before.get(name)} <= {"PYTEST_CURRENT_TEST"}
    assert source.read_bytes() == committed

    params = json.loads((repository.root / "results/generate/params.json").read_text())
    assert params["seed"] == 7 and params["temperature"] == 1e-4 and params["raw"]["temperature"] == 1e-4
    assert params["top_k"] is None and params["raw"]["top_k"] is None and params["seeds"] == [0, 1]
    assert params["set"] == "é 'single' \"double\" \\ back"
    timing = json.loads((repository.root / "results/generate/timing.json").read_text())
    assert timing["rtf"] == 1.25 and timing["stage_seconds"] > 0

    streams = [output for output in read_outputs(repository.root / "reports/generate.ipynb") if "text" in output]
    assert [output.text for output in streams[-1:]] == ["one\ntwo\n"]
    assert {output.name for output in streams} == {"stdout"}
    assert b"stage_seconds" not in first["generate.ipynb"] and b" at 0x" not in first["generate.ipynb"]
    monkeypatch.chdir(repository.root)
    assert render("generate") == 0
    page = (repository.reports / "generate.html").read_text()
    assert "<title>Does it speak?</title>" in page
    assert not re.findall(r'<(?:link|iframe)\b|<script[^>]*\ssrc|(?:src|srcset)="(?!data:)', page)
    assert page.count("data:audio/wav;base64,") == 1
    assert "values[" not in page.split("<summary>parameters</summary>")[1]


def test_the_same_notebook_runs_cell_by_cell_and_touches_nothing_tracked(repository, monkeypatch):
    from nbclient import NotebookClient

    path = repository.write(WORK[:2])
    notebook = nbformat.read(path, as_version=4)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    folder = str(repository.root / "notebooks")
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    assert [str(file.relative_to(repository.root)) for file in repository.root.rglob("*.json")] == [
        "results/explore/generate/params.json"
    ]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("chosen = {}\n# comment\nchosen['voice']", ["KeyError: 'voice'", "`chosen = {}` failed: KeyError"]),
        ("import os\nos._exit(9)", ["the kernel died", "`import os`"]),
        ("import sys\nsys.exit(0)", ["SystemExit", "runs every cell to its end"]),
    ],
)
def test_a_failing_cell_is_reported_first_and_leaves_no_output(repository, capfd, code, message):
    repository.write([code, "print('never')"])
    assert main(["run", "generate"]) == 1
    error = capfd.readouterr().err
    for words in message:
        assert words in error
    assert [path.name for path in repository.reports.iterdir()] == ["generate.failed.ipynb"]
    if "KeyError" in error:
        assert error.index("Cell In[4], line 3") < error.index("generate.failed.ipynb")
        assert "papermill" not in error and "\x1b" not in error and len(error.splitlines()) < 15


def test_wrong_parameters_stop_before_any_cell(repository, capsys):
    repository.write(["import pathlib\npathlib.Path('ran').touch()"])
    for setting, message in (
        ("generate.temprature=0.5", "did you mean 'generate.temperature'"), ("seed=null", "error: seed: "),
        ("generate.seeds=[1", "--set generate.seeds=[1"), ("seed", "expected key=value"),
        ("tokenize.players=1", "unknown key 'tokenize.players'"),
    ):  # fmt: skip
        assert main(["run", "generate", "--set", setting]) == 2
        assert message in capsys.readouterr().err
    (repository.root / "params.yaml").write_text(f"{PARAMS}evaluate: {{bootstrap_resamples: ten}}\n")
    assert main(["run", "generate"]) == 2 and "evaluate" in capsys.readouterr().err, "of a later stage"
    assert not (repository.root / "ran").exists() and not repository.reports.exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "one code cell"),
        (PARAMETERS + "\nvoice = 1", "unknown key 'voice'"),
        (PARAMETERS.replace("seed =", "sed ="), "unknown key 'sed'.*did you mean 'seed'.*missing key 'seed'"),
        (PARAMETERS + "\nprint(seed)", "more than plain assignments"),
        (PARAMETERS + "\nseed =", "no valid Python"),
    ],
)
def test_the_notebook_must_take_exactly_what_is_passed(repository, capsys, parameters, message):
    repository.write(["print('never')"], parameters)
    assert main(["run", "generate"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not repository.reports.exists()


def test_settings_are_yaml_and_leave_the_file_values_alone(repository):
    params = read_params("params.yaml")
    values = stage_values(params, "generate", ["generate.temperature=5e-1", "generate.top_k=50", "seed=3"])
    assert values["generate"]["temperature"] == 0.5 and values["generate"]["top_k"] == 50
    assert values["seed"] == 3 and params["seed"] == 0 and params["generate"]["top_k"] is None
    assert stage_values(params, "generate", ["set=a=b"])["set"] == "a=b" != params["set"]


def test_saving_in_jupyter_leaves_the_committed_bytes(repository):
    path = repository.write(WORK)
    committed = path.read_bytes()
    config = SimpleNamespace(**{name: SimpleNamespace() for name in ("ServerApp", "ContentsManager", "LabApp")})
    file = ROOT / ".jupyter" / "jupyter_server_config.py"
    hook = runpy.run_path(str(file), {"get_config": lambda: config})["strip_sources"]
    assert config.ContentsManager.pre_save_hook is hook and config.ServerApp.root_dir == str(ROOT)
    assert config.LabApp.news_url is None and "Never" in config.LabApp.check_for_updates_class

    manager = SimpleNamespace(root_dir=str(ROOT))
    run = nbformat.read(path, as_version=4)
    for count, cell in enumerate(run.cells):
        cell.metadata |= {"execution": {"iopub.execute_input": "now"}, "trusted": True, "collapsed": False}
        if cell.cell_type == "code":
            cell.execution_count = count
            cell.outputs = [nbformat.v4.new_output("stream", text="done\n")]
    run.metadata.language_info["version"] = "3.99"
    run.metadata["widgets"] = {"state": {}}
    for where, stripped in {"notebooks/generate.ipynb": True, "reports/generate.ipynb": False}.items():
        model = {"type": "notebook", "content": json.loads(json.dumps(run))}
        hook(model=model, path=where, contents_manager=manager)
        saved = dump(nbformat.from_dict(model["content"])).encode("utf-8")
        assert (saved == committed) is stripped
    hook(model={"type": "file", "content": "text"}, path="notebooks/notes.txt", contents_manager=manager)


def test_clean_command_rewrites_only_what_is_not_clean(repository, capsys):
    path = repository.write(WORK)
    assert main(["clean", "--check", str(path)]) == 0
    clean = path.read_bytes()
    path.write_text(clean.decode("utf-8").replace('"execution_count": null', '"execution_count": 3', 1))
    assert main(["clean", "--check", str(path)]) == 1
    assert main(["clean", str(path)]) == 0
    assert path.read_bytes() == clean
    subprocess.run([sys.executable, "-m", "nbstripout", "--keep-id", path], check=True)  # as the commit hook does
    assert path.read_bytes() == clean


def test_a_page_that_would_load_something_is_refused(repository, capsys):
    (repository.reports).mkdir()
    script = nbformat.v4.new_output("display_data", {"text/html": "<script src='https://cdn.example/x'></script>"})
    notebook = new_notebook(cells=[new_code_cell("", outputs=[script])])
    (repository.reports / "generate.ipynb").write_text(dump(notebook))
    assert render("generate") == 1 and "cdn.example" in capsys.readouterr().err
    assert render("tokenize") == 1 and not list(repository.reports.glob("*.html"))
    check_self_contained('<a href="https://x.org">x</a><p>url(http://x)</p><img src="data:image/png;base64,AA">')
    for page in (
        '<script src="https://x/y.js"></script>', '<img src="figures/plot.png">', '<link href="style.css">',
        "<style>@import 'http://x/y.css';</style>", '<p style="background: url(http://x/y.png)">',
    ):  # fmt: skip
        with pytest.raises(NotSelfContained):
            check_self_contained(page)


def test_pages_are_made_again_only_of_another_notebook(repository):
    """And say at which commit they were made, and what differed from it; the index lists what is there."""
    (repository.reports).mkdir()
    path = repository.reports / "generate.ipynb"

    def write(text):
        figure = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
        cells = [new_markdown_cell(f"# Does it?\n\n**{text}**"), new_markdown_cell("How it *looks*.")]
        path.write_text(dump(new_notebook(cells=[*cells, new_code_cell("1", outputs=[figure], execution_count=1)])))

    write("Is it so?")
    assert render() == 0
    first = (repository.reports / "generate.html").read_text()
    assert "not known: this is no working tree of Git" in first and 'alt="Figure 1. How it looks."' in first
    for words in (["init", "-q"], ["add", "dvc.yaml"], ["commit", "-qm", "first"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *words], check=True)
    assert render() == 0
    assert (repository.reports / "generate.html").read_text() == first
    (repository.root / "dvc.yaml").write_text("stages: {}  # <b>\n")
    write("Is it <i>not</i> so?")
    assert render() == 0
    second = (repository.reports / "generate.html").read_text()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert commit in second and "dvc.yaml" in second
    digest = (repository.reports / "generate.rendered").read_text()
    assert render("generate") == 0 and (repository.reports / "generate.rendered").read_text() == digest
    index = (repository.reports / "index.html").read_text()
    assert 'href="generate.html"' in index and "Is it &lt;i&gt;not&lt;/i&gt; so?" in index


def test_audio_player_carries_the_sound():
    samples = np.linspace(-1.5, 1.5, 480)
    page = cells.audio_player(samples[None, None], 24_000, "<voice>").data
    assert "&lt;voice&gt;" in page and "<voice>" not in page
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        pcm = np.frombuffer(file.readframes(480), dtype="<i2")
    np.testing.assert_allclose(pcm / 32767, samples.clip(-1, 1), atol=1 / 32767)
    for wrong in (np.zeros((2, 8)), np.zeros(0), np.array([np.nan])):
        with pytest.raises(ValueError):
            cells.audio_player(wrong, 24_000)


def test_texts_are_texts():
    shown = cells.preformatted("<|eot|>\n<b>").data
    assert "&lt;|eot|&gt;\n&lt;b&gt;" in shown and shown.startswith("<pre")


def test_results_are_written_whole_and_rounded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"third": np.float32(1 / 3), "none": None, "yes": True, "word": "a,b"}
    cells.write_json("deep/a.json", {**row, "list": [1e-9 / 3, np.arange(2)]})
    assert json.loads(Path("deep/a.json").read_text()) == {
        "third": 0.333333, "none": None, "yes": True, "word": "a,b", "list": [3.33333e-10, [0, 1]],
    }  # fmt: skip
    cells.write_table("a.csv", [row])
    assert Path("a.csv").read_bytes() == b'third,none,yes,word\n0.333333,,True,"a,b"\n'
    with pytest.raises(ValueError, match=r"b.json: x\[0\] is nan"):
        cells.write_json("b.json", {"x": [float("nan")]})
    with pytest.raises(ValueError, match="row 1 and row 0"):
        cells.write_table("b.csv", [{"a": 1}, {"b": 1}])
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.csv", "a.json"]


def test_outputs_of_exploring_stay_out_of_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cells.STAGE_VARIABLE, raising=False)
    assert cells.output_path("results/generate/a.csv") == Path("results/explore/generate/a.csv")
    assert cells.output_path("metrics.json") == Path("results/explore/metrics.json")
    monkeypatch.setenv(cells.STAGE_VARIABLE, "generate")
    assert cells.output_path("results/generate/a.csv") == Path("results/generate/a.csv")
    with pytest.raises(ValueError):
        cells.output_path(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="dvc.yaml"):
        cells.find_root()


def test_helpers_import_neither_torch_nor_papermill():
    """A kernel imports the helpers in every first cell, and the Jupyter server imports the hook."""
    for name in ("outputs", "clean", "page", "runner", "params"):
        tree = ast.parse((ROOT / "higgs" / "workflow" / f"{name}.py").read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") for node in top}
        assert not {part.split(".")[0] for part in names if part} & {"torch", "papermill", "nbconvert", "IPython"}
    assert sys.version_info >= (3, 11)


@pytest.mark.parametrize("first", ["from higgs import Engine", "import higgs", "import higgs.workflow.outputs"])
def test_no_red_warning_is_the_first_thing_in_a_notebook(first):
    """tqdm misses widgets in a kernel as soon as a library imports it, whatever is imported first."""
    code = f"""import sys, types
sys.modules["ipykernel.zmqshell"] = types.ModuleType("in a kernel")
import IPython
IPython.get_ipython = object
{first}
import tqdm.auto
print("tqdm.notebook" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_kernel_is_reached_through_the_scratch_folder_alone(repository, capfd):
    """No socket lies in the working directory, where a killed stage would leave it."""
    look = "print('sockets', [str(p) for p in Path('.').iterdir() if p.is_socket()], ip)"
    kernel = "from pathlib import Path\nip = get_ipython().kernel.parent.ip\n"
    repository.write([WORK[0], kernel + look])
    assert main(["run", "generate"]) == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("sockets"))
    folder = line.removeprefix("sockets [] ")
    assert Path(folder).parent.name.startswith("higgs-") and not Path(folder).parent.exists()
