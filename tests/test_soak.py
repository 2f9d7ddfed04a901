"""The soak test in short: requests that arrive, leave and fail at random."""

import torch

from benchmarks.soak import references, soak
from higgs import AudioContent, Engine
from higgs.audio import save_audio
from higgs.data.chatml import smart_voice, voice_clone
from higgs.serve.engine import EngineConfig


def test_requests_are_independent_and_leave_nothing_behind(tiny_parts, tmp_path):
    engine = Engine(*tiny_parts, EngineConfig(max_batch=3, max_positions=400, max_waiting=8))
    voice = AudioContent(str(tmp_path / "a.wav"))
    save_audio(voice.audio_url, 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(1)), 24_000)
    samples = [smart_voice("Good morning. " * n) for n in (1, 2, 3, 4)]
    samples += [voice_clone("Seven." * n, "What is said.", voice) for n in (1, 2, 3)]
    count = 60  # who leaves in time, hangs on the machine: of so many, some do
    report = soak(engine, references(engine, samples, 60), count=count, seed=1)
    outcomes = report.outcomes
    assert report.wrong == [] and sum(outcomes.values()) == len(report.resident) == count
    assert outcomes["good"] >= 10 and outcomes["refused"] >= 3 and outcomes["left"] + outcomes["cancelled"] >= 3
    assert report.occupied_slots == report.open_requests == 0
    assert engine.scheduler.idle and sum(engine.scheduler.stops.values()) >= count - outcomes["refused"]
    assert report.growth <= 0.05, "memory does not grow"
