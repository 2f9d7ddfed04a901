"""Scripts, manifests and transcripts as people write them: what is wrong is named with its line, and nothing passes."""

import hashlib
import json

import pytest
import soundfile
from conftest import ROOT

from higgs.data.chatml_json import read_conversations
from higgs.data.recordings import read_recordings
from higgs.data.scripts import FORMS, read_scripts
from higgs.data.text.chunks import count_words
from higgs.data.training.manifest import read_manifest
from higgs.data.voices import find_voice, read_voices
from higgs.evaluate.test_sets import convert_seed_tts_eval
from higgs.files import read_text, replacing
from higgs.validation import ParamsError, parse_json
from higgs.workflow.params import read_params

GOOD = {"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hi."}
DUO = {"id": "a", "form": "dialogue", "speakers": {"0": "old", "1": "young"}, "lines": [[0, "Hi."], [1, "Yes?"]]}


@pytest.fixture
def scripts(tmp_path):
    """The scripts of a file with this content (bytes, or rows to write), in a folder with two voices."""
    (tmp_path / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')

    def read(content):
        if isinstance(content, dict):
            content = json.dumps(content, ensure_ascii=False).encode()
        (tmp_path / "s.jsonl").write_bytes(content)
        return read_scripts(tmp_path / "s.jsonl", tmp_path)

    return read


# What is wrong with the one line -> what is said of it.
BAD_SCRIPTS = {
    "a list": (b"[1]", "form must be one of"),
    "half a line": (b'{"id": "a"', "not JSON"),
    "form": (GOOD | {"form": ["smart_voice"]}, "form must be one of"),
    "text": (GOOD | {"text": 5}, r"\.text: .*5"),
    "NUL": (GOOD | {"text": "a\0b"}, r"U\+0000 at character 1"),
    "no text": (GOOD | {"text": " "}, "no text to speak"),
    "an unknown voice": (GOOD | {"voice": "eva"}, "no voice 'eva'"),
    "a clone without a recording": (GOOD | {"form": "voice_clone"}, "does not go with"),
    "limit of nothing": (GOOD | {"max_new_tokens": 0}, r"\.max_new_tokens: .*0"),
    "id with a path": (GOOD | {"id": "../a"}, r"\.id: .*'../a'"),
    "no id": (GOOD | {"id": ""}, r"\.id: .*''"),
    "a misspelt key": (GOOD | {"scenes": "x"}, "unknown key 'scenes' .*did you mean 'scene'"),
    "a language by name": (GOOD | {"language": "Spanish"}, r"\.language: .*'Spanish'"),
    "tags": (GOOD | {"text": "[SPEAKER0] Hi."}, "SPEAKERn"),
    "a misspelt tag": (GOOD | {"text": "[speaker 0] Hi."}, "unknown speaker tag"),
    "half a line of speech": (DUO | {"lines": [[0]]}, r"\.lines\[0\]: "),
    "a line by nobody": (DUO | {"lines": [[-1, "Hi."]]}, r"\.lines\[0\]\[0\]: .*-1"),
    "no lines": (DUO | {"lines": []}, "no text to speak"),
    "a tag in a line": (DUO | {"lines": [[0, "Hi. [SPEAKER1] Yes?"]]}, "without tags"),
    "a speaker's number": (DUO | {"speakers": {"zero": "old"}}, "numbered 0, 1, ..., got zero"),
    "speakers from 1": (DUO | {"speakers": {"1": "old", "2": "young"}}, "numbered 0, 1, ..., got 1, 2"),
    "one speaker twice": (DUO | {"speakers": {"0": "old", "00": "young"}}, "numbered 0, 1, ..., got 0, 00"),
    "a name of two words": (
        {key: DUO[key] for key in ("id", "form", "lines")} | {"voices": {"0": "ada", "1": "aunt may"}},
        "no blanks, got 'aunt may'"),
    "two casts": (DUO | {"voices": {"0": "ada", "1": "ben"}}, "speakers .* or voices"),
    "chunks": (GOOD | {"form": "long_form", "chunks": [1]}, r"\.chunks: .*1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SCRIPTS)
def test_scripts_that_are_refused(scripts, case):
    content, message = BAD_SCRIPTS[case]
    with pytest.raises(ValueError, match=f"s.jsonl, line 1: .*{message}"):
        scripts(content)


def test_the_language_of_a_script(scripts):
    for record in (GOOD, DUO, GOOD | {"form": "long_form"}):
        assert [s.language for more in ({}, {"language": "es"}) for s in scripts(record | more)] == ["en", "es"]


def test_scripts_in_files_of_every_make(scripts, tmp_path):
    """The mark of some editors, blank lines, and U+2028 in a string, where `str.splitlines` would cut."""
    odd = GOOD | {"text": "Hi.\u2028You."}
    content = f"\ufeff\n{json.dumps(odd, ensure_ascii=False)}\r\n\r\n".encode()
    assert [script.text for script in scripts(content)] == ["Hi.\u2028You."]
    with pytest.raises(ValueError, match="s.jsonl is not text in UTF-8"):
        scripts("é".encode("latin-1"))
    with pytest.raises(ValueError, match="s.jsonl: no script in it"):
        scripts(b"\n")


def test_an_id_of_a_test_set_names_a_file_too(scripts, tmp_path):
    """As that of a script: its speech is written to a file of this name."""
    (tmp_path / "r.flac").write_bytes(b"")
    record = {"text": "Hi.", "language": "en", "speaker": "x", "path": None, "seconds": None, "sha256": None}
    record |= {"reference": f"{tmp_path.name}/r.flac", "reference_text": "Yes."}
    record |= {"reference_sha256": hashlib.sha256(b"").hexdigest()}
    assert [script.id for script in scripts(record | {"id": "common_voice_en_1-2"})] == ["common_voice_en_1-2"]
    for name in ("../../evil", "a/b", "x" * 300, "a b", ""):
        with pytest.raises(ValueError, match=r"s.jsonl, line 1: .*\.id: "):
            scripts(record | {"id": name})


def test_a_test_set_is_the_same_in_any_folder(tmp_path, monkeypatch):
    """What is made of it has its paths, and those of this machine's folders are in no result."""
    (tmp_path / "sets/en").mkdir(parents=True)
    (tmp_path / "sets/r.flac").write_bytes(b"")
    record = {"id": "a", "text": "Hi.", "language": "en", "speaker": "x", "path": None, "seconds": None, "sha256": None}
    record |= {"reference": "r.flac", "reference_text": "Yes.", "reference_sha256": hashlib.sha256(b"").hexdigest()}
    (tmp_path / "sets/en/set.jsonl").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    (script,) = read_scripts("sets/en/set.jsonl", tmp_path)
    assert str(script.reference) == "sets/r.flac"
    assert [audio.audio_url for audio in script.request.samples[0].audios] == ["sets/r.flac"]


@pytest.fixture
def recording(tmp_path) -> dict:
    """A row of a manifest, whose file is in its place."""
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "a.flac").write_bytes(b"sound")
    return {
        "id": "a", "path": "recordings/a.flac", "text": "Hi.", "language": "en", "speaker": "eve",
        "seconds": 1.0, "sha256": hashlib.sha256(b"sound").hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([1], r"line 1: .*\[1\]"),
        ({"text": None}, "line 1.text: .*None"),
        ({"text": " "}, "line 1: the transcript is empty"),
        ({"txt": "Hi."}, "line 1: unknown key 'txt' .*did you mean 'text'"),
        ({"path": "recordings/b.flac"}, r"line 1: .*b.flac does not exist"),
        ({"sha256": "0" * 64}, r"line 1: .*a.flac is not the file"),
        ({"language": "pt-BR"}, r"line 1.language: .*'pt-BR'"),
    ],
)
def test_recordings_that_are_refused(recording, tmp_path, change, message):
    path = tmp_path / "recordings" / "manifest.jsonl"
    row = change if isinstance(change, list) else recording | change
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_recordings(path)


def test_a_language_of_a_test_set_is_a_code_as_everywhere(recording, tmp_path):
    path, digest = tmp_path / "recordings" / "set.jsonl", recording["sha256"]
    own = {"reference": recording["path"], "reference_text": "Hi.", "reference_sha256": digest}
    path.write_text(json.dumps(recording | own))
    assert read_scripts(path, tmp_path)[0].language == "en"
    path.write_text(json.dumps(recording | own | {"language": "zh-CN"}))
    with pytest.raises(ValueError, match=r"line 1: a record of a test set.language: .*'zh-CN'"):
        read_scripts(path, tmp_path)


def test_recordings_are_named_once(recording, tmp_path):
    """Names are those of files: the second of a name would overwrite the first."""
    path = tmp_path / "recordings" / "manifest.jsonl"
    path.write_text(json.dumps(recording) + "\n\n" + json.dumps(recording))
    with pytest.raises(ValueError, match="line 3: duplicate id 'a'"):
        read_recordings(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no recording in it"):
        read_recordings(path)


@pytest.mark.parametrize(
    ("cwd", "name"),
    [("", "recordings/manifest.jsonl"), ("recordings", "manifest.jsonl"), ("recordings", "./manifest.jsonl"),
     ("recordings/en", "../manifest.jsonl"), ("recordings/en", "../../recordings/manifest.jsonl")],
)  # fmt: skip
def test_a_manifest_is_read_from_any_folder(recording, tmp_path, monkeypatch, cwd, name):
    (tmp_path / "recordings/en").mkdir()
    (tmp_path / "recordings/manifest.jsonl").write_text(json.dumps(recording))
    monkeypatch.chdir(tmp_path / cwd)
    (found,) = read_recordings(name)
    assert found.path.read_bytes() == b"sound"
    assert cwd or str(found.path) == recording["path"], "tables name files from the folder of the project"


def test_a_transcript_of_another_encoding_is_named(tmp_path):
    (tmp_path / "eve.wav").write_bytes(b"")
    (tmp_path / "eve.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="eve.txt is not text in UTF-8"):
        find_voice(tmp_path, "eve")
    (tmp_path / "eve.txt").write_text("\ufeffOne.", encoding="utf-8")
    assert read_voices(tmp_path)[0]["eve"].transcript == "One."


ODD = "One.\u2028Two.\x85Three.\fFour."


def seed_tts(folder, content):
    (folder / "en").mkdir(exist_ok=True)
    (folder / "en" / "meta.lst").write_bytes(content)
    soundfile.write(folder / "en" / "p.wav", [0.0] * 999, 24_000)
    return [record["text"] for record in convert_seed_tts_eval(folder / "en")]


def transcript(folder, content):
    (folder / "eve.wav").write_bytes(b"")
    (folder / "eve.txt").write_bytes(content)
    return [find_voice(folder, "eve").transcript]


def written(read, name):
    def write(folder, content):
        (folder / name).write_bytes(content)
        return read(folder / name)

    return write


def spoken_file(path):
    return [read_text(path).rstrip("\n")]


def texts(path):
    return [example.sample.messages[-2].content for example in read_manifest(path).examples]


# Every reader of text that people write: how a text is put into a line, and how a folder with that file is read.
READERS = {
    "scripts": (lambda text: json.dumps(GOOD | {"text": text}, ensure_ascii=False), written(
        lambda path: [script.text for script in read_scripts(path, ROOT / "data" / "voices")], "s.jsonl")),
    "conversations": (lambda text: json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False),
        written(lambda path: [sample.messages[0].content for sample in read_conversations(path)], "c.jsonl")),
    "a manifest": (
        lambda text: json.dumps({"text": text, "audio": "a.wav"}, ensure_ascii=False), written(texts, "m.jsonl")),
    "a list of seed-tts": (lambda text: f"a|prompt|p.wav|{text}", seed_tts),
    "a transcript": (lambda text: text, transcript),
    "profiles": (lambda text: json.dumps({"eve": text}, ensure_ascii=False), written(
        lambda path: [find_voice(path.parent, "eve").description], "profiles.json")),
    "a text to speak": (lambda text: text, written(spoken_file, "book.txt")),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_text_is_read_alike_everywhere(tmp_path, name):
    """The mark of some editors is dropped, only a newline ends a line, and another encoding is told with the file."""
    line, read = READERS[name]
    for content in (line(ODD) + "\n", "\ufeff" + line(ODD) + "\r\n", line(ODD)):
        assert read(tmp_path, content.encode()) == [ODD]
    for encoding in ("latin-1", "utf-16", "gbk"):
        with pytest.raises(ValueError, match=f"{tmp_path}.* is not text in UTF-8"):
            read(tmp_path, line("Ünü é" if encoding != "gbk" else "你好。").encode(encoding))


@pytest.mark.parametrize("content", ["[" * 20_000, '{"a":' * 20_000, "1" * 5000, '{"a": ' + "9" * 5000 + "}"])
def test_json_and_yaml_without_end_are_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_text(content)
    for read in (lambda: parse_json(read_text(path), str(path)), lambda: read_params(path)):
        with pytest.raises(ParamsError, match=f"^{path}: "):
            read()


def test_the_scripts_that_come_along(nano):
    """Every form; and what is long: 600 words in chunks, and 12 turns by chunk and in one go."""
    short, long = (
        read_scripts(ROOT / f"data/scripts/{name}.jsonl", ROOT / "data/voices") for name in ("default", "long")
    )
    assert {script.form for script in short} == set(FORMS)
    text, by_chunk, in_one_go = long
    assert count_words(text.text) == 600
    assert max(count_words(chunk.text) for chunk in text.request.chunks) <= text.request.options.max_words
    assert [chunk.speakers for chunk in by_chunk.request.chunks] == [(0,), (1,)] * 6
    assert not in_one_go.request.chunks and in_one_go.text == by_chunk.text


def test_files_are_written_with_the_usual_mode(tmp_path):
    """Also those of libraries that write for their user alone."""
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "private") as partial:
        partial.touch(mode=0o600)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "usual").stat().st_mode
