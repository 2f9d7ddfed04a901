"""Fine-tuning a checkpoint on recordings with transcripts: `higgs finetune --help`.

The same losses as in training from nothing, on the conversation that asks for the new voice by a description. Every
clip is looked at before anything is trained; what cannot be used is named and counted.

A few minutes of speech are soon learned by heart, and reading is lost on the way. So the frames that the model is given
are corrupted, attention is left as it is, the run is short (`ROUNDS`), and it ends when clips that are held back are
no longer predicted better.
"""

import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.batch import Batch
from higgs.checkpoint.folder import GENERATION_CONFIG
from higgs.checkpoint.preset import Checkpoint
from higgs.checkpoint.resolve import read_config, resolve
from higgs.codec.tokenizer import AudioTokenizer
from higgs.data.chatml import AudioContent, ChatMLSample, Message, smart_voice, tokenize
from higgs.data.collator import Row, collate, spread
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.data.text.tokenizer import TextTokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.tokens import TokenIds
from higgs.train.checkpointing import load_state, log, save_state, warmup_stable_decay
from higgs.train.clips import Clip, Problem, encode_clips, read_clips
from higgs.train.lora import add_lora, merge_lora, recompute_layers
from higgs.train.losses import corrupt, speech_losses
from higgs.train.precision import best_dtype
from higgs.workflow.outputs import say

CODEBOOK_WEIGHTS = (4, 2, 1, 0.6, 0.5, 0.4, 0.3, 0.3)  # as in training from nothing
ROUNDS = 10  # over the clips, by default: 100 steps for five minutes of speech
FEWEST_STEPS = 20
VALIDATE_EVERY = 10  # steps
PATIENCE = 3  # validations without a better one
FEW_CLIPS = 10  # too few to hold any back


@dataclass(frozen=True)
class TuneConfig:
    """`steps` None: as many as ROUNDS over the clips take. `rank` of LoRA, or None for every weight.

    `positions` of a batch, padding included. `attention` adapts attention too. `noise` is the largest share of a
    clip's frames that are corrupted, `validation_share` that of the clips that are held back, `replay_share` that of
    a batch for clips of older voices, where there are such.
    """

    description: str
    steps: int | None = None
    rank: int | None = 16
    rate: float = 6e-4
    positions: int = 1500
    seed: int = 0
    recompute: bool = False
    attention: bool = False
    noise: float = 0.5
    validation_share: float = 0.1
    replay_share: float = 0.5


def rows_of(
    clips: list[Clip], codes: list[Tensor], tuned: "FineTuning", text_tokenizer: TextTokenizer
) -> list[Row]:
    """One conversation for each clip: asked for by description, answered by the clip."""
    rows = []
    for clip, frames in zip(clips, codes, strict=True):
        asked = smart_voice(clip.text, speaker=clip.description or tuned.config.description)
        answered = ChatMLSample([*asked.messages, Message("assistant", AudioContent())])
        tokens = tokenize(answered, text_tokenizer)
        rows.append(spread(tokens, [frames], tuned.ids, tuned.model.config, True))
    return rows


def pick(rows: list[Row], indices: Sequence[int], positions: int, rng: random.Random) -> list[int]:
    """Of the indices some at random, at least one, at most `positions` with padding."""
    chosen, longest = [], 0
    for index in rng.sample(indices, len(indices)):
        longest = max(longest, len(rows[index]["input_ids"]))
        if chosen and longest * (len(chosen) + 1) > positions:
            break
        chosen.append(index)
    return chosen


