"""Prompts: the ids of the released tokenizer's forms, and text that stays text."""

import base64

import pytest
import torch
from llama3 import llama3_tokenizer
from safetensors.torch import load_file

from higgs import AudioContent, ChatMLSample
from higgs.audio import save_audio
from higgs.config import ModelConfig
from higgs.data import chatml
from higgs.data.chatml import QUIET_ROOM, dialogue, smart_voice, tokenize, voice_clone, voices_in_system
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import revert_delay
from higgs.tokens import SPECIAL_TOKENS, TokenIds
from training.nano.byte_tokenizer import byte_tokenizer

TOKENIZER = TextTokenizer(byte_tokenizer())
GENERATE, MULTI_SPEAKER = chatml.GENERATE, chatml.MULTI_SPEAKER
SYSTEM = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
BEGIN_USER = USER.replace("<|start", "<|begin_of_text|><|start", 1)
AUDIO = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
REFERENCES = [("Hi.", AudioContent("0.wav")), ("Yes.", AudioContent("1.wav"))]
RENDERED = [
    (smart_voice("Hi."), f"{SYSTEM}{GENERATE}<|eot_id|>{USER}Hi.<|eot_id|>{ASSISTANT}"),
    (voice_clone("New.", "Old.", AudioContent("a.wav")),
     f"{BEGIN_USER}Old.<|eot_id|>{ASSISTANT}{AUDIO}<|eot_id|>{USER}New.<|eot_id|>{ASSISTANT}"),
    (chatml.voices_clone([(1, "Who?"), (0, "Me.")], REFERENCES),
     f"{BEGIN_USER}[SPEAKER0] Hi.<|eot_id|>{ASSISTANT}{AUDIO}<|eot_id|>{USER}[SPEAKER1] Yes.<|eot_id|>"
     f"{ASSISTANT}{AUDIO}<|eot_id|>{USER}[SPEAKER1] Who?\n[SPEAKER0] Me.<|eot_id|>{ASSISTANT}"),
    (voices_in_system("[SPEAKER1] Hi.", ["a calm man", AudioContent("1.wav"), "a child"]),
     f"{SYSTEM}{GENERATE}\n\n<|scene_desc_start|>\nSPEAKER0: a calm man\nSPEAKER1: <|audio_bos|><|AUDIO|>"
     f"<|audio_eos|>\nSPEAKER2: a child\n<|scene_desc_end|><|eot_id|>{USER}[SPEAKER1] Hi.<|eot_id|>{ASSISTANT}"),
    (dialogue([(0, "Hi."), (1, "Yes?")], {0: "feminine", 1: "masculine"}, QUIET_ROOM),
     f"{SYSTEM}{MULTI_SPEAKER}\n\n<|scene_desc_start|>\n{QUIET_ROOM}\n\nSPEAKER0: feminine\nSPEAKER1: masculine\n"
     f"<|scene_desc_end|><|eot_id|>{USER}[SPEAKER0] Hi.\n[SPEAKER1] Yes?<|eot_id|>{ASSISTANT}"),
    (dialogue([(n, "Hi.") for n in (10, 2, 1)]),  # sorted as numbers
     f"{SYSTEM}{MULTI_SPEAKER}\n\n<|scene_desc_start|>\nSPEAKER1: feminine\nSPEAKER2: masculine\nSPEAKER10: feminine"
     f"\n<|scene_desc_end|><|eot_id|>{USER}[SPEAKER10] Hi.\n[SPEAKER2] Hi.\n[SPEAKER1] Hi.<|eot_id|>{ASSISTANT}"),
    (chatml.free_dialogue({0: "masculine;curious", 1: "feminine;calm"}, "A library."),
     f"{SYSTEM}{GENERATE}\n\n<|scene_desc_start|>\nSPEAKER0: masculine;curious\nSPEAKER1: feminine;calm\n\n"
     f"A library.\n<|scene_desc_end|><|eot_id|>{USER}<|generation_instruction_start|>\nGenerate interleaved "
     "transcript and audio that lasts for around 20 seconds.\n<|generation_instruction_end|><|eot_id|>"
     f"{ASSISTANT}"),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "text"), RENDERED)
def test_prompts_as_text(sample, text):
    without_audio = tokenize(sample, TOKENIZER, generate=True, force_audio=False).input_ids
    assert TOKENIZER.decode(without_audio) == text
    start = TOKENIZER.token_id("<|audio_out_bos|>")
    assert tokenize(sample, TOKENIZER, generate=True).input_ids == [*without_audio, start]


