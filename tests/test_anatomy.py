"""What the anatomy notebook computes: attention against an explicit one, draws, alignment, codes changed by hand."""

import json
import math
import re

import pytest
import torch
from conftest import ROOT, assert_close

from higgs import Engine, SamplingConfig
from higgs.data.chatml import ChatMLSample, Message, TextContent, smart_voice
from higgs.data.text.lexicon import Lexicon
from higgs.data.text.normalize import normalize_prompt
from higgs.data.voices import find_voice, speakers_prompt
from higgs.model.llama import rope_table, rotate
from higgs.serve.alignment import (
    alignment,
    appended,
    examine,
    head_scores,
    last_place,
    monotone_path,
    replay,
    times_of,
    word_times,
    words_of,
)
from higgs.serve.captions import write_times
from higgs.serve.reference.loop import generate
from higgs.studio import surgery
from higgs.studio.anatomy import draws, entropy, hesitations, prompt_parts, rank, read_words

TEXT = "The train to the city leaves at seven in the morning."


@pytest.fixture(scope="module")
def spoken(nano_engine):
    sample = find_voice(ROOT / "data" / "voices", "ada").prompt(TEXT)
    response = nano_engine.generate(sample)
    return response, examine(nano_engine, sample, response.delayed[0])


@pytest.mark.parametrize(
    ("chances", "drawn", "bits", "place"),
    [
        ([0.5, 0.25, 0.125, 0.125], 0, 1.75, 0),
        ([0.5, 0.25, 0.125, 0.125], 3, 1.75, 2),  # of two that are equal, none was more probable than the other
        ([0.25] * 4, 2, 2.0, 0),
        ([0.0, 1.0, 0.0, 0.0], 1, 0.0, 0),
        ([0.1, 0.2, 0.3, 0.4], 0, 1.846439, 3),
    ],
)
def test_entropy_and_rank_of_a_distribution_made_by_hand(chances, drawn, bits, place):
    logits = torch.tensor(chances).log() + 3.0
    assert entropy(logits).item() == pytest.approx(bits, abs=1e-5)
    assert rank(logits, torch.tensor(drawn)).item() == place


