"""Metrics, text errors, intervals and the recogniser against numbers that are known in advance."""

import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from higgs.audio import load_audio, mel_filterbank
from higgs.evaluate import text as text_module
from higgs.evaluate.judges import MoonshineTiny, read_vocabulary, split_at_quiet
from higgs.evaluate.metrics import (
    code_usage,
    level_dbfs,
    log_mel_distance,
    si_sdr,
    silence_share,
    stft_distance,
)
from higgs.evaluate.statistics import bootstrap_interval
from higgs.evaluate.text import (
    CharacterErrors,
    WordErrors,
    character_errors,
    corpus_rate,
    normalize,
    wheel_file,
    word_errors,
)

DATA = Path(__file__).parents[1] / "data"
HALF_IN_DB = 20 * math.log10(2)


def noise(samples: int = 24_000, seed: int = 0) -> torch.Tensor:
    """White noise at about -20 dBFS: every bin of every spectrum lies far above the floors."""
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def sine(
    hertz: float, amplitude: float = 1.0, samples: int = 24_000, sample_rate: int = 24_000
) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(samples) / sample_rate)


# ---- metrics


def test_distances_of_a_change_of_level():
    x = noise()
    assert log_mel_distance(x, x) == 0
    assert stft_distance(x, x) == 0
    assert log_mel_distance(x, x / 2) == pytest.approx(HALF_IN_DB, abs=1e-4)
    # two windows, each 2 log10 2 in the logarithm, and half the mean magnitude
    magnitudes = 0.0
    for window in (2048, 512):
        spectrum = torch.stft(
            x.double(),
            window,
            window // 4,
            window=torch.hann_window(window).double(),
            return_complex=True,
        )
        magnitudes += spectrum.abs().mean().item()
    assert stft_distance(x, x / 2) == pytest.approx(4 * math.log10(2) + magnitudes / 2, rel=1e-5)


def test_log_mel_floor_is_a_hundred_decibels_below_full_scale():
    silent = torch.zeros(4800)
    assert log_mel_distance(silent, sine(1000, 1e-8, 4800)) == 0
    assert log_mel_distance(silent, sine(1000, 1e-2, 4800)) > 1


