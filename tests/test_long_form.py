"""Long form: chunks, contexts, seeds and pauses with an engine that is made up, and a short text with the real one."""

import json

import pytest
import torch

from higgs import AudioContent, Engine, SamplingConfig
from higgs.data.chatml import after_chunks, tokenize
from higgs.data.loudness import speech_level
from higgs.data.scripts import read_scripts
from higgs.data.text.chunks import Chunk, ChunkOptions, chunk_text, chunk_turns
from higgs.data.voices import Voice, cast_prompt, speaker_prompt
from higgs.serve.engine import Response, Usage
from higgs.serve.generation import GenerationConfig
from higgs.serve.long_form import LongResponse, SilentChunkError, chunk_seed, speak_long, speak_script

RATE, HOP = 24_000, 960
ADA, BEN = Voice("ada", description="feminine"), Voice("ben", description="masculine")


class Echo:
    """Answers each request with as many frames as it was asked before, filled with the request's number."""

    generation = GenerationConfig()

    def __init__(self, frames=(), stops=(), level=0.1):
        self.requests, self.frames, self.stops, self.level = [], list(frames), list(stops), level
        self.encoded = []

    def reference_codes(self, audio: AudioContent) -> torch.Tensor:
        self.encoded.append(audio.audio_url)
        return torch.full((8, 2), 900 + len(self.encoded))

    def generate(self, sample, sampling, max_new_tokens, reference_codes) -> Response:
        number = len(self.requests)
        self.requests.append((sample, sampling.seed, [int(c[0, 0]) for c in reference_codes]))
        assert len(reference_codes) == len(sample.audios)
        frames = self.frames[number] if number < len(self.frames) else number + 1
        level = self.level[number] if isinstance(self.level, list) else self.level
        return Response(
            waveform=torch.full((frames * HOP,), level),
            sample_rate=RATE,
            codes=torch.full((8, frames), number),
            text="<|AUDIO_OUT|>",
            stop_reason=self.stops[number] if number < len(self.stops) else "stop",
            usage=Usage(10, 0, frames + 8, frames),
            timing={"generate": 1.0, "decode": 0.5},
        )

    @property
    def said(self) -> list[list[str]]:
        """The user's messages of each request."""
        messages = [sample.messages for sample, _, _ in self.requests]
        return [[m.content for m in each if m.role == "user"] for each in messages]


THREE = [Chunk("One."), Chunk("Two.", border="sentence"), Chunk("Three.", border="paragraph")]


def test_chunks_are_joined_with_pauses():
    options = ChunkOptions(sentence_pause=0.1, paragraph_pause=0.5, context_chunks=0)
    response = speak_long(Echo(), THREE, ADA.prompt, options=options)
    borders = [(spoken.start, spoken.end) for spoken in response.chunks]
    assert borders == [(0, 960), (960 + 2400, 3360 + 1920), (5280 + 12_000, 17_280 + 2880)]
    assert len(response.waveform) == borders[-1][1] and response.codes.shape == (8, 6)
    inside = torch.zeros(len(response.waveform), dtype=torch.bool)
    for (start, end), codes in zip(borders, response.codes.unique_consecutive(dim=1).T, strict=True):
        inside[start:end] = True
        assert response.waveform[start] < 0.01 < response.waveform[start + 200] == pytest.approx(0.1)
        assert response.waveform[end - 1] < 0.01 and codes.unique().numel() == 1
    assert response.waveform[~inside].abs().max() == 0
    assert response.usage == Usage(30, 0, 30, 6) and response.stop_reason == "stop"
    assert response.timing == {"generate": 3.0, "decode": 1.5}
    rows = response.rows("a")
    assert [row["text"] for row in rows] == ["One.", "Two.", "Three."]
    assert [row["border"] for row in rows] == ["start", "sentence", "paragraph"]
    assert {"name", "chunk", "start", "end", "seed", "stop", "attempts"} <= set(rows[0])
    assert json.dumps(rows)


@pytest.mark.parametrize(
    ("keep", "said", "codes"),
    [
        (0, [["One."], ["Two."], ["Three."]], [[], [], []]),
        (1, [["One."], ["One.", "Two."], ["Two.", "Three."]], [[], [0], [1]]),
        (None, [["One."], ["One.", "Two."], ["One.", "Two.", "Three."]], [[], [0], [0, 1]]),
    ],
)
def test_earlier_chunks_are_heard_as_turns(keep, said, codes):
    engine = Echo()
    speak_long(engine, THREE, ADA.prompt, options=ChunkOptions(context_chunks=keep))
    assert engine.said == said
    assert [heard for _, _, heard in engine.requests] == codes
    for sample, _, _ in engine.requests:
        assert sample.messages[0].role == "system"
        assert [m.role for m in sample.messages[1:]][::2] == ["user"] * len(sample.messages[1:][::2])


