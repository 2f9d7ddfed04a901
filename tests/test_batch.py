"""Requests beside each other: each gets what it would get alone, whatever comes, goes or goes wrong next to it."""

import threading
from dataclasses import replace

import pytest
import torch
from test_step import SETTINGS, frames_of
from tiny import prompt_batch

from higgs import AudioContent, AudioTokenizer, Engine
from higgs.config import SamplingConfig
from higgs.data.chatml import smart_voice, voice_clone
from higgs.data.text.tokenizer import TextTokenizer
from higgs.serve.batching.prefix_cache import PrefixCache, fingerprint
from higgs.serve.batching.scheduler import QueueFull, Scheduler
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.batching.state import IDLE
from higgs.serve.engine import EngineConfig

SMALL = EngineConfig(max_batch=3, max_positions=500, max_waiting=4)


@pytest.fixture(scope="module")
def parts(model, golden):
    codec = AudioTokenizer.from_pretrained(golden / "codec")
    return model, codec, TextTokenizer.from_pretrained(golden / "text_tokenizer")


@pytest.fixture(scope="module")
def engine(parts) -> Engine:
    return Engine(*parts, EngineConfig(max_positions=600))


@pytest.fixture()
def small(parts) -> Engine:
    return Engine(*parts, SMALL)


@pytest.fixture(scope="module")
def requests(engine) -> list:
    """16 conversations, with and without a reference, of different lengths and settings."""
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 1024, (8, n), generator=generator) for n in (12, 31)]
    chosen = list(SETTINGS.values())
    made = []
    for index in range(16):
        text = "And so it goes on. " * (1 + index % 5)
        sample, heard = smart_voice(text), []
        if index % 3:
            sample, heard = (
                voice_clone(text, "What was said.", AudioContent("a.wav")),
                [codes[index % 3 - 1]],
            )
        sampling = chosen[index % len(chosen)]
        made.append(engine.sequence(sample, sampling, 16 + 3 * index, heard))
    return made


@pytest.fixture(scope="module")
def alone(parts, requests) -> list[torch.Tensor]:
    """Each of them by itself, in an engine of one row: [K, C]"""
    model, _, _ = parts
    decoder = SlotDecoder(model, slots=1, positions=600, steps_per_sync=4)
    return [frames_of(decoder, r.prompt, r.sampling, r.limit) for r in requests]


def test_a_mixed_batch_of_16_is_one_by_one(engine, requests, alone):
    responses = engine._run(requests)
    assert engine.scheduler.idle and engine.scheduler.decoder.slots == 16
    for response, columns in zip(responses, alone, strict=True):
        assert torch.equal(response.delayed[0], columns)


def test_rows_agree(model, prompts):
    """Not only the codes: keys and values of every layer, but for the last bit on some CPUs."""
    several = SlotDecoder(model, slots=5, positions=400, steps_per_sync=8)
    single = SlotDecoder(model, slots=1, positions=400, steps_per_sync=8)
    names = ("smart_voice", "clone", "multi_scene", "clone", "smart_voice")
    for row, name in enumerate(names):
        several.prefill(row, prompt_batch(prompts, name), 60, SamplingConfig(seed=row))
    several.run(8)
    for row, name in enumerate(names):
        single.prefill(0, prompt_batch(prompts, name), 60, SamplingConfig(seed=row))
        single.run(8)
        for ours, theirs in zip(several.cache.layers, single.cache.layers, strict=True):
            filled = single.next_position[0]
            rows = ours[:, row, :, :filled], theirs[:, 0, :, :filled]
            torch.testing.assert_close(*rows, rtol=1e-5, atol=2e-6)


