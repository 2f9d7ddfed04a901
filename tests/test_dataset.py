"""Training data: codes in shards, manifests, and batches in a resumable order."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors import SafetensorError
from tiny import equal_batches
from torch import Tensor

from higgs import AudioContent, Message
from higgs.audio import save_audio
from higgs.config import ModelConfig
from higgs.data.chatml import QUIET_ROOM, smart_voice, tokenize, voice_clone, voices_in_system
from higgs.data.chatml_json import read_conversations
from higgs.data.collator import expand_audio_placeholders
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.training import codes as codes_module
from higgs.data.training.codes import CodesReader, load_codes, packed, save_codes, write_index
from higgs.data.training.dataset import Batches, Dataset
from higgs.data.training.manifest import DataError, Manifest, encode_audio, read_manifest
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import CONTENT, Result, Store, make_part, run
from higgs.tokens import SPECIAL_TOKENS
from training.nano.byte_tokenizer import byte_tokenizer

TOKENIZER = TextTokenizer(byte_tokenizer())
CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size)


def clip(index: int, frames: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, 1024, (8, frames or 3 + index % 7), generator=generator)


def write(folder: Path, count: int, clips: int = 14) -> Path:
    """Shards of so many clips, and their index."""

    def encode(names: list[str]) -> Result:
        codes = packed({name: clip(int(name[1:])) for name in names})
        frames = sum(tensor.shape[1] for tensor in codes.values())
        return Result({"clips": len(codes), "frames": frames, "failed": []}, codes)

    names = [f"c{index}" for index in range(count)]
    parts = [make_part("clips", names[start : start + clips]) for start in range(0, count, clips)]
    store = Store(str(folder))
    write_index(store, run(lambda: encode, parts, store, Cluster(None, 1)), folder)
    return folder


def shards(folder: Path) -> list[Path]:
    """In the order of the index."""
    return [folder / shard["file"] for shard in json.loads((folder / "index.json").read_text())["shards"]]


def test_codes_come_back_from_shards_and_from_one_file(tmp_path):
    reader = CodesReader(write(tmp_path, 40))
    assert sorted(reader) == sorted(f"c{index}" for index in range(40)) and len(reader) == 40
    assert [len(load_codes(path)) for path in shards(tmp_path)] == [14, 14, 12]
    reader.verify()
    save_codes(tmp_path / "codes.safetensors", {name: reader[name] for name in reader})
    for codes in (reader, CodesReader(tmp_path / "codes.safetensors")):
        assert sorted(codes) == sorted(reader) and codes.num_codebooks == 8
        for index in range(40):
            assert torch.equal(codes[f"c{index}"], clip(index)) and codes["c0"].dtype == torch.int64
            assert codes.frames[f"c{index}"] == clip(index).shape[1]


def test_reading_opens_only_what_is_asked_for(tmp_path, monkeypatch):
    write(tmp_path, 40)
    opened = []
    real = codes_module.safe_open
    monkeypatch.setattr(codes_module, "safe_open", lambda path, **how: opened.append(path.name) or real(path, **how))
    reader = CodesReader(tmp_path)
    assert opened == []
    for name in ("c39", "c39", "c38", "c0"):
        assert torch.equal(reader[name], clip(int(name[1:])))
    assert len(opened) == len(set(opened)) == 2


def test_missing_and_damaged_shards_are_named(tmp_path):
    write(tmp_path, 40)
    _, second, third = shards(tmp_path)
    whole = second.read_bytes()
    second.unlink()
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{second.name}: missing; {third.name}.*bytes where"):
        CodesReader(tmp_path)
    third.unlink()
    second.write_bytes(whole)
    with pytest.raises(ValueError, match=rf"{third.name}: missing; fetch"):
        CodesReader(tmp_path)
    first, *_, last = shards(write(tmp_path / "swapped", 8, clips=1))  # clips i and i + 7 have as many frames
    first.write_bytes(last.read_bytes())
    with pytest.raises(ValueError, match=rf"{first.name} is damaged"):
        CodesReader(tmp_path / "swapped")["c0"]
    shard = shards(write(tmp_path / "other", 40))[1]
    altered = bytearray(shard.read_bytes())
    altered[-1] ^= 1
    shard.write_bytes(altered)
    with pytest.raises(ValueError, match=rf"damaged: {shard.name}; fetch"):
        CodesReader(tmp_path / "other").verify()
    shard.write_bytes(b"x" * len(altered))
    reader = CodesReader(tmp_path / "other")
    assert torch.equal(reader["c0"], clip(0)), "the other shards are read all the same"
    name = next(name for name in reader if reader._shard_of[name] == shard.name)
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged") as caught:
        reader[name]
    assert isinstance(caught.value.__cause__, SafetensorError)


def test_codes_that_are_not_here_are_named(tmp_path):
    reader = CodesReader(write(tmp_path, 3))
    assert "c1" in reader and "d" not in reader
    with pytest.raises(KeyError, match="has no codes for 'd'"):
        reader["d"]
    with pytest.raises(FileNotFoundError, match=r"there is no index\.json"):
        CodesReader(tmp_path / "nowhere")
    for text in ('{"shards": [', '{"shards": []}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            CodesReader(tmp_path)


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        ("x", torch.zeros(8, 0, dtype=torch.long), "T at least 1"),
        ("x", torch.full((8, 2), 32768), "0 ... 32767"),
        ("x", torch.full((8, 2), -1), "0 ... 32767"),
        ("x", torch.zeros(8, 2), r"\[K, T\]"),
        ("x", torch.zeros(8, dtype=torch.long), r"\[K, T\]"),
        ("__metadata__", clip(0), "__metadata__"),
    ],
)
def test_codes_that_cannot_be_kept_are_refused(tmp_path, name, codes, message):
    for write in (packed, lambda codes: save_codes(tmp_path / "x.safetensors", codes)):
        with pytest.raises(ValueError, match=message):
            write({"c0": clip(0), name: codes})
    assert not list(tmp_path.iterdir())


def test_an_index_is_of_one_codec_and_of_names_that_are_there_once(tmp_path):
    folder = write(tmp_path, 2, clips=1)
    store, content = Store(str(folder)), packed({"c1": clip(1)[:4]})
    record = next(r for r in store.records(store.names()) if "c1" in load_codes(folder / (r["part"] + CONTENT)))
    for name, codes in (("c1", content), ("c0", packed({"c0": clip(0)}))):
        save_codes(path := folder / (record["part"] + CONTENT), codes)
        store.write(record["part"], None, record | {"bytes": path.stat().st_size})  # or the part would be made again
        with pytest.raises(ValueError, match=rf"\['{name}'\] are in another part too, or have not 8 codebooks"):
            write(tmp_path, 2, clips=1)


def manifest(folder: Path, *rows: dict | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


A = {"id": "a", "text": "Hello.", "audio": "a.wav", "speaker": "ada"}
TALK = {"id": "t", "start_index": 1, "messages": [
    {"role": "user", "content": ["Listen: ", {"type": "audio", "audio_url": "c0"}]},
    {"role": "assistant", "content": ["Yes.", {"type": "audio", "audio_url": "c1"}]}]}  # fmt: skip


def test_records_become_conversations(tmp_path):
    answer, reference = Message("assistant", AudioContent("b.wav")), AudioContent("a.wav")
    row = {"text": "Hi.", "audio": "b.wav"}
    path = manifest(tmp_path, A, row | {"scene": QUIET_ROOM, "description": "calm"}, "", TALK, row | {"codes": "c3"})
    first, second, third = read_manifest(path).examples
    assert second.sample.messages == [*smart_voice("Hi.", QUIET_ROOM, "calm").messages, answer]
    assert second.id == "b.wav", "the name of the audio, where there is no id"
    assert (first.sample.speaker, first.sample.start_index, first.keys) == ("ada", 2, ("a.wav",))
    assert third.keys == ("c0", "c1") and third.sample.start_index == 1
    clone = voice_clone("Hi.", "Hello.", reference, QUIET_ROOM)
    in_system = voices_in_system("Hi.", [reference], QUIET_ROOM)
    for form, prompt in ((None, clone), ("voice_clone", clone), ("voice_in_system", in_system)):
        path = manifest(tmp_path, A, row | {"reference": "a", "form": form, "scene": QUIET_ROOM})
        plain, example = read_manifest(path, description="nova").examples
        assert example.sample.messages == [*prompt.messages, answer]
        assert example.sample.start_index == len(prompt.messages), "the reference is not trained on"
        assert plain.sample.messages[:-1] == smart_voice("Hello.", speaker="nova").messages


def test_a_json_list_of_conversations_without_ids(tmp_path):
    path = tmp_path / "talks.json"
    talk = {key: value for key, value in TALK.items() if key != "id"}
    path.write_text(json.dumps([talk, talk, talk | {"id": "2"}, {"messages": []}], indent=1))
    found = read_manifest(path)
    places = [("record 1", f"{path}[0]"), ("record 2", f"{path}[1]"), ("2", f"{path}[2]")]
    assert [(e.id, e.place) for e in found.examples] == places
    assert [problem.place for problem in found.problems] == [f"{path}[3]"] and found.num_records == 4
    path.write_text(json.dumps(talk))
    (example,) = read_manifest(path).examples
    assert [example.sample] == read_conversations(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="talks.json: not JSON"):
        read_manifest(path)


WRONG = [
    ('{"id": "a",', "invalid record", "not JSON"),
    ('{"id": "a", "id": "b"}', "invalid record", "duplicate key 'id'"),
    (A | {"txt": "x"}, "invalid record", "record: unknown key 'txt' .*did you mean 'text'"),
    (A | {"text": " \n"}, "empty text", "'a'"),
    (A | {"text": "a\0b"}, "invalid record", r"U\+0000"),
    (A | {"codes": "c1"}, "invalid record", "either audio or codes"),
    (A | {"id": "z"}, "duplicate id", "'z' .*line 1"),
    (A | {"form": "voice_clone"}, "invalid record", "voice_clone needs a reference"),
    (A | {"reference": "z", "form": "smart_voice"}, "invalid record", "smart_voice takes no reference"),
    (A | {"reference": "z", "description": "x"}, "invalid record", "either a reference or a description"),
    (A | {"reference": "q"}, "invalid record", r"record\.reference: .*'q'"),
    (A | {"reference": "a"}, "invalid record", r"record\.reference: .*'a'"),
    (TALK | {"start_index": 2}, "invalid record", "start_index"),
    (TALK | {"messages": [{"role": "assistant", "content": {"audio_url": ""}}] * 2}, "invalid record", "audio_url"),
    (TALK | {"messages": [{"role": "assistant", "content": {"text": "<SE>", "allow_special": True}}]}, "invalid record",
     "allow_special=True"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "message"), WRONG)
def test_invalid_records_are_named_and_counted(tmp_path, row, kind, message):
    good = {"id": "z", "text": "Hi.", "codes": "c0"}
    found = read_manifest(manifest(tmp_path, good, row))
    assert [example.id for example in found.examples] == ["z"]
    (problem,) = found.problems
    assert (problem.kind, problem.place) == (kind, f"{tmp_path / 'train.jsonl'}, line 2")
    assert re.search(message, problem.what), problem.what
    assert (found.num_records, found.counts) == (2, {kind: 1})
    assert str(found).startswith(f"1 of 2 records cannot be used: 1 {kind}\n  ")


def test_audio_is_encoded_once_and_what_cannot_be_is_named(tmp_path):
    for name, samples in (("a", 9600), ("b", 24_000), ("short", 4800), ("long", 240_000)):
        save_audio(tmp_path / f"{name}.wav", torch.rand(samples) * 0.1, 24_000)
    (tmp_path / "text.wav").write_text("not audio")
    names = ("a", "b", "short", "long", "text", "gone")
    rows = [{"id": n, "text": "Hi.", "audio": f"{n}.wav"} for n in names]
    part = {"type": "audio", "audio_url": "b.wav", "offset": 0.5}
    rows.append({"id": "part", "messages": [{"role": "assistant", "content": part}]})
    rows.append({"id": "again", "text": "Hi.", "audio": "a.wav", "reference": "b"})
    rows.append({"id": "nobody", "text": "Hi.", "audio": "a.wav", "reference": "text"})
    rows.append({"text": "Hi.", "codes": "c0"})
    path = manifest(tmp_path, *rows)
    encoded = []

    def encode(waveform: Tensor) -> Tensor:
        encoded.append(len(waveform))
        if len(waveform) < 5000:
            raise ValueError("too short")
        return clip(len(waveform), len(waveform) // 960)

    for expected in ([4800, 9600, 12_000, 24_000], []):
        found, codes = encode_audio(read_manifest(path), tmp_path / "codes", encode, "codec", max_seconds=5)
        assert sorted(encoded) == expected, "what has codes, or was refused, is left alone"
        encoded.clear()
    assert [(p.kind, p.place.rpartition(" ")[2]) for p in found.problems] == [
        ("unusable audio", "3"), ("unusable audio", "4"), ("unusable audio", "5"), ("missing audio", "6"),
        ("unusable audio", "9"), ("missing audio", "10"),
    ]  # fmt: skip
    wrong = (
        "short.wav",
        "long.wav",
        "text.wav",
        "gone.wav",
        "text.wav",
        "c0 does not exist; where a row names `codes`: only files are read here",
    )
    assert all(what in problem.what for problem, what in zip(found.problems, wrong, strict=True))
    dataset = Dataset(found, codes, TOKENIZER, CONFIG, leave_out=True)
    assert [example.id for example in dataset.examples] == ["a", "b", "part", "again"]
    assert dataset.manifest.problems == found.problems, "each is reported once"
    assert len(codes) == 3 and dataset.manifest.num_records == 10
    with pytest.raises(DataError):
        Dataset(found, codes, TOKENIZER, CONFIG)
    with pytest.raises(DataError) as caught:
        encode_audio(read_manifest(manifest(tmp_path, rows[5])), tmp_path / "codes", encode, "codec")
    assert caught.value.manifest.counts == {"missing audio": 1}


def test_an_error_names_the_first_problems_and_a_report_all(tmp_path):
    (tmp_path / "prose.txt").write_text("Good morning.\n" * 30)
    found = read_manifest(tmp_path / "prose.txt")
    *first, more = str(DataError(found)).splitlines()
    assert first[0].endswith("30 of 30 records cannot be used: 30 invalid record") and more == "  and 25 problems more"
    assert str(found).splitlines()[1:6] == first[1:] and len(str(found).splitlines()) == 31


def speech(seconds: float = 2.0, level: float = 0.1) -> Tensor:
    return level * torch.randn(round(24_000 * seconds), generator=torch.Generator().manual_seed(0))


# A clip, its rate, its text, whether it is left out, and what is said of it.
UNFIT = [
    (speech(), 24_000, "word " * 40, True, "20.0 words a second"),
    (speech(20), 24_000, "Hi.", True, "0.1 words a second"),
    (speech(), 24_000, "word " * 16, False, "8.0 words a second"),
    (torch.zeros(48_000), 24_000, "Good morning.", True, "speech at -inf dBFS"),
    (speech(level=1e-4), 24_000, "Good morning.", True, "speech at -80 dBFS"),
    (speech(level=2).clamp(-1, 1), 24_000, "Good morning.", True, "of the samples are clipped"),
    (speech(level=3000), 24_000, "Good morning.", True, "samples reach .*32768"),
    (speech()[:100], 24_000, "", True, "words a second"),
    (speech(), 44_101, "Good morning.", True, "cannot resample"),
    (speech(), 4000, "Good morning.", True, "4000 Hz"),
    (torch.cat([torch.zeros(24_000), speech()]), 24_000, "one two three four", False, "silence before"),
]  # fmt: skip


@pytest.mark.parametrize(("waveform", "rate", "text", "is_left_out", "what"), UNFIT)
def test_unfit_clips_are_named_and_the_others_trained_on(tmp_path, waveform, rate, text, is_left_out, what):
    """As the clip of a record, and as the reference of another one; a conversation's text need not be what is said."""
    soundfile.write(tmp_path / "bad.wav", waveform.numpy(), rate, subtype="FLOAT")
    save_audio(tmp_path / "good.wav", speech(), 24_000)
    answer = {"role": "assistant", "content": {"type": "audio", "audio_url": "bad.wav"}}
    rows = [
        {"id": "good", "text": "Good morning.", "audio": "good.wav"},
        {"id": "bad", "text": text or "Hi " * 9, "audio": "bad.wav"},
        {"id": "clone", "text": "Good morning.", "audio": "good.wav", "reference": "bad"},
        {"id": "talk", "messages": [{"role": "user", "content": "Hi."}, answer]},
    ]
    path = manifest(tmp_path, *rows)
    found, _ = encode_audio(read_manifest(path), tmp_path / "codes", lambda w: clip(1), "codec")
    lines = {int(problem.place.rpartition(" ")[2]): problem.what for problem in found.problems + found.warnings}
    for line in (2, 3):
        assert re.search(what, lines[line]) and "bad.wav" in lines[line]
    assert 1 not in lines and (4 in lines) == ("words a second" not in what)
    kept = {example.id for example in found.examples}
    assert kept >= {"good"} and kept.isdisjoint({"bad", "clone"}) == is_left_out
    assert str(found).count("used, but") == len(found.warnings)


