"""First job of codec training: the quantiser, in the mel autoencoder; then the codes of the whole corpus.

`python -m training.nano.quantizer --help`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.audio import log_mel
from higgs.config import CodecConfig
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.data.text.lexicon import Lexicon
from higgs.files import content_hash
from higgs.train.checkpointing import load_state, save_state
from training.corpus.shards import KOKORO, Shards, choose_balanced
from training.nano.alignment import align, marked_texts, symbols_of
from training.nano.job import Job, hashes, job_arguments
from training.nano.mel_autoencoder import MEL_PER_FRAME, NUM_MELS, MelAutoencoder, trained_autoencoder
from training.nano.sizes import NANO_CODEC

QUANTIZER = ("quantizer.pt",)
WARM_STEPS = 60  # steps without quantisation, until the latent is worth quantising
SILENCE = -9.2103  # log of the mel floor
# Utterances that use the first codebooks only: (how many codebooks, share of the utterances).
DROPOUT = ((1, 0.12), (2, 0.12), (4, 0.16))
SHARES = {KOKORO: 3.0}  # each in-house voice, and all random speakers together, 1


def pad_mels(autoencoder: MelAutoencoder, mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """list of [80, 4 T] log-mels -> normalised [B, 80, 4 T], and the mask of frames that are no padding [B, T]."""
    longest = max(mel.shape[1] for mel in mels)
    batch = torch.full((len(mels), NUM_MELS, longest), SILENCE)
    real = torch.zeros(len(mels), longest // MEL_PER_FRAME, dtype=torch.bool)
    for index, mel in enumerate(mels):
        batch[index, :, : mel.shape[1]] = mel.float()
        real[index, : mel.shape[1] // MEL_PER_FRAME] = True
    return autoencoder.normalise(batch), real


def drop_codebooks(real: Tensor, num_codebooks: int) -> Tensor:
    """[B, T] -> [B, T, K]: which codebooks each utterance uses."""
    used = torch.full((len(real),), num_codebooks)
    draw, below = torch.rand(len(real)), 0.0
    for count, share in DROPOUT:
        used[(draw >= below) & (draw < below + share)] = count
        below += share
    return real[..., None] & (torch.arange(num_codebooks) < used[:, None, None])


class QuantizerJob(Job):
    """Minimises the error of the mel spectrogram (L1 + L2 / 2), commitment, and CTC on the first codebook."""

    name = "quantizer"
    sources = (LEXICON,)
    validate_every = 500

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        steps: int,
        seed: int = 0,
        utterances: int = 10_000,
        batch: int = 16,
        config: CodecConfig = NANO_CODEC,
    ):
        super().__init__(folder, steps, seed)
        shards, self.batch = Shards(corpus), batch
        audio = [path.with_suffix(".pcm") for path in shards.paths]
        self.key |= {"utterances": utterances, "corpus": content_hash([*shards.paths, *audio])[:16]}
        chosen = choose_balanced(shards, shards.training, utterances, SHARES)
        self.mels = [log_mel(shards.waveform(i)).half() for i in tqdm(chosen, desc="mel", mininterval=10, miniters=500)]
        self.texts = [shards.utterances[i].text for i in chosen]
        self.by_length = sorted(range(len(chosen)), key=lambda i: self.mels[i].shape[1])
        self.autoencoder = MelAutoencoder(config, Lexicon.read(folder))
        sample = torch.cat([mel.float() for mel in self.mels[::20]], dim=1)
        self.autoencoder.mel_mean.copy_(sample.mean())
        self.autoencoder.mel_std.copy_(sample.std())
        self.parts = {"autoencoder": self.autoencoder}
        self.optimizers = {
            "optimizer": torch.optim.AdamW(self.autoencoder.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        }

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        at = int(torch.randint(0, max(1, len(self.by_length) - self.batch), ()))
        chosen = self.by_length[at : at + self.batch]
        parts = self.parts_of([self.mels[i] for i in chosen], [self.texts[i] for i in chosen])
        loss = parts["l1"] + 0.5 * parts["l2"] + 0.1 * parts["commitment"] + 0.1 * parts["ctc"]
        return loss, parts

    def parts_of(self, mels: list[Tensor], texts: list[str]) -> dict[str, Tensor]:
        autoencoder = self.autoencoder
        mel, real = pad_mels(autoencoder, mels)
        with self.autocast():
            z = autoencoder.encode(mel)
        z, commitment = z.float(), torch.zeros(())
        z_q = first = z
        if self.step >= WARM_STEPS:
            used = drop_codebooks(real, len(autoencoder.quantizer.averages))
            z_q, first, commitment = autoencoder.quantizer(z, used)
        with self.autocast():
            rebuilt, logits = autoencoder.decode(z_q), autoencoder.ctc_logits(first)
        error = (rebuilt.float() - mel) * real.repeat_interleave(MEL_PER_FRAME, 1)[:, None]
        count = real.sum() * MEL_PER_FRAME * NUM_MELS
        symbols = [torch.tensor(symbols_of(text, autoencoder.lexicon)[0]) for text in texts]
        ctc = torch.nn.functional.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.cat(symbols),
            2 * real.sum(1),
            torch.tensor([len(s) for s in symbols]),
            zero_infinity=True,
        )
        l1 = error.abs().sum() / count
        return {"l1": l1, "l2": error.square().sum() / count, "commitment": commitment, "ctc": ctc}

    def validate(self) -> dict[str, list[int]]:
        """How many codes of each codebook are in use."""
        return {"used": [int((a.count > 0.3).sum()) for a in self.autoencoder.quantizer.averages]}


@torch.inference_mode()
def code_shard(
    autoencoder: MelAutoencoder, shards: Shards, texts: list[str], indices: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """-> codes [K, T] of each utterance, and its alignment [T], the text token spoken in each frame; in float32.

    Utterances of equal length are batched: padding would change codes near the ends.
    """
    by_length: dict[int, list[int]] = {}
    for index in indices:
        by_length.setdefault(shards.utterances[index].length, []).append(index)
    codes: dict[int, Tensor] = {}
    aligned: dict[int, Tensor] = {}
    for group in by_length.values():
        mel = log_mel(torch.stack([shards.waveform(index) for index in group]))
        quantizer = autoencoder.quantizer.quantizer
        z = autoencoder.encode(autoencoder.normalise(mel))
        ids = quantizer.encode(z.transpose(1, 2))
        first = quantizer.decode(ids[:, :1]).transpose(1, 2)
        posteriors = autoencoder.ctc_logits(first).log_softmax(-1).numpy()
        for index, frames, posterior in zip(group, ids.short(), posteriors, strict=True):
            tokens = align(posterior, texts[index], autoencoder.lexicon)
            codes[index], aligned[index] = frames.clone(), torch.from_numpy(tokens).short()
    return [codes[index] for index in indices], [aligned[index] for index in indices]


def code_corpus(folder: Path, corpus: Path, config: CodecConfig = NANO_CODEC) -> None:
    """Writes `folder/codes/SHARD.pt` for each shard, unless this quantiser has written it already."""
    shards, autoencoder = Shards(corpus), trained_autoencoder(folder, config)
    texts = marked_texts([u.text for u in shards.utterances], autoencoder.lexicon)
    made_by = hashes(folder, QUANTIZER)
    (folder / "codes").mkdir(exist_ok=True)
    for number, name in enumerate(tqdm(shards.names, desc="codes", mininterval=10)):
        path = folder / "codes" / f"{name}.pt"
        if (done := load_state(path)) and done["made_by"] == made_by:
            continue
        indices = [i for i, u in enumerate(shards.utterances) if u.shard == number]
        codes, aligned = code_shard(autoencoder, shards, texts, indices)
        save_state(path, codes=codes, aligned=aligned, made_by=made_by)


def read_codes(folder: Path, shards: Shards) -> tuple[list[Tensor], list[Tensor]]:
    """-> codes and alignments of every utterance, in order."""
    saved = [load_state(folder / "codes" / f"{name}.pt") or {"made_by": None} for name in shards.names]
    made_by = hashes(folder, QUANTIZER)
    if any(s["made_by"] != made_by for s in saved):
        what = f"{folder}/codes are of another quantizer.pt, or not all there"
        raise ValueError(f"{what}: run training.nano.quantizer again")
    return sum((s["codes"] for s in saved), []), sum((s["aligned"] for s in saved), [])


def main() -> None:
    arguments = job_arguments(__doc__, 4000, utterances=10_000)
    out, corpus = arguments.out, arguments.corpus
    QuantizerJob(out, corpus, arguments.steps, arguments.seed, arguments.utterances).run()
    code_corpus(out, corpus)


if __name__ == "__main__":
    main()
