"""Continuous batching: each request gets what it gets alone, whatever starts, ends or fails beside it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from test_step import NAMES, SETTINGS, delayed_of, drawn, prefill

from higgs import AudioContent, Engine
from higgs.audio import save_audio
from higgs.config import SamplingConfig
from higgs.data.chatml import smart_voice, voice_clone
from higgs.serve.batching.prefix_cache import PrefixCache, fingerprint
from higgs.serve.batching.scheduler import QueueFull, Scheduler
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.engine import EngineConfig

REFERENCE = AudioContent("a.wav")


@pytest.fixture(scope="module")
def engine(tiny_parts, layers) -> Engine:
    return Engine(*tiny_parts, EngineConfig(max_positions=600))


@pytest.fixture()
def small(tiny_parts) -> Engine:
    return Engine(*tiny_parts, EngineConfig(max_batch=3, max_positions=500, max_waiting=4))


@pytest.fixture(scope="module")
def sequences(engine) -> list:
    """16 conversations, with and without a reference, of different lengths and settings."""
    generator = torch.Generator().manual_seed(0)
    references = [torch.randint(0, 1024, (8, n), generator=generator) for n in (12, 31)]
    settings, result = list(SETTINGS.values()), []
    for index in range(16):
        text, codes = "And so it goes on. " * (1 + index % 5), references[index % 3 - 1]
        sample = voice_clone(text, "What was said.", REFERENCE) if index % 3 else smart_voice(text)
        sampling = settings[index % len(settings)]
        result.append(engine.sequence(sample, sampling, 16 + 3 * index, [codes] if index % 3 else []))
    return result


@pytest.fixture(scope="module")
def alone(model, layers, sequences) -> list[torch.Tensor]:
    """The delayed frames of each in a decoder of one slot: [K, C]"""
    decoder = SlotDecoder(model, slots=1, positions=600, steps_per_sync=4)
    return [delayed_of(decoder, s.prompt, s.sampling, s.limit) for s in sequences]


def run_all(scheduler: Scheduler) -> None:
    while not scheduler.idle:
        scheduler.run_steps()


def test_a_mixed_batch_of_16_is_one_by_one(engine, sequences, alone):
    responses = engine.run([replace(sequence) for sequence in sequences])
    assert engine.scheduler.idle and engine.scheduler.decoder.slots == 16
    assert all(torch.equal(response.delayed[0], frames) for response, frames in zip(responses, alone, strict=True))


def test_keys_and_values_do_not_depend_on_the_slot(model, layers, prompts):
    """In every layer, but for the last bit on some CPUs."""
    several = SlotDecoder(model, slots=5, positions=400, steps_per_sync=8)
    single = SlotDecoder(model, slots=1, positions=400, steps_per_sync=8)
    names = (*NAMES, "clone", "smart_voice")
    prefill(several, prompts, names, 60)
    several.run(8)
    for slot, name in enumerate(names):
        prefill(single, prompts, (name,), 60, [SamplingConfig(seed=slot)])
        single.run(8)
        filled = single.next_position[0]
        for ours, theirs in zip(several.cache.layers, single.cache.layers, strict=True):
            torch.testing.assert_close(ours[:, slot, :, :filled], theirs[:, 0, :, :filled], rtol=1e-5, atol=2e-6)


def test_the_time_of_arrival_changes_nothing(model, sequences, alone):
    """Three slots for 16 requests, which are submitted one after another while others run."""
    scheduler = Scheduler(SlotDecoder(model, slots=3, positions=600, steps_per_sync=4), max_waiting=4)
    submitted = {}
    for index in (5, 0, 11, 2, 15, 8, 1, 9, 4, 14, 3, 7, 10, 13, 6, 12):
        while len(scheduler.waiting) == 4:
            scheduler.run_steps()
        submitted[index] = scheduler.submit(replace(sequences[index]))
        scheduler.run_steps()
    run_all(scheduler)
    assert all(torch.equal(sequence.read_new(), alone[index]) for index, sequence in submitted.items())
    assert sum(scheduler.stops.values()) == 16


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_slot_is_reused_without_a_trace(model, engine, times):
    """Two slots, by requests of other lengths and settings in turn."""
    decoder = SlotDecoder(model, slots=2, positions=200, steps_per_sync=4)
    settings = [SETTINGS[name] for name in ("the defaults", "greedy", "strict end", "a long window", "no top-k")]
    cloned = engine.sequence(voice_clone("Ho.", "Hm.", REFERENCE), None, None, [torch.full((8, 9), 5)]).prompt
    prompts = [engine.sequence(smart_voice("Hi.")).prompt, cloned]
    first: dict[tuple[int, int], torch.Tensor] = {}
    for number in range(times // 2):
        cases = [(number % 5, (number + slot) % 2) for slot in (0, 1)]
        for slot, (setting, prompt) in enumerate(cases):
            decoder.prefill(slot, prompts[prompt], 9 - setting, settings[setting])
        outputs = torch.cat([decoder.run(4).clone() for _ in range(2)], dim=1)
        for slot, case in enumerate(cases):
            frames = drawn(outputs[slot])
            assert torch.equal(frames, first.setdefault(case, frames))
            decoder.free(slot)
    assert len(first) == 10


def test_what_exceeds_the_capacity_is_refused_at_once(small):
    text = "Far too long. " * 60
    with pytest.raises(ValueError, match=r"new tokens need \d+, but the engine was set up for 500.*max_positions"):
        small.generate(smart_voice(text), max_new_tokens=100)
    with pytest.raises(ValueError, match="max_positions"):
        small.generate_batch([smart_voice("Fits."), smart_voice(text)], max_new_tokens=100)
    assert small.scheduler.idle
    for limit in (0, -3):
        with pytest.raises(ValueError, match="max_new_tokens"):
            small.generate(smart_voice("Hi."), max_new_tokens=limit)


def test_a_full_queue_takes_no_more(small):
    sequence, scheduler = small.sequence(smart_voice("Hi."), max_new_tokens=10), small.scheduler
    submitted = [scheduler.submit(replace(sequence)) for _ in range(5)]
    scheduler.run_steps()  # fills three slots
    submitted += [scheduler.submit(replace(sequence)) for _ in range(2)]
    with pytest.raises(QueueFull, match="4 requests"):
        scheduler.submit(replace(sequence))
    run_all(scheduler)
    assert all(s.stop_reason == "length" and s.num_steps == 10 for s in submitted)
    responses = small.generate_batch([smart_voice("Hi.")] * 12, max_new_tokens=10)
    assert len({r.codes.numpy().tobytes() for r in responses}) == 1, "a batch waits for its turn"


def test_a_request_is_as_long_as_its_text_allows_not_as_the_limit(small):
    """The default limit is 1,024 steps, and a slot has 500: a short text takes few of them."""
    sequence = small.sequence(smart_voice("Hi."))
    assert sequence.limit == 1024 and sequence.length + sequence.max_steps < 500 and small.fits(sequence)
    assert small.run([sequence])[0].usage.audio_frames


def test_a_batch_runs_where_nobody_may_wait(tiny_parts):
    engine = Engine(*tiny_parts, EngineConfig(max_batch=1, max_positions=500, max_waiting=0))
    (alone,) = engine.generate_batch([smart_voice("Hi.")], max_new_tokens=10)
    both = engine.generate_batch([smart_voice("Hi.")] * 2, max_new_tokens=10)
    assert all(torch.equal(response.codes, alone.codes) for response in both)
    engine.scheduler.submit(engine.sequence(smart_voice("Ho."), max_new_tokens=10))
    with pytest.raises(QueueFull):
        engine.generate(smart_voice("Hi."), max_new_tokens=10)


def test_who_has_left_does_not_wait(small):
    """Cancelled while steps run, requests keep their places until these end; they are no reason to refuse another."""
    sequence, scheduler = small.sequence(smart_voice("Hi."), max_new_tokens=10), small.scheduler
    submitted = [scheduler.submit(replace(sequence)) for _ in range(7)]
    for one in submitted[:2]:
        one.cancelled = True
    later = [scheduler.submit(replace(sequence)) for _ in range(2)]
    with pytest.raises(QueueFull):
        scheduler.submit(replace(sequence))
    run_all(scheduler)
    assert [s.stop_reason for s in submitted] == ["cancelled"] * 2 + ["length"] * 5
    assert all(s.stop_reason == "length" for s in later)


@pytest.mark.parametrize("where", ["_read_prompt", "run"])
def test_an_interrupt_of_one_thread_is_an_error_for_the_others(small, monkeypatch, where):
    """Their steps are lost: not to say so would be other speech."""
    scheduler = small.scheduler
    others = [scheduler.submit(small.sequence(smart_voice("Hi."), max_new_tokens=40)) for _ in range(2)]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.decoder, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            scheduler.run_steps()
    with pytest.raises(RuntimeError, match="interrupted"):
        others[0].read_new()
    run_all(scheduler)
    assert others[1].error if where == "run" else others[1].stop_reason == "length"


def test_a_request_that_is_cancelled_within_a_step_ends_after_it(small, monkeypatch):
    """As a stream is that the garbage collector closes."""
    scheduler, steps = small.scheduler, small.scheduler.decoder.run
    stays, leaves = (scheduler.submit(small.sequence(smart_voice("Hi."), max_new_tokens=40)) for _ in range(2))

    def run_and_cancel(count):
        scheduler.cancel(leaves)
        return steps(count)

    monkeypatch.setattr(scheduler.decoder, "run", run_and_cancel)
    run_all(scheduler)
    assert stays.stop_reason == "length" and leaves.stop_reason == "cancelled"


def test_a_cancelled_request_frees_its_slot(small):
    sequence, scheduler = small.sequence(smart_voice("Hi."), SamplingConfig(seed=2), 60), small.scheduler
    expected = small.run([replace(sequence)])[0].delayed[0]
    submitted = [scheduler.submit(replace(sequence)) for _ in range(4)]
    scheduler.run_steps()
    assert len(scheduler.running) == 3 and len(scheduler.waiting) == 1
    for cancelled in (submitted[0], submitted[3]):
        scheduler.cancel(cancelled)
        assert cancelled.stop_reason == "cancelled"
    assert len(scheduler.running) == 2 and not scheduler.waiting
    later = scheduler.submit(replace(sequence))
    run_all(scheduler)
    scheduler.cancel(later)
    assert later.stop_reason in ("stop", "length"), "what has ended cannot be cancelled"
    assert all(torch.equal(s.read_new(), expected) for s in (*submitted[1:3], later))


def test_an_error_of_a_callback_frees_the_slot(small):
    def fail(step: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        small.generate(smart_voice("Hi."), max_new_tokens=60, on_step=fail)
    assert small.scheduler.idle


def test_running_out_of_memory_ends_requests_and_not_the_engine(small, monkeypatch):
    """In a prefill: that request alone fails. In a step: all that run. The next request is served."""
    decoder, scheduler = small.scheduler.decoder, small.scheduler
    sequence = small.sequence(smart_voice("Hi."), SamplingConfig(seed=2), 40)
    expected = small.run([replace(sequence)])[0].delayed[0]
    read_prompt, calls = decoder._read_prompt, []

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def second_fails(*arguments):
        calls.append(arguments)
        return fail() if len(calls) == 2 else read_prompt(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_read_prompt", second_fails)
        good, bad = (scheduler.submit(replace(sequence)) for _ in range(2))
        run_all(scheduler)
    with pytest.raises(RuntimeError, match="out of memory on cpu with a prompt of .* max_batch"):
        bad.read_new()
    assert torch.equal(good.read_new(), expected)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            small.generate_batch([smart_voice("Hi.")] * 5, max_new_tokens=40)
    assert scheduler.idle and torch.equal(small.run([replace(sequence)])[0].delayed[0], expected)


def test_threads_share_an_engine(small):
    requests = [(smart_voice("Hello. " * n), SamplingConfig(seed=n), 50) for n in range(1, 5)]
    expected = [small.generate(*request).codes for request in requests]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda request: small.generate(*request).codes, requests))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_the_prefix_of_a_voice_is_computed_once(model, sequences, alone):
    """The second request of a voice copies the keys and values of the first: the same to the last bit."""
    cache = PrefixCache(1 << 24)
    decoder = SlotDecoder(model, slots=1, positions=600, steps_per_sync=4, prefixes=cache)
    for index in (1, 4, 7, 1):  # one reference; different texts
        sequence = sequences[index]
        assert torch.equal(delayed_of(decoder, sequence.prompt, sequence.sampling, sequence.limit), alone[index])
    assert (cache.hits, cache.misses) == (3, 1)


def test_references_are_encoded_once(engine, tmp_path, monkeypatch):
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in paths:
        save_audio(path, 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(1)), 24_000)
    encode, calls = engine.tokenizer.encode, []
    monkeypatch.setattr(engine.tokenizer, "encode", lambda w: calls.append(1) or encode(w))
    first, second = (engine.reference_codes(AudioContent(str(path))) for path in paths)
    assert torch.equal(first, second) and len(calls) == 1, "the key is the content, not the name"


def test_the_prefix_cache_drops_the_least_recently_used():
    cache = PrefixCache(100)
    tensors = {n: [torch.full((10,), n, dtype=torch.float32)] for n in range(4)}  # 40 bytes each

    def get(n: int) -> torch.Tensor:
        return cache.get(bytes([n]), lambda: tensors[n])[0]

    for n in (0, 1, 0, 2):  # the third drops 1
        assert get(n) is tensors[n][0]
    assert cache.bytes == 80
    get(0)
    assert (cache.hits, cache.misses) == (2, 3)
    cache.get(b"huge", lambda: [torch.zeros(1000)])
    assert cache.bytes == 80, "what is larger than the cache is not stored"
    codes = torch.arange(6)
    assert fingerprint(codes.view(2, 3)) != fingerprint(codes.view(3, 2))
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")
