"""What holds for every conversation: 500 drawn at random, rendered, collated and taken apart again."""

import random
from dataclasses import dataclass

import torch
from tiny import equal_batches
from torch import Tensor

from higgs import AudioContent, ChatMLSample, Message, TextContent
from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import Tokens, tokenize
from higgs.data.collator import Features, collate, count_positions, expand_audio_placeholders
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import revert_delay
from higgs.tokens import SPECIAL_TOKENS, TokenIds
from training.nano.byte_tokenizer import byte_tokenizer

TOKENIZER = TextTokenizer(byte_tokenizer())
IDS = TokenIds.of(TOKENIZER)
AUDIO = ("<|AUDIO|>", "<|AUDIO_OUT|>")
CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size)
SPECIALS = {TOKENIZER.token_id(token) for token in SPECIAL_TOKENS.values()}
PIECES = [
    "Hello. ", "\n", "   ", "[SPEAKER0] ", "naïve café ", "你好。", "🎉", "שלום ", "\u2028", "<", "|>",
    *SPECIAL_TOKENS.values(),
]  # fmt: skip


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(6))) + "."


def random_content(rng: random.Random) -> str | TextContent | AudioContent:
    text = random_text(rng)
    return rng.choice([text, TextContent(text), AudioContent()])


def random_conversation(rng: random.Random) -> ChatMLSample:
    messages = []
    for _ in range(rng.randint(1, 6)):
        role = rng.choice(["system", "user", "assistant", "assistant"])
        several = [random_content(rng) for _ in range(rng.randint(1, 3))]
        recipient = random_text(rng) if role == "assistant" and rng.random() < 0.3 else None
        messages.append(Message(role, rng.choice([several, random_content(rng)]), recipient))
    return ChatMLSample(messages, rng.randint(0, len(messages)))


@dataclass(frozen=True)
class Piece:
    """A stretch of the conversation as it should be written: one special token, or text."""

    text: str
    special: bool = False
    trained: bool = False


def written_out(sample: ChatMLSample) -> list[Piece]:
    pieces = [Piece("<|begin_of_text|>", True)]
    for index, message in enumerate(sample.messages):
        spoken = message.role == "assistant"
        learnt = spoken and index >= sample.start_index
        pieces += [Piece("<|start_header_id|>", True), Piece(message.role)]
        pieces += [Piece("<|end_header_id|>", True), Piece("\n\n")]
        if message.recipient is not None:
            pieces += [Piece(message.recipient, False, learnt), Piece("<|recipient|>", True, learnt)]
        for part in message.parts:
            if isinstance(part, TextContent):
                pieces.append(Piece(part.text, False, learnt))
            else:
                start = ("<|audio_out_bos|>", "<|AUDIO_OUT|>") if spoken else ("<|audio_bos|>", "<|AUDIO|>")
                pieces += [Piece(token, True, learnt) for token in (*start, "<|audio_eos|>")]
        goes_on = spoken and [m.role for m in sample.messages[index + 1 : index + 2]] == ["assistant"]
        pieces.append(Piece("<|eom_id|>" if goes_on else "<|eot_id|>", True, learnt))
    return pieces


def audio_runs(batch: Batch, row: int) -> list[slice]:
    """The stretches of audio positions: no two touch, for each stands between its own two tokens."""
    edges = torch.nn.functional.pad(batch.audio_mask[row].long(), (1, 1)).diff()
    starts, stops = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def check_tokens(pieces: list[Piece], tokens: Tokens) -> None:
    """No string in a text became a special token, none that belongs there is missing, and what is trained is."""
    assert TOKENIZER.decode(tokens.input_ids) == "".join(piece.text for piece in pieces)
    specials = [token for token in tokens.input_ids if token in SPECIALS]
    assert [TOKENIZER.decode([token]) for token in specials] == [p.text for p in pieces if p.special]
    learnt = [label for label in tokens.labels if label != -100]
    assert TOKENIZER.decode(learnt) == "".join(piece.text for piece in pieces if piece.trained)


