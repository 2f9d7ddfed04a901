"""The model goes on with many more speakers, so that it learns to clone: `python -m training.nano.cloning --help`.

Begins with the result of the model's job. Most conversations of this job are clones: another utterance of the same
speaker, then the one that is learned. Three things make the model listen to the reference: each speaker is heard a few
times only, noise is on the frames that it has spoken itself and not on the reference, and finer codebooks, which
carry the voice, weigh more. The reference is not to be predicted: nothing before it says whose voice it is.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.data.text.tokenizer import TextTokenizer
from higgs.train.checkpointing import load_state
from higgs.train.losses import IGNORE
from training.corpus.shards import Shards
from training.corpus.voices import DESCRIBED
from training.nano.augmented import FILE
from training.nano.auxiliary_losses import AuxiliaryConfig
from training.nano.conversations import LONG, Corpus, Limits, batches_of
from training.nano.job import read_part
from training.nano.model import ModelJob, TrainingConfig, train

WEIGHTS = (3, 2, 1.5, 1, 0.8, 0.6, 0.5, 0.5)  # of the codebooks


@dataclass(frozen=True)
class CloningConfig(TrainingConfig):
    """`peak` is of the learning rates of the model's job; constant for `constant_share` of the run, then down to 0."""

    auxiliary: AuxiliaryConfig = AuxiliaryConfig(codebook_weights=WEIGHTS, fine_share=0.5)
    peak: float = 0.5
    constant_share: float = 0.25
    clones: float = 0.6  # share of the conversations with an augmented speaker
    again: tuple[str, ...] = ("kit",)  # voices whose utterances come twice in the others: the hardest to read


class AugmentedCorpus(Corpus):
    """The corpus and, at the indices `augmented`, the utterances of augmented speakers."""

    def __init__(self, shards: Shards, folder: Path, tokenizer: TextTokenizer):
        super().__init__(shards, folder, tokenizer)
        more = load_state(folder / FILE)
        if more is None:
            raise FileNotFoundError(f"{folder / FILE} is missing: run training.nano.augmented first")
        self.augmented = range(len(self.codes), len(self.codes) + len(more["codes"]))
        self.codes += more["codes"]
        self.aligned += more["aligned"]
        self.texts += more["texts"]
        self.speakers += more["speakers"]
        self.lengths += [len(tokenizer.encode(text)) for text in more["texts"]]
        for index in self.augmented:
            self.by_speaker.setdefault(self.speakers[index], []).append(index)


def reference_frames(audio_mask: Tensor, cloned: Sequence[bool]) -> Tensor:
    """bool [B, S] -> bool [B, S]: the first audio of each conversation that is a clone."""
    begins = audio_mask & ~audio_mask.roll(1, 1)
    begins[:, 0] = audio_mask[:, 0]
    return audio_mask & (begins.cumsum(1) == 1) & torch.tensor(cloned, device=audio_mask.device)[:, None]


class CloningJob(ModelJob):
    """As the model's job, on a corpus that has augmented speakers; without snapshots on the way."""

    name = "cloning"
    sources = (*ModelJob.sources, "model.pt", FILE)
    corpus: AugmentedCorpus
    config: CloningConfig

    def __init__(self, folder: Path, corpus: AugmentedCorpus, steps: int, seed: int = 0, config=CloningConfig()):
        super().__init__(folder, corpus, steps, seed, config)
        if self.saved is None:
            self.begin()

    def begin(self) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(read_part(self.folder, "model", name))

    @property
    def limits(self) -> Limits:
        return LONG

    def lr_factor(self) -> float:
        config, left = self.config, (self.steps - self.step) / self.steps
        return config.peak * min(1.0, (self.step + 1) / config.warmup_steps, left / (1 - config.constant_share))

    def after_step(self) -> None:
        pass

    def plan_epoch(self) -> None:
        rng = random.Random(self.seed * 1000 + self.epoch)
        augmented, share = self.corpus.augmented, self.config.clones
        training = self.corpus.shards.training
        counts = [2 if self.corpus.speakers[index] in self.config.again else 1 for index in training]
        others = rng.sample(training, k=round(len(augmented) * (1 - share) / share), counts=counts)
        items = filter(None, [self.corpus.item(index, rng, self.limits) for index in (*augmented, *others)])
        self.batches = batches_of(sorted(items, key=lambda item: item.positions), self.config.positions)
        rng.shuffle(self.batches)

    def prepared(self, batch: Batch) -> tuple[Batch, Batch]:
        inputs, labels = super().prepared(batch)
        cloned = [self.corpus.speakers[item.utterances[0]] not in DESCRIBED for item in self.items]
        reference = reference_frames(batch.audio_out_mask, cloned)[..., None]
        return (
            replace(inputs, codes=torch.where(reference, batch.codes, inputs.codes)),
            replace(labels, code_labels=labels.code_labels.masked_fill(reference, IGNORE)),
        )


if __name__ == "__main__":
    train(__doc__, 10000, AugmentedCorpus, CloningJob, CloningConfig)