def test_golden_prompts_of_the_tiny_checkpoint(golden):
    """Token ids of the reference implementation, expanded by our collator."""
    prompts = load_file(golden / "prompts.safetensors")
    tokenizer = TextTokenizer.from_pretrained(golden / "text_tokenizer")
    ids, config = TokenIds.of(tokenizer), ModelConfig(vocab_size=512)
    clone = voice_clone("Say this.", "Hooray!", AudioContent("x"), QUIET_ROOM)
    codes = revert_delay(prompts["clone.audio_input_ids"][0].T)[:, 1:-1]
    smart = smart_voice("The sun rises in the east.", QUIET_ROOM)
    for name, sample, segments in (("smart_voice", smart, []), ("clone", clone, [codes])):
        tokens = tokenize(sample, tokenizer, generate=True)
        batch = collate([expand_audio_placeholders(tokens, segments, ids, config, False)], ids)
        expected = prompts[f"{name}.input_ids"]
        assert torch.equal(batch.input_ids, torch.where(expected == 270, 272, expected))
    assert torch.equal(batch.codes[batch.audio_mask], prompts["clone.audio_input_ids"][0])


# Ids under stock Llama-3 BPE and the release's special tokens, computed by code that is not ours.
SUNRISE = (
    "The sun rises in the east and sets in the west. "
    "This simple fact has been observed by humans for thousands of years."
)
BELINDA = (
    "Twas the night before my birthday. Hooray! It's almost here! "
    "It may not be a holiday, but it's the best day of the year."
)
SAID = [
    791, 7160, 38268, 304, 279, 11226, 323, 7437, 304, 279, 9909, 13, 1115, 4382, 2144, 706, 1027, 13468, 555, 12966,
    369, 9214, 315, 1667, 13,
]  # fmt: skip
HEARD = [
    51, 16514, 279, 3814, 1603, 856, 15553, 13, 473, 10922, 352, 0, 1102, 596, 4661, 1618, 0, 1102, 1253, 539, 387, 264,
    13560, 11, 719, 433, 596, 279, 1888, 1938, 315, 279, 1060, 13,
]  # fmt: skip
EOT, AUDIO_OUT, AUDIO_IN = 128009, [128013, 128016, 128012], [128011, 128015, 128012]
HEADER = {role: [128006, number, 128007, 271] for role, number in
          {"system": 9125, "user": 882, "assistant": 78191}.items()}  # fmt: skip
SCENE = [32215, 7855, 2768, 7754, 382, 128018, 198, 15097, 374, 12715, 505, 264, 11594, 3130]
QUIET = [128000, *HEADER["system"], *SCENE, 627, 128019, EOT]  # the system message with the scene QUIET_ROOM


def turn(role: str, *parts: list[int]) -> list[int]:
    return [*HEADER[role], *(token for part in parts for token in part), EOT]


SPEAKER_0, SPEAKER_1 = [50, 1777, 77587, 15, 25], [198, 50, 1777, 77587, 16, 25]
MULTI = [
    2675, 527, 459, 15592, 18328, 6319, 311, 5625, 1495, 1139, 8982, 627, 2746, 279, 1217, 596, 1984, 5764, 264,
    510, 50, 1777, 77587, 9, 60, 4877, 11, 656, 539, 1373, 704, 279, 4877, 323, 7068, 8982, 369, 279, 2768,
    1495, 11, 1701, 279, 5300, 7899, 627, 2746, 912, 19114, 4877, 374, 3118, 11, 3373, 264, 14791, 7899, 389,
    701, 1866, 382, 128018, 198, 15097, 374, 12715, 505, 264, 11594, 3130, 382,
]  # fmt: skip


def released_ids(sample: ChatMLSample, generate: bool = True) -> list[int]:
    return tokenize(sample, llama3_tokenizer(), generate=generate, force_audio=False).input_ids


def test_ids_of_released_special_tokens():
    numbers = {name: llama3_tokenizer().token_id(token) for name, token in SPECIAL_TOKENS.items()}
    assert numbers == {
        "begin_of_text": 128000, "end_of_text": 128001, "start_header": 128006, "end_header": 128007,
        "end_of_message": 128008, "end_of_turn": 128009, "audio_bos": 128011, "audio_eos": 128012,
        "audio_out_bos": 128013, "audio_in": 128015, "audio_out": 128016, "recipient": 128017, "scene_start": 128018,
        "scene_end": 128019, "instruction_start": 128020, "instruction_end": 128021, "sound_event": 128022,
        "sound_event_close": 128023, "sound_start": 128024, "sound_start_close": 128025, "sound_stop": 128026,
        "sound_stop_close": 128027,
    }  # fmt: skip
    assert llama3_tokenizer().vocab_size == ModelConfig().vocab_size == 128256


REFERENCE = AudioContent("belinda.wav")
MASCULINE, FEMININE = 61165, 46284
INSTRUCTION = [
    128020, 198, 32215, 96068, 4234, 36815, 323, 7855, 430, 40758, 369, 2212, 220, 508, 6622, 627, 128021,
]  # fmt: skip


def system(*tokens: int) -> list[int]:
    return [128000, *HEADER["system"], *tokens, 198, 128019, EOT]