def check_row(batch: Batch, row: int, tokens: Tokens, codes: list[Tensor], trained: list[bool]) -> None:
    runs = audio_runs(batch, row)
    assert len(runs) == len(codes)
    for run, segment, learnt in zip(runs, codes, trained, strict=True):
        delayed = batch.codes[row, run].T
        assert torch.equal(revert_delay(delayed)[:, 1:-1], segment), "un-delayed codes"
        labels = batch.code_labels[row, run].T
        for codebook, line in enumerate(labels):
            kept = line != -100
            expected = [*segment[codebook].tolist(), CONFIG.stream_eos] if learnt else []
            assert line[kept].tolist() == expected, "T codes and one eos in each trained codebook"
            assert torch.equal(delayed[codebook][kept], line[kept]), "labels stand where the codes are"
    length = count_positions(tokens, [segment.shape[1] for segment in codes], CONFIG.num_codebooks)
    assert batch.attention_mask[row].tolist() == [True] * length + [False] * (batch.input_ids.shape[1] - length)
    assert (batch.code_labels[row][~batch.audio_mask[row]] == -100).all()
    assert (batch.labels[row][batch.audio_mask[row]] == -100).all()
    text = ~batch.audio_mask[row] & batch.attention_mask[row]
    placeholders = (IDS.audio_in, IDS.audio_out)
    wanted = [label for token, label in zip(tokens.input_ids, tokens.labels, strict=True) if token not in placeholders]
    assert batch.labels[row][text].tolist() == wanted


def test_five_hundred_random_conversations():
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    left, audios, learnt_audios = 500, 0, 0
    while left:
        group = [random_conversation(rng) for _ in range(min(left, rng.randint(1, 4)))]
        left -= len(group)
        every_tokens = [tokenize(sample, TOKENIZER) for sample in group]
        every_codes = [
            [torch.randint(0, 1024, (8, rng.randrange(12)), generator=generator) for _ in sample.audios]
            for sample in group
        ]
        rows: list[Features] = []
        for sample, tokens, codes in zip(group, every_tokens, every_codes, strict=True):
            check_tokens(written_out(sample), tokens)
            rows.append(expand_audio_placeholders(tokens, codes, IDS, CONFIG, code_labels=True))
        before = [{key: tensor.clone() for key, tensor in row.items()} for row in rows]
        batch = collate(rows, IDS, labels=True)
        for index, (sample, tokens, codes) in enumerate(zip(group, every_tokens, every_codes, strict=True)):
            trained = [piece.trained for piece in written_out(sample) if piece.text in AUDIO and piece.special]
            check_row(batch, index, tokens, codes, trained)
            audios, learnt_audios = audios + len(codes), learnt_audios + sum(trained)
        assert equal_batches(batch, collate(rows, IDS, labels=True)), "collated twice"
        assert all(torch.equal(row[key], old[key]) for row, old in zip(rows, before, strict=True) for key in row)
    assert audios > 600 and 0.2 < learnt_audios / audios < 0.6, "the draw covers both kinds"


def test_rounding_adds_padding_only():
    tokens = tokenize(ChatMLSample([Message("user", "Hi."), Message("assistant", AudioContent())]), TOKENIZER)
    rows = [expand_audio_placeholders(tokens, [torch.ones(8, 5, dtype=torch.long)], IDS, CONFIG, True)]
    exact, rounded = (collate(rows, IDS, labels=True, round_to=n) for n in (1, 64))
    length = exact.input_ids.shape[1]
    assert length % 64 and rounded.input_ids.shape[1] % 64 == 0
    cut = Batch(**{key: tensor[:, :length] for key, tensor in vars(rounded).items()})
    assert equal_batches(cut, exact) and not rounded.attention_mask[:, length:].any()
