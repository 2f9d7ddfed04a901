"""A bad day in short: requests that come, leave and go wrong at random."""

import pytest
import torch

from benchmarks.soak import Report, requests_of, soak
from higgs import AudioContent, AudioTokenizer, Engine
from higgs.audio import save_audio
from higgs.data.chatml import smart_voice, voice_clone
from higgs.data.text.tokenizer import TextTokenizer
from higgs.serve.engine import EngineConfig


@pytest.fixture(scope="module")
def engine(model, golden) -> Engine:
    codec = AudioTokenizer.from_pretrained(golden / "codec")
    text_tokenizer = TextTokenizer.from_pretrained(golden / "text_tokenizer")
    config = EngineConfig(max_batch=3, max_positions=400, max_waiting=8)
    return Engine(model, codec, text_tokenizer, config)


@pytest.fixture(scope="module")
def report(engine, tmp_path_factory) -> Report:
    path = tmp_path_factory.mktemp("voice") / "a.wav"
    noise = 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(1))
    save_audio(path, noise, 24_000)
    samples = [smart_voice("Good morning. " * n) for n in (1, 2, 3, 4)]
    samples += [voice_clone("Seven." * n, "What is said.", AudioContent(str(path))) for n in (1, 2, 3)]
    return soak(engine, requests_of(engine, samples, 60), count=30, seed=1)


def test_every_request_gets_what_it_should(report):
    assert report.wrong == []
    assert sum(report.outcomes.values()) == 30
    assert report.outcomes["good"] >= 10 and report.outcomes["refused"] >= 3
    assert report.outcomes["left"] + report.outcomes["cancelled"] >= 3


def test_nothing_is_left_behind(report, engine):
    assert report.taken_rows == report.open_requests == 0
    assert engine.scheduler.idle and not engine.scheduler.running
    assert sum(engine.scheduler.stops.values()) >= 30 - report.outcomes["refused"]


def test_memory_does_not_grow(report):
    assert len(report.resident) == 30 and report.growth <= 0.05
