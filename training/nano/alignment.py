"""Which token of a text is being spoken in each frame: the best path through the posteriors of a CTC head."""

import random

import numpy as np

from higgs.data.chatml import ROLES
from higgs.data.text.lexicon import SPELL, WORD, Lexicon, Segment

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
    """What the CTC head tells apart: the blank (0), characters, phonemes."""
    return 1 + len(CHARACTERS) + (len(lexicon.phonemes) if lexicon else 0)


def symbols_of(text: str, lexicon: Lexicon | None) -> tuple[list[int], list[int]]:
    """-> the CTC symbols of a text (ASCII), and the place of the text token that each stands for.

    Words that the lexicon knows are phonemes even where they are spelled: that is how they sound. Their phonemes
    then stand for the letters at the same share of the word.
    """
    symbols, places, at = [], [], 0
    for piece in lexicon.split(text) if lexicon else [Segment(text)]:
        if piece.phonemes is None:
            found = [CHARACTERS.find(character) for character in piece.text.lower()]
            pairs = [(1 + max(0, index), at + n) for n, index in enumerate(found)]
        else:
            spread = len(piece.text) / len(piece.phonemes) if piece.spelled else 1
            first = 1 + len(CHARACTERS)
            pairs = [(first + lexicon.phonemes.index(p), at + int(n * spread)) for n, p in enumerate(piece.phonemes)]
        for symbol, place in pairs:
            # One blank between words, none before.
            if symbol != 1 or (symbols and symbols[-1] != 1):
                symbols.append(symbol)
                places.append(place)
        short = piece.phonemes is not None and not piece.spelled
        at += len(piece.phonemes) if short else len(piece.text)
    while symbols and symbols[-1] == 1:
        symbols.pop()
        places.pop()
    return symbols, places


def viterbi(log_probs: np.ndarray, symbols: list[int]) -> np.ndarray:
    """[steps, symbols], the text -> state of the best path at each step [steps].

    States alternate blank and character: 2 k + 1 is character k, 2 k the blank before it.
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
        stay = score
        move = np.concatenate([[-1e9], score[:-1]])
        skip = np.where(may_skip, np.concatenate([[-1e9, -1e9], score[:-2]]), -1e9)
        options = np.stack([stay, move, skip])
        back[step] = options.argmax(0)
        score = options.max(0) + log_probs[step, symbol]
    state = states - 1 if score[-1] > score[-2] else states - 2
    path = np.zeros(steps, int)
    for step in range(steps - 1, -1, -1):
        path[step] = state
        state -= int(back[step, state])
    return path


def spoken_token(posteriors: np.ndarray, text: str, lexicon: Lexicon | None) -> np.ndarray:
    """CTC log posteriors [2 T, symbols] and an ASCII text -> the token of the text spoken in each frame [T]."""
    symbols, places = symbols_of(text, lexicon)
    path = viterbi(posteriors.astype(np.float64), symbols)[::2]
    return np.asarray(places)[np.minimum(path // 2, len(places) - 1)]
