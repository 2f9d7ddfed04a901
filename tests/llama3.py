"""The released checkpoint's text tokenizer, built from the BPE ranks in the wheel llama-models: for tests only.

128,000 base tokens are those of stock Llama 3; the 256 special tokens are named as in the release's
`tokenizer_config.json`.
"""

import base64
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from higgs.data.text.tokenizer import TextTokenizer

WHEEL, RANKS = "llama-models", "llama_models/llama3/tokenizer.model"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|audio_bos|>", "<|audio_eos|>", "<|audio_out_bos|>",
    "<|reserved_special_token_6|>", "<|AUDIO|>", "<|AUDIO_OUT|>", "<|recipient|>", "<|scene_desc_start|>",
    "<|scene_desc_end|>", "<|generation_instruction_start|>", "<|generation_instruction_end|>",
    "<SE>", "</SE>", "<SE_s>", "</SE_s>", "<SE_e>", "</SE_e>",
)  # fmt: skip
SPECIAL = (*NAMED, *(f"<|reserved_special_token_{n}|>" for n in range(20, 248)))


@cache
def llama3_tokenizer() -> TextTokenizer:
    try:
        path = distribution(WHEEL).locate_file(RANKS)
    except PackageNotFoundError:
        pytest.skip(f"{WHEEL} is absent: make setup installs it")
    # The printable character by which byte-level BPE writes each byte: itself, or one from U+0100 on.
    itself, others = {*range(33, 127), *range(161, 173), *range(174, 256)}, iter(range(256, 512))
    written = [chr(byte if byte in itself else next(others)) for byte in range(256)]
    vocab = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        vocab["".join(written[byte] for byte in base64.b64decode(token))] = int(rank)
    # Ranks say which token is made first; the library wants every pair that makes it, in that order.
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(vocab, key=vocab.get)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return TextTokenizer(backend)
