"""Fine-tuning a checkpoint on recordings with transcripts: `python -m higgs.train.finetune --help`.

The same losses as in training from nothing, on the conversation that asks for the new voice by a description. Every
clip is looked at before anything is trained; what cannot be used is named and counted.
"""

import argparse
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.batch import Batch
from higgs.cells import say
from higgs.codec.tokenizer import AudioTokenizer
from higgs.data.chatml import AudioContent, ChatMLSample, Message, smart_voice, tokenize
from higgs.data.collator import Row, collate, spread
from higgs.data.lexicon import FILE as LEXICON
from higgs.data.text import TextTokenizer
from higgs.hub import read_config, resolve
from higgs.model.higgs_audio import HiggsAudio
from higgs.params import Checkpoint
from higgs.tokens import TokenIds
from higgs.train.checkpointing import load_state, log, save_state, warmup_stable_decay
from higgs.train.clips import Clip, Problem, encode_clips, read_clips
from higgs.train.lora import add_lora, merge_lora, recompute_layers
from higgs.train.losses import speech_losses

CODEBOOK_WEIGHTS = (4, 2, 1, 0.6, 0.5, 0.4, 0.3, 0.3)  # as in training from nothing


@dataclass(frozen=True)
class TuneConfig:
    """`rank` of LoRA, or None for every weight. `positions` of a batch, padding included."""

    description: str
    steps: int = 300
    rank: int | None = 16
    rate: float = 1e-3
    positions: int = 1500
    seed: int = 0
    recompute: bool = False


def rows_of(
    clips: list[Clip], codes: list[Tensor], tuned: "FineTuning", text_tokenizer: TextTokenizer
) -> list[Row]:
    """One conversation for each clip: asked for by description, answered by the clip."""
    rows = []
    for clip, frames in zip(clips, codes, strict=True):
        asked = smart_voice(clip.text, speaker=tuned.config.description)
        answered = ChatMLSample([*asked.messages, Message("assistant", AudioContent())])
        tokens = tokenize(answered, text_tokenizer)
        rows.append(spread(tokens, [frames], tuned.ids, tuned.model.config, True))
    return rows


class FineTuning:
    """One run. `folder/tuning.pt` holds what is trained and how far it is: a killed run goes on from there."""

    def __init__(self, model: HiggsAudio, ids: TokenIds, folder: Path, config: TuneConfig):
        torch.manual_seed(config.seed)
        self.model, self.ids, self.folder, self.config = model, ids, folder, config
        model.requires_grad_(config.rank is None)
        self.adapters = None if config.rank is None else add_lora(model, config.rank)
        if config.recompute:
            recompute_layers(model)
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=config.rate, weight_decay=0.01)
        self.step, self.names = 0, ()
        if state := load_state(folder / "tuning.pt"):
            for name, value in state["trained"].items():
                self.trained[name].data.copy_(value)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        trained = {name: p.detach() for name, p in self.trained.items()}
        state = {"trained": trained, "optimizer": self.optimizer.state_dict(), "step": self.step}
        save_state(self.folder / "tuning.pt", **state)

    def chosen(self, rows: list[Row]) -> list[int]:
        """Which rows are the batch of this step: a function of the seed and the step alone."""
        order = list(range(len(rows)))
        rng = random.Random(self.config.seed * 1_000_003 + self.step)
        rng.shuffle(order)
        taken, longest = [], 0
        for index in order:
            longest = max(longest, len(rows[index]["input_ids"]))
            if taken and longest * (len(taken) + 1) > self.config.positions:
                break
            taken.append(index)
        return taken

    def batch(self, rows: list[Row], chosen: list[int]) -> Batch:
        return collate([rows[i] for i in chosen], self.ids, labels=True).to(self.model.device)

    def advance(self, rows: list[Row]) -> dict[str, float]:
        """One step -> its losses. Raises FloatingPointError naming the clips of a batch whose loss is not a number."""
        factor = warmup_stable_decay(self.step, self.config.steps, 10, 0.5)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate * factor
        chosen = self.chosen(rows)
        batch = self.batch(rows, chosen)
        parts, _ = speech_losses(self.model, batch, batch)
        weights = torch.tensor(CODEBOOK_WEIGHTS, device=parts["codebooks"].device)
        loss = (parts["codebooks"] * weights).sum() / weights.sum() + 0.1 * parts["text"]
        if not torch.isfinite(loss):
            clips = [self.names[i] if self.names else i for i in chosen]
            raise FloatingPointError(
                f"step {self.step}: the loss is {loss.item()}; a lower --rate may help; batch: {clips}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        return {"loss": float(loss.detach()), "cb0": float(parts["codebooks"][0].detach())}

    def run(self, rows: list[Row]) -> HiggsAudio:
        """Trains to the last step, saving every 50, and returns the model with the adapters merged."""
        with tqdm(total=self.config.steps, initial=self.step, unit="step") as bar:
            while self.step < self.config.steps:
                losses = self.advance(rows)
                bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()})
                bar.update()
                log(self.folder / "tuning.jsonl", step=self.step, **losses)
                if self.step % 50 == 0 or self.step == self.config.steps:
                    self.save()
        return self.model if self.adapters is None else merge_lora(self.adapters)