def test_when_a_request_comes_changes_nothing(parts, requests, alone):
    """Three rows for 16 requests, which come one after another while others run."""
    model, _, _ = parts
    scheduler = Scheduler(SlotDecoder(model, slots=3, positions=600, steps_per_sync=4), max_waiting=4)
    order = [5, 0, 11, 2, 15, 8, 1, 9, 4, 14, 3, 7, 10, 13, 6, 12]
    sequences = {}
    for index in order:
        while len(scheduler.waiting) == 4:
            scheduler.run_steps()
        sequences[index] = scheduler.submit(replace(requests[index]))
        scheduler.run_steps()
    while not scheduler.idle:
        scheduler.run_steps()
    for index, sequence in sequences.items():
        assert torch.equal(sequence.read_new(), alone[index])
    assert sum(scheduler.stops.values()) == 16


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_row_is_as_new_when_it_is_taken_again(model, engine, times):
    """Two rows taken so many times, by requests of other lengths and settings in turn."""
    decoder = SlotDecoder(model, slots=2, positions=200, steps_per_sync=4)
    chosen = [SETTINGS[name] for name in ("the defaults", "greedy", "strict end", "a long window", "no top-k")]
    heard = [torch.full((8, 9), 5)]
    asked = [
        engine.prepare(smart_voice("Hi.")),
        engine.prepare(voice_clone("Ho.", "Hm.", AudioContent("a.wav")), heard),
    ]
    first: dict[tuple[int, int], torch.Tensor] = {}
    for turn in range(times // 2):
        which = [(turn % 5, (turn + row) % 2) for row in (0, 1)]
        for row, (setting, prompt) in enumerate(which):
            decoder.prefill(row, asked[prompt], 9 - setting, chosen[setting])
        drawn = torch.cat([decoder.run(4).clone() for _ in range(2)], dim=1)
        for row in (0, 1):
            columns = drawn[row][drawn[row, :, -1] != IDLE]
            assert torch.equal(columns, first.setdefault(which[row], columns))
            decoder.free(row)
    assert len(first) == 10


def test_what_no_row_can_hold_is_refused_at_once(small):
    text = "Far too long. " * 60
    with pytest.raises(ValueError, match=r"new tokens need \d+, but the engine was set up for 500"):
        small.generate(smart_voice(text), max_new_tokens=100)
    with pytest.raises(ValueError, match="raise max_positions"):
        small.generate_batch([smart_voice("Fits."), smart_voice(text)], max_new_tokens=100)
    assert small.scheduler.idle
    for wrong in (0, -3):
        with pytest.raises(ValueError, match="max_new_tokens"):
            small.generate(smart_voice("Hi."), max_new_tokens=wrong)


def test_too_many_requests_are_told_so(small):
    request = small.sequence(smart_voice("Hi."), max_new_tokens=10)
    sequences = [small.scheduler.submit(replace(request)) for _ in range(5)]
    small.scheduler.run_steps()  # three of them take the rows
    sequences += [small.scheduler.submit(replace(request)) for _ in range(2)]
    with pytest.raises(QueueFull, match="4 requests wait already"):
        small.scheduler.submit(replace(request))
    while not small.scheduler.idle:
        small.scheduler.run_steps()
    assert all(t.stop_reason == "length" and t.num_steps == 10 for t in sequences)
    responses = small.generate_batch([smart_voice("Hi.")] * 12, max_new_tokens=10)
    assert len({r.codes.numpy().tobytes() for r in responses}) == 1, "a batch waits for its turn"


def test_cancelled_requests_leave_their_rows(small):
    request = small.sequence(smart_voice("Hi."), SamplingConfig(seed=2), 60)
    expected = small._run([replace(request)])[0].delayed[0]
    sequences = [small.scheduler.submit(replace(request)) for _ in range(4)]
    small.scheduler.run_steps()
    assert len(small.scheduler.running) == 3 and len(small.scheduler.waiting) == 1
    for sequence in (sequences[0], sequences[3]):
        small.scheduler.cancel(sequence)
        assert sequence.stop_reason == "cancelled"
    assert len(small.scheduler.running) == 2 and not small.scheduler.waiting
    later = small.scheduler.submit(replace(request))
    while not small.scheduler.idle:
        small.scheduler.run_steps()
    small.scheduler.cancel(later)
    assert later.stop_reason in ("stop", "length"), "what has ended cannot be cancelled"
    for sequence in (*sequences[1:3], later):
        assert torch.equal(sequence.read_new(), expected)


def test_an_error_of_a_listener_frees_the_row(small):
    def listener(column: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        small.generate(smart_voice("Hi."), max_new_tokens=60, on_step=listener)
    assert small.scheduler.idle


def test_running_out_of_memory_ends_requests_and_not_the_engine(small, monkeypatch):
    """A prompt too much: its request alone fails. A step too much: all that run do. The next one is served again."""
    decoder = small.scheduler.decoder
    request = small.sequence(smart_voice("Hi."), SamplingConfig(seed=2), 40)
    expected = small._run([replace(request)])[0].delayed[0]
    prefill, left = decoder._read_prompt, [1]

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def second_fails(*arguments):
        prefill(*arguments) if left.pop() else full()
        left.append(0)

    monkeypatch.setattr(decoder, "_read_prompt", second_fails)
    good, bad = (small.scheduler.submit(replace(request)) for _ in range(2))
    while not bad.done:
        small.scheduler.run_steps()
    with pytest.raises(RuntimeError, match="out of memory on cpu with a prompt of .* max_batch"):
        bad.read_new()
    while not good.done:
        small.scheduler.run_steps()
    assert torch.equal(good.read_new(), expected)
    monkeypatch.setattr(decoder, "_read_prompt", prefill)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "run", full)
        with pytest.raises(RuntimeError, match="out of memory"):
            small.generate_batch([smart_voice("Hi.")] * 5, max_new_tokens=40)
    assert small.scheduler.idle
    assert torch.equal(small._run([replace(request)])[0].delayed[0], expected)


def test_threads_share_an_engine(small):
    asked = [(smart_voice("Hello. " * n), SamplingConfig(seed=n)) for n in range(1, 7)]
    expected = [small.generate(*pair, 50).codes for pair in asked]
    made: dict[int, torch.Tensor] = {}

    def ask(index: int) -> None:
        made[index] = small.generate(*asked[index], 50).codes

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made[index], expected[index]) for index in range(4))


