"""The cost of the same bits on every processor, with the default checkpoint, on one thread.

    python -m benchmarks.repeatable

Processes with and without the settings alternate; in each, every task runs once as a warm-up and then `--repeats`
times. Median CPU milliseconds of the process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from higgs.arithmetic import PINNED, environment, set_arithmetic

CHECKPOINT = "data/checkpoints/nano"
CLIP = "data/recordings/en/en-tt-weasels.flac"
SECONDS = 4


def tasks() -> dict[str, Callable[[], object]]:
    from higgs import AudioTokenizer, Engine, SamplingConfig
    from higgs.audio import load_audio
    from higgs.data.chatml import smart_voice
    from higgs.evaluate.judges.registry import make_judge

    rate = 24_000
    clip = load_audio(CLIP, rate)[0][: SECONDS * rate]
    codec = AudioTokenizer.from_pretrained(f"{CHECKPOINT}/codec")
    codes = codec.encode(clip)
    engine = Engine.from_pretrained(f"{CHECKPOINT}/model", f"{CHECKPOINT}/codec", device="cpu")
    prompt, sampling = smart_voice("The bus stops in front of the school."), SamplingConfig(seed=0)
    judge = make_judge("moonshine-tiny-en-float32")
    speaker, quality = make_judge("ge2e", kind="speaker"), make_judge("dnsmos", kind="naturalness")
    return {
        "generate, 48 steps and their waveform": lambda: engine.generate(prompt, sampling, 48),
        f"encode, {SECONDS} s": lambda: codec.encode(clip),
        f"decode, {SECONDS} s": lambda: codec.decode(codes),
        f"recognise, {SECONDS} s": lambda: judge.transcribe(clip, rate),
        f"embed the speaker, {SECONDS} s": lambda: speaker.embed(clip, rate),
        f"rate naturalness, {SECONDS} s": lambda: quality.rate(clip, rate),
    }


def measure(repeats: int) -> dict[str, list[float]]:
    """In this process: CPU milliseconds of each task."""
    found: dict[str, list[float]] = {}
    for name, task in tasks().items():
        task()
        for _ in range(repeats):
            started = time.process_time()
            task()
            found.setdefault(name, []).append(1000 * (time.process_time() - started))
    return found


def child(repeatable: bool, repeats: int) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.repeatable", "--repeats", str(repeats)]
    command += ["--child", "pinned" if repeatable else "free"]
    inherited = {k: v for k, v in os.environ.items() if k not in PINNED}
    done = subprocess.run(command, env=inherited | environment(repeatable), check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--child", choices=("pinned", "free"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        set_arithmetic(options.child == "pinned")
        print(json.dumps(measure(options.repeats)))
        return
    times: dict[bool, dict[str, list[float]]] = {True: {}, False: {}}
    for _ in range(options.rounds):
        for repeatable, known in times.items():
            for name, some in child(repeatable, options.repeats).items():
                known.setdefault(name, []).extend(some)
    print("| CPU ms | repeatable | as it comes | ratio |\n|---|---|---|---|")
    for name in times[True]:
        pinned, free = (statistics.median(times[kind][name]) for kind in (True, False))
        print(f"| {name} | {pinned:.0f} | {free:.0f} | **{pinned / free:.2f}** |")


if __name__ == "__main__":
    main()
