"""The default checkpoint: whole requests from text to audio."""

import pytest
import torch
from conftest import ROOT

from higgs import AudioContent, Engine, SamplingConfig
from higgs.audio import load_audio
from higgs.data.chatml import dialogue, smart_voice, voice_clone
from higgs.evaluate.judges import hub, wavlm_ecapa
from higgs.jobs import cluster
from higgs.serve.engine import choose_device, choose_dtype
from higgs.train import finetune
from higgs.workers import DEVICE

SAMPLING = SamplingConfig(temperature=0.6, top_k=30, top_p=1.0, seed=3)
GREEDY = SamplingConfig(temperature=0, ras_window=None)
CLEO = ROOT / "data" / "voices" / "cleo.flac"


def test_a_request(nano_engine):
    steps = []
    response = nano_engine.generate(smart_voice("The train is late."), SAMPLING, 200, on_step=steps.append)
    codes, usage = response.codes, response.usage
    assert response.sample_rate == 24_000 and response.waveform.shape == (960 * codes.shape[1],)
    assert response.waveform.dtype == torch.float32 and response.waveform.isfinite().all()
    assert codes.shape[0] == 8 and 0 <= codes.min() and codes.max() < 1024
    assert usage.audio_frames == codes.shape[1] > 10 and response.stop_reason == "stop"
    assert usage.audio_steps == response.delayed[0].shape[1] == len(steps) + 1
    assert response.text.endswith("<|AUDIO_OUT|><|audio_eos|>")
    assert set(response.timing) == {"generate", "decode"}


def test_a_request_that_is_cut_off_has_the_frames_before(nano_engine):
    for limit, frames in ((20, 20 - 8), (5, 0)):
        response = nano_engine.generate(smart_voice("We walked along the river."), SAMPLING, limit)
        assert response.stop_reason == "length" and response.usage.audio_steps == limit
        assert response.codes.shape == (8, frames) and response.waveform.shape == (960 * frames,)


def test_the_model_can_start_audio_by_itself(nano_engine):
    """Text mode first: the assistant's turn opens with the token that starts audio, and ends by itself."""
    response = nano_engine.generate(smart_voice("Good evening."), GREEDY, 250, force_audio=False)
    assert response.text.startswith("<|audio_out_bos|><|AUDIO_OUT|>")
    assert response.stop_reason != "stop" or response.text.endswith("<|eot_id|>")


def test_references_and_dialogues(nano_engine):
    clone = voice_clone("Hello there.", "The weather was fine.", AudioContent(str(CLEO)))
    cloned, alone = (nano_engine.generate(sample, SAMPLING, 30) for sample in (clone, smart_voice("Hello there.")))
    assert cloned.usage.prompt_positions > alone.usage.prompt_positions + 80
    codes = [nano_engine.tokenizer.encode(*load_audio(CLEO))]
    assert torch.equal(nano_engine.generate(clone, SAMPLING, 30, reference_codes=codes).codes, cloned.codes)
    spoken = nano_engine.generate(dialogue([(0, "Hi."), (1, "Yes.")], {0: "feminine", 1: "masculine"}), SAMPLING, 40)
    assert spoken.usage.audio_steps > 1
    with pytest.raises(ValueError, match="no reference_codes"):
        nano_engine.generate(voice_clone("x", "y", AudioContent()), SAMPLING, 20)


@pytest.mark.parametrize(
    ("name", "found", "declared", "expected"),
    [
        ("auto", "cuda", None, "cuda"), ("auto", None, None, "cpu"), ("auto", "cuda", "cpu", "cpu"),
        ("auto", "cuda", "cuda:H100", "cuda"), ("cuda", None, "cpu", "cuda"), ("cpu", "cuda", None, "cpu"),
    ],
)  # fmt: skip
def test_the_device_is_chosen_alike_everywhere(monkeypatch, name, found, declared, expected):
    """By `device` of params.yaml, which the runner sets, for the engine, fine-tuning, judges and workers."""
    device = found and torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    monkeypatch.setenv(DEVICE, declared) if declared else monkeypatch.delenv(DEVICE, raising=False)
    assert choose_device(name) == torch.device(expected)
    assert {module.choose_device for module in (cluster, finetune, hub, wavlm_ecapa)} == {choose_device}


def test_device_and_dtype():
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounded_weights_go_with_what_the_cpu_is_fast_in(name, monkeypatch):
    assert choose_dtype(name, torch.device("cuda")) == torch.bfloat16
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("higgs.serve.engine.can_pack", lambda *_, fast=fast: fast)
        assert choose_dtype(name, torch.device("cpu")) == dtype
    for wrong in ("int3", "int16", "nn", ""):
        with pytest.raises(ValueError, match="expected auto"):
            choose_dtype(wrong, torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_text_half_can_stay_in_its_file(nano, dtype):
    """Nothing of it is copied; where it is not rounded, the codes are the same. The model can be asked as before."""
    sample = voice_clone("Hello there.", "The weather was fine.", AudioContent(str(CLEO)))
    places = (nano / "model", nano / "codec", "cpu", dtype)
    whole, offloaded = (Engine.from_pretrained(*places, offload_text=there) for there in (False, True))
    model = offloaded.model
    for part in (model.text_embedding, model.text_head, *(layer.text_ffn for layer in model.layers)):
        assert {weight.dtype for weight in part.parameters()} == {torch.float16}, "as in the file"
    a, b = (engine.generate(sample, SAMPLING, 60) for engine in (whole, offloaded))
    assert b.usage.audio_frames > 10 and b.waveform.isfinite().all()
    if dtype in ("float32", "bfloat16"):
        assert torch.equal(a.codes, b.codes)
    text = offloaded.generate(smart_voice("Good evening."), GREEDY, 40, force_audio=False)
    assert text.text.startswith("<|audio_out_bos|>")


@pytest.mark.requires_cuda
def test_cuda_gives_the_codes_of_the_cpu(nano, nano_engine):
    """float32 on both; the first steps, before rounding can add up."""
    on_gpu = Engine.from_pretrained(nano / "model", nano / "codec", device="cuda", dtype="float32")
    a, b = (engine.generate(smart_voice("Hello."), GREEDY, 24) for engine in (on_gpu, nano_engine))
    assert torch.equal(a.codes, b.codes)
