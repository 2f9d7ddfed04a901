"""Fine-tuning: adapters, memory, unusable data, and runs on the default checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import NANO, ROOT, assert_close

from higgs.audio import load_audio, save_audio
from higgs.batch import Batch
from higgs.checkpoint.config_json import model_from_json
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import ModelConfig, SamplingConfig
from higgs.data.chatml import AudioContent, ChatMLSample, Message, dialogue, smart_voice
from higgs.data.chatml_json import sample_to_json
from higgs.data.text.lexicon import Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.training.dataset import Dataset
from higgs.data.training.manifest import DataError, encode_audio, read_manifest
from higgs.model.higgs_audio import HiggsAudio, NoTextHead
from higgs.serve.engine import Engine
from higgs.train.checkpointing import load_state, read_log, save_state
from higgs.train.finetune import FineTuning, TuneConfig, finetune, save_tuned, split
from higgs.train.lora import add_lora, enable_gradient_checkpointing
from higgs.train.losses import speech_losses
from higgs.train.memory import layer_activations, memory_plan
from training.nano.byte_tokenizer import save_byte_tokenizer

SMALL = ModelConfig(
    vocab_size=300, hidden_size=192, intermediate_size=512, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=64
)


def small_model(config=SMALL):
    torch.manual_seed(0)
    return HiggsAudio(config)


def small_batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 200, (2, 60), generator=generator)
    codes = torch.randint(0, 1024, (2, 60, SMALL.num_codebooks), generator=generator)
    audio = (torch.arange(60) >= 20).expand(2, 60)
    labels, code_labels = torch.where(audio, -100, ids), torch.where(audio[..., None], codes, -100)
    return Batch(ids, codes, audio, audio, torch.ones(2, 60, dtype=torch.bool), labels, code_labels)


def loss_of(model, batch):
    parts, _ = speech_losses(model, batch, batch)
    return parts["codebooks"].sum() + parts["text"]


def test_adapters_change_nothing_at_first_and_merged_equals_applied():
    model, batch = small_model(), small_batch()
    before = model(batch).audio_logits
    handle = add_lora(model, rank=4)
    assert torch.equal(model(batch).audio_logits, before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n and "text_ffn" not in n and "attention" not in n for n in trained)
    wider = small_model()
    add_lora(wider, rank=4, attention=True)
    assert any("attention" in n for n, p in wider.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    applied = model(batch).audio_logits
    assert (applied - before).abs().max() > 0.01
    merged = handle.merge_and_unload()
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
    assert {p.dtype for p in handle.merge_and_unload().parameters()} == {torch.bfloat16}


def test_checkpointed_layers_have_the_same_gradients():
    plain, again, batch = small_model(), small_model(), small_batch()
    enable_gradient_checkpointing(again)
    for model in (plain, again):
        loss_of(model, batch).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def saved_for_backward(model, batch):
    """Bytes that autograd saves, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, batch)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_plan_agrees_with_what_autograd_saves(checkpointing):
    batch, sizes = small_batch(), []
    for layers in (2, 6):
        model = small_model(replace(SMALL, num_layers=layers)).bfloat16()
        if checkpointing:
            enable_gradient_checkpointing(model)
        sizes.append(saved_for_backward(model, batch))
    measured = (sizes[1] - sizes[0]) / 4 / batch.input_ids.numel() / 2
    planned = SMALL.hidden_size if checkpointing else layer_activations(SMALL)
    assert measured == pytest.approx(planned, rel=0.1)


