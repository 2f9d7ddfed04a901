"""Long form: chunks, contexts, seeds and pauses with a scripted engine, and a short text with the real one."""

import json
from dataclasses import replace

import pytest
import torch

from higgs import AudioContent, SamplingConfig
from higgs.data.chatml import after_chunks, tokenize
from higgs.data.loudness import speech_level
from higgs.data.scripts import read_scripts
from higgs.data.speech import SpeechRequest, speech_request
from higgs.data.text.chunks import ChunkOptions
from higgs.data.voices import Voice
from higgs.serve.engine import Response, Usage
from higgs.serve.generation_config import GenerationConfig
from higgs.serve.long_form import LongResponse, SilentChunkError, chunk_seed, speak

RATE, HOP = 24_000, 960
ADA, BEN = Voice("ada", description="feminine"), Voice("ben", description="masculine")
TEXT = "One. Two.\n\nThree."


class ScriptedEngine:
    """Request n gets `frames[n]` frames (else n + 1) of code n, at `levels[n]`, and stops as scripted."""

    generation = GenerationConfig()
    most: int | None = None  # frames of audio in a prompt

    def __init__(self, frames=(), stops=(), levels=()):
        self.frames, self.stops, self.levels = list(frames), list(stops), list(levels)
        self.requests, self.encoded = [], []

    def reference_codes(self, audio: AudioContent) -> torch.Tensor:
        self.encoded.append(audio.audio_url)
        return torch.full((8, 2), 900 + len(self.encoded))

    def sequence(self, sample, sampling, max_new_tokens, reference_codes=()) -> tuple:
        return sample, sampling, max_new_tokens, reference_codes

    def fits(self, sequence) -> bool:
        return self.most is None or sum(len(codes[0]) for codes in sequence[-1]) <= self.most

    def run(self, sequences, on_step=None) -> list[Response]:
        return [self.generate(*sequence) for sequence in sequences]

    def generate(self, sample, sampling, max_new_tokens, reference_codes) -> Response:
        number = len(self.requests)
        self.requests.append((sample, sampling.seed, [int(c[0, 0]) for c in reference_codes], max_new_tokens))
        assert len(reference_codes) == len(sample.audios)

        def scripted(values: list, default):
            return values[number] if number < len(values) else default

        frames = scripted(self.frames, number + 1)
        return Response(
            waveform=torch.full((frames * HOP,), scripted(self.levels, 0.1)),
            sample_rate=RATE,
            codes=torch.full((8, frames), number),
            text="<|AUDIO_OUT|>",
            stop_reason=scripted(self.stops, "stop"),
            usage=Usage(10, 0, frames + 8, frames),
            timing={"generate": 1.0, "decode": 0.5},
        )

    @property
    def user_texts(self) -> list[list[str]]:
        """The user's messages of each request."""
        return [[m.content for m in sample.messages if m.role == "user"] for sample, *_ in self.requests]

    @property
    def contexts(self) -> list[list[int]]:
        """The first code of each audio in the prompt of each request."""
        return [codes for _, _, codes, _ in self.requests]


def three(voice: Voice = ADA, seed: int = 0, **options) -> SpeechRequest:
    """TEXT in three chunks."""
    return speech_request(TEXT, voice, ChunkOptions(max_words=1, **options), sampling=SamplingConfig(seed=seed))


def test_earlier_chunks_are_left_out_where_a_slot_has_no_room_for_them():
    """The oldest first; without any, it is the request itself that does not fit."""
    engine = ScriptedEngine(frames=[4, 4, 4])
    engine.most = 5
    response = speak(engine, three(context_chunks=2))
    assert engine.contexts == [[], [0], [1]] and len(response.chunks) == 3
    engine = ScriptedEngine(frames=[4, 4, 4])
    engine.most = 3
    speak(engine, three(context_chunks=2))
    assert engine.contexts == [[], [], []]


def test_chunks_are_joined_with_pauses():
    response = speak(ScriptedEngine(), three(sentence_pause=0.1, paragraph_pause=0.5, context_chunks=0))
    places = [(chunk.start, chunk.end) for chunk in response.chunks]
    assert places == [(0, 960), (960 + 2400, 3360 + 1920), (5280 + 12_000, 17_280 + 2880)]
    assert len(response.waveform) == places[-1][1] and response.codes.shape == (8, 6)
    pauses = response.waveform.clone()
    for start, end in places:
        assert response.waveform[start] < 0.01 < response.waveform[start + 200] == pytest.approx(0.1)
        assert response.waveform[end - 1] < 0.01
        pauses[start:end] = 0
    assert not pauses.any()
    assert response.usage == Usage(30, 0, 30, 6) and response.stop_reason == "stop"
    assert response.timing == {"generate": 3.0, "decode": 1.5}
    records = response.records("a")
    assert [(r["text"], r["border"]) for r in records] == [
        ("One.", "start"), ("Two.", "sentence"), ("Three.", "paragraph")
    ]  # fmt: skip
    assert {"name", "chunk", "start", "end", "seed", "stop", "attempts"} <= set(records[0]) and json.dumps(records)