# Sample -> the ids of its first and of its last messages.
RELEASED = [
    (smart_voice(SUNRISE, QUIET_ROOM), QUIET, turn("user", SAID)),
    (voice_clone(SUNRISE, BELINDA, REFERENCE, QUIET_ROOM),
     [*QUIET, *turn("user", HEARD), *turn("assistant", AUDIO_OUT)],
     turn("user", SAID)),
    (voices_in_system(SUNRISE, [audio for _, audio in REFERENCES], QUIET_ROOM),
     system(*SCENE, 382, *SPEAKER_0, 220, *AUDIO_IN, *SPEAKER_1, 220, *AUDIO_IN),
     turn("user", SAID)),
    (dialogue("[SPEAKER1] No?\n[SPEAKER0] Yes.", scene=QUIET_ROOM),
     system(*MULTI, *SPEAKER_0, FEMININE, *SPEAKER_1, MASCULINE),
     None),
    (chatml.free_dialogue({0: "masculine;curious", 1: "feminine;calm"}, "A library."), None, turn("user", INSTRUCTION)),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "first", "last"), RELEASED)
def test_released_ids(sample, first, last):
    ids = released_ids(sample)
    assert first is None or ids[: len(first)] == first
    assert last is None or ids[-4 - len(last) :] == [*last, *HEADER["assistant"]]
    if first and last:
        assert len(ids) == len(first) + len(last) + 4


def test_released_ids_of_equal_dialogues_and_of_fragments():
    text, lines = "[SPEAKER1] No?\n[SPEAKER0] Yes.", [(1, "No?"), (0, "Yes.")]
    assert dialogue(text, scene=QUIET_ROOM) == dialogue(lines, {0: "feminine", 1: "masculine"}, QUIET_ROOM)
    tokenizer = llama3_tokenizer()
    laughter = tokenizer.encode("<SE>[Laughter]</SE>", allow_special=True)
    assert laughter == [128022, 58, 8921, 7490, 60, 128023]
    assert tokenizer.encode("[SPEAKER0] ") == [43574, 1777, 77587, 15, 60, 220]
    # The release has no such tokens, whatever its documentation says.
    assert len(tokenizer.encode("<|speaker_id_start|>", allow_special=True)) == 7


def test_released_ids_of_a_long_form_chunk():
    """The reference, then earlier chunks as turns, then the chunk."""
    sample = voice_clone(SUNRISE, BELINDA, REFERENCE, QUIET_ROOM)
    spoken = [(text, AudioContent()) for text in ("It rises.", SUNRISE, BELINDA)]
    context = [*QUIET, *turn("user", HEARD), *turn("assistant", AUDIO_OUT)]
    turns = [[*turn("user", text), *turn("assistant", AUDIO_OUT)] for text in ([2181, 38268, 13], SAID, HEARD)]
    last = [*turn("user", SAID), *HEADER["assistant"]]
    assert released_ids(chatml.after_chunks(sample, [])) == [*context, *last]
    assert released_ids(chatml.after_chunks(sample, spoken)) == [*context, *sum(turns, []), *last]
    assert [a.name for a in chatml.after_chunks(sample, spoken).audios] == ["belinda.wav", "", "", ""]
    with pytest.raises(ValueError, match="ends in the user's message"):
        chatml.after_chunks(ChatMLSample(sample.messages[:-1]), spoken)


def test_unknown_speakers_are_refused():
    for text in ([(0, "Hi."), (2, "Ho.")], "[SPEAKER0] Hi. [SPEAKER2] Ho.", [(0, "[SPEAKER2] Ho.")]):
        forms = {dialogue: {0: "f", 1: "m"}, chatml.voices_clone: REFERENCES, voices_in_system: ["f", "m"]}
        for form, speakers in forms.items():
            with pytest.raises(ValueError, match=r"speakers \[2\], but only .*0.* are described"):
                form(text, speakers)
    with pytest.raises(ValueError, match="there is no speaker"):
        chatml.tagged("No tag.", ())


def test_audio_segments(tmp_path):
    save_audio(tmp_path / "ramp.wav", torch.arange(8000) / 8000, 8000)
    whole = AudioContent("ramp.wav").load(8000, tmp_path)
    part = AudioContent("ramp.wav", offset=0.25, duration=0.5)
    assert torch.equal(part.load(8000, tmp_path), whole[2000:6000])
    assert part.name == "ramp.wav#t=0.25,0.75" and AudioContent("ramp.wav", offset=0.0).name == "ramp.wav"
    assert torch.equal(AudioContent("ramp.wav", offset=0.5).load(8000, tmp_path), whole[4000:])
    assert AudioContent("ramp.wav").load(16_000, tmp_path).shape == (16_000,)
    coded = base64.b64encode((tmp_path / "ramp.wav").read_bytes()).decode()
    assert torch.equal(AudioContent(raw_audio=coded).load(8000), whole)
    for wrong, message in (
        (AudioContent("ramp.wav", offset=0.9, duration=0.2), "0.9 to 1.1 of audio that has 1"),
        (AudioContent("ramp.wav", offset=1.0), "of audio that has 1"),
        (AudioContent("placeholder"), "audio without a file"),
        (AudioContent(raw_audio="???"), "not base64"),
        (AudioContent(raw_audio="AAAA"), "not an audio file"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.load(8000, tmp_path)
    for wrong in ({"offset": -1.0}, {"offset": float("nan")}, {"duration": 0.0}, {"duration": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AudioContent("a.wav", **wrong)
