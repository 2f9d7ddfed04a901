"""Run-away detection: each criterion stops the output it is for, and speech is not stopped."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from higgs import AudioTokenizer, Engine
from higgs.audio import load_audio
from higgs.config import SamplingConfig
from higgs.data.chatml import smart_voice
from higgs.serve.batching.scheduler import Scheduler
from higgs.serve.batching.state import ENDED, RUNNING
from higgs.serve.engine import EngineConfig
from higgs.serve.runaway import REPETITION, SILENCE, TEXT_LENGTH, RunawayConfig, RunawayDetector

TEXT = "Hello there."


class ScriptedDecoder:
    """In place of a `SlotDecoder`: step n of each slot has what `code` says for n and the seed, in all codebooks."""

    def __init__(self, model, code: Callable[[int, int], int]):
        self.model, self.code, self.slots, self.steps_per_sync = model, code, 2, 16
        self.occupied: dict[int, list[int]] = {}

    def check_capacity(self, length: int, limit: int) -> None:
        pass

    def prefill(self, slot, prompt, limit, sampling) -> None:
        self.occupied[slot] = [1, limit, sampling.seed]

    def free(self, slot: int) -> None:
        del self.occupied[slot]

    def run(self, steps: int) -> torch.Tensor:
        outputs = torch.zeros(self.slots, steps, 9, dtype=torch.long)
        for slot, (start, limit, seed) in self.occupied.items():
            for step in range(min(steps, limit - start)):
                code = self.code(start + step, seed)
                outputs[slot, step] = torch.tensor([code] * 8 + [ENDED if code == 1025 else RUNNING])
                self.occupied[slot][0] += 1
                if code == 1025:
                    break
        return outputs


def engine_with(tiny_parts, config: RunawayConfig | None, code: Callable[[int, int], int] | None = None) -> Engine:
    engine = Engine(*tiny_parts, EngineConfig(max_batch=2, max_positions=600, runaway=config))
    if code is not None:
        engine._scheduler = Scheduler(ScriptedDecoder(engine.model, code), max_waiting=8)
    return engine


def hum(step: int, seed: int) -> int:
    return random.Random(step).randrange(8)


def loop(step: int, seed: int) -> int:
    return step % 45 * 20


def babble(step: int, seed: int) -> int:
    return random.Random(step + 1000 * seed).randrange(1024)


@pytest.mark.parametrize(
    ("code", "reason", "steps"), [(hum, SILENCE, 120), (loop, REPETITION, 190), (babble, TEXT_LENGTH, 250 + 3 * 25 + 9)]
)
def test_each_criterion_stops_what_it_is_for(tiny_parts, code, reason, steps):
    response = engine_with(tiny_parts, RunawayConfig(), code).generate(smart_voice(TEXT), max_new_tokens=1200)
    assert response.stop_reason == reason and response.usage.runaway_stops == 1
    assert response.usage.audio_steps <= steps + 16
    assert response.codes.shape[1] == response.usage.audio_steps - 8, "the frames up to then are the response's"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (None, hum),
        (RunawayConfig(least_seconds=100.0, distinct=None), hum),
        (RunawayConfig(least_seconds=100.0, repeated=None), loop),
        (RunawayConfig(seconds_per_byte=None), babble),
    ],
)
def test_each_criterion_can_be_turned_off(tiny_parts, limits, code):
    engine = engine_with(tiny_parts, limits, code)
    response = engine.generate(smart_voice(TEXT), max_new_tokens=400)
    assert (response.stop_reason, response.usage.audio_steps, response.usage.runaway_stops) == ("length", 400, 0)
    assert engine.scheduler.stops == {"length": 1}


def test_another_attempt_has_the_next_seed(tiny_parts):
    def only_seed_6_ends(step: int, seed: int) -> int:
        if seed != 6:
            return hum(step, seed)
        return babble(step, seed) if step < 30 else 1025

    engine = engine_with(tiny_parts, RunawayConfig(retries=2), only_seed_6_ends)
    response = engine.generate(smart_voice(TEXT), SamplingConfig(seed=4), 1200)
    assert response.stop_reason == "stop" and response.usage.runaway_stops == 2
    assert response.usage.audio_steps == 31
    assert engine.scheduler.stops == {SILENCE: 2, "stop": 1}
    settings = [SamplingConfig(seed=seed) for seed in (0, 6, 5)]
    responses = engine.generate_batch([smart_voice(TEXT)] * 3, settings, 1200)
    assert [(r.stop_reason, r.usage.runaway_stops) for r in responses] == [(SILENCE, 3), ("stop", 0), ("stop", 1)]


def test_parity_has_no_detector(tiny_parts):
    engine = engine_with(tiny_parts, RunawayConfig(least_seconds=0.1, seconds_per_byte=0.0))
    stopped, parity = (engine.generate(smart_voice(TEXT), SamplingConfig(seed=1, parity=p), 30) for p in (False, True))
    assert stopped.stop_reason == TEXT_LENGTH and stopped.codes.shape[1] <= 4
    assert parity.stop_reason in ("length", "stop") and parity.usage.audio_steps > stopped.usage.audio_steps


def test_the_text_is_measured_in_bytes():
    config = RunawayConfig(least_seconds=4, seconds_per_byte=0.25)
    assert config.max_frames(40, 25) == (4 + 10) * 25
    assert config.max_frames(6, 25) == (4 + 1.5) * 25 + 0.5
    assert replace(config, seconds_per_byte=None).max_frames(1, 25) is None
    assert config.max_frames(0, 25) is None


def observed(codes: torch.Tensor) -> tuple[str | None, int]:
    """-> the stop reason, and after how many frames"""
    detector = RunawayDetector(RunawayConfig(), 25)
    for start in range(0, len(codes), 4):
        if reason := detector.observe(codes[start : start + 4]):
            return reason, start + 4
    return None, len(codes)


def test_recorded_speech_passes_and_silence_does_not(nano):
    """The recordings and the codec of the default checkpoint, by which the limits were set."""
    codec = AudioTokenizer.from_pretrained(nano / "codec")
    clips = sorted((ROOT / "data" / "recordings").rglob("*.flac"))[:12]
    speech = torch.cat([load_audio(clip, 24_000)[0] for clip in clips])
    assert observed(codec.encode(speech)[0])[0] is None
    generator = torch.Generator().manual_seed(0)
    for level in (0.0, 1e-4, 1e-2):
        reason, frames = observed(codec.encode(level * torch.randn(24_000 * 6, generator=generator))[0])
        assert reason == SILENCE and frames <= 130
    assert observed(codec.encode(speech[: 24_000 * 2])[0].repeat(5))[0] == REPETITION


def test_loops_of_every_length_are_found():
    generator = torch.Generator().manual_seed(0)
    for period in (3, 10, 30, 75):
        codes = torch.randint(0, 1024, (period,), generator=generator).repeat(100)[:400]
        reason, frames = observed(codes)
        assert reason == REPETITION and frames <= 205
    assert observed(torch.randint(0, 1024, (400,), generator=generator))[0] is None
