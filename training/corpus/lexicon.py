"""Make the lexicon of the default checkpoint: `python -m training.corpus.lexicon`.

How hibari-tts, whose voice the corpus has, pronounces words: each word of the corpus as it is pronounced there most
often, and of the commonest English words those that hibari's own dictionary holds (Apache-2.0, after that of misaki).
"""

import argparse
import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import hibari
from tqdm import tqdm
from wordfreq import iter_wordlist

from higgs.data.text.lexicon import WORD, Lexicon
from training.corpus.shards import Shards
from training.nano.byte_tokenizer import write_lexicon

ASSETS = Path(hibari.__file__).parent / "assets"
COMMONEST = 60_000
KEPT = 30_500
PUNCTUATION = " ,.;:!?—…\"()“”'-"


def voted(texts: list[str]) -> dict[str, str]:
    """Word -> its most frequent pronunciation, from the sentences whose words and pronunciations pair up."""
    speaker, votes = hibari.Hibari(), {}
    for text in tqdm(texts, desc="pronounce", mininterval=10):
        words = [match[2].lower().replace("’", "'") for match in WORD.finditer(text)]
        spoken = [p.strip(PUNCTUATION) for line in speaker.phonemize(text) for p in line.split()]
        spoken = [p for p in spoken if p]
        if len(words) == len(spoken):
            for word, phonemes in zip(words, spoken, strict=True):
                votes.setdefault(word, Counter())[phonemes] += 1
    return {word: counts.most_common(1)[0][0] for word, counts in votes.items()}


def listed() -> dict[str, str]:
    """The commonest words in hibari's dictionaries, the checked one first."""
    found = {}
    entries = [json.load(gzip.open(ASSETS / f"lexicon_us_{kind}.json.gz")) for kind in ("gold", "silver")]
    for word in islice(iter_wordlist("en"), COMMONEST):
        if not WORD.fullmatch(word):
            continue
        for table in entries:
            entry = table.get(word) or table.get(word.capitalize())
            phonemes = entry.get("DEFAULT") if isinstance(entry, dict) else entry
            if phonemes:
                found[word] = phonemes
                break
    return found


def most(words: dict[str, str], count: int) -> dict[str, str]:
    """The `count` commonest of the words, in the order of the alphabet."""
    ranked = list(islice((word for word in iter_wordlist("en") if word in words), count))
    return {word: words[word] for word in sorted(ranked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path("training/out/corpus"))
    parser.add_argument("--out", type=Path, default=Path("training/out"))
    arguments = parser.parse_args()
    shards = Shards(arguments.corpus)
    texts = [shards.utterances[index].text for index in shards.training]
    words = most(listed() | voted(texts), KEPT)
    phonemes = "".join(sorted(set("".join(words.values()))))
    write_lexicon(arguments.out, Lexicon(phonemes, words))
    print(f"{len(words)} words, {len(phonemes)} phonemes: {phonemes}")


if __name__ == "__main__":
    main()
