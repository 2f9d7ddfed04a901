"""What a prompt does to pace, pauses and pitch: the table in docs/prompting.md.

    python docs/measure_prompting.py [--checkpoint nano] [--seeds 3]

Every condition speaks eight sentences with each seed. Takes that were cut off, or have more than 8 words a second and
so cannot be whole, are left out and counted. A sentence counts once, with the mean of its takes; the 95 % interval is
a bootstrap over the sentences. Words are not judged here: that is the evaluate stage's work.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import torch

from higgs import Engine
from higgs.checkpoint.alias import Checkpoint
from higgs.checkpoint.resolve import fingerprint
from higgs.data.chatml import smart_voice
from higgs.evaluate.statistics.intervals import bootstrap_interval

PAIRS = (
    ("The bus is late today", "We will walk to the station"),
    ("The shop is closed", "We have to come back in the morning"),
    ("He opened the window", "The room was still too warm"),
    ("I looked for the keys", "They were under the table"),
    ("The children were tired", "They wanted to go home"),
    ("She wrote a long letter", "Nobody ever read it"),
    ("The soup is hot", "Please wait for a minute"),
    ("We walked along the river", "It was a quiet evening"),
)
MARKS = {"no mark": "", "comma": ",", "full stop": ".", "three dots": "..."}
WORDS = {
    4: "We left the house.|She opened the door.|The train was late.|He sold the boat.|It is cold today.|"
    "They found the keys.|The garden is quiet.|Nobody knew the answer.",
    8: "We left the old house early this morning.|She opened the kitchen door for the children.|"
    "The last train to town was very late.|He sold the small boat to my brother.|"
    "It is too cold to swim here today.|They found the keys under the big table.|"
    "The garden behind the school is very quiet.|Nobody in the room knew the right answer.",
    16: "We left the old house early this morning and walked along the river to the town.|"
    "She opened the kitchen door for the children and gave them some bread and warm milk.|"
    "The last train to town was very late and we had to wait in the cold.|"
    "He sold the small boat to my brother and bought a new car for his mother.|"
    "It is too cold to swim here today but we can walk on the beach instead.|"
    "They found the keys under the big table after they had looked in all the rooms.|"
    "The garden behind the school is very quiet when the children are at home for lunch.|"
    "Nobody in the room knew the right answer so the teacher told us the whole story.",
}
SPEAKERS = {"feminine": "feminine", "masculine": "masculine", "none": None}
FRAME = 0.01
FASTEST = 8.0  # words a second: what is faster has not been said whole


def levels(waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """[L] -> [n] level of each 10 ms in dB, relative to the loudest of them."""
    size = round(FRAME * sample_rate)
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    power = frames.square().mean(1).clamp(min=1e-12)
    return 10 * (power / power.max()).log10()


def speech(waveform: torch.Tensor, sample_rate: int) -> list[bool]:
    """Which 10 ms between the first and the last of speech lie above -35 dB."""
    loud = levels(waveform, sample_rate) > -35
    places = loud.nonzero()[:, 0]
    return loud[places[0] : places[-1] + 1].tolist()


def longest_pause(waveform: torch.Tensor, sample_rate: int, text: str = "") -> float:
    """[L] -> ms of the longest silence inside."""
    runs = "".join(".#"[frame] for frame in speech(waveform, sample_rate)).split("#")
    return 1000 * FRAME * max(map(len, runs))


def pitch(waveform: torch.Tensor, sample_rate: int, text: str = "") -> float:
    """[L] -> Hz: median over frames of 40 ms whose autocorrelation peaks above 0.5 between 60 and 400 Hz."""
    frames = waveform.unfold(0, round(0.04 * sample_rate), round(FRAME * sample_rate))
    frames = frames[frames.square().mean(1) > frames.square().mean(1).max() * 1e-3]
    size, lags = frames.shape[1], torch.arange(sample_rate // 400, sample_rate // 60)
    spectrum = torch.fft.rfft(frames - frames.mean(1, keepdim=True), 2 * size)
    correlation = torch.fft.irfft(spectrum.abs().square())
    # The longer the lag, the less overlaps; and two periods are as alike as one, so the shorter lag is preferred.
    alike = correlation[:, lags] / correlation[:, :1] / (1 - lags / size)
    best = (alike - 0.05 * lags.log2()).argmax(1)
    voiced = alike.gather(1, best[:, None])[:, 0] > 0.5
    return (sample_rate / lags[best[voiced]]).median().item()


def pace(waveform: torch.Tensor, sample_rate: int, text: str) -> float:
    """[L] -> words a second from the first of speech to the last."""
    return len(text.split()) / (FRAME * len(speech(waveform, sample_rate)))


def row(engine: Engine, name: str, speaker: str | None, texts: list[str], seeds: int, measure: Callable) -> str:
    """Speaks the texts with every seed -> one line of the table."""
    values, used = [], 0
    for text in texts:
        takes = []
        for seed in range(seeds):
            sampling = replace(engine.generation.sampling, seed=seed)
            made = engine.generate(smart_voice(text, speaker=speaker), sampling, max_new_tokens=400)
            whole = made.stop_reason == "stop" and made.usage.audio_frames
            if whole and pace(made.waveform, made.sample_rate, text) <= FASTEST:
                takes.append(measure(made.waveform, made.sample_rate, text))
        used += len(takes)
        values += [mean(takes)] if takes else []
        sys.stderr.write(".")
    found = bootstrap_interval(values)
    sys.stderr.write(f" {name}\n")
    number = "{:.1f}" if found.estimate < 10 else "{:.0f}"
    mean_, low, high = map(number.format, (found.estimate, found.low, found.high))
    return f"| {name} | {mean_} | {low} to {high} | {used} of {len(texts) * seeds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Checkpoint.parse(options.checkpoint)
    engine = Engine.from_pretrained(source.model, source.codec, source.device, source.dtype)
    model, codec = (fingerprint(part)[:16] for part in (source.model, source.codec))
    print(f"Checkpoint `{source.name}`: model `{model}`, codec `{codec}`; 8 sentences, {options.seeds} seeds.\n")
    print("| | mean | 95 % interval | takes used |\n|---|---|---|---|")
    for name, mark in MARKS.items():
        starts = mark in (".", "...")
        texts = [f"{a}{mark} {b if starts else b[0].lower() + b[1:]}." for a, b in PAIRS]
        print(
            row(
                engine,
                f"longest pause, ms: {name}",
                "feminine",
                texts,
                options.seeds,
                longest_pause,
            )
        )
    for words, texts in WORDS.items():
        print(
            row(
                engine,
                f"words a second: {words} words",
                "feminine",
                texts.split("|"),
                options.seeds,
                pace,
            )
        )
    for name, speaker in SPEAKERS.items():
        texts = [f"{a}." for a, _ in PAIRS]
        print(row(engine, f"pitch, Hz: {name}", speaker, texts, options.seeds, pitch))


if __name__ == "__main__":
    main()
