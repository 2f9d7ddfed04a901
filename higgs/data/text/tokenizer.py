"""Text tokenizers of checkpoints: Llama-3's of the release, and the byte-level one of the default checkpoint."""

import re
from pathlib import Path

from tokenizers import Tokenizer

from higgs.checkpoint.resolve import resolve
from higgs.checkpoint.tensors import DAMAGED, CheckpointError
from higgs.data.text.lexicon import WORD, Lexicon

FILE = "tokenizer.json"


class TextTokenizer:
    """Text <-> ids. Words of the lexicon are encoded as phonemes. `name` is that of errors."""

    def __init__(self, backend: Tokenizer, lexicon: Lexicon | None = None, name: str = "the text tokenizer"):
        self.backend, self.lexicon, self.name = backend, lexicon, name
        if lexicon is not None:
            tokens = [token.content for token in backend.get_added_tokens_decoder().values()]
            if missing := set(lexicon.tokens) - set(tokens):
                raise ValueError(f"{name} lacks {len(missing)} of the lexicon's phonemes")
            # Added tokens (phrases of every prompt) are not pronounced; single words (roles) only as the whole text.
            phrases = sorted(set(tokens) - set(lexicon.tokens), key=len, reverse=True)
            self._words = {phrase for phrase in phrases if WORD.fullmatch(phrase)}
            longer = [phrase for phrase in phrases if phrase not in self._words]
            self._phrases = re.compile("(" + "|".join(map(re.escape, longer)) + ")")

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "TextTokenizer":
        """Folder or hub id of a checkpoint that holds a `tokenizer.json`; a damaged one is a CheckpointError."""
        folder = resolve(source, revision, weights=False)
        path, lexicon = folder / FILE, Lexicon.read(folder)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: it is the checkpoint's text tokenizer")
        try:
            backend = Tokenizer.from_file(str(path))
            tokenizer = cls(backend, lexicon, str(path))
            tokenizer.decode(tokenizer.encode("Hello, 7 trains."))  # some parts fail only when they are used
            return tokenizer
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{path} {DAMAGED}: {error}") from error

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """-> ids, without added tokens. `allow_special` encodes `<|...|>` strings as the tokens that they name."""
        if self.lexicon is not None and text not in self._words:
            parts = self._phrases.split(text)
            parts[::2] = map(self.lexicon.pronounce, parts[::2])
            text = "".join(parts)
        self.backend.encode_special_tokens = not allow_special
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """-> text with special tokens and phonemes."""
        text = self.backend.decode(ids, skip_special_tokens=False)
        return text if self.lexicon is None else self.lexicon.readable(text)

    def token_id(self, token: str) -> int:
        """The id of one token. Raises KeyError naming it."""
        if (token_id := self.backend.token_to_id(token)) is None:
            raise KeyError(f"{self.name} has no token {token!r}")
        return token_id

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)