def test_codes_are_cached_by_file_content_segment_codec_and_code(tmp_path, monkeypatch):
    encoded_clips, meddle = [], False

    def encode(waveform: Tensor) -> Tensor:
        encoded_clips.append(waveform)
        if meddle:
            save_audio(tmp_path / "a.wav", torch.rand(9600) * 0.1, 24_000)
        return clip(len(encoded_clips), 5)

    def encoded(codec: str = "codec", **segment: float) -> Tensor:
        part = {"audio_url": "a.wav", **segment}
        row = {"messages": [{"role": "assistant", "content": part}]}
        found = encode_audio(read_manifest(manifest(tmp_path, row)), tmp_path / "codes", encode, codec)
        dataset = Dataset(*found, TOKENIZER, CONFIG)
        prints.append(dataset.fingerprint)
        (key,) = dataset.examples[0].keys
        return dataset.codes[key]

    prints = []
    first, second = torch.rand(9600) * 0.1, torch.rand(9600) * 0.1
    save_audio(tmp_path / "a.wav", first, 24_000)
    assert torch.equal(encoded(), clip(1, 5)) and torch.equal(encoded(), clip(1, 5))
    save_audio(tmp_path / "a.wav", second, 24_000)
    assert torch.equal(encoded(), clip(2, 5)) and not torch.equal(*encoded_clips)
    assert torch.equal(encoded(offset=0.1), clip(3, 5))
    assert torch.equal(encoded(offset=0.10000001), clip(4, 5)), "to the last digit"
    assert torch.equal(encoded(codec="other"), clip(5, 5))
    assert len(set(prints)) == 5 and prints[0] == prints[1]
    with monkeypatch.context() as other:
        other.setattr("higgs.data.training.manifest.code_hash", lambda: "other code")
        assert torch.equal(encoded(), clip(6, 5)) and len(encoded_clips) == 6
    save_audio(tmp_path / "a.wav", first, 24_000)
    assert torch.equal(encoded(), clip(1, 5)) and len(encoded_clips) == 6

    meddle = True
    save_audio(tmp_path / "a.wav", torch.rand(9600) * 0.1, 24_000)
    with pytest.raises(DataError) as caught:
        encoded()
    assert caught.value.manifest.counts == {"unusable audio": 1}, "it changed while it was read"