def save_tuned(model: HiggsAudio, source: Path, target: Path) -> None:
    """A checkpoint like its source: the same text tokenizer and lexicon, the same ids in the config."""
    config: dict[str, Any] = read_config(source)
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    model.save_pretrained(target, ids, half=True)
    for path in [*source.glob("tokenizer*.json"), *source.glob(LEXICON)]:
        shutil.copyfile(path, target / path.name)


def choose_device(name: str) -> torch.device:
    """ "auto" is the accelerator where there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def tell(clips: list[Clip], problems: list[Problem]) -> None:
    seconds = sum(clip.seconds for clip in clips)
    say(f"{len(clips)} clips, {seconds / 60:.1f} minutes; {len(problems)} that cannot be used")
    for problem in problems:
        say(f"  {problem.where}: {problem.what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help='JSON Lines: {"audio": "a.wav", "text": "..."}')
    parser.add_argument("--description", required=True, help="what asks for the voice from then on")
    parser.add_argument("--checkpoint", default="nano", help="as in params.yaml (default: nano)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tuned checkpoint")
    parser.add_argument("--steps", type=int, default=TuneConfig.steps, help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=TuneConfig.rank, help="of LoRA; 0: all weights")
    parser.add_argument("--rate", type=float, default=TuneConfig.rate, help="default: %(default)s")
    parser.add_argument("--positions", type=int, default=TuneConfig.positions, help="of a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    arguments = parser.parse_args()
    source = Checkpoint.parse(arguments.checkpoint)
    clips, problems = read_clips(arguments.manifest)
    tell(clips, problems)
    folder = resolve(source.model)
    device = choose_device(source.device)
    codec = AudioTokenizer.from_pretrained(source.codec, device=device)
    codes = encode_clips(codec, clips, arguments.out / "codes")
    text_tokenizer = TextTokenizer.from_pretrained(folder)
    # Adapters are float32 whatever they adapt; weights that are trained themselves need float32.
    frozen = arguments.rank > 0 and device.type != "cpu"
    dtype = torch.bfloat16 if frozen else torch.float32
    model = HiggsAudio.from_pretrained(folder, device=device, dtype=dtype)
    config = TuneConfig(
        arguments.description,
        arguments.steps,
        arguments.rank or None,
        arguments.rate,
        arguments.positions,
        arguments.seed,
        arguments.recompute,
    )
    tuning = FineTuning(model, TokenIds.of(text_tokenizer), arguments.out, config)
    tuning.names = tuple(str(clip.path) for clip in clips)
    tuned = tuning.run(rows_of(clips, codes, tuning, text_tokenizer))
    save_tuned(tuned, folder, arguments.out / "model")
    codec.save_pretrained(arguments.out / "codec", half=True)
    say(
        f"{arguments.out}: a checkpoint for params.yaml; ask for the voice {arguments.description!r}"
    )


if __name__ == "__main__":
    main()
