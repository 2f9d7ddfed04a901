"""Fixtures: the tiny checkpoint with its golden numbers, and the default checkpoint."""

from pathlib import Path

import pytest
import torch

# Before any test imports transformers: this is the import that makes torchaudio harmless.
import higgs.audio  # noqa: F401

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


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    error = (actual - expected).abs()
    worst = (error - rtol * expected.abs()).max().item()
    assert worst <= atol, f"off by {error.max().item():.2e}"