@pytest.fixture()
def data(tmp_path) -> tuple[Manifest, CodesReader]:
    """Thirty utterances of different lengths, and a conversation."""
    rows = [{"id": f"u{i}", "text": "ab " * (1 + i * 5 % 13), "codes": f"c{i}"} for i in range(30)]
    rows[7] |= {"reference": "u3", "form": "voice_clone"}
    found = read_manifest(manifest(tmp_path, *rows, TALK))
    return found, CodesReader(write(tmp_path / "codes", 30))


def test_features_are_those_of_the_collator(data):
    found, codes = data
    dataset = Dataset(found, codes, TOKENIZER, CONFIG)
    assert len(dataset) == 31 and str(dataset.manifest) == "0 of 31 records cannot be used"
    for index, example in enumerate(dataset.examples):
        row = dataset[index]
        tokens = tokenize(example.sample, TOKENIZER)
        clips = [codes[key] for key in example.keys]
        wanted = expand_audio_placeholders(tokens, clips, dataset.ids, CONFIG, True)
        assert all(torch.equal(row[key], wanted[key]) for key in wanted)
        assert dataset.positions[index] == len(row["input_ids"])
    assert (dataset[7]["code_labels"] == 1025).sum() == 8, "the answer, and not the reference"
    subset = dataset.subset([7, 3])
    assert [example.id for example in subset.examples] == ["u7", "u3"] and len(dataset) == 31
    assert torch.equal(subset[1]["input_ids"], dataset[3]["input_ids"])
    assert len({d.fingerprint for d in (dataset, subset, dataset.subset([3, 7]))}) == 3
    save_codes(codes.folder / "other", {name: codes[name].flip(1) for name in codes})
    other = Dataset(found, CodesReader(codes.folder / "other"), TOKENIZER, CONFIG)
    assert other.positions == dataset.positions and other.fingerprint != dataset.fingerprint, "other codes"