def test_log_mel_scale_of_a_tone_on_a_bin():
    # 1500 Hz, a period of 16 samples, is a bin of every window: magnitude 1 there, 1/2 beside it
    # (Hann), and nothing else, since a cosine over whole periods is smooth across reflected edges.
    tone = torch.cos(2 * math.pi * torch.arange(16 * 1500 + 1).double() / 16)
    expected = []
    for window in (2048, 1024, 512):
        line = torch.zeros(window // 2 + 1)
        centre = 1500 * window // 24_000
        line[centre - 1 : centre + 2] = torch.tensor([0.5, 1.0, 0.5])
        bands = mel_filterbank(window, window * 80 // 1024, 24_000).T @ line
        expected.append((20 * bands.clamp(min=1e-5).log10() + 100).mean().item())
    distance = log_mel_distance(torch.zeros_like(tone), tone)
    assert distance == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_distances_grow_with_noise():
    x, disturbance = noise(), noise(seed=1)
    for distance in (log_mel_distance, stft_distance):
        values = [distance(x, x + gain * disturbance) for gain in (0.01, 0.1, 1.0)]
        assert values == sorted(values) and values[0] > 0


def test_distances_depend_on_alignment_but_not_on_argument_order():
    x = noise()
    for distance in (log_mel_distance, stft_distance):
        assert distance(x[:-960], x[960:]) > distance(x, 1.01 * x) > 0
        assert distance(x, noise(seed=1)) == pytest.approx(distance(noise(seed=1), x), rel=1e-12)


def test_si_sdr_of_orthogonal_mixture():
    # 1000 Hz and 3000 Hz over whole periods are orthogonal and have no mean.
    target, other = sine(1000), sine(3000)
    for gain, expected in ((0.1, 20.0), (1.0, 0.0), (10.0, -20.0)):
        assert si_sdr(target, target + gain * other) == pytest.approx(expected, abs=1e-3)
        assert si_sdr(target, -0.3 * (target + gain * other) + 0.5) == pytest.approx(
            expected, abs=1e-3
        )


def test_si_sdr_by_hand():
    # <e, s> = 6, <s, s> = 4: target 1.5 s with energy 9, rest [-.5, .5, -.5, .5] with energy 1
    s = torch.tensor([1.0, -1.0, -1.0, 1.0])
    e = torch.tensor([2.0, -2.0, -1.0, 1.0])
    assert si_sdr(s, e) == pytest.approx(10 * math.log10(9 / 1), abs=1e-9)


def test_si_sdr_limits():
    x = noise()
    assert si_sdr(x, 2 * x) > 200
    assert si_sdr(x, torch.zeros_like(x)) == -math.inf
    with pytest.raises(ValueError, match="constant reference"):
        si_sdr(torch.full((1000,), 0.1), x[:1000])


@pytest.mark.parametrize("metric", [log_mel_distance, stft_distance, si_sdr])
def test_bad_pairs(metric):
    x = noise(4800)
    with pytest.raises(ValueError, match="4800 samples and estimate 4799"):
        metric(x, x[:-1])
    with pytest.raises(ValueError, match="empty"):
        metric(x[:0], x[:0])
    with pytest.raises(ValueError, match=r"\[L\].*\(1, 4800\)"):
        metric(x[None], x[None])
    broken = x.clone()
    broken[7] = math.nan
    with pytest.raises(ValueError, match="estimate: 1 of 4800"):
        metric(x, broken)


@pytest.mark.parametrize("metric", [log_mel_distance, stft_distance])
def test_too_short_for_the_longest_window(metric):
    with pytest.raises(ValueError, match="2048 samples, got 2047"):
        metric(noise(2047), noise(2047))
    assert metric(noise(2048), noise(2048, seed=1)) > 0


def test_code_usage_by_hand():
    codes = torch.tensor([[0, 1, 2, 3], [5, 5, 5, 5], [0, 0, 7, 3]])
    even, single, skewed = code_usage(codes, codebook_size=8)
    assert (even.codebook, even.codebook_size, even.frames) == (0, 8, 4)
    assert (even.distinct, even.entropy_bits, even.perplexity) == (4, 2.0, 4.0)
    assert (single.distinct, single.entropy_bits, single.perplexity) == (1, 0.0, 1.0)
    assert (skewed.codebook, skewed.distinct, skewed.entropy_bits) == (2, 3, 1.5)
    assert skewed.perplexity == pytest.approx(2**1.5)


def test_code_usage_counts_clips_together():
    codes = torch.randint(0, 16, (8, 100), generator=torch.Generator().manual_seed(0))
    assert code_usage([codes[:, :37], codes[:, 37:]], 16) == code_usage(codes, 16)


def test_code_usage_refuses():
    codes = torch.tensor([[0, 8]])
    with pytest.raises(ValueError, match=r"0\.\.8, outside 0\.\.7"):
        code_usage(codes, 8)
    with pytest.raises(ValueError, match=r"-1\.\.0"):
        code_usage(torch.tensor([[0, -1]]), 8)
    with pytest.raises(TypeError, match="float32"):
        code_usage(codes.float(), 16)
    with pytest.raises(ValueError, match="no codes"):
        code_usage(codes[:, :0], 16)
    with pytest.raises(ValueError, match="no clips"):
        code_usage([], 16)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        code_usage([codes, torch.zeros(2, 2, dtype=torch.long)], 16)


def test_level_of_known_signals():
    assert level_dbfs(sine(1000)) == pytest.approx(10 * math.log10(0.5), abs=1e-4)
    assert level_dbfs(torch.full((100,), 0.1)) == pytest.approx(-20, abs=1e-4)


def test_silence_share_of_known_signals():
    # three frames of 480 samples at -20 dBFS, one at -60 dBFS
    loud, quiet = torch.full((3 * 480,), 0.1), torch.full((480,), 1e-3)
    mixed = torch.cat([loud, quiet, torch.ones(479)])  # the last frame is not full
    assert silence_share(mixed, 24_000) == 0.25
    assert silence_share(mixed, 24_000, threshold_dbfs=-70) == 0
    assert silence_share(torch.zeros(960), 24_000) == 1
    with pytest.raises(ValueError, match="480 samples, the waveform has 479"):
        silence_share(torch.zeros(479), 24_000)
    with pytest.raises(ValueError, match="NaN"):
        silence_share(torch.full((960,), math.nan), 24_000)


# ---- text


def test_word_errors_by_kind():
    errors = word_errors("the cat sat on the mat", "a cat really sat on mat")
    assert errors == WordErrors(substitutions=1, deletions=1, insertions=1, hits=4)
    assert (errors.errors, errors.words, errors.rate) == (3, 6, 0.5)


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        ("Hello, world!", "hello world"),
        ("It's fifty dollars.", "it is $50"),
        ("Can't you?", "can not you"),
        ("Doctor Smith", "Dr. Smith"),
        ("The colour of aluminium", "the color of aluminum"),
        ("one hundred and twenty three", "123"),
    ],
)
def test_english_normalisation_forgives_writing(reference, hypothesis):
    assert word_errors(reference, hypothesis).errors == 0


def test_normalisation_does_not_forgive_words():
    assert word_errors("fifteen", "fifty").errors == 1
    assert word_errors("colour", "collar").errors == 1


