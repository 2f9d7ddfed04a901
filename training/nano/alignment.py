"""Forced alignment: the best path through a CTC head's posteriors says which text token is spoken in each frame."""

import random
from collections.abc import Iterator

import numpy as np

from higgs.data.chatml import ROLES
from higgs.data.text.lexicon import SPELL, WORD, Lexicon

SPELLED = 0.12  # share of the words that are left as letters, so that unknown ones can be read too
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


def spell_some(text: str, rng: random.Random) -> str:
    """Marks a few words of the text to be read as letters; not names of roles, which would be the role's token."""

    def marked(word) -> str:
        chosen = rng.random() < SPELLED and word[0].lower() not in ROLES
        return (SPELL if chosen else "") + word[0]

    return WORD.sub(marked, text)


def marked_texts(texts: list[str], lexicon: Lexicon | None) -> list[str]:
    """The texts as the model reads them in training: with a lexicon, some words of each are spelled."""
    if lexicon is None:
        return texts
    return [spell_some(text, random.Random(index)) for index, text in enumerate(texts)]


def num_symbols(lexicon: Lexicon | None) -> int:
    """Classes of the CTC head: the blank (0), characters, phonemes."""
    return 1 + len(CHARACTERS) + (len(lexicon.phonemes) if lexicon else 0)


def split_words(text: str, lexicon: Lexicon) -> Iterator[tuple[str, str | None, bool]]:
    """-> (segment, its phonemes or None, whether it is spelled): listed words, and the text between, without marks."""
    end = 0
    for match in WORD.finditer(text):
        mark, word = match.groups()
        phonemes = lexicon.words.get(word.lower().replace("’", "'"))
        if phonemes is None and not mark:
            continue
        if text[end : match.start()]:
            yield text[end : match.start()], None, False
        yield word, phonemes, bool(mark)
        end = match.end()
    if text[end:]:
        yield text[end:], None, False


def symbols_of(text: str, lexicon: Lexicon | None) -> tuple[list[int], list[int]]:
    """-> the CTC symbols of a text (ASCII), and the position of the text token that each belongs to.

    Words of the lexicon are phonemes even where they are spelled, because that is how they sound. Their phonemes then
    belong to the letters at the same share of the word.
    """
    symbols, positions, start = [], [], 0
    for segment, phonemes, spelled in split_words(text, lexicon) if lexicon else [(text, None, False)]:
        tokens = len(segment) if phonemes is None or spelled else len(phonemes)
        if phonemes is None:
            found = [1 + max(0, CHARACTERS.find(character)) for character in segment.lower()]
        else:
            found = [1 + len(CHARACTERS) + lexicon.phonemes.index(phoneme) for phoneme in phonemes]
        tokens_per_symbol = tokens / max(1, len(found))
        for n, symbol in enumerate(found):
            # One space between words, none before.
            if symbol != 1 or (symbols and symbols[-1] != 1):
                symbols.append(symbol)
                positions.append(start + int(n * tokens_per_symbol))
        start += tokens
    while symbols and symbols[-1] == 1:
        symbols.pop()
        positions.pop()
    return symbols, positions


def viterbi(log_probs: np.ndarray, symbols: list[int]) -> np.ndarray:
    """[steps, classes], the text's symbols -> state of the best path at each step [steps].

    States alternate blank and symbol: 2 k + 1 is symbol k, 2 k the blank before it.
    """
    steps, states = len(log_probs), 2 * len(symbols) + 1
    symbol = np.zeros(states, int)
    symbol[1::2] = symbols
    may_skip = np.zeros(states, bool)
    may_skip[3::2] = symbol[3::2] != symbol[1:-2:2]
    score = np.full(states, -1e9)
    score[:2] = log_probs[0, symbol[:2]]
    back = np.zeros((steps, states), np.int8)
    for step in range(1, steps):
        move = np.concatenate([[-1e9], score[:-1]])
        skip = np.where(may_skip, np.concatenate([[-1e9, -1e9], score[:-2]]), -1e9)
        options = np.stack([score, move, skip])
        back[step] = options.argmax(0)
        score = options.max(0) + log_probs[step, symbol]
    state = states - 1 if score[-1] > score[-2] else states - 2
    path = np.zeros(steps, int)
    for step in range(steps - 1, -1, -1):
        path[step] = state
        state -= int(back[step, state])
    return path


def align(posteriors: np.ndarray, text: str, lexicon: Lexicon | None) -> np.ndarray:
    """CTC log posteriors [2 T, classes] and an ASCII text -> position of the text token spoken in each frame [T]."""
    symbols, positions = symbols_of(text, lexicon)
    path = viterbi(posteriors.astype(np.float64), symbols)[::2]
    return np.asarray(positions)[np.minimum(path // 2, len(positions) - 1)]
