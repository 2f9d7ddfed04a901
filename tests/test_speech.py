"""`speech_request`: the one value that the command line, the server and scripts make of a text."""

import dataclasses
import sys

import pytest
from conftest import ROOT

from higgs import ChatMLSample
from higgs.cli.app import main
from higgs.data.speech import speech_request
from higgs.data.text.chunks import ChunkOptions
from higgs.data.voices import Voice

ADA, BEN = Voice("ada", description="feminine"), Voice("ben", description="masculine")
EVE = Voice("eve", ROOT / "eve.flac", "Old words.")
BOTH = {0: ADA, 1: BEN}
DIALOGUE = "[SPEAKER0] Hi there. [SPEAKER1] Yes?"
TWO_WORDS, OWN = ChunkOptions(max_words=2), ChunkOptions(per_speaker_context=True)


def part_texts(sample: ChatMLSample, index: int) -> str:
    return "".join(part.text for part in sample.messages[index].parts)


@pytest.mark.parametrize(
    ("text", "voice", "settings", "prompts", "chunks"),
    [
        ("Hi there.", ADA, {}, ["Hi there."], []),
        ("Hi. Yes, I do.", EVE, {"options": TWO_WORDS}, ["Hi.", "Yes,", "I do."], ["Hi.", "Yes,", "I do."]),
        ("Hi. Yes, I do.", EVE, {"options": TWO_WORDS, "chunked": False}, ["Hi. Yes, I do."], []),
        ("Hi.", ADA, {"chunked": True}, ["Hi."], ["Hi."]),
        (DIALOGUE, BOTH, {}, [DIALOGUE], []),
        (DIALOGUE, BOTH, {"chunked": True}, *[["[SPEAKER0] Hi there.", "[SPEAKER1] Yes?"]] * 2),
        (DIALOGUE, BOTH, {"options": OWN}, ["Hi there.", "Yes?"], ["[SPEAKER0] Hi there.", "[SPEAKER1] Yes?"]),
        (DIALOGUE, BOTH, {"options": OWN, "chunked": False}, [DIALOGUE], []),
        ("（5）", ADA, {"normalize": "reference"}, ["5."], []),
        ("（5）", ADA, {"normalize": "words"}, ["five."], []),
        ("**Red**\nBlue", ADA, {"normalize": "reference"}, ["**Red**\nBlue."], []),
        ("**Red**\nBlue", ADA, {"normalize": "words"}, ["Red.\nBlue."], []),
        ("**Red**\nBlue", ADA, {}, ["**Red**\nBlue"], []),
        ("Red\nBlue", ADA, {}, ["Red.\nBlue"], []),
        ("[SPEAKER0]: Hi.\n[SPEAKER1] ： Yes?", BOTH, {}, ["[SPEAKER0] Hi.\n[SPEAKER1] Yes?"], []),
    ],
)
def test_the_forms_of_a_request(text, voice, settings, prompts, chunks):
    request = speech_request(text, voice, scene="A quiet room.", max_new_tokens=9, **settings)
    assert [part_texts(sample, -1) for sample in request.samples] == prompts
    assert [chunk.text for chunk in request.chunks] == chunks
    assert all("A quiet room." in str(sample.messages[0].content) for sample in request.samples)
    assert request.options == settings.get("options", ChunkOptions()) and request.max_new_tokens == 9


def test_prompts_hold_the_voices():
    together, own = (speech_request(DIALOGUE, BOTH, options, chunked=True) for options in (ChunkOptions(), OWN))
    assert all("SPEAKER0: feminine\nSPEAKER1: masculine" in part_texts(sample, 0) for sample in together.samples)
    for sample, voice in zip(own.samples, (ADA, BEN), strict=True):
        assert f"\nSPEAKER0: {voice.description}\n" in part_texts(sample, 0)
    assert [audio.audio_url for audio in speech_request("Hi.", EVE).samples[0].audios] == [str(EVE.audio)]