def test_the_memory_plan_of_the_release_is_that_of_the_documents():
    page = (ROOT / "docs/training.md").read_text()
    for rank in (None, 16):
        for checkpointing in (False, True):
            trained, sizes = memory_plan(ModelConfig(), 4096, rank, checkpointing)
            name = "all weights" if rank is None else f"LoRA of rank {rank}"
            label = name + (", gradient checkpointing" if checkpointing else "")
            assert f"| {label} | " + " | ".join(f"{size / 1e9:.1f}" for size in sizes) in page
    with torch.device("meta"):
        model = HiggsAudio(ModelConfig())
    add_lora(model, 16)
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A manifest of two short clips of a recording, one in the voice of the other, a dialogue; six unfit rows."""
    folder = tmp_path_factory.mktemp("speech")
    waveform, rate = load_audio(ROOT / "data/recordings/en/en-tt-weasels.flac")
    for name, start in (("a", 0), ("b", rate)):
        save_audio(folder / f"{name}.wav", waveform[start : start + rate], rate)
    save_audio(folder / "long.wav", waveform.repeat(31)[: 31 * rate], rate)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    asked = dialogue([(0, "Good morning."), (1, "Good evening.")]).messages
    talk = ChatMLSample([*asked, Message("assistant", AudioContent("b.wav"))])
    texts = {"a": "Good morning.", "b": " Good evening. ", "missing": "A", "c": "  ", "long": "B", "broken": "C"}
    rows = [
        *({"audio": f"{name}.wav", "text": text} for name, text in texts.items()),
        {"text": "No sound."},
        {"id": "clone", "audio": "b.wav", "text": "Good evening.", "reference": "a.wav"},
        {"id": "talk"} | sample_to_json(talk),
    ]
    lines = [json.dumps(row) for row in rows] + ["not json"]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def dataset(speech, tmp_path_factory):
    """Encoded by the default codec, without the rows that cannot be used."""
    codec = AudioTokenizer.from_pretrained(NANO / "codec")
    manifest = read_manifest(speech, allow_special=True, description="nobody")
    found = encode_audio(manifest, tmp_path_factory.mktemp("codes"), codec.encode, "nano", 24_000, 30)
    tokenizer = TextTokenizer.from_pretrained(NANO / "model")
    config = model_from_json(json.loads((NANO / "model/config.json").read_text()))
    return Dataset(*found, tokenizer, config, 1500, leave_out=True)


def test_unusable_records_are_named_once(dataset):
    assert [e.id for e in dataset.examples] == ["a.wav", "b.wav", "clone", "talk"]
    told = [(int(p.place.rsplit(" ", 1)[1]), p.kind) for p in dataset.manifest.problems]
    assert sorted(told) == [
        (3, "missing audio"), (4, "empty text"), (5, "unusable audio"), (6, "unusable audio"), (7, "invalid record"),
        (10, "invalid record"),
    ]  # fmt: skip
    alone = read_manifest(dataset.manifest.path, description="nobody")
    assert alone.counts["invalid record"] == 3, "special tokens are for whoever trusts the file"


def tuning_in(folder, dataset, replay=None, **options):
    model = HiggsAudio.from_pretrained(NANO / "model")
    return FineTuning(model, dataset, folder, TuneConfig(**options), replay)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(dataset, tmp_path):
    options = {"steps": 4, "rank": 2, "positions": 500, "replay": dataset.subset([0])}
    whole = tuning_in(tmp_path / "whole", dataset, **options)
    losses = [whole.advance() for _ in range(4)]
    broken = tuning_in(tmp_path / "broken", dataset, **options)
    assert [broken.advance(), broken.advance()] == losses[:2]
    broken.save()
    again = tuning_in(tmp_path / "broken", dataset, **options)
    assert again.step == 2
    assert [again.advance(), again.advance()] == losses[2:]
    for name, value in whole.trained.items():
        assert torch.equal(value, again.trained[name])


# What a run depends on -> another value of it; in a test, `data` is another dataset.
OTHER_RUNS = {
    "rate": 1e-3, "steps": 9, "rank": 3, "positions": 400, "seed": 1, "attention": True, "noise": 0.1,
    "validation_share": 0.5, "replay_share": 0.1, "checkpoint": "another", "data": "data", "replay": "data",
    "code": "other code",
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    tuning_in(folder, dataset.subset([0, 1]), rank=2).save()
    return folder


DAMAGES = {"half": lambda b: b[: len(b) // 2], "empty": lambda b: b"", "noise": lambda b: b"\x07" * 900}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_named_with_what_to_do(begun, dataset, tmp_path, damage):
    (tmp_path / "tuning.pt").write_bytes(damage((begun / "tuning.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"tuning\.pt is cut off or damaged .*: copy it again, or delete it") as caught:
        tuning_in(tmp_path, dataset.subset([0, 1]), rank=2)
    assert "weights_only" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_another_run_is_not_gone_on_with(begun, dataset, monkeypatch, name):
    value = dataset.subset([0, 2]) if OTHER_RUNS[name] == "data" else OTHER_RUNS[name]
    options = {"dataset": dataset.subset([0, 1]), "rank": 2, "recompute": True}  # the last changes no result
    if name == "code":
        monkeypatch.setattr("higgs.train.finetune.code_hash", lambda device: value)
    else:
        options["dataset" if name == "data" else name] = value
    with pytest.raises(ValueError, match=f"of another run: {name} was .*another --out"):
        tuning_in(begun, **options)


def apart(dataset: Dataset, indices: list[int]) -> Dataset:
    """A subset whose answers have codes of other names each."""
    subset = dataset.subset(indices)
    subset.examples = [replace(e, keys=(*e.keys[:-1], str(number))) for number, e in enumerate(subset.examples)]
    return subset


def test_a_clip_of_two_rows_is_not_learned_and_held_back(dataset):
    clips = apart(dataset, [0, 1] * 10)
    twice = clips.subset(list(range(20)) * 2)
    training, validation = split(twice, 0.1, 3)
    learned, held = (set().union(*(e.trained_keys for e in part.examples)) for part in (training, validation))
    assert (len(training), len(validation)) == (36, 4) and not learned & held
    assert held == set().union(*(e.trained_keys for e in split(clips, 0.1, 3)[1].examples))
    talk = clips.examples[0].sample
    both = replace(talk, messages=[*talk.messages, talk.messages[-1]])
    pairs = [replace(clips.examples[0], sample=both, keys=(str(n), str(n + 1))) for n in range(19)]
    mixed = clips.subset(list(range(20)))
    mixed.examples, mixed.positions, mixed.hashes = mixed.examples + pairs, mixed.positions * 2, mixed.hashes * 2
    for seed in range(5):
        learned, held = (set().union(*(e.trained_keys for e in part.examples)) for part in split(mixed, 0.1, seed))
        assert len(held) >= 4 and not learned & held
    heard = replace(talk, messages=[talk.messages[-1], Message("assistant", "Yes.")], start_index=1)
    clips.examples = [replace(e, id=str(n), sample=heard, keys=("a",)) for n, e in enumerate(clips.examples)]
    assert [len(part) for part in split(clips, 0.1, 3)] == [18, 2]  # answers in text to one audio


def test_a_run_of_another_device_is_not_gone_on_with(begun, dataset, tmp_path):
    state = load_state(begun / "tuning.pt")
    save_state(tmp_path / "tuning.pt", **state | {"key": state["key"] | {"device": "cuda"}})
    with pytest.raises(ValueError, match="of another run: device was 'cuda' and is 'cpu'"):
        tuning_in(tmp_path, dataset.subset([0, 1]), rank=2)


def test_a_run_begun_anew_has_a_log_of_its_own(dataset, tmp_path):
    (tmp_path / "tuning.jsonl").write_text('{"step": 9, "loss": 1.0}\n')
    tuning_in(tmp_path, dataset.subset([0, 1]), rank=2, steps=1, seed=2**62).run()
    assert [record["step"] for record in read_log(tmp_path / "tuning.jsonl")] == [1]


UNFIT = {
    "rows": ({"positions": 20}, DataError, r"10 of 10 records .* 4 too long"),
    "codec": ({}, FloatingPointError, "codec is not written: .* reaches 1e.05, .*; use a codec within its range"),
    "range": ({}, FloatingPointError, "model is not written: .* reaches 1e.05, .*; use a checkpoint within its range"),
    "text": ({}, ValueError, "answers in text alone, and adapters are on audio: --attention, or --rank 0"),
    "head": ({}, ValueError, "has no text head: it speaks, and cannot be fine-tuned"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_tuned_is_told_before_the_first_step(speech, tmp_path, monkeypatch, name):
    options, error, message = UNFIT[name]
    monkeypatch.setattr(FineTuning, "run", lambda *_: pytest.fail("it was begun"))
    if name == "text":
        speech = tmp_path / "talk.jsonl"
        talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
        speech.write_text(json.dumps({"messages": talk}))
    elif name != "rows":
        kind = AudioTokenizer if name == "codec" else HiggsAudio
        read = kind.from_pretrained

        def spoilt(*arguments, **more):
            found = read(*arguments, **more)
            if name == "codec":
                found.fuse.weight[0, 0] = 1e5
            elif name == "range":
                found.norm.weight.data[0] = 1e5
            else:
                found.text_head = NoTextHead()
            return found

        monkeypatch.setattr(kind, "from_pretrained", spoilt)
    with pytest.raises(error, match=message):
        finetune(speech, "nano", tmp_path, TuneConfig(**options), "nobody", allow_special=True)


def test_steps_follow_the_speech_and_examples_are_validation(dataset, tmp_path):
    several = apart(dataset, [0, 1, 2, 3] * 5)
    several.hashes = [str(number) for number in range(20)]
    training, validation = split(several, 0.1, 3)
    assert len(validation) == 2 and not set(training.hashes) & set(validation.hashes)
    assert split(several, 0.1, 3)[1].hashes == validation.hashes != split(several, 0.1, 4)[1].hashes
    one, few = dataset.positions[0], dataset.subset([0, 1])
    assert tuning_in(tmp_path, few, rank=2).steps == 20
    assert [len(part) for part in split(few, 0.1, 0)] == [2, 0]
    many = apart(dataset, [0] * 60)
    tuning = tuning_in(tmp_path, many, rank=2)
    assert tuning.steps == -(-10 * 60 * one // 1500) and len(tuning.validation) == 6
    (batches,) = tuning.batches
    assert batches.dataset.positions == [one] * 54
    mixed = tuning_in(tmp_path, many, replay=few, rank=2)
    counts = [len(batches.next_indices()) for batches in mixed.batches]
    assert all(counts) and sum(counts) * max(few.positions) <= 1500


def test_a_run_ends_at_its_best(dataset, tmp_path, monkeypatch):
    """Validation that gets worse from the second time on: three more, then the weights of the second."""
    tuning = tuning_in(tmp_path, dataset, steps=100, rank=2, positions=400)
    told, weights = iter((3.0, 2.0, 2.5, 2.4, 2.1, 9.9)), {}
    monkeypatch.setattr("higgs.train.finetune.VALIDATE_EVERY", 1)
    tuning.validation = dataset.subset([1])
    losses = tuning.losses

    def worse(inputs, batch):
        loss, first = losses(inputs, batch)
        if inputs is not batch:
            return loss, first
        weights[tuning.step] = tuning.weights()
        return torch.tensor(next(told)), first

    monkeypatch.setattr(tuning, "losses", worse)
    tuning.run()
    assert tuning.step == 5 and tuning.best["step"] == 2 and list(told) == [9.9]
    again = tuning_in(tmp_path, dataset, steps=100, rank=2, positions=400)
    assert again.should_stop and again.best["loss"] == 2.0
    again.load_weights(again.best["trained"])
    assert all(torch.equal(again.trained[n], value) for n, value in weights[2].items())


def test_an_answer_in_text_alone_has_a_loss():
    model, batch = small_model(), small_batch()
    batch.code_labels.fill_(-100)
    parts, _ = speech_losses(model, batch, batch)
    assert torch.isfinite(parts["text"]) and not parts["codebooks"].any()


@pytest.mark.slow
def test_two_utterances_are_learnt_by_heart(dataset, tmp_path):
    clips = dataset.subset([0, 1])
    model = tuning_in(tmp_path, clips, steps=120, rank=None, rate=2e-3, noise=0.0).run()
    save_tuned(model, NANO / "model", tmp_path / "model")
    engine = Engine.from_pretrained(tmp_path / "model", NANO / "codec", device="cpu")
    for example, text in zip(clips.examples, ("Good morning.", "Good evening."), strict=True):
        sample, wanted = smart_voice(text, speaker="nobody"), dataset.codes[example.keys[0]]
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
    for name in ("generation_config.json", "tokenizer_config.json"):
        (tmp_path / "tuned" / name).write_text("{}")
    (tmp_path / "tuned/notes.json").write_text("{}")
    (source / "lexicon.json").unlink()
    save_tuned(model, source, tmp_path / "tuned")
    assert {p.name for p in (tmp_path / "tuned").iterdir()} == {p.name for p in source.iterdir()} | {"notes.json"}


@pytest.mark.parametrize("part", ["model", "codec"])
def test_a_checkpoint_is_not_tuned_onto_itself(tmp_path, monkeypatch, part):
    monkeypatch.setattr("higgs.train.finetune.readable", lambda *_: pytest.fail("the manifest was read"))
    for name in ("model", "codec"):
        (tmp_path / "X" / name).mkdir(parents=True)
    (tmp_path / "Y").mkdir()
    (tmp_path / "Y" / part).symlink_to(tmp_path / "X" / part)
    monkeypatch.chdir(tmp_path)
    for out in (Path("X"), tmp_path / "X", Path("Y")):
        with pytest.raises(ValueError, match=r"is of the checkpoint that is tuned: write to another --out"):
            finetune(Path("a.jsonl"), str(tmp_path / "X"), out, TuneConfig())


def nan_norm(tuning):
    with torch.no_grad():
        tuning.model.norm.weight.fill_(float("nan"))


def infinite_gradient(tuning):
    list(tuning.trained.values())[-1].register_hook(lambda gradient: gradient + float("inf"))


def huge_weight(tuning):
    """Every loss is finite, and so are the weights, in float32."""
    next(iter(tuning.trained.values())).data.view(-1)[0] = 1e5


ABSURD = {
    nan_norm: r"step 1: loss nan.*batch: .*'a\.wav'",
    infinite_gradient: r"step 1: loss \d.*gradient (inf|nan)",
    huge_weight: "step 2: .* reaches 1e.05, which float16 cannot hold",
}


@pytest.mark.parametrize(("spoil", "message"), ABSURD.items(), ids=[spoil.__name__ for spoil in ABSURD])
def test_weights_that_are_no_numbers_end_the_run_and_the_last_good_ones_stay(dataset, tmp_path, spoil, message):
    """Spoilt between the first step, which is saved, and the last one."""
    options = {"dataset": dataset.subset([0, 1]), "steps": 2, "rank": 2}
    tuning = tuning_in(tmp_path, **options)
    tuning.advance()
    tuning.save()
    spoil(tuning)
    with pytest.raises(FloatingPointError, match=message):
        tuning.run()
    assert tuning_in(tmp_path, **options).step == 1


RATES = [({}, 6e-4), ({"rank": None}, 2e-4), ({"rank": None, "rate": 1e-3}, 1e-3)]


@pytest.mark.parametrize(("options", "rate"), RATES)
def test_every_weight_is_trained_at_a_lower_rate(dataset, tmp_path, options, rate):
    """By default: at the adapters' rate it loses twice as many words."""
    tuning = tuning_in(tmp_path, dataset.subset([0, 1]), steps=20, **options)
    tuning.step = 10  # after the warm-up
    tuning.advance()
    assert tuning.config.rate == tuning.key["rate"] == tuning.optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize("rate", [1e30, 1e8, float("inf"), float("nan"), 0.0, -1.0])