class FineTuning:
    """One run. `folder/tuning.pt` holds what is trained and how far it is: a killed run goes on from there."""

    def __init__(self, model: HiggsAudio, ids: TokenIds, folder: Path, config: TuneConfig):
        torch.manual_seed(config.seed)
        self.model, self.ids, self.folder, self.config = model, ids, folder, config
        model.requires_grad_(config.rank is None)
        self.adapters = (
            None if config.rank is None else add_lora(model, config.rank, config.attention)
        )
        if config.recompute:
            recompute_layers(model)
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=config.rate, weight_decay=0.01)
        self.step, self.names, self.replay = 0, (), []
        self.dtype = best_dtype(model.device)
        self.best: dict[str, Any] = {"loss": math.inf, "step": 0, "trained": {}}
        if state := load_state(folder / "tuning.pt"):
            self.put(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best = state["step"], state["best"]
            self.dtype = getattr(torch, state["dtype"])

    def put(self, trained: dict[str, Tensor]) -> None:
        for name, value in trained.items():
            self.trained[name].data.copy_(value)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trained.items()}

    def save(self) -> None:
        state = {
            "trained": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        save_state(self.folder / "tuning.pt", **state)

    def steps(self, rows: list[Row]) -> int:
        if self.config.steps is not None:
            return self.config.steps
        positions = sum(len(row["input_ids"]) for row in rows)
        return max(FEWEST_STEPS, math.ceil(ROUNDS * positions / self.config.positions))

    def split(self, rows: list[Row]) -> tuple[list[int], list[int]]:
        """-> indices to train on, and those held back: a function of the seed."""
        count = round(len(rows) * self.config.validation_share) if len(rows) >= FEW_CLIPS else 0
        held_back = random.Random(self.config.seed).sample(range(len(rows)), count)
        return [i for i in range(len(rows)) if i not in held_back], sorted(held_back)

    def chosen(self, rows: list[Row]) -> tuple[list[int], list[int]]:
        """Which rows, and which of the replay, are the batch of this step: a function of the seed and the step."""
        rng = random.Random(self.config.seed * 1_000_003 + self.step)
        share = self.config.replay_share if self.replay else 0.0
        positions = self.config.positions
        mine = pick(rows, self.split(rows)[0], round((1 - share) * positions), rng)
        if not share:
            return mine, []
        return mine, pick(self.replay, range(len(self.replay)), round(share * positions), rng)

    def batch(self, rows: list[Row]) -> Batch:
        return collate(rows, self.ids, labels=True).to(self.model.device)

    def losses(self, inputs: Batch, batch: Batch) -> tuple[Tensor, Tensor]:
        """-> what is minimised, and that of codebook 0."""
        parts, _ = speech_losses(self.model, inputs, batch, dtype=self.dtype)
        weights = torch.tensor(CODEBOOK_WEIGHTS, device=parts["codebooks"].device)
        loss = (parts["codebooks"] * weights).sum() / weights.sum() + 0.1 * parts["text"]
        return loss, parts["codebooks"][0]

    def advance(self, rows: list[Row]) -> dict[str, float]:
        """One step -> its losses. Raises FloatingPointError naming the clips of a batch whose loss is not a number."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        factor = warmup_stable_decay(self.step, self.steps(rows), 10, 0.5)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate * factor
        mine, old = self.chosen(rows)
        batch = self.batch([rows[i] for i in mine] + [self.replay[i] for i in old])
        inputs = corrupt(batch, self.config.noise, self.model.config.codebook_size)
        loss, first = self.losses(inputs, batch)
        if not torch.isfinite(loss):
            clips = [self.names[i] if self.names else i for i in mine]
            raise FloatingPointError(
                f"step {self.step}: the loss is {loss.item()}; a lower --rate may help; batch: {clips}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        return {"loss": float(loss.detach()), "cb0": float(first.detach())}

    @torch.no_grad()
    def validate(self, rows: list[Row]) -> dict[str, float]:
        """The loss of the clips that are held back, not corrupted, one by one; remembers the best weights."""
        held_back = [self.batch([rows[i]]) for i in self.split(rows)[1]]
        if not held_back:
            return {}
        loss = sum(float(self.losses(one, one)[0]) for one in held_back) / len(held_back)
        if loss < self.best["loss"]:
            self.best = {"loss": loss, "step": self.step, "trained": self.weights()}
        return {"validation": loss}

    @property
    def over(self) -> bool:
        """No better validation for a while."""
        best = self.best
        return bool(best["trained"]) and self.step - best["step"] >= PATIENCE * VALIDATE_EVERY

    def run(self, rows: list[Row]) -> HiggsAudio:
        """Trains to the last step or to a loss that no longer falls -> the best model, adapters merged."""
        steps = self.steps(rows)
        with tqdm(total=steps, initial=self.step, unit="step") as bar:
            while self.step < steps and not self.over:
                losses = self.advance(rows)
                if self.step % VALIDATE_EVERY == 0 or self.step == steps:
                    losses |= self.validate(rows)
                bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()})
                bar.update()
                log(self.folder / "tuning.jsonl", step=self.step, **losses)
                if self.step % VALIDATE_EVERY == 0 or self.step == steps:
                    self.save()
        self.put(self.best["trained"])
        return self.model if self.adapters is None else merge_lora(self.adapters)


def save_tuned(model: HiggsAudio, source: Path, target: Path) -> None:
    """A checkpoint like its source: the same text tokenizer, lexicon and settings, the same ids in the config."""
    config: dict[str, Any] = read_config(source)
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    model.save_pretrained(target, ids, half=True)
    for path in [
        *source.glob("tokenizer*.json"),
        *source.glob(LEXICON),
        *source.glob(GENERATION_CONFIG),
    ]:
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


def finetune(
    manifest: Path, checkpoint: str, out: Path, config: TuneConfig, replay: Path | None = None
) -> None:
    """Clips -> a checkpoint in `out`. `replay` is a manifest of older voices, each with its `description`."""
    source = Checkpoint.parse(checkpoint)
    clips, problems = read_clips(manifest)
    tell(clips, problems)
    folder = resolve(source.model)
    device = choose_device(source.device)
    codec = AudioTokenizer.from_pretrained(source.codec, device=device)
    codes = encode_clips(codec, clips, out / "codes")
    text_tokenizer = TextTokenizer.from_pretrained(folder)
    # Adapters are float32 whatever they adapt; weights that are trained themselves need float32.
    frozen = config.rank is not None and device.type != "cpu"
    dtype = torch.bfloat16 if frozen else torch.float32
    model = HiggsAudio.from_pretrained(folder, device=device, dtype=dtype)
    tuning = FineTuning(model, TokenIds.of(text_tokenizer), out, config)
    tuning.names = tuple(str(clip.path) for clip in clips)
    if replay:
        old, problems = read_clips(replay)
        tell(old, problems)
        old_codes = encode_clips(codec, old, out / "codes-replay")
        tuning.replay = rows_of(old, old_codes, tuning, text_tokenizer)
    tuned = tuning.run(rows_of(clips, codes, tuning, text_tokenizer))
    save_tuned(tuned, folder, out / "model")
    codec.save_pretrained(out / "codec", half=True)
    say(f"{out}: a checkpoint for params.yaml; ask for the voice {config.description!r}")
