"""Fixtures: the tiny checkpoint with its golden numbers, and the default checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_model

# Before any test imports transformers: this is the import that makes torchaudio harmless.
import higgs.audio  # noqa: F401
from higgs import HiggsAudio

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
NANO = ROOT / "data" / "checkpoints" / "nano"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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


@pytest.fixture(scope="session")
def model(config, tmp_path_factory) -> HiggsAudio:
    return HiggsAudio.from_pretrained(write_model(tmp_path_factory.mktemp("gen"), config))


@pytest.fixture(scope="session")
def prompts(golden):
    return load_file(golden / "prompts.safetensors")


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5, rtol: float = 1e-5
) -> None:
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    error = (actual - expected).abs()
    worst = (error - rtol * expected.abs()).max().item()
    assert worst <= atol, f"off by {error.max().item():.2e}"