@pytest.mark.parametrize("rank", [2, None])
def test_an_absurd_learning_rate_ends_in_an_error_after_one_step_too(dataset, tmp_path, rate, rank):
    """Weights are finite in float32 after the only step, and its loss was."""
    with pytest.raises((FloatingPointError, ValueError), match="rate"):
        tuned = tuning_in(tmp_path, dataset.subset([0, 1]), steps=1, rank=rank, rate=rate).run()
        save_tuned(tuned, NANO / "model", tmp_path / "model")
    assert list(tmp_path.iterdir()) == [] or [path.name for path in tmp_path.iterdir()] == ["tuning.jsonl"]


def test_merged_adapters_that_float16_cannot_hold_are_not_written(tmp_path):
    model = small_model()
    save_tuned(model, NANO / "model", tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.layers[1].attention.q_proj.weight[0, 0] = 1e6
    with pytest.raises(FloatingPointError, match=r"is not written: layers.1.attention.q_proj.weight reaches 1e\+06"):
        save_tuned(model, NANO / "model", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def command(manifest: Path, out: Path) -> list[str]:
    options = "--description nobody --allow-special --steps 25 --rank 2 --positions 600"
    return [sys.executable, "-m", "higgs", "finetune", manifest, "--out", out, *options.split()]


@pytest.mark.slow
def test_equal_runs_give_equal_bytes_and_so_does_a_killed_one(speech, tmp_path):
    """The command itself: once to its end; once killed after its first save, and called again."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    how = {"env": environment, "cwd": ROOT, "text": True, "stderr": subprocess.STDOUT}
    whole = subprocess.run(command(speech, tmp_path / "whole"), stdout=subprocess.PIPE, check=True, **how)
    assert whole.stdout.count("line 6: ") == 1 and "4 examples" in whole.stdout
    out = tmp_path / "killed"
    killed = subprocess.Popen(command(speech, out), stdout=subprocess.DEVNULL, **how)
    while not (out / "tuning.pt").is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (out / "model").exists()
    subprocess.run(command(speech, out), stdout=subprocess.DEVNULL, check=True, **how)
    for part in ("model", "codec"):
        for path in (tmp_path / "whole" / part).iterdir():
            assert path.read_bytes() == (out / part / path.name).read_bytes()
    folder = shutil.copytree(speech.parent, tmp_path / "speech")
    shutil.copyfile(folder / "b.wav", folder / "a.wav")
    changed = subprocess.run(command(folder / speech.name, out), stdout=subprocess.PIPE, **how)
    assert changed.returncode and "of another run: data was" in changed.stdout
