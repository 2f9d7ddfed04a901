"""What the voices of the corpus say: WordNet's usage examples, sentences from templates, and the commonest words.

Word frequencies are those of the package wordfreq, parts of speech those of WordNet's indices, patterns and word lists
those of `templates.toml`. Every function is deterministic: random draws have fixed seeds.
"""

import random
import re
import tomllib
from collections import Counter
from itertools import islice
from pathlib import Path

NGRAM = 6  # words
LENGTHS = range(6, 15)  # words of the held-out sentences
HELD_OUT, VALIDATION = Path("training/held_out.txt"), Path("training/validation.txt")
COMMONEST = 10_000  # words, each of which the corpus has
OCCURRENCES = 3  # of each of them, at least
LISTS = tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8"))
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Every run of NGRAM words, or the whole of a shorter text."""
    words = words_of(text)
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def read_sentences(path: Path) -> list[str]:
    """The lines of a file that are neither empty nor a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def wordnet_sentences(folder: Path) -> list[str]:
    """The usage examples in WordNet's glosses that are plain sentences of 3 to 14 words."""
    found = set()
    for name in PARTS_OF_SPEECH:
        for line in (folder / f"data.{name}").read_text(encoding="latin-1").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = example.strip(" ;:,-")
                if 3 <= len(text.split()) <= 14 and re.fullmatch(r"[A-Za-z ,.'?!;-]+", text):
                    text = text[0].upper() + text[1:]
                    found.add(text if text[-1] in ".?!" else text + ".")
    return sorted(found)


def number_words(rng: random.Random) -> str:
    value = rng.choice([rng.randrange(1, 20), rng.randrange(20, 100), rng.randrange(100, 1000)])
    units, tens = LISTS["template"]["unit"], LISTS["template"]["ten"]
    words = [units[value // 100], "hundred"] if value >= 100 else []
    rest = value % 100
    if rest >= 20:
        words.append(tens[rest // 10 - 2])
        rest %= 10
    if rest:
        words.append(units[rest])
    return " ".join(words)


def template_sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different everyday sentences: common words in many combinations."""
    rng, made, lists = random.Random(seed), set(), LISTS["template"]
    slots = ("who", "past", "thing", "when", "adj", "adj2", "noun", "noun2", "verb", "verb2")
    while len(made) < count:
        fill = {slot: rng.choice(lists[slot.removesuffix("2")]) for slot in slots}
        fill |= {"number": number_words(rng), "number2": number_words(rng)}
        fill["hour"] = f"{rng.choice(lists['unit'][1:13])} {rng.choice(['o clock', 'thirty', 'fifteen'])}"
        fill |= {slot.capitalize(): fill[slot][0].upper() + fill[slot][1:] for slot in ("who", "when")}
        fill["command"] = rng.choice(lists["command"]).format(**fill)
        made.add(rng.choice(lists["pattern"]).format(**fill))
    return sorted(made)


def commonest_words() -> list[str]:
    """The words that can be read: letters only, with a vowel."""
    from wordfreq import iter_wordlist  # of the extra `train`: the evaluation needs no word list

    readable = (
        word for word in iter_wordlist("en") if re.fullmatch(r"[a-z]+('[a-z]+)?", word) and re.search("[aeiouy]", word)
    )
    return list(islice(readable, COMMONEST))


def parts_of_speech(wordnet: Path) -> dict[str, str]:
    """Word -> the part of speech that most of its senses have."""
    senses: dict[str, Counter] = {}
    for name in PARTS_OF_SPEECH:
        for line in (wordnet / f"index.{name}").read_text(encoding="latin-1").splitlines():
            if not line.startswith(" "):
                word, _, number = line.split()[:3]
                senses.setdefault(word, Counter())[name] += int(number)
    return {word: counts.most_common(1)[0][0] for word, counts in senses.items()}


def covering_sentences(texts: list[str], wordnet: Path) -> list[str]:
    """Sentences to add to `texts`, so that each of the commonest words occurs at least OCCURRENCES times."""
    counts = Counter(word for text in texts for word in words_of(text))
    kinds, rng, made, lists = parts_of_speech(wordnet), random.Random(0), [], LISTS["cover"]
    missing: dict[str, list[str]] = {kind: [] for kind in (*PARTS_OF_SPEECH, "other")}
    for word in commonest_words():
        missing[kinds.get(word, "other")] += [word] * max(0, OCCURRENCES - counts[word])
    for kind, words in missing.items():
        rng.shuffle(words)
        while words:
            pattern = rng.choice(lists[kind])
            fill = {slot: words.pop() if words else "day" for slot in "abc" if f"{{{slot}}}" in pattern.lower()}
            fill["A"] = fill["a"].capitalize() if "a" in fill else ""
            made.append(pattern.format(time=rng.choice(lists["time"]), **fill))
    return made


def all_texts(wordnet: Path) -> list[str]:
    """WordNet's sentences and a quarter of their number from templates, without those that the held-out ones resemble.

    Shuffled, and those as long as the held-out ones first: short ones would be half of the corpus otherwise.
    """
    excluded = {ngram for path in (HELD_OUT, VALIDATION) for line in read_sentences(path) for ngram in ngrams(line)}
    texts = wordnet_sentences(wordnet)
    texts += template_sentences(len(texts) // 4)
    texts = [text for text in texts if not ngrams(text) & excluded]
    random.Random(0).shuffle(texts)
    return sorted(texts, key=lambda text: len(text.split()) not in LENGTHS)


def choose_texts(texts: list[str], count: int, wordnet: Path) -> list[str]:
    """`count` texts: as many of `texts` as the sentences that cover the commonest words leave space for.

    A corpus that is too small for those, made to try the pipeline, does without them.
    """
    space = count - len(covering_sentences(texts[: count * 3 // 5], wordnet))
    if space <= 0:
        print(f"{count} utterances: the commonest words are not all in them")
        return texts[:count]
    chosen = texts[:space]
    chosen += covering_sentences(chosen, wordnet)
    random.Random(1).shuffle(chosen)
    return chosen
