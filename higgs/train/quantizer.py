"""First job of codec training: the quantiser, inside the mel teacher. `python -m higgs.train.quantizer --help`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.audio import log_mel
from higgs.config import CodecConfig
from higgs.data.lexicon import Lexicon
from higgs.train.nano import NANO_CODEC
from higgs.train.schedule import Averages, Clock, load_state, log, save_state, set_rate
from higgs.train.shards import Shards, balanced, split
from higgs.train.teacher import MEL_PER_FRAME, NUM_MELS, MelTeacher, symbols_of

HELD_OUT = 200
WARM_STEPS = 60  # steps without quantisation: codes of a moving latent mean nothing
SILENCE = -9.2103  # log of the mel floor
DROPOUT = (
    (1, 0.12),
    (2, 0.12),
    (4, 0.16),
)  # utterances that use the first codebooks only, and how many


def pad_mels(teacher: MelTeacher, mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """list of [80, 4 T] log-mels -> normalised [B, 80, 4 T], and which frames are real [B, T]."""
    longest = max(mel.shape[1] for mel in mels)
    batch = torch.full((len(mels), NUM_MELS, longest), SILENCE)
    real = torch.zeros(len(mels), longest // MEL_PER_FRAME, dtype=torch.bool)
    for row, mel in enumerate(mels):
        batch[row, :, : mel.shape[1]] = mel.float()
        real[row, : mel.shape[1] // MEL_PER_FRAME] = True
    return teacher.normalise(batch), real


def drop_codebooks(real: Tensor, num_codebooks: int) -> Tensor:
    """[B, T] -> [B, T, K]: which codebooks each utterance uses."""
    kept = torch.full((len(real),), num_codebooks)
    draw, below = torch.rand(len(real)), 0.0
    for count, share in DROPOUT:
        kept[(draw >= below) & (draw < below + share)] = count
        below += share
    return real[..., None] & (torch.arange(num_codebooks) < kept[:, None, None])


def losses(
    teacher: MelTeacher, mels: list[Tensor], texts: list[str], quantise: bool
) -> dict[str, Tensor]:
    """The teacher's losses on a batch: reconstruction (L1 + L2 / 2), commitment, phonemes."""
    mel, real = pad_mels(teacher, mels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = teacher.encode(mel)
    z, commitment = z.float(), torch.zeros(())
    z_q = first = z
    if quantise:
        used = drop_codebooks(real, len(teacher.quantizer.averages))
        z_q, first, commitment = teacher.quantizer(z, used)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt, logits = teacher.decode(z_q), teacher.read(first)
    error = (rebuilt.float() - mel) * real.repeat_interleave(MEL_PER_FRAME, 1)[:, None]
    count = real.sum() * MEL_PER_FRAME * NUM_MELS
    symbols = [torch.tensor(symbols_of(text, teacher.lexicon)[0]) for text in texts]
    ctc = torch.nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        torch.cat(symbols),
        2 * real.sum(1),
        torch.tensor([len(s) for s in symbols]),
        zero_infinity=True,
    )
    l1 = error.abs().sum() / count
    return {"l1": l1, "l2": error.square().sum() / count, "commitment": commitment, "ctc": ctc}


def compute_mels(shards: Shards, indices: Sequence[int]) -> list[Tensor]:
    return [
        log_mel(shards.waveform(i)).half()
        for i in tqdm(indices, desc="mel", mininterval=10, miniters=500)
    ]


def train(
    folder: Path, corpus: Path, config: CodecConfig, minutes: float, limit: int
) -> MelTeacher:
    """Trains (or goes on training) the teacher; the checkpoint is `folder/teacher.pt`."""
    torch.manual_seed(0)
    shards = Shards(corpus)
    train_on, _ = split(len(shards), HELD_OUT)
    train_on = balanced(shards, train_on, limit)
    mels = compute_mels(shards, train_on)
    texts = [shards.utterances[i].text for i in train_on]
    order = sorted(range(len(mels)), key=lambda i: mels[i].shape[1])
    teacher = MelTeacher(config, Lexicon.read(folder))
    sample = torch.cat([mel.float() for mel in mels[::20]], dim=1)
    teacher.mel_mean.copy_(sample.mean())
    teacher.mel_std.copy_(sample.std())
    optimizer = torch.optim.AdamW(
        teacher.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    clock, averages = Clock(minutes), Averages()
    if state := load_state(folder / "teacher.pt"):
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        clock.load_state_dict(state["clock"])
    while not clock.done:
        set_rate(optimizer, clock.rate())
        at = int(torch.randint(0, len(order) - 16, ()))
        rows = order[at : at + 16]
        parts = losses(
            teacher, [mels[i] for i in rows], [texts[i] for i in rows], clock.step >= WARM_STEPS
        )
        loss = parts["l1"] + 0.5 * parts["l2"] + 0.1 * parts["commitment"] + 0.1 * parts["ctc"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        clock.tick()
        averages.add(**{name: part.detach() for name, part in parts.items()})
        if clock.step % 100 == 0:
            used = [int((a.count > 0.3).sum()) for a in teacher.quantizer.averages]
            log(
                folder / "quantizer.jsonl",
                step=clock.step,
                seconds=round(clock.spent),
                used=used,
                **averages.read(),
            )
        if clock.step % 500 == 0 or clock.done:
            save_state(
                folder / "teacher.pt",
                teacher=teacher.state_dict(),
                optimizer=optimizer.state_dict(),
                clock=clock.state_dict(),
            )
    return teacher.eval()


@torch.inference_mode()
def code_corpus(teacher: MelTeacher, shards: Shards, path: Path) -> None:
    """Writes the codes of every utterance and what the reader makes of its frames.

    Utterances of equal length go through together: padding would change codes near the ends.
    """
    by_length: dict[int, list[int]] = {}
    for index, utterance in enumerate(shards.utterances):
        by_length.setdefault(utterance.length, []).append(index)
    codes: list[Tensor | None] = [None] * len(shards)
    posteriors: list[Tensor | None] = [None] * len(shards)
    groups = [rows[at : at + 16] for rows in by_length.values() for at in range(0, len(rows), 16)]
    for group in tqdm(groups, desc="codes", mininterval=10, miniters=50):
        mel = log_mel(torch.stack([shards.waveform(index) for index in group]))
        ids = teacher.quantizer.quantizer.encode(
            teacher.encode(teacher.normalise(mel)).transpose(1, 2)
        )
        first = teacher.quantizer.quantizer.decode(ids[:, :1]).transpose(1, 2)
        read = teacher.read(first).log_softmax(-1).half()
        for index, row, posterior in zip(group, ids.short(), read, strict=True):
            codes[index], posteriors[index] = row.clone(), posterior.clone()
    save_state(path, codes=codes, posteriors=posteriors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("training/out/corpus"))
    parser.add_argument("--out", type=Path, default=Path("training/out"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--limit", type=int, default=10_000, help="utterances to train on")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    teacher = train(arguments.out, arguments.corpus, NANO_CODEC, arguments.minutes, arguments.limit)
    code_corpus(teacher, Shards(arguments.corpus), arguments.out / "codes.pt")


if __name__ == "__main__":
    main()
