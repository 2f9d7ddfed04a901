"""Fixtures: the tiny checkpoint with its golden numbers, the default checkpoint, and a clone whose stages have run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_model

# Before any test imports transformers: this is the import that makes torchaudio harmless.
import higgs.audio  # noqa: F401
from higgs import AudioTokenizer, Engine, HiggsAudio
from higgs.data.text.tokenizer import TextTokenizer
from higgs.model import matrices
from higgs.tokens import TokenIds

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
NANO = ROOT / "data" / "checkpoints" / "nano"
KERNEL = matrices.kernel


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "fuzz" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if "fuzz" in item.keywords])
        items[:] = [item for item in items if "fuzz" not in item.keywords]
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device: not run here")
    for item in items:
        if "requires_cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def nano() -> Path:
    if not (NANO / "model" / "config.json").is_file():
        pytest.skip("the default checkpoint is not here: run `dvc pull data.dvc`")
    return NANO


@pytest.fixture(scope="session")
def config(golden) -> dict:
    return json.loads((golden / "gen" / "config.json").read_text())


@pytest.fixture(scope="module", params=["one call into C", "operators"])
def layers(request):
    """How a step's layers run: operators where there is no compiler, or float32 is pinned."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "operators":
            patched.setattr(matrices, "kernel", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _kernel(request, monkeypatch):
    """`layers` lasts until the end of its module: tests that do not ask for it have the kernel all the same."""
    if "layers" not in request.fixturenames:
        monkeypatch.setattr(matrices, "kernel", KERNEL)


@pytest.fixture(scope="session")
def model(config, tmp_path_factory) -> HiggsAudio:
    return HiggsAudio.from_pretrained(write_model(tmp_path_factory.mktemp("gen"), config))


@pytest.fixture(scope="session")
def prompts(golden):
    return load_file(golden / "prompts.safetensors")


@pytest.fixture(scope="session")
def tiny_parts(model, golden) -> tuple[HiggsAudio, AudioTokenizer, TextTokenizer]:
    """The arguments of an `Engine` of the tiny checkpoint."""
    codec = AudioTokenizer.from_pretrained(golden / "codec")
    return model, codec, TextTokenizer.from_pretrained(golden / "text_tokenizer")


@pytest.fixture(scope="session")
def ids(golden) -> TokenIds:
    return TokenIds.of(TextTokenizer.from_pretrained(golden / "text_tokenizer"))


@pytest.fixture(scope="session")
def tokenized(nano, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """The folder in which the stage tokenize has run on a small listing, and what it wrote."""
    from parts_jobs import run_tokenize

    folder = tmp_path_factory.mktemp("tokenized") / "stage"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder.parent))  # for the caches of libraries
        return folder, run_tokenize(folder)


@pytest.fixture(scope="session")
def nano_engine(nano) -> Engine:
    return Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")


def run(*command: str, cwd: Path, timeout: int = 400) -> str:
    """What a command writes to stdout, run with the tools of this environment. Fails unless it exits with 0."""
    environment = os.environ | {
        "DVC_NO_ANALYTICS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """The committed tree in a new folder, with its data."""
    folder = tmp_path_factory.mktemp("clone") / "higgs"
    run("git", "clone", "--quiet", str(ROOT), str(folder), cwd=ROOT)
    # DVC commits experiments, and Git wants to know by whom: a fresh machine does not say.
    run("git", "config", "user.name", "test", cwd=folder)
    run("git", "config", "user.email", "test@localhost", cwd=folder)
    run("dvc", "pull", "--quiet", "data.dvc", cwd=folder)
    return folder


SMALL = (
    "workers=1", "tokenize.max_clips=1", "tokenize.codebook_counts=[8]", "tokenize.players=0",
    "generate.max_new_tokens=12", "generate.players=0", "generate.seeds=[0]", "set=quick",
    "evaluate.players=0", "evaluate.naturalness=null", "evaluate.bootstrap_resamples=10",
    "evaluate.coverage_trials=10",
)  # fmt: skip
SMALL_SETTINGS = [word for setting in SMALL for word in ("-S", setting)]


@pytest.fixture(scope="session")
def first_run(clone) -> str:
    """Every stage run in the clone, as a small experiment; what DVC said. Its results and reports stay there."""
    return run("dvc", "exp", "run", "-n", "small", *SMALL_SETTINGS, cwd=clone)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
BROWSER_OPTIONS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")  # no longer: its event loop keeps others from running
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
    with api.sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, BROWSERS)), None) or playwright.chromium.executable_path
        if not Path(program).is_file():
            pytest.skip("there is no browser: apt install chromium, or playwright install chromium")
        started = playwright.chromium.launch(executable_path=program, args=BROWSER_OPTIONS)
        yield started
        started.close()


def serious_faults(page) -> list[str]:
    """What axe finds in a page that is serious or critical: rule and element."""
    reason = "axe is not installed: pip install -e '.[test]'"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    error = (actual - expected).abs()
    worst = (error - rtol * expected.abs()).max().item()
    assert worst <= atol, f"off by {error.max().item():.2e}"
