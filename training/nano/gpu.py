"""The model on a GPU that has neither the corpus nor a network: `python -m training.nano.gpu pack|train --help`.

The two jobs of the model are one here: from nothing, by the model's schedule, on the conversations of cloning. `pack`
writes what it reads, without the audio, in some 50 MB: codes of 10 bits, alignments, texts, codebooks, the augmented
speakers. `train` makes files of at most 16 MB: the model in float16, every minute, and the log. They are copied to
training/out, in the place of the job of cloning there, and assembled. The schedule needs the number of steps, so
`--minutes` sets it by the speed of the first steps: the result depends on the GPU and is recorded with it; it cannot be
made again exactly.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from higgs.data.text.lexicon import FILE as LEXICON_FILE
from higgs.data.text.lexicon import Lexicon
from higgs.files import replacing
from higgs.train.checkpointing import load_state, save_state
from training.corpus.shards import Shards
from training.nano.augmented import FILE as AUGMENTED
from training.nano.cloning import AugmentedCorpus, CloningConfig, CloningJob
from training.nano.conversations import loud_frames
from training.nano.job import CORPUS, OUT, hashes, read_part
from training.nano.model import ModelJob, text_tokenizer
from training.nano.quantizer import read_codes

PACK = OUT / "pack"
CODE_BITS = 10
WARM_UP = 60  # steps, with the compilation, before the speed is measured over as many


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """int16 [N] of 10 bits -> uint8 [ceil(10 N / 8)]"""
    bits = np.unpackbits(codes.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return np.packbits(bits[:, 16 - CODE_BITS :])


def unpack_codes(packed: np.ndarray, count: int) -> np.ndarray:
    """The inverse: -> int16 [count]"""
    bits = np.unpackbits(packed, count=count * CODE_BITS).reshape(count, CODE_BITS)
    padded = np.pad(bits, ((0, 0), (16 - CODE_BITS, 0)))
    return np.packbits(padded, axis=1).view(">u2")[:, 0].astype(np.int16)


def pack(corpus: Path, folder: Path, target: Path) -> None:
    """Corpus and results of the quantiser's job in `folder` -> the folder `target`."""
    shards = Shards(corpus)
    codes, aligned = read_codes(folder, shards)
    loud = [loud_frames(shards.waveform(index)) for index in shards.validation]
    (target / "corpus").mkdir(parents=True, exist_ok=True)
    for path in shards.paths:
        shutil.copy(path, target / "corpus")
    for path in (folder / AUGMENTED, *folder.glob(LEXICON_FILE)):
        shutil.copy(path, target)
    # Of the autoencoder the job reads the codebooks alone; an expanded zero takes no space in the file.
    state = read_part(folder, "quantizer", "autoencoder")
    kept = {k: v if ".layers." in k else torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}
    made_from = hashes(folder, (LEXICON_FILE, "quantizer.pt", AUGMENTED))
    save_state(target / "quantizer.pt", autoencoder=kept, made_from=made_from)
    with replacing(target / "codes.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            codes=pack_codes(torch.cat([c.flatten() for c in codes]).numpy()),
            lengths=np.array([c.shape[1] for c in codes], np.int32),
            aligned=torch.cat(aligned).numpy(),
            loud=np.packbits(torch.cat(loud).numpy()),
        )


class PackedCorpus(AugmentedCorpus):
    """A corpus without audio; `loud` knows the validation set only."""

    def __init__(self, folder: Path):
        super().__init__(Shards(folder / "corpus"), folder, text_tokenizer(Lexicon.read(folder)))

    def read_codes(self, folder: Path) -> tuple[list[Tensor], list[Tensor]]:
        found = np.load(folder / "codes.npz", allow_pickle=False)
        lengths = found["lengths"]
        frames = torch.from_numpy(unpack_codes(found["codes"], 8 * int(lengths.sum())))
        codes = [part.view(8, -1) for part in frames.split((8 * lengths).tolist())]
        validation = [int(lengths[index]) for index in self.shards.validation]
        masks = torch.from_numpy(np.unpackbits(found["loud"], count=sum(validation)).astype(bool)).split(validation)
        self.masks = dict(zip(self.shards.validation, masks, strict=True))
        return codes, list(torch.from_numpy(found["aligned"]).split(lengths.tolist()))

    def loud(self, index: int) -> Tensor:
        return self.masks[index]


class PackedJob(CloningJob):
    """From nothing. Saves the model alone, in float16: a run cannot be resumed.

    With `minutes`, `steps` are set by the speed.
    """

    sources = ()
    save_seconds, validate_every = 60, 2000

    def __init__(self, out: Path, *arguments: Any, device: str, minutes: float | None = None, **options: Any):
        self.device, self.minutes, self.began = device, minutes, time.monotonic()
        super().__init__(out, *arguments, **options)
        self.key |= (load_state(out / "quantizer.pt") or {}).get("made_from", {})

    def begin(self) -> None:
        pass

    lr_factor, limits = ModelJob.lr_factor, ModelJob.limits

    def save(self) -> None:
        save_state(self.path, **self.shipped())

    @property
    def record(self) -> dict[str, Any]:
        return super().record | {"device": device_name(self.device), "positions": self.config.positions}

    def after_step(self) -> None:
        if self.minutes and self.step in (WARM_UP, 2 * WARM_UP):
            if self.device != "cpu":
                torch.cuda.synchronize()
            now = time.monotonic()
            if self.step == 2 * WARM_UP:
                left = 60 * self.minutes - (now - self.began)
                self.steps = self.step + max(0, int(0.97 * left / (now - self.measured) * WARM_UP))
            self.measured = now


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def train(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if load_state(out / "cloning.pt"):
        raise FileExistsError(f"{out} holds a run, which cannot be resumed: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in (arguments.pack / "quantizer.pt", *arguments.pack.glob(LEXICON_FILE)):
        shutil.copy(path, out)
    config = CloningConfig(positions=arguments.positions, compile=not arguments.eager)
    corpus, options = PackedCorpus(arguments.pack), {"device": arguments.device, "minutes": arguments.minutes}
    PackedJob(out, corpus, arguments.steps, arguments.seed, config, **options).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["pack", "train"])
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--parts", type=Path, default=OUT, help="what the quantiser's job made")
    parser.add_argument("--pack", type=Path, default=PACK)
    parser.add_argument("--out", type=Path, default=OUT / "gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--positions", type=int, default=16_000, help="of a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12_000, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="set the number of steps by the speed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="without compiling")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.corpus, arguments.parts, arguments.pack)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
