"""Conversations as JSON: round trips, and errors with their place."""

import json
import re

import pytest
from llama3 import SPECIAL as RELEASED

from higgs import AudioContent, ChatMLSample, Message, TextContent
from higgs.data import chatml
from higgs.data.chatml import QUIET_ROOM, smart_voice, tokenize, voice_clone
from higgs.data.chatml_json import read_conversations, sample_from_json, sample_to_json, write_conversations
from higgs.data.text.tokenizer import TextTokenizer
from higgs.tokens import SPECIAL_TOKENS
from higgs.validation import parse_json
from training.nano.byte_tokenizer import byte_tokenizer

USER = {"role": "user", "content": "x"}
REFERENCES = [("Hi.", AudioContent("0.wav")), ("Yes.", AudioContent("1.wav", offset=0.5, duration=2.0))]
FORMS = [
    smart_voice("Hi.", QUIET_ROOM, "british accent"),
    voice_clone("Hi.", *REFERENCES[0]),
    chatml.voices_clone([(1, "Who?")], REFERENCES, QUIET_ROOM),
    chatml.voices_in_system("Hi.", ["a man", REFERENCES[1][1]]),
    chatml.dialogue([(0, "Hi."), (1, "Ho <|eot_id|>")]),
    voice_clone("Hi <|eot_id|>", "<SE>", AudioContent("<|AUDIO|>")),
    chatml.free_dialogue({0: "calm"}, "A library."),
    chatml.after_chunks(smart_voice("Hi."), [("Ho.", AudioContent(raw_audio="AAAA", row_id=3))]),
    ChatMLSample([Message("assistant", ["A", TextContent("B")], "all")], 1, "ada", {"speaker": "ben", "x": [1]}),
]  # fmt: skip


@pytest.mark.parametrize("sample", FORMS)
def test_what_goes_out_comes_in_again(sample):
    """The same tokens: texts with and without special tokens, audio, recipients, what is trained."""
    tokenizer = TextTokenizer(byte_tokenizer())
    again = sample_from_json(json.loads(json.dumps(sample_to_json(sample))), allow_special=True)
    assert tokenize(again, tokenizer) == tokenize(sample, tokenizer)
    assert again.audios == sample.audios
    assert [(m.role, m.recipient) for m in again.messages] == [(m.role, m.recipient) for m in sample.messages]
    assert (again.start_index, again.speaker, again.misc) == (sample.start_index, sample.speaker, sample.misc)
    assert sample_to_json(again) == sample_to_json(sample)
    if all(not part.allow_special for m in sample.messages for part in m.parts if isinstance(part, TextContent)):
        assert tokenize(sample_from_json(sample_to_json(sample)), tokenizer) == tokenize(sample, tokenizer)


def test_files(tmp_path):
    odd = smart_voice("A line\u2028and \x85 another\nwith “quotes”.")
    write_conversations(tmp_path / "s.jsonl", [odd, *FORMS])
    again = read_conversations(tmp_path / "s.jsonl", allow_special=True)
    assert [sample_to_json(s) for s in again] == [sample_to_json(s) for s in (odd, *FORMS)]
    rows = [sample_to_json(s) for s in FORMS[1:2]]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "one.json").write_text(json.dumps(rows[0], indent=2))
    assert read_conversations(tmp_path / "list.json") == read_conversations(tmp_path / "one.json")
    assert not list(tmp_path.glob(".*")), "a partial file was left"
    good = json.dumps({"messages": [USER]})
    (tmp_path / "s.jsonl").write_text(f"{good}\n\n{good}\n" + '{"messages": [{"role": "x", "content": "y"}]}\n')
    with pytest.raises(ValueError, match=r"s\.jsonl, line 4: conversation\.messages\[0\]\.role"):
        read_conversations(tmp_path / "s.jsonl")
    (tmp_path / "list.json").write_text(f"[{good}, 3]")
    with pytest.raises(ValueError, match=r"list\.json\[1\]: conversation: .*3"):
        read_conversations(tmp_path / "list.json")