def test_problems_stop_the_dataset_unless_they_are_left_out(data):
    found, codes = data
    lines = found.path.read_text().splitlines()
    extra = [{"id": "x", "text": " ", "codes": "c1"}, {"id": "y", "text": "Hi.", "codes": "c99"}]
    found = read_manifest(manifest(found.path.parent, *lines, *extra))
    whole = Dataset(found, codes, TOKENIZER, CONFIG, leave_out=True)
    longest = max(whole.positions)
    name = whole.examples[whole.positions.index(longest)].id
    with pytest.raises(DataError) as caught:
        Dataset(found, codes, TOKENIZER, CONFIG, max_positions=longest - 1)
    dataset = Dataset(found, codes, TOKENIZER, CONFIG, max_positions=longest - 1, leave_out=True)
    assert dataset.manifest == caught.value.manifest and len(dataset) == 30
    assert dataset.manifest.counts == {"empty text": 1, "too long": 1, "no codes": 1}
    assert f"'{name}' takes {longest} positions, at most {longest - 1}" in str(dataset.manifest)
    assert "c99 has no codes in" in str(dataset.manifest)
    with pytest.raises(ValueError, match="8 codebooks, the model 4"):
        Dataset(found, codes, TOKENIZER, ModelConfig(vocab_size=400, num_codebooks=4))


