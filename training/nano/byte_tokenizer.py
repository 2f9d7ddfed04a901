"""The byte-level text tokenizer of the default checkpoint: made here, read by `higgs.data.text.tokenizer`."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from higgs.data.text.lexicon import FILE, Lexicon
from higgs.files import write_atomically
from higgs.tokens import SPECIAL_TOKENS


def byte_tokenizer(phrases: Sequence[str] = ()) -> Tokenizer:
    """256 bytes, the special tokens, and one token for each of the `phrases`: for models too small for BPE."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()])
    # A phrase that is a word ("user") does not match within another ("users").
    tokenizer.add_tokens([AddedToken(p, single_word=p.isalpha(), special=False, normalized=False) for p in phrases])
    return tokenizer


def write_lexicon(folder: Path, lexicon: Lexicon) -> None:
    content = json.dumps(vars(lexicon), ensure_ascii=False, separators=(",", ":"))
    write_atomically(folder / FILE, f"{content}\n")


def save_byte_tokenizer(folder: Path, phrases: Sequence[str] = (), lexicon: Lexicon | None = None) -> None:
    """Writes the two files that `AutoTokenizer` of transformers reads, and the lexicon."""
    if lexicon is not None:
        phrases = (*phrases, *lexicon.tokens)
        write_lexicon(folder, lexicon)
    byte_tokenizer(phrases).save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "begin_of_text", "eos_token": "end_of_turn", "pad_token": "end_of_text"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {role: SPECIAL_TOKENS[n] for role, n in roles.items()}
    config["clean_up_tokenization_spaces"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