@pytest.mark.parametrize("chunked", [None, True, False])
@pytest.mark.parametrize(
    ("text", "voice", "message"),
    [
        ("", ADA, "no text"),
        (" \n", EVE, "no text"),
        ("", BOTH, "no text"),
        ("a\0", ADA, r"U\+0000"),
        (DIALOGUE, ADA, "voice"),
        ("Hi.", BOTH, "voice"),
        ("[SPEAKER7] Hi.", BOTH, "7"),
        ("[SPEAKER0] ", BOTH, "no text"),
        ("Oh. [SPEAKER0] Hi.", BOTH, "Oh"),
        ("Speaker 1: Hi.\nSpeaker 2: Yes?", ADA, "Speaker 1:' looks like a speaker"),
        ("Hi.\n**SPEAKER_01:** Yes?", ADA, "looks like a speaker"),
        ("speaker A： Hi.", BOTH, "looks like a speaker"),
        ("[S1] Hi. [S2] Yes?", ADA, "looks like a speaker"),
        ("<speaker1> Hi.", ADA, "looks like a speaker"),
        ("(Speaker 2) Hi.", ADA, "looks like a speaker"),
    ],
)
def test_texts_that_cannot_be_spoken(text, voice, message, chunked):
    for options in (ChunkOptions(), OWN):
        with pytest.raises(ValueError, match=message):
            speech_request(text, voice, options, chunked=chunked)


TEXT = "The trains are late."


def holds_text(value, depth: int = 6) -> bool:
    """Whether an argument is the text, or a value of dataclasses, lists and tuples with the text in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = list(getattr(value, "__dict__", {}).values())
    items = value if isinstance(value, list | tuple) and depth else ()
    return isinstance(value, str) and TEXT in value or any(holds_text(item, depth - 1) for item in items)


def test_a_short_text_is_checked_once_and_passes_few_functions(nano, monkeypatch, tmp_path):
    """Functions that get the text, in order, from `higgs.cli.speak.speak` to the token ids of `Engine.generate`."""
    calls: list[str] = []

    def profile(frame, event, _) -> None:
        code, module = frame.f_code, frame.f_globals.get("__name__", "")
        if not module.startswith("higgs.") or code.co_filename == "<string>":  # what `dataclass` writes
            return
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if event == "call" and any(holds_text(frame.f_locals.get(name)) for name in arguments):
            calls.append(f"{module}.{code.co_qualname}")
        elif event == "return" and code.co_qualname == "tokenize":
            sys.setprofile(None)

    monkeypatch.chdir(ROOT)
    options = ["--max-new-tokens", "1", "--out", str(tmp_path / "a.wav")]
    monkeypatch.setattr("sys.argv", ["higgs", "speak", TEXT, *options])
    sys.setprofile(profile)
    try:
        main()
    finally:
        sys.setprofile(None)
    assert calls[0] == "higgs.cli.speak.speak" and "higgs.data.chatml.tokenize" in calls
    assert calls.count("higgs.data.text.folding.check_text") == 1, "\n".join(calls)
    assert len(set(calls)) <= 11, "\n".join(dict.fromkeys(calls))


PLAIN = "The first office doesn't open."


PASTED = [
    "The ﬁrst oﬃce doesn't open.",
    "The fi\u00adrst of\u200bfice doesn't\u2060 open.\ufeff",
    "Ｔｈｅ first office doesn´t open.",
    "The\u00a0first office doesn\u02bct open.",
    "\u202aThe first office doesn't open.\u202c",
]
OTHER = [
    PLAIN,
    "Don’t — “quote”, 50 %!",
    "今天，天气（很）好！“你好”？",
    "Zoë",
    "می‌خواهم",
    "हिन्दी।",
    "🎉 Hi",
    "x² ½ € №",
]


@pytest.mark.parametrize(("text", "spoken"), [*((t, PLAIN) for t in PASTED), *zip(OTHER, OTHER, strict=True)])
def test_pasted_text_is_spoken_as_it_looks_and_other_text_is_left_alone(text, spoken):
    (sample,) = speech_request(text, ADA).samples
    assert sample.messages[-1].content == spoken


@pytest.mark.parametrize("text", ["...", "👍", "---", "\u200b", '"', "* * *", "¿?", "\ufeff \u00ad"])
def test_a_text_without_a_letter_or_a_digit_is_refused(text):
    with pytest.raises(ValueError, match="to speak"):
        speech_request(text, ADA)


@pytest.mark.parametrize("between", ["* * *", "---", "🎉🎉", ". . . ."])
def test_a_scene_break_is_a_pause(between):
    request = speech_request(f"He left.\n\n{between}\n\nIt was cold. So.", ADA, ChunkOptions(max_words=2))
    chunks = [(chunk.text, chunk.boundary) for chunk in request.chunks[:2]]
    assert chunks == [("He left.", "start"), ("It was", "paragraph")]
