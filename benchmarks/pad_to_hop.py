"""What `encode(pad_to_hop=True)` changes against the rule of the reference implementation, by the length of the clip.

    python benchmarks/pad_to_hop.py

Clips of 2 to 4 s are cut from the recordings to chosen lengths modulo the hop. The reference's rule shifts the acoustic
branch by 320 samples for 513 of the 960 residues, and drops the last 1 to 118 samples for 118 of them. Distances are
between a clip and what comes back from its codes, over the samples that both rules give back.
"""

import argparse
import random
import statistics

import torch

from higgs import AudioTokenizer
from higgs.audio import load_audio
from higgs.data.recordings import read_recordings
from higgs.evaluate.metrics.codec import compare

CLASSES = {"0": (0, 0), "1 to 118": (1, 118), "119 to 631": (119, 631), "632 to 959": (632, 959)}
COLUMNS = ("mel_db", "stft", "si_sdr_db")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="data/checkpoints/nano/codec")
    parser.add_argument("--recordings", default="data/recordings/manifest.jsonl")
    parser.add_argument("--clips", type=int, default=40, help="of each class of lengths")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    codec = AudioTokenizer.from_pretrained(arguments.checkpoint)
    rate, hop, draw = codec.sample_rate, codec.hop_length, random.Random(0)
    recordings = [load_audio(r.path, rate)[0] for r in read_recordings(arguments.recordings)]
    recordings = [w for w in recordings if len(w) > 2 * rate + hop]
    for name, residues in CLASSES.items():
        changed, first, shift, rows = [], [], [], {rule: [] for rule in ("original", "pad_to_hop")}
        for index in range(arguments.clips):
            source = recordings[index % len(recordings)]
            longest = min(len(source), 4 * rate) // hop - 1
            length = draw.randint(2 * rate // hop, longest) * hop + draw.randint(*residues)
            clip = source[:length]
            codes = {"original": codec.encode(clip), "pad_to_hop": codec.encode(clip, pad_to_hop=True)}
            frames = min(c.shape[1] for c in codes.values())
            a, b = (c[:, :frames] for c in codes.values())
            changed.append((a != b).float().mean().item())
            first.append((a[0] != b[0]).float().mean().item())
            shift.append(codes["pad_to_hop"].shape[1] - codes["original"].shape[1])
            for rule, found in codes.items():
                samples = min(length, frames * hop)
                rows[rule].append(compare(clip[:samples], codec.decode(found)[:samples], rate))
        print(
            f"length mod {hop} in {name}: {statistics.mean(changed):.1%} of all codes differ, "
            f"{statistics.mean(first):.1%} of the first codebook's; {statistics.mean(shift):.0f} more frames"
        )
        for rule, values in rows.items():
            means = {key: statistics.mean(row[key] for row in values) for key in COLUMNS}
            print(f"    {rule:10}", "  ".join(f"{key} {value:7.3f}" for key, value in means.items()))


if __name__ == "__main__":
    main()
