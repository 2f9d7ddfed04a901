"""The commonest English words, and sentences that make sure each of them is spoken often enough.

Frequencies are those of the package wordfreq, parts of speech those of WordNet's indices.
"""

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

COMMONEST = 10_000
ENOUGH = 3
FRAMES = {
    "noun": (
        "The {a} and the {b} were near the {c}.|They talked about the {a} {time}.|Is this the {a} or the {b}?|"
        "We need a {a}, a {b} and a {c}.|She wrote about {a} and {b}.|Nobody mentioned the {a} or the {b}.|"
        "Every {a} has a {b}.|The {a} was better than the {b}.|He has no {a} and no {b}.|Thank you for the {a}."
    ),
    "verb": (
        "We want to {a} and {b} {time}.|They did not {a} or {b}.|Can you {a} it {time}?|You should {a} before you {b}.|"
        "I would like to {a}, {b} and {c}.|Please {a} and {b}.|He tried to {a} {time}."
    ),
    "adj": (
        "It was a {a} and {b} day.|Some people are {a}, others are {b}.|That sounds {a} to me.|"
        "The house was {a}, {b} and {c}.|Is it {a} or {b}?|My friends are too {a} and too {b}."
    ),
    "adv": "He did it {a} and {b}.|They {a} went home {time}.|She spoke {a}, but not {b}.|{A}, it was over.",
    "other": (
        "I read the words {a} and {b}.|First comes {a}, then {b}, then {c}.|Say {a} again.|{A}, {b}, {c}.|"
        "Not {a}, but {b}.|The list has {a}, {b} and {c}.|From {a} to {b}.|She said {a} and he said {b}."
    ),
}  # fmt: skip
TIMES = "today|tomorrow|last year|in the evening|at school|again|every week|for an hour|in May".split("|")


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def commonest_words(count: int = COMMONEST) -> list[str]:
    """The words that can be read: letters only, with a vowel."""
    from wordfreq import iter_wordlist  # of the extra `train`: an examination needs no word list

    readable = (
        word for word in iter_wordlist("en") if re.fullmatch(r"[a-z]+('[a-z]+)?", word) and re.search("[aeiouy]", word)
    )
    return list(islice(readable, count))


def parts_of_speech(wordnet: Path) -> dict[str, str]:
    """Word -> the part of speech that most of its senses have."""
    senses: dict[str, Counter] = {}
    for name in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"index.{name}").read_text(encoding="latin-1").splitlines():
            if not line.startswith(" "):
                word, _, number = line.split()[:3]
                senses.setdefault(word, Counter())[name] += int(number)
    return {word: counts.most_common(1)[0][0] for word, counts in senses.items()}


def covering_sentences(texts: list[str], wordnet: Path) -> list[str]:
    """Sentences to add to `texts`, so that each of the commonest words occurs at least ENOUGH times."""
    met = Counter(word for text in texts for word in words_of(text))
    kinds, rng, made = parts_of_speech(wordnet), random.Random(0), []
    missing: dict[str, list[str]] = {kind: [] for kind in FRAMES}
    for word in commonest_words():
        missing[kinds.get(word, "other")] += [word] * max(0, ENOUGH - met[word])
    for kind, words in missing.items():
        rng.shuffle(words)
        frames = FRAMES[kind].split("|")
        while words:
            frame = rng.choice(frames)
            fill = {slot: words.pop() if words else "day" for slot in "abc" if f"{{{slot}}}" in frame.lower()}
            fill["A"] = fill["a"].capitalize() if "a" in fill else ""
            made.append(frame.format(time=rng.choice(TIMES), **fill))
    return made