@pytest.mark.parametrize(
    ("context_chunks", "texts", "codes"),
    [
        (0, [["One."], ["Two."], ["Three."]], [[], [], []]),
        (1, [["One."], ["One.", "Two."], ["Two.", "Three."]], [[], [0], [1]]),
        (None, [["One."], ["One.", "Two."], ["One.", "Two.", "Three."]], [[], [0], [0, 1]]),
    ],
)
def test_earlier_chunks_are_earlier_turns(context_chunks, texts, codes):
    engine = ScriptedEngine()
    speak(engine, three(context_chunks=context_chunks))
    assert engine.user_texts == texts and engine.contexts == codes
    for sample, *_ in engine.requests:
        roles = [message.role for message in sample.messages]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2 - 1), "user"]


def test_a_reference_stays_and_is_encoded_once():
    engine = ScriptedEngine()
    speak(engine, three(Voice("eve", "eve.flac", "Old."), context_chunks=1))
    assert engine.encoded == ["eve.flac"] and engine.contexts == [[901], [901, 0], [901, 1]]
    assert engine.user_texts[2] == ["Old.", "Two.", "Three."]


def test_each_chunk_has_a_seed_of_its_own():
    """In the reference implementation (boson-ai/higgs-audio) all chunks share one."""
    engine = ScriptedEngine()
    speak(engine, three(seed=5))
    seeds = [seed for _, seed, *_ in engine.requests]
    assert seeds == [chunk_seed(5, index) for index in range(3)] and seeds[0] == 5
    seeds = {chunk_seed(s, i, a) for s in range(5) for i in range(20) for a in range(3)}
    assert len(seeds) == 5 * 20 * 3 and all(0 <= seed < 1 << 32 for seed in seeds)


def test_a_chunk_without_audio_is_generated_again():
    engine = ScriptedEngine(frames=[3, 0, 0, 4, 5])
    response = speak(engine, three())
    assert [(chunk.attempts, chunk.frames) for chunk in response.chunks] == [(1, 3), (3, 4), (1, 5)]
    assert response.chunks[1].seed == chunk_seed(0, 1, 2) == engine.requests[3][1]
    assert response.timing["generate"] == 5.0, "all attempts took time"
    assert engine.contexts[4] == [0, 3], "the context holds the attempt that was kept"


def test_a_chunk_that_never_has_audio_is_named():
    with pytest.raises(SilentChunkError, match="chunk 2 of 3, 'Two.': no audio in any attempt") as error:
        speak(ScriptedEngine(frames=[3, 0, 0, 0]), three())
    assert [chunk.frames for chunk in error.value.before.chunks] == [3]
    with pytest.raises(SilentChunkError, match="no audio in any attempt") as error:
        speak(ScriptedEngine(frames=[0]), three(retries=0))
    assert error.value.before is None


def test_a_chunk_that_is_cut_off_is_generated_again():
    engine = ScriptedEngine([3, 9, 2, 0, 7], stops=["length", "stop", "length", "length", "length"])
    response = speak(engine, speech_request("One. Two.", ADA, ChunkOptions(max_words=1)))
    chunks = [(chunk.frames, chunk.attempts, chunk.stop_reason) for chunk in response.chunks]
    assert chunks == [(9, 2, "stop"), (7, 3, "length")] and response.stop_reason == "length"


@pytest.mark.parametrize(("match_levels", "expected"), [(True, [-20, -8, -20, -38 + 6]), (False, [-20, -8, -14, -38])])
def test_levels_are_matched_by_speaker_by_at_most_6_db(match_levels, expected):
    text = "[SPEAKER0] a [SPEAKER1] b [SPEAKER0] c [SPEAKER0] d"
    request = speech_request(text, {0: ADA, 1: BEN}, ChunkOptions(match_levels=match_levels), chunked=True)
    response = speak(ScriptedEngine([9] * 4, levels=[0.1, 0.4, 0.2, 0.0125]), request)
    levels = [speech_level(response.waveform[c.start + 480 : c.end - 480], RATE) for c in response.chunks]
    assert levels == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("own_context", "texts", "codes"),
    [
        (False, ["[SPEAKER0] Hi.", "[SPEAKER1] Yes?", "[SPEAKER0] Bye."], [[], [0], [0, 1]]),
        (True, ["Hi.", "Bye."], [[], [], [0]]),
    ],
)
def test_the_context_of_a_turn_is_the_dialogue_or_its_speaker(own_context, texts, codes):
    engine, options = ScriptedEngine(), ChunkOptions(per_speaker_context=own_context)
    text = "[SPEAKER0] Hi. [SPEAKER1] Yes? [SPEAKER0] Bye."
    response = speak(engine, speech_request(text, {0: ADA, 1: BEN}, options, chunked=True))
    assert engine.user_texts[2] == texts and engine.contexts == codes
    assert [chunk.chunk.speakers for chunk in response.chunks] == [(0,), (1,), (0,)]