def test_a_reference_stays_and_is_encoded_once():
    engine = Echo()
    eve = Voice("eve", "eve.flac", "Old.")
    speak_long(engine, THREE, eve.prompt, options=ChunkOptions(context_chunks=1))
    assert engine.encoded == ["eve.flac"]
    assert [codes for _, _, codes in engine.requests] == [[901], [901, 0], [901, 1]]
    assert engine.said[2] == ["Old.", "Two.", "Three."]


def test_each_chunk_has_a_seed_of_its_own():
    """The original gives every chunk the same."""
    engine = Echo()
    speak_long(engine, THREE, ADA.prompt, SamplingConfig(seed=5))
    seeds = [seed for _, seed, _ in engine.requests]
    assert seeds == [chunk_seed(5, index) for index in range(3)] and seeds[0] == 5
    many = {chunk_seed(s, i, a) for s in range(5) for i in range(20) for a in range(3)}
    assert len(many) == 5 * 20 * 3
    assert all(0 <= seed < 1 << 32 for seed in many)


def test_a_chunk_without_audio_is_spoken_again():
    engine = Echo(frames=[3, 0, 0, 4, 5])
    response = speak_long(engine, THREE, ADA.prompt)
    assert [spoken.attempts for spoken in response.chunks] == [1, 3, 1]
    assert [spoken.frames for spoken in response.chunks] == [3, 4, 5]
    assert response.chunks[1].seed == chunk_seed(0, 1, 2) == engine.requests[3][1]
    assert response.timing["generate"] == 5.0, "what was thrown away took time too"
    assert engine.requests[4][2] == [0, 3], "the context holds the take that is kept"


def test_a_chunk_that_never_brings_audio_is_named():
    """The original crashes when it concatenates nothing."""
    with pytest.raises(SilentChunkError, match="chunk 2 of 3, 'Two.': no audio after 3 attempts") as at:
        speak_long(Echo(frames=[3, 0, 0, 0]), THREE, ADA.prompt)
    assert [spoken.frames for spoken in at.value.before.chunks] == [3]
    with pytest.raises(SilentChunkError, match="no audio after 1 attempts") as at:
        speak_long(Echo(frames=[0]), THREE, ADA.prompt, options=ChunkOptions(retries=0))
    assert at.value.before is None
    with pytest.raises(ValueError, match="no chunk"):
        speak_long(Echo(), [], ADA.prompt)


def test_a_chunk_that_is_cut_off_is_spoken_again_and_told():
    engine = Echo(frames=[3, 9, 2, 0, 7], stops=["length", "stop", "length", "length", "length"])
    response = speak_long(engine, THREE[:2], ADA.prompt)
    assert [(s.frames, s.attempts, s.stop_reason) for s in response.chunks] == [
        (9, 2, "stop"), (7, 3, "length")
    ]  # fmt: skip
    assert response.stop_reason == "length"


def test_loudness_is_that_of_the_speaker():
    chunks = [Chunk("[SPEAKER0] a", (0,)), Chunk("[SPEAKER1] b", (1,), "speaker"),
              Chunk("[SPEAKER0] c", (0,), "speaker"), Chunk("[SPEAKER0] d", (0,), "sentence")]  # fmt: skip
    levels = [0.1, 0.4, 0.2, 0.0125]
    cast = {0: ADA, 1: BEN}

    def speak(**settings) -> list[float]:
        made = speak_long(
            Echo([9] * 4, level=list(levels)),
            chunks,
            lambda t: cast_prompt(cast, t),
            options=ChunkOptions(**settings),
        )
        return [speech_level(made.waveform[s.start + 480 : s.end - 480], RATE) for s in made.chunks]

    matched = speak()
    assert matched[0] == pytest.approx(-20, abs=0.1) and matched[2] == pytest.approx(-20, abs=0.1)
    assert matched[1] == pytest.approx(-8, abs=0.1), "another speaker has a level of her own"
    assert matched[3] == pytest.approx(-38 + 6, abs=0.1), "at most 6 dB"
    assert speak(match_levels=False)[2] == pytest.approx(-14, abs=0.1)