def test_an_example_that_the_tokenizer_cannot_read_is_a_problem(data, monkeypatch):
    monkeypatch.setitem(SPECIAL_TOKENS, "recipient", "<|none|>")
    talk = {"messages": [{"role": "assistant", "content": {"audio_url": "c0"}, "recipient": "all"}]}
    found = read_manifest(manifest(data[0].path.parent, TALK, talk))
    dataset = Dataset(found, data[1], TOKENIZER, CONFIG, leave_out=True)
    assert [e.id for e in dataset.examples] == ["t"] and dataset.manifest.counts == {"invalid record": 1}


def test_a_text_with_tokens_of_audio_is_a_problem_of_its_row_alone(data):
    told = {"text": "Say <|AUDIO|> now.", "type": "text", "allow_special": True}
    row = {"id": "x", "messages": [{"role": "user", "content": told}, *TALK["messages"]]}
    found = read_manifest(manifest(data[0].path.parent, TALK, row), allow_special=True)
    dataset = Dataset(found, data[1], TOKENIZER, CONFIG, leave_out=True)
    assert [e.id for e in dataset.examples] == ["t"]
    assert "'x' has 1 tokens of audio in its text" in str(dataset.manifest)


def test_conversations_in_text_alone_are_trained_on(tmp_path):
    roles = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    found = read_manifest(manifest(tmp_path, {"messages": roles}))
    found, codes = encode_audio(found, tmp_path / "codes", pytest.fail, "codec")
    dataset = Dataset(found, codes, TOKENIZER, CONFIG)
    assert len(dataset) == 1 and (dataset[0]["labels"] >= 0).any()


