"""The lexicon option of the text tokenizer: listed words as phonemes, everything else as written."""

import json

import pytest
from conftest import NANO

from higgs.checkpoint.tensors import CheckpointError
from higgs.cli.checkpoint_report import inspect_checkpoint
from higgs.data.text.lexicon import FILE, SPELL, Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.tokens import SPECIAL_TOKENS
from training.nano.byte_tokenizer import byte_tokenizer, save_byte_tokenizer
from training.nano.sizes import NANO_PHRASES

LEXICON = Lexicon("təkædOnɪs", {"cat": "kæt", "don't": "dOnt", "it": "ɪt", "speaker": "skɪ"})
PLAIN = TextTokenizer(byte_tokenizer(NANO_PHRASES))


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(byte_tokenizer((*NANO_PHRASES, *LEXICON.tokens)), LEXICON)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A cat, a Cat!", "A kæt, a kæt!"),
        ("cats and tomcat", "cats and tomcat"),  # whole words only
        ("Don't. Don’t. DON'T", "dOnt. dOnt. dOnt"),  # either apostrophe
        ("cat's", "cat's"),  # a word of its own, unknown
        (f"{SPELL}cat cat", "cat kæt"),
        (f"{SPELL}dog", "dog"),
        ("cat5 5cat _cat", "cat5 5cat _cat"),
        ("[SPEAKER0] it", "[SPEAKER0] ɪt"),
        ("[cat] <cat> </cat>", "[cat] <cat> </cat>"),
        ("кот ça il", "кот ça il"),
        ("", ""),
    ],
)
def test_words_that_are_known_are_phonemes_and_the_rest_is_text(tokenizer, text, read):
    assert tokenizer.decode(tokenizer.encode(text)) == read


def test_a_phoneme_is_a_token_and_no_letter(tokenizer):
    (t,) = tokenizer.encode("t")
    assert len(tokenizer.encode("cat")) == 3 and t not in tokenizer.encode("cat")
    assert tokenizer.encode("dog") == PLAIN.encode("dog")
    assert PLAIN.decode(PLAIN.encode("A cat.")) == "A cat."


def test_special_tokens_in_a_text_stay_text(tokenizer):
    for token in SPECIAL_TOKENS.values():
        ids = tokenizer.encode(f"it {token} cat")
        assert tokenizer.token_id(token) not in ids and tokenizer.decode(ids) == f"ɪt {token} kæt"
        assert tokenizer.token_id(token) in tokenizer.encode(f"it {token} cat", allow_special=True)


def test_phrases_of_every_prompt_stay_one_token():
    """Even where the lexicon knows their words."""
    words = {word.strip(".").lower() for phrase in NANO_PHRASES for word in phrase.split()}
    knows_all = Lexicon("x", dict.fromkeys(filter(str.isalpha, words), "x"))
    tokenizer = TextTokenizer(byte_tokenizer((*NANO_PHRASES, *knows_all.tokens)), knows_all)
    for phrase in NANO_PHRASES:
        assert len(tokenizer.encode(phrase)) == 1
        assert tokenizer.decode(tokenizer.encode(phrase)) == phrase


def test_a_checkpoint_with_a_lexicon_is_read_as_it_was_written(tmp_path, tokenizer):
    save_byte_tokenizer(tmp_path, NANO_PHRASES, LEXICON)
    assert Lexicon.read(tmp_path) == LEXICON and Lexicon.read(tmp_path / "elsewhere") is None
    again = TextTokenizer.from_pretrained(tmp_path)
    assert again.lexicon == LEXICON and again.vocab_size == tokenizer.vocab_size
    text = f"It is a cat. {SPELL}It! <|eot_id|>"
    assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "is no lexicon"),
        ('{"phonemes": "t"}', "words"),
        ('{"phonemes": "t", "words": {}, "more": 1}', "more"),
        ('{"phonemes": "t", "words": ["a"]}', "is no lexicon"),
        ('{"phonemes": "tt", "words": {"a": "t"}}', "duplicate"),
        ('{"phonemes": "t", "words": {"a": "tx"}}', "does not list: .'x'"),
        (b"\xff\xfe", "is no lexicon"),
        ('{"phonemes": ["t"], "words": {"a": "t"}}', "phonemes: .*'t'"),
        ('{"phonemes": "t", "words": {"a": ["t"]}}', "words.a: "),
        ('{"phonemes": "t", "words": {"a": "t", "a": ""}}', "duplicate key 'a'"),
        ("[" * 200_000, "is no lexicon"),
        (json.dumps({"phonemes": "".join(map(chr, range(256, 7000))), "words": {}}), "6744 phonemes, at most 6400"),
    ],
)
def test_a_damaged_lexicon_says_so(tmp_path, content, told):
    (tmp_path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=told) as error:
        Lexicon.read(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 200_000, b'{"version": "1.0"',
        b'{"version": "1.0", "model": 1}',
        b'{"version": "9", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"version": "1.0", "added_tokens": [{"id": -1}], "model": {"type": "BPE", "vocab": {"a": "b"}}}',
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    with pytest.raises(FileNotFoundError, match="tokenizer.json does not exist"):
        TextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'tokenizer.json'} is damaged"):
        TextTokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_without_the_phonemes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks 2 of the lexicon's phonemes"):
        TextTokenizer(byte_tokenizer(LEXICON.tokens[:-2]), LEXICON)
    save_byte_tokenizer(tmp_path, NANO_PHRASES)
    (tmp_path / FILE).write_text(json.dumps(vars(LEXICON)))
    with pytest.raises(ValueError, match="lacks 9 of the lexicon's phonemes"):
        TextTokenizer.from_pretrained(tmp_path)


def test_inspect_names_a_lexicon(tmp_path):
    (tmp_path / "config.json").write_bytes((NANO / "model/config.json").read_bytes())
    (tmp_path / "model.safetensors").symlink_to(NANO / "model/model.safetensors")
    save_byte_tokenizer(tmp_path, NANO_PHRASES, LEXICON)
    (report,) = inspect_checkpoint(tmp_path)
    assert not report.problems
    assert "lexicon.json: 4 words are read as phonemes" in report.notes
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(content | {"phonemes": "t"}))
    (report,) = inspect_checkpoint(tmp_path)
    assert any("phonemes that it does not list" in problem for problem in report.problems)