def test_dialogues_together_and_alone():
    turns = [(0, "Hi."), (1, "Yes?"), (0, "Bye.")]
    cast = {0: ADA, 1: BEN}
    together = Echo()
    speak_long(together, chunk_turns(turns, ChunkOptions()), lambda t: cast_prompt(cast, t))
    assert together.said[2] == ["[SPEAKER0] Hi.", "[SPEAKER1] Yes?", "[SPEAKER0] Bye."]
    options = ChunkOptions(per_speaker_context=True)
    alone = Echo()
    made = speak_long(alone, chunk_turns(turns, options), lambda t: speaker_prompt(cast, t), options=options)
    assert alone.said == [["Hi."], ["Yes?"], ["Hi.", "Bye."]]
    assert [codes for _, _, codes in alone.requests] == [[], [], [0]]
    assert [spoken.chunk.speakers for spoken in made.chunks] == [(0,), (1,), (0,)]
    with pytest.raises(ValueError, match="no speaker 7; there are: 0, 1"):
        speaker_prompt(cast, "[SPEAKER7] Hi.")
    with pytest.raises(ValueError, match="one turn"):
        speaker_prompt(cast, "Hi.")
    with pytest.raises(ValueError, match="max_turns must be 1"):
        ChunkOptions(per_speaker_context=True, max_turns=2)


def write_scripts(folder, *rows: dict):
    (folder / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')
    path = folder / "scripts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_scripts(path, folder)


LINES = [[0, "Hi there."], [1, "Yes?"]]


def test_scripts_of_long_form(tmp_path):
    long, duo, named, whole, alone = write_scripts(
        tmp_path,
        {"id": "a", "form": "long_form", "voice": "ada", "text": "One two. Three.", "chunks": {"max_words": 2},
         "scene": "A room."},
        {"id": "b", "form": "dialogue", "speakers": {"0": "old", "1": "young"}, "lines": LINES, "chunks": {}},
        {"id": "c", "form": "dialogue", "voices": {"0": "ada", "1": "ben"}, "lines": LINES, "max_new_tokens": 900},
        {"id": "d", "form": "dialogue", "speakers": {"0": "old", "1": "young"}, "lines": LINES},
        {"id": "e", "form": "dialogue", "voices": {"0": "ada", "1": "ben"}, "lines": LINES,
         "chunks": {"per_speaker_context": True}},
    )  # fmt: skip
    assert [c.text for c in long.chunks] == [
        "One two.",
        "Three.",
    ] and long.text == "One two. Three."
    assert [c.speakers for c in duo.chunks] == [(0,), (1,)] and duo.voice == ""
    assert named.voice == "ada ben" and not named.chunks
    engine = Echo()
    made = speak_script(engine, long, SamplingConfig(seed=1), 100)
    assert isinstance(made, LongResponse) and len(made.chunks) == 2
    assert "A room." in engine.requests[1][0].messages[0].content[2]
    limits = []
    engine.generate = lambda sample, sampling, limit: limits.append((sample, limit))
    speak_script(engine, named, SamplingConfig(), 100)
    speak_script(engine, whole, SamplingConfig(), 100)
    assert limits == [(named.sample, 900), (whole.sample, 100)]
    assert whole.sample.messages[-1].content == "[SPEAKER0] Hi there.\n[SPEAKER1] Yes?"
    assert alone.sample.messages[-1].content == "Hi there."


@pytest.mark.parametrize(
    ("row", "message"),
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
def test_bad_scripts_of_long_form(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        write_scripts(tmp_path, {"id": "a"} | row)


def test_scripts_that_are_no_json(tmp_path):
    (tmp_path / "s.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_scripts(tmp_path / "s.jsonl", tmp_path)


@pytest.fixture(scope="module")
def engine(nano) -> Engine:
    return Engine.from_pretrained(model=nano / "model", tokenizer=nano / "codec", device="cpu")


SAMPLING = SamplingConfig(temperature=0.4, top_k=20, top_p=1.0, seed=0)


def test_a_short_text_in_chunks(engine):
    """With no context a chunk is exactly the request by itself; with context it hears the codes made before."""
    chunks = chunk_text("The train is late. We walk home.", 4)
    options = ChunkOptions(context_chunks=0, match_levels=False, retries=0)
    made = speak_long(engine, chunks, ADA.prompt, SAMPLING, options, 20)
    for spoken in made.chunks:
        sampling = SamplingConfig(0.4, 20, 1.0, seed=spoken.seed)
        by_itself = engine.generate(ADA.prompt(spoken.chunk.text), sampling, 20)
        waveform = made.waveform[spoken.start + 200 : spoken.end - 200]
        assert torch.equal(waveform, by_itself.waveform[200:-200])
    first = made.codes[:, : made.chunks[0].frames]
    heard = speak_long(engine, chunks, ADA.prompt, SAMPLING, ChunkOptions(retries=0), 20)
    assert torch.equal(heard.codes[:, : heard.chunks[0].frames], first)
    extra = heard.usage.prompt_positions - made.usage.prompt_positions
    sample = ADA.prompt(chunks[1].text)
    longer = after_chunks(sample, [(chunks[0].text, AudioContent())])
    ids = [len(tokenize(s, engine.text_tokenizer).input_ids) for s in (sample, longer)]
    assert extra == ids[1] - ids[0] + first.shape[1] + 8