def test_an_epoch_has_every_example_once_in_an_order_of_its_own(data):
    dataset = Dataset(*data, TOKENIZER, CONFIG)
    batches = Batches(dataset, max_positions=600, seed=3, pool=16)
    plans = [batches.plan(epoch) for epoch in range(3)]
    for plan in plans:
        assert Counter(i for batch in plan for i in batch) == Counter(range(31))
        for batch in plan:
            assert len(batch) * max(dataset.positions[i] for i in batch) <= 600
    assert plans[0] != plans[1] != plans[2] != plans[0]
    assert Batches(dataset, max_positions=600, seed=4, pool=16).plan(0) != plans[0]
    assert Batches(dataset, max_positions=600, seed=3, pool=16).plan(2) == plans[2]
    batch = next(batches)
    assert batch.input_ids.shape[1] % 8 == 0 and batch.input_ids.numel() <= 600
    assert batch.labels is not None and (batch.code_labels >= 0).any()


def test_resuming_goes_on_exactly(data):
    """Stopped in the middle of an epoch, past the end of one, and before anything; into the epoch after the next."""
    dataset = Dataset(*data, TOKENIZER, CONFIG)

    def fresh() -> Batches:
        return Batches(dataset, max_positions=600, seed=3, pool=16)

    epoch = len(fresh().plan(0))
    whole, states, source = [], [], fresh()
    for _ in range(2 * epoch + 4):
        states.append(json.dumps(source.state_dict()))
        whole.append(next(source))
    for start in (0, 2, epoch, epoch + 3):
        resumed = fresh()
        resumed.load_state_dict(json.loads(states[start]))
        assert all(equal_batches(next(resumed), batch) for batch in whole[start:])


def test_other_states_and_too_small_batches_are_refused(data, tmp_path):
    dataset = Dataset(*data, TOKENIZER, CONFIG)
    state = Batches(dataset, max_positions=600, seed=3).state_dict()
    with pytest.raises(ValueError, match="seed was 3 and is 4"):
        Batches(dataset, max_positions=600, seed=4).load_state_dict(state)
    with pytest.raises(ValueError, match="dataset was"):
        Batches(dataset.subset(range(30)), max_positions=600, seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match="longest example takes .* positions.* holds 100"):
        Batches(dataset, max_positions=100)
    with pytest.raises(ValueError, match="the dataset is empty"):
        Batches(dataset.subset([]), max_positions=600)
