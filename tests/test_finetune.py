"""Fine-tuning: adapters, the memory it needs, data that cannot be used, and runs on the default checkpoint."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import NANO, ROOT, assert_close

from higgs.audio import load_audio, save_audio
from higgs.batch import Batch
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import ModelConfig, SamplingConfig
from higgs.data.chatml import smart_voice
from higgs.data.text.lexicon import Lexicon
from higgs.data.text.tokenizer import TextTokenizer, save_byte_tokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.engine import Engine
from higgs.tokens import TokenIds
from higgs.train.clips import encode_clips, read_clips
from higgs.train.finetune import FineTuning, TuneConfig, choose_device, rows_of, save_tuned
from higgs.train.lora import add_lora, merge_lora, recompute_layers
from higgs.train.losses import speech_losses
from higgs.train.memory import layer_activations, memory_plan

SMALL = ModelConfig(
    vocab_size=300,
    hidden_size=192,
    intermediate_size=512,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=64,
)


def small_model(config=SMALL):
    torch.manual_seed(0)
    return HiggsAudio(config)


def small_batch(config=SMALL):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 200, (2, 60), generator=generator)
    codes = torch.randint(0, 1024, (2, 60, config.num_codebooks), generator=generator)
    audio = (torch.arange(60) >= 20).expand(2, 60)
    seen = torch.ones(2, 60, dtype=torch.bool)
    labels = torch.where(audio, -100, ids)
    return Batch(
        input_ids=ids,
        attention_mask=seen,
        codes=codes,
        audio_mask=audio,
        audio_out_mask=audio,
        labels=labels,
        code_labels=torch.where(audio[..., None], codes, -100),
    )


def loss_of(model, batch):
    parts, _ = speech_losses(model, batch, batch)
    return parts["codebooks"].sum() + parts["text"]


def test_adapters_change_nothing_at_first_and_merged_equals_applied():
    model, batch = small_model(), small_batch()
    before = model(batch).audio_logits
    handle = add_lora(model, rank=4)
    assert torch.equal(model(batch).audio_logits, before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert not any("text_ffn" in name or "attention" in name for name in trained)
    wider = small_model()
    add_lora(wider, rank=4, attention=True)
    assert any("attention" in n for n, p in wider.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    applied = model(batch).audio_logits
    assert (applied - before).abs().max() > 0.01
    merged = merge_lora(handle)
    assert set(merged.state_dict()) == set(small_model().state_dict())
    assert_close(merged(batch).audio_logits, applied, atol=1e-4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        add_lora(small_model(), 0)


def test_adapters_of_a_model_in_bfloat16_are_float32():
    model = small_model().bfloat16()
    handle = add_lora(model, rank=4)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    loss_of(model, small_batch()).backward()
    assert all(torch.isfinite(p.grad).all() for p in trained)
    assert {p.dtype for p in merge_lora(handle).parameters()} == {torch.bfloat16}


def test_a_device_is_chosen():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps", "xpu")


def test_recomputed_layers_have_the_same_gradients():
    plain, again, batch = small_model(), small_model(), small_batch()
    recompute_layers(again)
    for model in (plain, again):
        loss_of(model, batch).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def kept_for_backward(model, batch):
    """Bytes that autograd keeps, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, batch)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("recompute", [False, True])
def test_the_memory_plan_agrees_with_what_autograd_keeps(recompute):
    batch, sizes = small_batch(), []
    for layers in (2, 6):
        model = small_model(replace(SMALL, num_layers=layers)).bfloat16()
        if recompute:
            recompute_layers(model)
        sizes.append(kept_for_backward(model, batch))
    measured = (sizes[1] - sizes[0]) / 4 / batch.input_ids.numel() / 2
    promised = SMALL.hidden_size if recompute else layer_activations(SMALL)
    assert measured == pytest.approx(promised, rel=0.1)


def test_the_memory_plan_of_the_released_size():
    full = memory_plan(ModelConfig(), 4096, None, True)
    lora = memory_plan(ModelConfig(), 4096, 16, True)
    assert full.parameters == full.trained == 5_771_283_456
    with torch.device("meta"):
        model = HiggsAudio(ModelConfig())
    add_lora(model, 16)
    assert lora.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 12e9 < lora.total < 16e9 < 80e9 < full.total


