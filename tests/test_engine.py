"""The default checkpoint, spoken with: whole requests from text to audio."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from higgs import AudioContent, Engine, SamplingConfig
from higgs.audio import load_audio
from higgs.data.chatml import dialogue, smart_voice, voice_clone
from higgs.serve.engine import choose_device, choose_dtype

SAMPLING = SamplingConfig(temperature=0.6, top_k=30, top_p=1.0, seed=3)
CLEO = ROOT / "data" / "voices" / "cleo.flac"


@pytest.fixture(scope="module")
def engine(nano) -> Engine:
    return Engine.from_pretrained(model=nano / "model", tokenizer=nano / "codec", device="cpu")


def test_a_request(engine):
    seen = []
    response = engine.generate(smart_voice("The train is late."), SAMPLING, 200, on_step=seen.append)
    assert response.sample_rate == 24_000
    assert response.waveform.shape == (960 * response.codes.shape[1],)
    assert response.waveform.dtype == torch.float32 and response.waveform.isfinite().all()
    assert response.codes.shape[0] == 8 and 0 <= response.codes.min() and response.codes.max() < 1024
    assert response.usage.audio_frames == response.codes.shape[1] > 10
    assert response.stop_reason == "stop"
    assert response.usage.audio_steps == response.delayed[0].shape[1] == len(seen) + 1
    assert response.text.endswith("<|AUDIO_OUT|><|audio_eos|>")
    assert set(response.timing) == {"generate", "decode"}


def test_one_seed_repeats(engine):
    sample = smart_voice("Good morning.")
    first, again = (engine.generate(sample, SAMPLING, 60) for _ in range(2))
    other = engine.generate(sample, SamplingConfig(0.6, 30, 1.0, seed=4), 60)
    assert torch.equal(first.codes, again.codes) and torch.equal(first.waveform, again.waveform)
    assert first.codes.shape != other.codes.shape or not torch.equal(first.codes, other.codes)


def test_batch_mates_change_nothing(engine):
    samples = [smart_voice("One."), smart_voice("Two, and a half.")]
    settings = [SAMPLING, SamplingConfig(0.9, 10, 0.9, seed=8)]
    together = engine.generate_batch(samples, settings, 60)
    for sample, sampling, response in zip(samples, settings, together, strict=True):
        assert torch.equal(engine.generate(sample, sampling, 60).codes, response.codes)


def test_a_cut_request_keeps_what_it_has(engine):
    response = engine.generate(smart_voice("We walked along the river."), SAMPLING, 20)
    assert response.stop_reason == "length"
    assert response.usage.audio_steps == 20
    assert response.codes.shape == (8, 20 - 8)
    nothing = engine.generate(smart_voice("We walked along the river."), SAMPLING, 5)
    assert nothing.codes.shape == (8, 0) and nothing.waveform.shape == (0,)


def test_the_model_can_start_audio_by_itself(engine):
    """Text mode first: the turn of the assistant opens with the token that starts audio, and ends by itself."""
    response = engine.generate(
        smart_voice("Good evening."),
        SamplingConfig(temperature=0, ras_window=None),
        250,
        force_audio=False,
    )
    assert response.text.startswith("<|audio_out_bos|><|AUDIO_OUT|>")
    if response.stop_reason == "stop":
        assert response.text.endswith("<|eot_id|>")


def test_references_and_dialogues(engine):
    cloned = engine.generate(
        voice_clone("Hello there.", "The weather was fine.", AudioContent(str(CLEO))), SAMPLING, 40
    )
    alone = engine.generate(smart_voice("Hello there."), SAMPLING, 40)
    assert cloned.usage.prompt_positions > alone.usage.prompt_positions + 80
    spoken = engine.generate(dialogue([(0, "Hi."), (1, "Yes.")], {0: "feminine", 1: "masculine"}), SAMPLING, 40)
    assert spoken.usage.audio_steps > 1


def test_references_can_be_given_as_codes(engine):
    waveform, rate = load_audio(CLEO)
    sample = voice_clone("Hello.", "The weather was fine.", AudioContent(str(CLEO)))
    codes = [engine.tokenizer.encode(waveform, rate)]
    from_file = engine.generate(sample, SAMPLING, 30)
    assert torch.equal(engine.generate(sample, SAMPLING, 30, reference_codes=codes).codes, from_file.codes)


def test_bad_requests(engine, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        engine.generate(smart_voice("x"), SAMPLING, 0)
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        engine.generate(voice_clone("x", "y", AudioContent(str(tmp_path / "missing.wav"))), SAMPLING, 20)
    with pytest.raises(ValueError, match="no reference_codes"):
        engine.generate(voice_clone("x", "y", AudioContent()), SAMPLING, 20)
    from higgs.audio import save_audio

    save_audio(tmp_path / "long.wav", torch.zeros(24_000 * 61), 24_000)
    with pytest.raises(ValueError, match="61 s"):
        engine.generate(voice_clone("x", "y", AudioContent(str(tmp_path / "long.wav"))), SAMPLING, 20)


def test_device_and_dtype():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "higgs", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_command_line(nano, tmp_path):
    out = tmp_path / "hello.wav"
    done = run("speak", "Hello.", "--max-new-tokens", "60", "--out", str(out))
    assert done.returncode == 0, done.stderr
    waveform, rate = load_audio(out)
    assert rate == 24_000 and len(waveform) >= 960
    assert "ada" in run("voices").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["speak", " "], 1, "no text"),
        (["speak", "Hi.", "--reference", "a.wav"], 2, "--reference-text"),
    ],
)
def test_command_line_errors(nano, tmp_path, arguments, status, message):
    done = run(*arguments, "--out", str(tmp_path / "x.wav"))
    assert done.returncode == status and message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.requires_cuda
def test_cuda_gives_the_codes_of_the_cpu(nano):
    """float32 on both; the first columns, before rounding can pile up."""
    on_gpu = Engine.from_pretrained(nano / "model", nano / "codec", device="cuda", dtype="float32")
    on_cpu = Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")
    greedy = SamplingConfig(temperature=0, ras_window=None)
    a, b = (e.generate(smart_voice("Hello."), greedy, 24) for e in (on_gpu, on_cpu))
    assert torch.equal(a.codes, b.codes)
