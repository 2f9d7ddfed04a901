"""Text tokenizers: the released one and the byte-level one of the default checkpoint, through the same library."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from higgs.checkpoint.resolve import resolve
from higgs.data.text.lexicon import WORD, Lexicon
from higgs.tokens import SPECIAL_TOKENS


class TextTokenizer:
    """Text <-> ids. Special tokens in a text are text, unless the caller says that it means them.

    With a lexicon, words that it knows are read as phonemes (see `higgs.data.text.lexicon`).
    """

    def __init__(self, backend: Tokenizer, lexicon: Lexicon | None = None):
        self.backend, self.lexicon = backend, lexicon
        if lexicon is not None:
            tokens = [token.content for token in backend.get_added_tokens_decoder().values()]
            if missing := set(lexicon.tokens) - set(tokens):
                raise ValueError(f"the text tokenizer lacks {len(missing)} of the lexicon's phonemes")
            # What is a token as it stands (a phrase of every prompt) is not pronounced.
            # One that is a word, as the name of a role is, is such a phrase only where nothing else is said.
            whole = sorted(set(tokens) - set(lexicon.tokens), key=len, reverse=True)
            self._alone = {token for token in whole if WORD.fullmatch(token)}
            within = [token for token in whole if token not in self._alone]
            self._whole = re.compile("(" + "|".join(map(re.escape, within)) + ")")

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "TextTokenizer":
        """Folder or hub id of a checkpoint that holds a `tokenizer.json`."""
        folder = resolve(source, revision, weights=False)
        return cls(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), Lexicon.read(Path(folder)))

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """-> ids, nothing added. `allow_special` reads `<|...|>` strings as the tokens that they name."""
        if self.lexicon is not None and text not in self._alone:
            parts = self._whole.split(text)
            parts[::2] = map(self.lexicon.pronounce, parts[::2])
            text = "".join(parts)
        self.backend.encode_special_tokens = not allow_special
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """-> text, special tokens included; phonemes as such."""
        text = self.backend.decode(ids, skip_special_tokens=False)
        return text if self.lexicon is None else self.lexicon.readable(text)

    def token_id(self, token: str) -> int:
        """The id of one token. Raises KeyError naming it."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise KeyError(f"the text tokenizer has no token {token!r}")
        return found

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)


def byte_tokenizer(phrases: Sequence[str] = ()) -> Tokenizer:
    """256 bytes, then the special tokens: what a model too small for a vocabulary of words reads.

    `phrases` become one token each: the sentences that every prompt repeats need not be spelt out.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()])
    # A phrase that is a word ("user") is no part of another ("users").
    tokenizer.add_tokens(
        [AddedToken(phrase, single_word=phrase.isalpha(), special=False, normalized=False) for phrase in phrases]
    )
    return tokenizer


def save_byte_tokenizer(folder: Path, phrases: Sequence[str] = (), lexicon: Lexicon | None = None) -> None:
    """Writes the two files that `AutoTokenizer` reads, and the lexicon."""
    if lexicon is not None:
        phrases = (*phrases, *lexicon.tokens)
        lexicon.write(folder)
    byte_tokenizer(phrases).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS["begin_of_text"],
        "eos_token": SPECIAL_TOKENS["end_of_turn"],
        "pad_token": SPECIAL_TOKENS["end_of_text"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