def test_the_form_of_the_reference():
    sample = sample_from_json(
        {
            "messages": [
                {"role": "system", "content": "..."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "audio", "audio_url": "a.wav"}]},
                {"role": "assistant", "content": {"audio_url": "b.wav", "raw_audio": None}, "recipient": None},
            ],
            "start_index": None, "speaker": "spk1", "misc": {},
        }
    )  # fmt: skip
    user = Message("user", [TextContent("a"), AudioContent("a.wav")])
    answer = Message("assistant", AudioContent("b.wav"))
    assert sample == ChatMLSample([Message("system", "..."), user, answer], speaker="spk1", misc={})


def test_a_file_cannot_make_its_text_special():
    tokenizer = TextTokenizer(byte_tokenizer())
    specials = {tokenizer.token_id(token) for token in SPECIAL_TOKENS.values()}
    assert all("<" in token for token in RELEASED), "the file would not say which texts hold one"
    evil = "".join(SPECIAL_TOKENS.values())
    row = {"messages": [{"role": "user", "content": evil}, {"role": "user", "content": [{"text": evil}]}]}
    clean = {"messages": [{"role": "user", "content": "x"}] * 2}

    def counted(row: dict, **options) -> int:
        ids = tokenize(sample_from_json(row, **options), tokenizer).input_ids
        return sum(token in specials for token in ids)

    assert counted(row) == counted(clean)
    assert counted(row, allow_special=True) == counted(clean) + 2 * len(SPECIAL_TOKENS)
    asking = {"messages": [{"role": "user", "content": {"text": evil, "allow_special": True}}]}
    with pytest.raises(ValueError, match=r"content: .*allow_special=True"):
        sample_from_json(asking)
    refusing = {"messages": [{"role": "user", "content": {"text": evil, "allow_special": False}}] * 2}
    assert counted(refusing) == counted(refusing, allow_special=True) == counted(clean)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([USER], "conversation: "),
        ({}, "conversation: missing key 'messages'"),
        ({"messages": []}, "conversation.messages: "),
        ({"messages": [USER], "stat_index": 1}, "conversation: unknown key 'stat_index' (did you mean 'start_index'?"),
        ({"messages": [USER], "misc": []}, "conversation.misc: "),
        ({"messages": [USER, "y"]}, "conversation.messages[1]: "),
        ({"messages": [{"role": "user"}]}, "conversation.messages[0]: missing key 'content'"),
        ({"messages": [USER | {"role": "narrator"}]}, "messages[0].role: "),
        ({"messages": [USER | {"recipient": "all"}]}, "messages[0]: only the assistant"),
        ({"messages": [USER | {"content": [["x"]]}]}, "messages[0].content[0]: "),
        ({"messages": [USER | {"content": {"txt": "x"}}]}, "content: unknown key 'txt' (did you mean 'text'?"),
        ({"messages": [USER | {"content": {"type": "image"}}]}, "messages[0].content: "),
        ({"messages": [USER | {"content": {"type": "audio"}}]}, "content: missing key 'audio_url'"),
        ({"messages": [USER | {"content": {"type": "text", "audio_url": "a"}}]}, "unknown key 'audio_url'"),
        ({"messages": [USER | {"content": {"audio_url": "a", "offset": -1}}]}, "content: offset must be 0 or more"),
        ({"messages": [USER | {"content": {"audio_url": "a", "offset": 1e305}}]}, "content: offset must be 0 or more"),
        ({"messages": [USER | {"content": {"audio_url": "a", "duration": 1e10}}]}, "content: duration must be more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_from_json(value)


def test_json_is_strict():
    for text, message in (('{"a": 1, "a": 2}', "duplicate key 'a'"), ('{"a": NaN}', "NaN"), ('{"a": ', "not JSON")):
        with pytest.raises(ValueError, match=f"here: {message}"):
            parse_json(text, "here")
