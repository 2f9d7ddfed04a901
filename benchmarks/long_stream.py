"""Ten minutes in one stream, and how much memory the process holds after each of them.

    python -m benchmarks.long_stream

The default checkpoint, with stream eos masked so that it goes on; run-away detection is off.
"""

import argparse
import gc
import time
from pathlib import Path

import torch

import higgs.audio  # noqa: F401  before transformers: the import that makes torchaudio harmless
from benchmarks.soak import resident
from higgs import Engine, SamplingConfig
from higgs.data.chatml import smart_voice
from higgs.serve.engine import EngineConfig


def endless(engine: Engine) -> None:
    """From now on no request ends by itself."""
    decoder = engine.scheduler.decoder
    prefill = decoder.prefill

    def prefill_and_mask(slot: int, *arguments) -> None:
        prefill(slot, *arguments)
        decoder.state.logit_bias[slot, :, 1] = -torch.inf

    decoder.prefill = prefill_and_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("data/checkpoints/nano"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = round(arguments.minutes * 60 * 25) + 9
    config = EngineConfig(max_batch=1, max_positions=steps + 200, runaway=None)
    folder = arguments.checkpoint
    engine = Engine.from_pretrained(folder / "model", folder / "codec", device="cpu", config=config)
    for layer in engine.scheduler.decoder.cache.layers:
        layer.zero_()  # on the CPU, pages count from when they are written
    endless(engine)
    frames, sizes, started, busy = 0, [], time.perf_counter(), time.process_time()
    for chunk in engine.stream(smart_voice("Once upon a time."), SamplingConfig(seed=0), steps):
        frames += chunk.codes.shape[1]
        if frames // 1500 > len(sizes) or chunk.stop_reason:
            gc.collect()
            sizes.append(resident())
            wall, cpu = time.perf_counter() - started, time.process_time() - busy
            line = f"{sizes[-1] / 1e6:.1f} MB, {wall:.0f} s, CPU {cpu:.0f} s"
            print(f"{frames / 1500:5.1f} min of audio: {line}", flush=True)
    print(f"from the first minute to the end: {sizes[-1] / sizes[0] - 1:+.2%}")


if __name__ == "__main__":
    main()