def test_the_plan_in_the_documents_is_the_plan():
    page = (ROOT / "docs/training.md").read_text()
    for rank in (None, 16):
        for recompute in (False, True):
            p = memory_plan(ModelConfig(), 4096, rank, recompute)
            sizes = (p.weights, p.gradients, p.optimizer, p.activations, p.total)
            name = "all weights" if rank is None else f"LoRA of rank {rank}"
            label = name + (", layers recomputed" if recompute else "")
            assert f"| {label} | " + " | ".join(f"{size / 1e9:.1f}" for size in sizes) in page


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A manifest of two short clips of a recording, and five rows that cannot be used."""
    folder = tmp_path_factory.mktemp("speech")
    waveform, rate = load_audio(ROOT / "data/recordings/en/en-tt-weasels.flac")
    for name, start in (("a", 0), ("b", rate)):
        save_audio(folder / f"{name}.wav", waveform[start : start + rate], rate)
    save_audio(folder / "long.wav", waveform.repeat(31)[: 31 * rate], rate)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    rows = [
        {"audio": "a.wav", "text": "Good morning."},
        {"audio": "b.wav", "text": "Good evening."},
        {"audio": "missing.wav", "text": "Nobody."},
        {"audio": "a.wav", "text": "  "},
        {"audio": "long.wav", "text": "For ever."},
        {"audio": "broken.wav", "text": "Noise."},
        {"text": "No sound."},
    ]
    lines = [json.dumps(row) for row in rows] + ["not json"]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


def test_clips_that_cannot_be_used_are_named_and_counted(speech):
    clips, problems = read_clips(speech)
    assert [clip.text for clip in clips] == ["Good morning.", "Good evening."]
    told = {int(problem.where.rsplit(" ", 1)[1]): problem.what for problem in problems}
    assert sorted(told) == [3, 4, 5, 6, 7, 8]
    assert "missing.wav does not exist" in told[3] and told[4] == "the text is empty"
    assert (
        "31.0 s, at most 30 s" in told[5] and "broken.wav" in told[6] and told[7] == "lacks audio"
    )
    (speech.parent / "bad.jsonl").write_text('{"audio": "missing.wav", "text": "Nobody."}\n')
    with pytest.raises(ValueError, match=r"no clip can be used\. .*line 1: .*does not exist"):
        read_clips(speech.parent / "bad.jsonl")


@pytest.fixture(scope="module")
def encoded(speech, tmp_path_factory):
    clips, _ = read_clips(speech)
    codec = AudioTokenizer.from_pretrained(NANO / "codec")
    folder = tmp_path_factory.mktemp("codes")
    return clips, codec, encode_clips(codec, clips, folder), folder


def tuning_in(folder, encoded, **options):
    clips, _, codes, _ = encoded
    text_tokenizer = TextTokenizer.from_pretrained(NANO / "model")
    model = HiggsAudio.from_pretrained(NANO / "model")
    config = TuneConfig("nobody", **options)
    tuning = FineTuning(model, TokenIds.of(text_tokenizer), folder, config)
    return tuning, rows_of(clips, codes, tuning, text_tokenizer)


def test_codes_are_kept_for_the_next_run(encoded):
    clips, _, codes, folder = encoded

    class Unwanted:
        sample_rate = 24_000

    again = encode_clips(Unwanted(), clips, folder)
    assert all(map(torch.equal, again, codes)) and codes[0].shape == (8, 25)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(encoded, tmp_path):
    whole, rows = tuning_in(tmp_path / "whole", encoded, steps=4, rank=2)
    while whole.step < 4:
        whole.advance(rows)
    broken, rows = tuning_in(tmp_path / "broken", encoded, steps=4, rank=2)
    broken.advance(rows)
    broken.advance(rows)
    broken.save()
    again, rows = tuning_in(tmp_path / "broken", encoded, steps=4, rank=2)
    assert again.step == 2
    again.advance(rows)
    again.advance(rows)
    for name, value in whole.trained.items():
        assert torch.equal(value, again.trained[name])


def test_steps_follow_the_speech_and_clips_are_held_back(encoded, tmp_path):
    tuning, rows = tuning_in(tmp_path, encoded, rank=2)
    positions = len(rows[0]["input_ids"])
    assert tuning.steps(rows) == 20 and tuning.split(rows) == ([0, 1], [])
    many = rows[:1] * 60
    assert tuning.steps(many) == -(-10 * 60 * positions // 1500)
    train_on, held_back = tuning.split(many)
    assert len(held_back) == 6 and sorted(train_on + held_back) == list(range(60))
    assert not set(tuning.chosen(many)[0]) & set(held_back) and tuning.chosen(many)[1] == []
    tuning.replay = rows
    mine, old = tuning.chosen(many)
    assert old and (len(mine) + len(old)) * positions <= 1500


def test_a_run_ends_at_its_best(encoded, tmp_path, monkeypatch):
    """Validation that gets worse from the second time on: three more, then the weights of the second."""
    tuning, rows = tuning_in(tmp_path, encoded, steps=100, rank=2, positions=150)
    told, weights = iter((3.0, 2.0, 2.5, 2.4, 2.1, 9.9)), {}
    monkeypatch.setattr("higgs.train.finetune.VALIDATE_EVERY", 1)
    monkeypatch.setattr(tuning, "split", lambda rows: ([0], [1]))
    losses = tuning.losses

    def worse(inputs, batch):
        loss, first = losses(inputs, batch)
        if inputs is not batch:
            return loss, first
        weights[tuning.step] = tuning.weights()
        return torch.tensor(next(told)), first

    monkeypatch.setattr(tuning, "losses", worse)
    tuning.run(rows)
    assert tuning.step == 5 and tuning.best["step"] == 2 and list(told) == [9.9]
    again, _ = tuning_in(tmp_path, encoded, steps=100, rank=2, positions=150)
    assert again.over and again.best["loss"] == 2.0
    again.put(again.best["trained"])
    assert all(torch.equal(again.trained[n], value) for n, value in weights[2].items())


@pytest.mark.slow
def test_two_utterances_are_learnt_by_heart(encoded, tmp_path):
    """All weights, until greedy speech is the clip itself, to the end; and the saved checkpoint says it too."""
    clips, codec, codes, _ = encoded
    tuning, rows = tuning_in(tmp_path, encoded, steps=120, rank=None, rate=2e-3, noise=0.0)
    model = tuning.run(rows)
    save_tuned(model, NANO / "model", tmp_path / "model")
    engine = Engine.from_pretrained(tmp_path / "model", NANO / "codec", device="cpu")
    for clip, wanted in zip(clips, codes, strict=True):
        sample = smart_voice(clip.text, speaker="nobody")
        response = engine.generate(sample, SamplingConfig(temperature=0), 80)
        assert response.stop_reason == "stop"
        assert torch.equal(response.codes, wanted)


def test_the_tuned_checkpoint_reads_text_as_its_source_does(tmp_path):
    source, lexicon = tmp_path / "source", Lexicon("kæt", {"cat": "kæt"})
    model = small_model()
    model.save_pretrained(source, {"bos_token_id": 1}, half=True)
    save_byte_tokenizer(source, lexicon=lexicon)
    save_tuned(model, source, tmp_path / "tuned")
    files = [{p.name: p.read_bytes() for p in f.iterdir()} for f in (source, tmp_path / "tuned")]
    assert files[0].keys() >= {"lexicon.json", "tokenizer.json"} and files[0] == files[1]


def test_a_loss_that_is_not_a_number_stops(encoded, tmp_path):
    tuning, rows = tuning_in(tmp_path, encoded, steps=4, rank=2)
    with torch.no_grad():
        tuning.model.norm.weight.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"step 0: the loss is nan; .*batch: \[[01], [01]\]"
    ):
        tuning.run(rows)
    tuning.names = ("a.wav", "b.wav")
    with pytest.raises(FloatingPointError, match=r"batch: .*'a\.wav'"):
        tuning.run(rows)
    assert not (tmp_path / "tuning.pt").exists()