def explicit_attention(model, batch):
    """The weights [L, H, S, S] of a batch of one, position by position, in a loop over queries."""
    _, states = model.hidden(batch)
    length = batch.input_ids.shape[1]
    rope = rope_table(model.config.rope, model.config.head_dim, torch.arange(length)[None], model.dtype)
    layers = []
    for layer, x in zip(model.layers, states, strict=True):
        audio = batch.audio_mask[..., None]
        x = torch.where(audio, layer.audio_norm(x), layer.text_norm(x))
        q, k = (
            rotate(p(x).unflatten(-1, (-1, model.config.head_dim)).transpose(1, 2), *rope)[0]
            for p in (layer.attention.q_proj, layer.attention.k_proj)
        )
        group, scale = len(q) // len(k), 1 / math.sqrt(q.shape[-1])
        weights = torch.zeros(len(q), length, length)
        for head in range(len(q)):
            for at in range(length):
                scores = [float(q[head, at] @ k[head // group, past]) * scale for past in range(at + 1)]
                weights[head, at, : at + 1] = torch.tensor(scores).softmax(0)
        layers.append(weights)
    return torch.stack(layers)


def test_attention_of_a_tiny_model_is_its_explicit_one(tiny_parts, ids):
    """And the logits are those that the greedy loop drew from, so that each draw has rank 0."""
    model, codec, tokenizer = tiny_parts
    engine = Engine(model, codec, tokenizer)
    prompt = engine.sequence(smart_voice("Hi.")).prompt
    result = generate(model, prompt, ids, SamplingConfig(temperature=0.0, ras_window=None), 14, ())
    delayed, length = result.segments[0].delayed, prompt.input_ids.shape[1]
    attends = [layer.attention.attend for layer in model.layers]
    attention, logits = replay(model, ids, prompt, delayed, slice(3, 8))
    assert [layer.attention.attend for layer in model.layers] == attends
    expected = explicit_attention(model, appended(prompt, delayed, ids))
    assert_close(attention, expected[:, :, length:, 3:8])
    drawn = (delayed[:, 1:] < model.config.codebook_size).T
    assert logits.shape[:2] == drawn.shape and drawn.any()
    assert rank(logits, delayed[:, 1:].T)[drawn].max() == 0


def test_draws_of_nano(spoken, nano_engine):
    """A draw is among the top-k candidates, sure draws have low ranks, and the end is nearly certain where it came."""
    response, anatomy = spoken
    config, sampling = nano_engine.model.config, nano_engine.generation.sampling
    measured = draws(anatomy, config)
    delayed = response.delayed[0]
    assert measured["entropy"].shape == delayed[:, 1:].shape
    assert torch.equal(measured["rank"].isnan(), delayed[:, 1:] >= config.codebook_size)
    ranks = measured["rank"][~measured["rank"].isnan()]
    assert (ranks < sampling.top_k).float().mean() > 0.95 and 0 < ranks.max()  # but for those drawn again
    assert (0 <= measured["entropy"][~measured["entropy"].isnan()]).all() and ranks.median() <= 1
    decided = (delayed[0, 1:] == config.stream_eos).nonzero()[0].item()
    assert measured["end"][0, decided] > 0.05 > measured["end"][0, : decided // 2].max()


def test_the_alignment_of_nano_is_monotone_for_most_frames(spoken, nano_engine):
    response, anatomy = spoken
    frames = response.codes.shape[1]
    weights = alignment(anatomy.attention)[:frames]
    assert_close(weights.sum(1), torch.ones(frames))
    highest = weights.argmax(1)
    assert (highest.diff() >= 0).float().mean() > 0.85
    path = monotone_path(weights)
    assert path == sorted(path) and len(path) == frames
    assert (torch.tensor(path) - highest).abs().le(1).float().mean() > 0.85
    # Whoever aligns well covers the text: heads of which the weights do not move have no score.
    assert path[-1] - path[0] > 0.7 * len(anatomy.tokens)
    still = torch.full_like(anatomy.attention[:1, :1], 0.1)
    assert head_scores(still).item() == 0 < head_scores(anatomy.attention).max()


def test_of_heads_that_look_ahead_none_is_averaged():
    """Two heads on the diagonal, one three tokens ahead, one that looks at the text less, one that goes back."""
    ahead, diagonal = torch.eye(12).roll(3, dims=1), torch.eye(12)
    ahead[9:] = torch.eye(12)[11]
    attention = torch.stack([ahead, 0.9 * diagonal, 0.8 * diagonal, 0.01 * diagonal.roll(1, 0), diagonal.flip(0)])[None]
    assert_close(alignment(attention, heads=3), diagonal)


def test_words_have_times_in_order(spoken, nano_engine, tmp_path):
    response, anatomy = spoken
    frames, rate = response.codes.shape[1], nano_engine.tokenizer.frame_rate
    times = word_times(anatomy, frames, rate)
    assert [row["word"] for row in times] == TEXT.split()
    assert times[-1]["end"] == frames / rate
    assert all(a["end"] == b["start"] for a, b in zip(times, times[1:], strict=False))
    assert sum(row["end"] - row["start"] > 0.05 for row in times) >= 9  # of 11
    # As long as people need: a word of two syllables longer than an article.
    length = {row["word"]: row["end"] - row["start"] for row in times}
    assert length["morning."] > length["the"] and length["seven"] > length["at"]


def test_times_of_chunks_follow_each_other_and_tags_are_no_words(spoken, nano_engine):
    """From the codes alone, as a stage has them; a prompt without a text has none, others have theirs."""
    response, anatomy = spoken
    frames, rate = response.codes.shape[1], nano_engine.tokenizer.frame_rate
    sample = find_voice(ROOT / "data" / "voices", "ada").prompt(TEXT)
    tagged = speakers_prompt({0: find_voice(ROOT / "data" / "voices", "ada")}, f"[SPEAKER0]{TEXT}")
    silent = ChatMLSample([*sample.messages, Message("assistant", TextContent("No."))])
    parts = [(frames, 0.0), (0, 2.0), (frames, 10.0), (frames, 20.0)]
    codes = torch.cat([response.codes] * 3, dim=1)
    rows = times_of(nano_engine, [sample, sample, silent, tagged], codes, parts)
    single = word_times(anatomy, frames, rate)
    assert rows[: len(single)] == [row | {"end": round(row["end"], 3)} for row in single]
    assert [row["word"] for row in rows] == 2 * TEXT.split()
    assert 20 <= rows[len(single)]["start"] < 20.5 and rows[-1]["end"] == pytest.approx(20 + frames / rate)


@pytest.mark.parametrize(
    "text", ["The train is late [laugh] but it comes.", "The train is late.[laugh]", "[cough]The train[laugh]is late."]
)
def test_words_around_a_sound_event_have_times(nano_engine, text):
    """An event is tokens of its own between words, and no word."""
    sample = normalize_prompt(smart_voice(text))
    assert len(sample.messages[-1].parts) > 1
    delayed = nano_engine.generate(sample, max_new_tokens=60).delayed[0]
    anatomy = examine(nano_engine, sample, delayed)
    assert anatomy.words == re.sub(r"\[\w+\]", " ", text).split()
    assert len(anatomy.tokens) == len(anatomy.word_of) == anatomy.attention.shape[-1]
    assert sorted(set(anatomy.word_of) - {-1}) == list(range(len(anatomy.words)))
    inside = "".join(t for t, word in zip(anatomy.tokens, anatomy.word_of, strict=True) if word < 0)
    assert "<SE>" in inside


def test_captions_hold_words_as_text(tmp_path):
    times = [{"word": "<b>R&D</b>", "start": 0.0, "end": 0.52}, {"word": "-->", "start": 0.52, "end": 3723.04}]
    for suffix in (".json", ".srt", ".vtt"):
        write_times(tmp_path / f"a{suffix}", times)
    assert json.loads((tmp_path / "a.json").read_text()) == times
    srt, vtt = ((tmp_path / f"a{suffix}").read_text() for suffix in (".srt", ".vtt"))
    assert srt == "1\n00:00:00,000 --> 00:00:00,520\n<b>R&D</b>\n\n2\n00:00:00,520 --> 01:02:03,040\n-->\n\n"
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.520\n&lt;b&gt;R&amp;D&lt;/b&gt;\n\n")
    assert vtt.endswith("01:02:03.040\n--&gt;\n\n")
    write_times(tmp_path / "a.vtt", [{"word": "at", "start": 1.04, "end": 1.04}])
    assert "00:00:01.040 --> 00:00:01.080\nat" in (tmp_path / "a.vtt").read_text(), "a caption has a length"
    with pytest.raises(ValueError, match=".json, .srt or .vtt"):
        write_times(tmp_path / "a.txt", times)


def test_a_prompt_is_listed_token_by_token(nano_engine):
    """All positions, the frames of a recording as one line."""
    sample = find_voice(ROOT / "data" / "voices", "cleo").prompt("Hi <|AUDIO|>.")
    ids = nano_engine.sequence(sample).prompt.input_ids[0].tolist()
    listed = prompt_parts(nano_engine.text_tokenizer, ids)
    assert [row["from"] for row in listed] == [sum(r["positions"] for r in listed[:n]) for n in range(len(listed))]
    assert sum(row["positions"] for row in listed) == len(ids)
    (frames,) = (row for row in listed if row["tokens"] == "<|AUDIO_OUT|>")
    assert frames["positions"] == ids.count(nano_engine.ids.audio_out) > 50
    assert listed[-1]["tokens"] == "<|audio_out_bos|>" and any("h | ˈ | I |   | < | |" in r["tokens"] for r in listed)


def test_where_the_first_codebook_hesitated():
    bits = torch.tensor([[1.0, 5.0, 2.0, 4.0, torch.nan], [9.0, 9.0, 9.0, 9.0, 9.0]])
    times = [{"word": "a", "start": 0.0, "end": 0.06}, {"word": "b", "start": 0.06, "end": 0.12}]
    assert hesitations(bits, times, 25, count=2) == [
        {"seconds": 0.04, "entropy, bits": 5.0, "word": "a"},
        {"seconds": 0.12, "entropy, bits": 4.0, "word": ""},
    ]
    assert len(hesitations(bits, times, 25, count=9)) == 4


@pytest.mark.parametrize(
    ("weights", "path"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 1, 2]),
        ([[0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]], [0, 0, 0, 0]),  # one frame alone does not move the others
        ([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]], [0, 1, 1, 2]),
        ([[1, 0, 0], [0, 0, 1]], [0, 2]),  # tokens may be left out
        ([[0.2, 0.8]], [1]),
    ],
)
def test_the_best_path_that_never_goes_back(weights, path):
    found = monotone_path(torch.tensor(weights, dtype=torch.float))
    scores = torch.tensor(weights, dtype=torch.float)[range(len(path)), path]
    assert found == path or torch.tensor(weights)[range(len(found)), found].sum() == scores.sum()
    assert found == sorted(found)


def test_words_of_tokens_and_of_the_lexicon():
    assert words_of(["The", " tr", "ain", " ", "go", "es", "."]) == [0, 1, 1, -1, 2, 2, 2]
    assert words_of([" ", "a", "\n\n", "b c"]) == [-1, 0, -1, 2]
    assert last_place([1, 2, 1, 2, 3], [1, 2]) == 2
    with pytest.raises(ValueError, match="does not hold"):
        last_place([1, 2], [3])
    lexicon = Lexicon("təkæ", {"cat": "kæt", "user": "kə"})
    rows = {row["word"]: (row["read as"], row["in the lexicon"]) for row in read_words(lexicon, "Cat dog 120 user 9th")}
    assert rows == {
        "Cat": ("kæt", "yes"), "dog": ("dog", "no"), "120": ("120", "no"), "user": ("kə", "yes"), "9th": ("9th", "no"),
    }  # fmt: skip
    assert read_words(None, "cat") == [{"word": "cat", "read as": "cat", "in the lexicon": "no"}]


CODES = torch.arange(24).reshape(4, 6) % 7
NEUTRAL = torch.tensor([5, 6, 5, 6])


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda codes: surgery.mute(codes, [1, 3], NEUTRAL), {1, 3}),
        (lambda codes: surgery.mute(codes, [0], NEUTRAL), {0}),
        (lambda codes: surgery.swap(codes, 0, 2), {0, 2}),
        (lambda codes: surgery.shuffle(codes, [2]), {2}),
        (lambda codes: surgery.shuffle(codes, [0, 1], seed=1), {0, 1}),
        (lambda codes: surgery.splice(codes, codes.flip(1), [1, 2, 3]), {1, 2, 3}),
        (lambda codes: surgery.mute(codes, [], NEUTRAL), set()),
    ],
)
def test_surgery_leaves_the_other_codebooks_as_they_are(change, changed):
    before = CODES.clone()
    after = change(CODES)
    assert torch.equal(CODES, before) and after.shape == CODES.shape
    assert {book for book in range(4) if not torch.equal(after[book], CODES[book])} == changed