def test_other_languages_keep_their_words():
    assert normalize("¿Qué tal, señor?", "es") == "qué tal señor"
    assert word_errors("L'été, déjà", "l'ete déjà", "fr") == WordErrors(1, 0, 0, 2)
    # English spelling must not touch them.
    assert normalize("Colour uno", "es") == "colour uno"


def test_languages_without_spaces_count_letters():
    assert word_errors("你好世界", "你好", "zh") == WordErrors(0, 2, 0, 2)
    assert character_errors("你好世界", "你 好世", "zh") == CharacterErrors(0, 1, 0, 3)


def test_character_errors():
    errors = character_errors("cat sat", "cats at")
    assert errors.characters == 7 and errors.errors == 2
    assert character_errors("abc", "abd") == CharacterErrors(1, 0, 0, 2)


@pytest.mark.parametrize("hypothesis", ["", "  ", "...", "[noise]"])
def test_empty_hypothesis_deletes_everything(hypothesis):
    assert word_errors("a b c", hypothesis) == WordErrors(0, 3, 0, 0)
    assert character_errors("a b c", hypothesis) == CharacterErrors(0, 5, 0, 0)


@pytest.mark.parametrize("count", [word_errors, character_errors])
@pytest.mark.parametrize("reference", ["", " ", "?!"])
def test_empty_reference_is_an_error(count, reference):
    with pytest.raises(ValueError, match="no words"):
        count(reference, "something")


def test_language_must_be_a_code():
    with pytest.raises(ValueError, match="'English'"):
        word_errors("a", "a", "English")


def test_corpus_rate_is_a_ratio_of_sums():
    short, long = word_errors("yes", "no no"), word_errors("apples fell down", "apples fell down")
    total = short.words + long.words
    assert corpus_rate([short, long]) == 2 / total
    assert corpus_rate([short, long]) != (short.rate + long.rate) / 2
    with pytest.raises(ValueError, match="no utterances"):
        corpus_rate([])
    with pytest.raises(TypeError, match="CharacterErrors and WordErrors"):
        corpus_rate([short, character_errors("a", "a")])


def test_missing_wheels_say_what_to_install(monkeypatch):
    with pytest.raises(RuntimeError, match=r"numpy 0\.0\.0 is needed.*requirements-judges\.txt"):
        wheel_file(("numpy", "0.0.0"), "numpy/__init__.py")
    with pytest.raises(RuntimeError, match="without numpy/absent"):
        wheel_file(("numpy", np.__version__), "numpy/absent")

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(text_module, "distribution", absent)
    with pytest.raises(RuntimeError, match=r"moonshine-voice 0\.0\.48 is not installed.*--no-deps"):
        MoonshineTiny()


# ---- statistics


def test_bootstrap_of_equal_utterances_has_no_width():
    interval = bootstrap_interval([1, 2, 3], [10, 20, 30])
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_bootstrap_weighs_utterances_by_length():
    assert bootstrap_interval([2, 0], [1, 7]).estimate == 0.25


def test_bootstrap_agrees_with_the_normal_approximation():
    errors = np.random.default_rng(1).binomial(10, 0.2, size=400)
    interval = bootstrap_interval(errors, np.full(400, 10))
    half = 1.96 * errors.std() / 10 / math.sqrt(400)
    assert interval.low == pytest.approx(interval.estimate - half, abs=half / 10)
    assert interval.high == pytest.approx(interval.estimate + half, abs=half / 10)
    narrower = bootstrap_interval(errors, np.full(400, 10), confidence=0.5)
    assert interval.low < narrower.low < interval.estimate < narrower.high < interval.high


def test_bootstrap_of_two_utterances_by_hand():
    # The resampled ratio is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], [1, 1], confidence=0.95).low == 0
    assert bootstrap_interval([0, 1], [1, 1], confidence=0.4).low == 0.5
    assert bootstrap_interval([0, 1], [1, 1], confidence=0.4).high == 0.5