def write_scripts(folder, *records: dict):
    (folder / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')
    path = folder / "scripts.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(n)} | record) for n, record in enumerate(records)))
    return read_scripts(path, folder)


LINES = [[0, "Hi there."], [1, "Yes?"]]
ROLES, NAMES = {"speakers": {"0": "old", "1": "young"}}, {"voices": {"0": "ada", "1": "ben"}}


def test_scripts_of_long_form(tmp_path):
    dialogue, book = {"form": "dialogue", "lines": LINES}, {"form": "long_form", "voice": "ada", "scene": "A room."}
    long, duo, named, whole, own = write_scripts(
        tmp_path,
        book | {"text": "One two. Three.", "chunks": {"max_words": 2}},
        dialogue | ROLES | {"chunks": {}},
        dialogue | NAMES | {"max_new_tokens": 900},
        dialogue | ROLES,
        dialogue | NAMES | {"chunks": {"per_speaker_context": True}},
    )
    assert [c.text for c in long.request.chunks] == ["One two.", "Three."] and long.text == "One two. Three."
    assert [c.speakers for c in duo.request.chunks] == [(0,), (1,)] and duo.voice == ""
    assert named.voice == "ada ben" and not named.request.chunks
    assert whole.request.samples[0].messages[-1].content == "[SPEAKER0] Hi there.\n[SPEAKER1] Yes?"
    assert own.request.samples[0].messages[-1].content == "Hi there."
    engine = ScriptedEngine()
    response = speak(engine, long.request)
    assert isinstance(response, LongResponse) and len(response.chunks) == 2
    assert "A room." in engine.requests[1][0].messages[0].content[2]
    speak(engine, replace(named.request, sampling=SamplingConfig()))
    assert engine.requests[-1] == (named.request.samples[0], 0, [], 900), "a single pass, with its own limit"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"form": "long_form", "voice": "ada", "text": "x", "chunks": {"max_word": 2}}, "max_word"),
        ({"form": "long_form", "voice": "ada", "text": "x", "chunks": {"max_words": "2"}}, "int"),
        ({"form": "long_form", "voice": "ada", "text": " "}, "no text to speak"),
        ({"form": "smart_voice", "voice": "ada", "text": "x", "chunks": {}}, "chunks"),
        ({"form": "dialogue", "speakers": {"0": "old"}, "lines": LINES, "chunks": {}}, r"\[1\]"),
        ({"form": "dialogue", "voices": {"0": "zoe"}, "lines": LINES}, "no voice 'zoe'"),
        ({"form": "dialogue", "voices": {}, "speakers": {}, "lines": LINES}, "speakers"),
        ({"form": "dialogue", "speakers": {"0": "old"}, "lines": [[0, ""]]}, "no text to speak"),
    ],
)
def test_wrong_scripts_of_long_form(tmp_path, record, message):
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        write_scripts(tmp_path, record)


def test_a_short_text_in_chunks(nano_engine):
    """Without context a chunk is exactly the request alone; with context its prompt has the codes before it."""

    sampling = SamplingConfig(temperature=0.4, top_k=20, top_p=1.0, strict_eos=True)

    def spoken(**options) -> LongResponse:
        options = ChunkOptions(max_words=4, retries=0, **options)
        request = speech_request("The train is late. We walk home.", ADA, options, sampling=sampling, max_new_tokens=20)
        return speak(nano_engine, request)

    without = spoken(context_chunks=0, match_levels=False)
    for chunk in without.chunks:
        alone = nano_engine.generate(ADA.prompt(chunk.chunk.text), replace(sampling, seed=chunk.seed), 20)
        assert torch.equal(without.waveform[chunk.start + 200 : chunk.end - 200], alone.waveform[200:-200])
    context = spoken()
    first = without.codes[:, : without.chunks[0].frames]
    assert torch.equal(context.codes[:, : context.chunks[0].frames], first)
    one, two = (chunk.chunk.text for chunk in without.chunks)
    prompts = [ADA.prompt(two), after_chunks(ADA.prompt(two), [(one, AudioContent())])]
    lengths = [len(tokenize(prompt, nano_engine.text_tokenizer).input_ids) for prompt in prompts]
    extra = context.usage.prompt_positions - without.usage.prompt_positions
    assert extra == lengths[1] - lengths[0] + first.shape[1] + 8
