"""What the voices of the corpus say: WordNet's usage examples, sentences from templates, and common words."""

import random
import re
from pathlib import Path

from training.corpus.templates import template_sentences
from training.corpus.words import covering_sentences, words_of

RUN = 6  # words
LENGTHS = range(6, 15)  # words of the sentences that the checkpoint is judged by
JUDGED = (Path("training/held_out.txt"), Path("training/validation.txt"))


def wordnet_sentences(folder: Path) -> list[str]:
    """The usage examples in WordNet's glosses that are plain sentences of 3 to 14 words."""
    found = set()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = example.strip(" ;:,-")
                if 3 <= len(text.split()) <= 14 and re.fullmatch(r"[A-Za-z ,.'?!;-]+", text):
                    text = text[0].upper() + text[1:]
                    found.add(text if text[-1] in ".?!" else text + ".")
    return sorted(found)


def read_sentences(path: Path) -> list[str]:
    """The lines of a file that are neither empty nor a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of RUN words, or the whole of a shorter text."""
    words = words_of(text)
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def all_texts(wordnet: Path, judged: tuple[Path, ...] = JUDGED) -> list[str]:
    """WordNet's sentences and a quarter of their number from templates, without what is judged.

    Shuffled, and those as long as the judged ones first: short ones would be half of the corpus otherwise.
    """
    barred = {run for path in judged for line in read_sentences(path) for run in runs(line)}
    texts = wordnet_sentences(wordnet)
    texts += template_sentences(len(texts) // 4)
    texts = [text for text in texts if not runs(text) & barred]
    random.Random(0).shuffle(texts)
    return sorted(texts, key=lambda text: len(text.split()) not in LENGTHS)


def choose_texts(texts: list[str], count: int, wordnet: Path) -> list[str]:
    """`count` texts: as many of `texts` as the sentences that cover the commonest words leave room for.

    A corpus that is too small for those, made to try the pipeline, does without them.
    """
    room = count - len(covering_sentences(texts[: count * 3 // 5], wordnet))
    if room <= 0:
        print(f"{count} utterances: the commonest words are not all in them")
        return texts[:count]
    chosen = texts[:room]
    chosen += covering_sentences(chosen, wordnet)
    random.Random(1).shuffle(chosen)
    return chosen