def test_bootstrap_repeats_and_keeps_pairs_together():
    errors, totals = [0, 3, 1, 9, 2], [10, 12, 7, 9, 4]
    first, again, other = (bootstrap_interval(errors, totals, 500, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    # every utterance has the rate 1/2: drawn as pairs, so has every resample
    paired = bootstrap_interval([1, 50], [2, 100])
    assert (paired.low, paired.high) == (0.5, 0.5)


def test_bootstrap_refuses():
    for errors, totals, message in (
        ([1], [2], "at least 2"),
        ([1, 2], [2], "shapes"),
        ([1, 2], [2, 0], "positive"),
        ([1, -1], [2, 2], "negative"),
        ([1, math.nan], [2, 2], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(errors, totals)
    with pytest.raises(ValueError, match="num_resamples=0"):
        bootstrap_interval([1, 2], [2, 2], num_resamples=0)


# ---- judges


def test_split_cuts_in_the_pauses_and_loses_nothing():
    rate = 1000
    waveform = noise(70 * rate)
    for second in (25, 49):
        waveform[second * rate : (second + 1) * rate] = 0
    pieces = split_at_quiet(waveform, rate, max_seconds=30)
    assert torch.equal(torch.cat(pieces), waveform)
    assert all(len(piece) <= 30 * rate for piece in pieces)
    assert 25 * rate <= len(pieces[0]) <= 26 * rate
    assert 49 * rate <= len(pieces[0]) + len(pieces[1]) <= 50 * rate
    assert len(pieces) == 3
    short = split_at_quiet(waveform[: 30 * rate], rate, max_seconds=30)
    assert len(short) == 1 and len(short[0]) == 30 * rate


def test_vocabulary_lengths_of_one_and_two_bytes(tmp_path):
    file = tmp_path / "tokenizer.bin"
    entries = [b"<unk>", b"<s>", b"</s>", b"a", b"", b"<<ST_0>>", b"b" * 200, b"c" * 300]
    one = [bytes([len(entry)]) + entry for entry in entries[:-2]]
    two = [
        bytes([128 + 200 % 128, 200 // 128]) + entries[-2],
        bytes([128 + 300 % 128, 300 // 128]) + entries[-1],
    ]
    file.write_bytes(b"".join(one + two))
    assert read_vocabulary(file) == [b"", b"", b"", b"a", b"", b"", b"b" * 200, b"c" * 300]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="entry 7 of 300 bytes"):
        read_vocabulary(file)


@pytest.fixture(scope="module")
def judge():
    try:
        importlib.metadata.distribution("moonshine-voice")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("moonshine-voice is absent: pip install --no-deps -r requirements-judges.txt")
    return MoonshineTiny()


@pytest.fixture(scope="module")
def english_clips():
    """[(text, waveform at 24 kHz)]: recordings of people with their transcripts."""
    manifest = DATA / "recordings" / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip("data/recordings is absent: dvc pull data.dvc")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    english = [row for row in rows if row["language"] == "en"]
    return [(row["text"], load_audio(DATA / row["path"], 24_000)[0]) for row in english]


def test_judge_understands_recorded_speech(judge, english_clips):
    errors = [
        word_errors(text, judge.transcribe(waveform, 24_000)) for text, waveform in english_clips
    ]
    assert len(errors) >= 5
    assert corpus_rate(errors) < 0.3


def test_judge_tells_texts_apart(judge, english_clips):
    (_, waveform), (other_text, _) = english_clips[:2]
    assert word_errors(other_text, judge.transcribe(waveform, 24_000)).rate > 0.5


def test_judge_repeats_itself(judge, english_clips):
    waveform = english_clips[0][1]
    assert judge.transcribe(waveform, 24_000) == MoonshineTiny().transcribe(
        waveform.clone(), 24_000
    )


def test_judge_splits_long_clips(judge, english_clips):
    texts, waveforms, samples = [], [], 0
    for text, waveform in english_clips:
        texts.append(text)
        waveforms += [waveform, torch.zeros(12_000)]
        samples += len(waveform) + 12_000
        if samples > 45 * 24_000:
            break
    assert samples > 30 * 24_000
    heard = judge.transcribe(torch.cat(waveforms), 24_000)
    assert word_errors(" ".join(texts), heard).rate < 0.3


def test_judge_hears_nothing_in_silence(judge):
    assert judge.transcribe(torch.zeros(24_000), 24_000) == ""
    assert judge.transcribe(1e-5 * noise(24_000), 24_000) == ""


def test_judge_stops_a_loop(judge, english_clips, monkeypatch):
    text, waveform = max(english_clips, key=lambda clip: len(clip[0].split()))
    monkeypatch.setattr(judge, "TOKENS_PER_SECOND", 1.0)
    heard = judge.transcribe(waveform, 24_000)
    assert 0 < len(heard.split()) <= math.ceil(len(waveform) / 24_000 + 1) < len(text.split())


def test_judge_refuses_bad_waveforms(judge):
    with pytest.raises(ValueError, match="empty"):
        judge.transcribe(torch.zeros(0), 24_000)
    with pytest.raises(ValueError, match="NaN"):
        judge.transcribe(torch.full((24_000,), math.nan), 24_000)
    with pytest.raises(ValueError, match=r"\[L\].*\(1, 24000\)"):
        judge.transcribe(torch.zeros(1, 24_000), 24_000)
    # 4 ms is shorter than any window of the encoder, and no error
    assert isinstance(judge.transcribe(noise(100), 24_000), str)


def test_judge_names_model_and_wheel(judge):
    assert "tiny-en" in judge.name and "moonshine-voice 0.0.48" in judge.name