def test_what_surgery_changes():
    assert surgery.mute(CODES, [1], NEUTRAL)[1].tolist() == [6] * 6
    assert torch.equal(surgery.swap(CODES, 0, 2)[0], CODES[2])
    shuffled = surgery.shuffle(CODES, [0, 1])
    assert sorted(map(tuple, shuffled[:2].T.tolist())) == sorted(map(tuple, CODES[:2].T.tolist()))
    spliced = surgery.splice(CODES, CODES[:, :4] + 10, [1])
    assert spliced.shape == (4, 4) and torch.equal(spliced[1], CODES[1, :4] + 10)
    for wrong in (lambda: surgery.swap(CODES, 0, 4), lambda: surgery.shuffle(CODES, [-1])):
        with pytest.raises(ValueError, match="codebooks are 0 to 3"):
            wrong()


def test_colours_follow_vectors_not_numbers(nano_engine):
    """Codes whose vectors are near have colours that are near; a neutral code adds less than any other."""
    codec = nano_engine.tokenizer
    every = torch.arange(codec.codebook_size).expand(codec.num_codebooks, -1)
    colours = surgery.code_colours(codec, every)
    assert colours.shape == (8, codec.codebook_size, 3) and 0 <= colours.min() < 0.2 < 0.8 < colours.max() <= 1
    vectors = surgery._vectors(codec)[0]
    near = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf).argmin(1)
    by_vector = (colours[0] - colours[0, near]).norm(dim=1).mean()
    by_number = (colours[0, 1:] - colours[0, :-1]).norm(dim=1).mean()
    assert by_vector < 0.5 * by_number
    neutral = surgery.neutral_codes(codec)
    assert all(vectors.norm(dim=1).min() == vectors[code].norm() for code, vectors in
               zip(neutral, surgery._vectors(codec), strict=True))  # fmt: skip
