"""What `SamplingConfig(strict_eos=True)` changes against the original's rule for the end of a segment.

    python benchmarks/strict_eos.py

By the original's rule a stream eos in any codebook ends the segment; strictly only one in codebook 0 does, and later
codebooks follow in their columns. Both speak the same scripts with the same seeds, so that they part where a stray
stream eos is drawn, if one is. A segment that was cut short shows it: more than one codebook has a stream eos in the
first column with any.
"""

import argparse
import statistics
from dataclasses import replace

import torch

from higgs import Engine
from higgs.checkpoint.resolve import fingerprint
from higgs.data.scripts import read_scripts
from higgs.serve.engine import Response


def cut_short(response: Response, stream_eos: int) -> int:
    """How many segments ended by a stream eos in a later codebook than the first."""
    ended = [(columns == stream_eos).sum(dim=0) for columns in response.delayed]
    return sum(int(rows[rows > 0][:1].sum()) > 1 for rows in ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="data/checkpoints/nano", help="model/ and codec/")
    parser.add_argument("--scripts", default="data/scripts/default.jsonl")
    parser.add_argument("--seeds", type=int, default=3, help="samples of each script")
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model, codec = f"{arguments.checkpoint}/model", f"{arguments.checkpoint}/codec"
    engine = Engine.from_pretrained(model, codec, device="cpu")
    scripts = [s for s in read_scripts(arguments.scripts, "data/voices") if not s.request.chunks]
    base = engine.generation.sampling
    rules = {rule: replace(base, strict_eos=rule == "strict") for rule in ("original", "strict")}
    made: dict[str, list[Response]] = {rule: [] for rule in rules}
    for script in scripts:
        for seed in range(arguments.seeds):
            for rule, sampling in rules.items():
                drawn = replace(sampling, seed=seed)
                limit = script.request.max_new_tokens or arguments.max_new_tokens
                made[rule].append(engine.generate(script.request.samples[0], drawn, limit))
    pairs = list(zip(*made.values(), strict=True))
    same = sum(a.codes.shape == b.codes.shape and bool((a.codes == b.codes).all()) for a, b in pairs)
    print(f"model {fingerprint(model)[:16]}, codec {fingerprint(codec)[:16]}")
    print(f"{len(pairs)} requests ({len(scripts)} scripts, {arguments.seeds} seeds); {same} alike")
    for rule, responses in made.items():
        frames = [response.usage.audio_frames for response in responses]
        cut = sum(cut_short(response, engine.model.config.stream_eos) for response in responses)
        stopped = sum(response.stop_reason == "stop" for response in responses)
        print(
            f"    {rule:9} {cut} segments cut short by a later codebook; {stopped} ended by themselves; "
            f"{statistics.mean(frames):.1f} frames on average"
        )


if __name__ == "__main__":
    main()
