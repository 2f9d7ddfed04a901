"""Which token of the text is being spoken in each frame: the best path through the reader's posteriors."""

import numpy as np

from higgs.data.lexicon import Lexicon
from higgs.train.teacher import symbols_of


def viterbi(log_probs: np.ndarray, symbols: list[int]) -> np.ndarray:
    """[slots, symbols], the text -> state of the best path in each slot [slots].

    States alternate blank and character: 2 k + 1 is character k, 2 k the blank before it.
    """
    slots, states = len(log_probs), 2 * len(symbols) + 1
    symbol = np.zeros(states, int)
    symbol[1::2] = symbols
    may_skip = np.zeros(states, bool)
    may_skip[3::2] = symbol[3::2] != symbol[1:-2:2]
    score = np.full(states, -1e9)
    score[:2] = log_probs[0, symbol[:2]]
    back = np.zeros((slots, states), np.int8)
    for slot in range(1, slots):
        stay = score
        move = np.concatenate([[-1e9], score[:-1]])
        skip = np.where(may_skip, np.concatenate([[-1e9, -1e9], score[:-2]]), -1e9)
        options = np.stack([stay, move, skip])
        back[slot] = options.argmax(0)
        score = options.max(0) + log_probs[slot, symbol]
    state = states - 1 if score[-1] > score[-2] else states - 2
    path = np.zeros(slots, int)
    for slot in range(slots - 1, -1, -1):
        path[slot] = state
        state -= int(back[slot, state])
    return path


def spoken_token(posteriors: np.ndarray, text: str, lexicon: Lexicon | None) -> np.ndarray:
    """CTC log posteriors [2 T, symbols] and an ASCII text -> the token of the text spoken in each frame [T]."""
    symbols, places = symbols_of(text, lexicon)
    path = viterbi(posteriors.astype(np.float64), symbols)[::2]
    return np.asarray(places)[np.minimum(path // 2, len(places) - 1)]