def test_a_voice_is_read_once(parts, requests, alone):
    """The second request of a voice copies what the first made of its prompt: the same to the last bit."""
    model, _, _ = parts
    cache = PrefixCache(1 << 24)
    decoder = SlotDecoder(model, slots=1, positions=600, steps_per_sync=4, prefixes=cache)
    for index in (1, 4, 7, 1):  # one reference; different texts
        request = requests[index]
        columns = frames_of(decoder, request.prompt, request.sampling, request.limit)
        assert torch.equal(columns, alone[index])
    assert (cache.hits, cache.misses, len(cache)) == (3, 1, 1)


def test_references_are_encoded_once(engine, tmp_path, monkeypatch):
    from higgs.audio import save_audio

    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in paths:
        save_audio(path, 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(1)), 24_000)
    encode, calls = engine.tokenizer.encode, []
    monkeypatch.setattr(engine.tokenizer, "encode", lambda w: calls.append(1) or encode(w))
    first, second = (engine.reference_codes(AudioContent(str(path))) for path in paths)
    assert torch.equal(first, second) and len(calls) == 1, "the content counts, not the name"


def test_the_voice_cache_keeps_to_its_size():
    cache = PrefixCache(100)
    tensors = {n: [torch.full((10,), n, dtype=torch.float32)] for n in range(4)}  # 40 bytes each

    def get(n: int) -> torch.Tensor:
        return cache.get(bytes([n]), lambda: tensors[n])[0]

    for n in (0, 1, 0, 2):  # the third pushes out 1, which has not been used for longest
        assert get(n) is tensors[n][0]
    assert len(cache) == 2 and cache.bytes == 80
    get(0)
    assert (cache.hits, cache.misses) == (2, 3)
    cache.get(b"huge", lambda: [torch.zeros(1000)])
    assert cache.bytes == 80, "what is larger than all of it is not kept"
    codes = torch.arange(6)
    assert fingerprint(codes.view(2, 3)) != fingerprint(codes.view(3, 2))
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")
