"""Fine-tuning a checkpoint on a manifest of recordings or conversations: `higgs finetune --help`.

A few minutes of speech are soon memorised, at the expense of intelligibility. Against overfitting, input frames are
corrupted, attention has no adapters, the run is short (`EPOCHS`), and it stops early on validation loss.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.batch import Batch
from higgs.checkpoint.alias import Checkpoint
from higgs.checkpoint.resolve import fingerprint, read_config, resolve
from higgs.checkpoint.tensors import GENERATION_CONFIG
from higgs.codec.tokenizer import AudioTokenizer
from higgs.data.collator import Features, collate
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.training.dataset import Batches, Dataset, check_same_run
from higgs.data.training.manifest import DataError, Manifest, encode_audio, read_manifest
from higgs.files import check_place, write_atomically
from higgs.model.higgs_audio import HiggsAudio, NoTextHead
from higgs.resumable import code_hash
from higgs.train.checkpointing import load_state, log, save_state, warmup_stable_decay
from higgs.train.lora import add_lora, enable_gradient_checkpointing
from higgs.train.losses import best_dtype, corrupt, speech_losses
from higgs.workers import choose_device
from higgs.workflow.outputs import say

MAX_SECONDS = 30.0  # of one audio
CODEBOOK_WEIGHTS = (4, 2, 1, 0.6, 0.5, 0.4, 0.3, 0.3)  # as in training from scratch
EPOCHS, MIN_STEPS = 10, 20  # by default: 100 steps for five minutes of speech
VALIDATE_EVERY = 10  # steps
PATIENCE = 3  # validations without improvement
RATES = {"adapters": 6e-4, "every weight": 2e-4}
LOWER_RATE = "a lower --rate may help"
MIN_EXAMPLES = 10  # of different answers; with fewer, there is no validation set


@dataclass(frozen=True)
class TuneConfig:
    steps: int | None = None  # None: EPOCHS over the examples
    rank: int | None = 16  # of LoRA; None trains every weight
    rate: float | None = None  # None: one of RATES
    positions: int = 1500  # of a batch, padding included
    seed: int = 0
    recompute: bool = False  # gradient checkpointing
    attention: bool = False  # adapters there too
    noise: float = 0.5  # the largest share of an example's frames that are corrupted
    validation_share: float = 0.1
    replay_share: float = 0.5  # of a batch, for older voices
    checkpoint: str = ""  # fingerprint of the tuned checkpoint

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"the learning rate must be a positive number, got {self.rate}")

    def budgets(self, replay: bool) -> tuple[int, int]:
        """Positions of a batch for the examples, and for the replay."""
        replayed = round(self.replay_share * self.positions) if replay else 0
        return self.positions - replayed, replayed


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """-> training set and validation set: a function of the seed. No answer is in both.

    Examples of the same answers are together; one with some answers of the validation set is in neither.
    """
    answers = [example.trained_keys or frozenset([example.id]) for example in dataset.examples]
    distinct = list(dict.fromkeys(answers))
    count = round(len(distinct) * share) if len(distinct) >= MIN_EXAMPLES else 0
    drawn = set(random.Random(seed).sample(distinct, count))
    held = frozenset().union(*drawn)
    validation = [index for index, keys in enumerate(answers) if keys in drawn]
    training = [index for index, keys in enumerate(answers) if not keys & held]
    return dataset.subset(training), dataset.subset(validation)


class FineTuning:
    """One run, resumed from `folder/tuning.pt`. Raises ValueError when that is of other data or settings."""

    def __init__(
        self, model: HiggsAudio, dataset: Dataset, folder: Path, config: TuneConfig, replay: Dataset | None = None
    ):
        if config.rate is None:
            config = replace(config, rate=RATES["every weight" if config.rank is None else "adapters"])
        torch.manual_seed(config.seed)
        self.model, self.dataset, self.folder, self.config = model, dataset, folder, config
        training, self.validation = split(dataset, config.validation_share, config.seed)
        parts = zip((training, replay), config.budgets(replay is not None), strict=True)
        self.batches = [Batches(part, count, config.seed, round_to=1) for part, count in parts if part is not None]
        model.requires_grad_(config.rank is None)
        self.adapters = None if config.rank is None else add_lora(model, config.rank, config.attention)
        if config.recompute:
            enable_gradient_checkpointing(model)
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Fused: the usual step on a GPU takes as much memory again as the weights.
        fused = model.device.type == "cuda" or None
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=config.rate, weight_decay=0.01, fused=fused)
        self.step, self.dtype = 0, best_dtype(model.device)
        self.best: dict[str, Any] = {"loss": math.inf, "step": 0, "trained": {}}
        self.key = asdict(config) | {"data": dataset.fingerprint, "replay": replay.fingerprint if replay else None}
        device = model.device.type
        self.key |= {"code": code_hash(device)[:16], "device": device}  # of the package and its libraries
        del self.key["recompute"]  # which does not change the result
        if state := load_state(folder / "tuning.pt"):
            self.load(state)

    def load(self, state: dict[str, Any]) -> None:
        path, advice = self.folder / "tuning.pt", "; another --out starts anew, and so does deleting that file"
        check_same_run(self.key, state.get("key", {}), f"{path} is of another run", advice)
        self.load_weights(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self.dtype = getattr(torch, state["dtype"])
        for batches, done in zip(self.batches, state["batches"], strict=True):
            batches.load_state_dict(done)

    def load_weights(self, trained: dict[str, Tensor]) -> None:
        for name, value in trained.items():
            self.trained[name].data.copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """Copies, in the CPU's memory: a GPU has none for the best weights beside those that are trained."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.trained.items()}

    def save(self) -> None:
        save_state(
            self.folder / "tuning.pt",
            key=self.key,
            batches=[batches.state_dict() for batches in self.batches],
            trained=self.weights(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            best=self.best,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    @property
    def steps(self) -> int:
        if self.config.steps is not None:
            return self.config.steps
        return max(MIN_STEPS, math.ceil(EPOCHS * sum(self.dataset.positions) / self.config.positions))

    def collate(self, examples: list[Features]) -> Batch:
        return collate(examples, self.dataset.ids, labels=True).to(self.model.device)

    def losses(self, inputs: Batch, batch: Batch) -> tuple[Tensor, Tensor]:
        """-> the training loss, and that of codebook 0."""
        parts, _ = speech_losses(self.model, inputs, batch, dtype=self.dtype)
        weights = torch.tensor(CODEBOOK_WEIGHTS, device=parts["codebooks"].device)
        loss = (parts["codebooks"] * weights).sum() / weights.sum() + 0.1 * parts["text"]
        return loss, parts["codebooks"][0]

    def advance(self) -> dict[str, float]:
        """One step -> its losses. FloatingPointError, before it, names the batch with a loss or gradient of NaN."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate * warmup_stable_decay(self.step, self.steps, 10, 0.5)
        examples = [(batches.dataset, index) for batches in self.batches for index in batches.next_indices()]
        batch = self.collate([dataset[index] for dataset, index in examples])
        inputs = corrupt(batch, self.config.noise, self.model.config.codebook_size)
        self.optimizer.zero_grad()  # before the forward pass: the last gradients take memory, too
        loss, first = self.losses(inputs, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            names = [dataset.examples[index].id for dataset, index in examples]
            what = f"loss {loss.item()}, norm of the gradient {norm.item()}"
            raise FloatingPointError(f"step {self.step}: {what}; {LOWER_RATE}; batch: {names}")
        self.optimizer.step()
        self.step += 1
        return {"loss": float(loss.detach()), "cb0": float(first.detach())}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean loss without corruption; stores the best weights."""
        if not len(self.validation):
            return {}
        batches = [self.collate([example]) for example in self.validation]
        loss = sum(float(self.losses(batch, batch)[0]) for batch in batches) / len(batches)
        if loss < self.best["loss"]:
            self.best = {"loss": loss, "step": self.step, "trained": self.weights()}
        return {"validation": loss}

    @property
    def should_stop(self) -> bool:
        """No improvement of the validation loss within PATIENCE validations."""
        return bool(self.best["trained"]) and self.step - self.best["step"] >= PATIENCE * VALIDATE_EVERY

    def run(self) -> HiggsAudio:
        """Trains to the last step, or stops early -> the best model, adapters merged."""
        steps = self.steps
        if not self.step:
            (self.folder / "tuning.jsonl").unlink(missing_ok=True)  # of a run that was begun anew
        with tqdm(total=steps, initial=self.step, unit="step") as bar:
            while self.step < steps and not self.should_stop:
                losses = self.advance()
                if due := self.step % VALIDATE_EVERY == 0 or self.step == steps:
                    check_range(self.trained, f"step {self.step}")
                    losses |= self.validate()
                bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()})
                bar.update()
                log(self.folder / "tuning.jsonl", step=self.step, **losses)
                if due:
                    self.save()
        self.load_weights(self.best["trained"])
        return self.model if self.adapters is None else self.adapters.merge_and_unload()


def check_range(tensors: Mapping[str, Tensor], what: str, advice: str = LOWER_RATE) -> None:
    """Raises FloatingPointError that begins with `what` and names a tensor that float16 cannot hold, NaN included."""
    for name, value in tensors.items():
        if not (peak := value.detach().abs().max().item()) <= torch.finfo(torch.float16).max:
            raise FloatingPointError(f"{what}: {name} reaches {peak:.3g}, which float16 cannot hold; {advice}")


def save_tuned(model: HiggsAudio, source: Path, target: Path) -> None:
    """A checkpoint in float16 with the text tokenizer, lexicon, generation settings and token ids of its source.

    Raises FloatingPointError, and writes nothing, for weights that float16 cannot hold.
    """
    check_range(model.state_dict(), f"{target} is not written")
    ids = {key: value for key, value in read_config(source).items() if key.endswith("_token_id")}
    model.save_pretrained(target, ids, half=True)
    for pattern in ("tokenizer*.json", LEXICON, GENERATION_CONFIG):
        for path in source.glob(pattern):
            write_atomically(target / path.name, path.read_bytes())
        for path in target.glob(pattern):
            if not (source / path.name).exists():
                path.unlink()  # of an earlier tuning: the text would be read by its rules


def readable(path: Path, allow_special: bool, description: str | None = None) -> Manifest:
    """As `read_manifest`. Raises DataError where no record can be used."""
    if not (manifest := read_manifest(path, allow_special, description)).examples:
        raise DataError(manifest)
    return manifest


def finetune(
    manifest: Path,
    checkpoint: str,
    out: Path,
    config: TuneConfig,
    description: str | None = None,
    replay: Path | None = None,
    allow_special: bool = False,
) -> None:
    """A manifest -> a checkpoint in `out`. `description` is for records with neither a description nor a reference.

    `replay` is a manifest of older voices, each with its `description`. `allow_special` is for trusted files.
    Raises ValueError where `out` holds the checkpoint itself.
    """
    source = Checkpoint.parse(checkpoint)
    for part, origin in (("model", source.model), ("codec", source.codec)):
        if (out / part).resolve() == Path(origin).resolve():
            raise ValueError(f"{out / part} is of the checkpoint that is tuned: write to another --out")
    # Both before the checkpoint is loaded, and the replay before anything is encoded.
    found = readable(manifest, allow_special, description)
    older = readable(replay, allow_special) if replay else None
    check_place(out / "tuning.pt")
    folder, device = resolve(source.model), choose_device(source.device)
    config = replace(config, checkpoint=fingerprint(folder))
    codec = AudioTokenizer.from_pretrained(source.codec, device=device)
    halved = {name: value for name, value in codec.state_dict().items() if not name.endswith(".embed")}
    check_range(halved, f"{out / 'codec'} is not written", "use a codec within its range")
    version, tokenizer = f"{fingerprint(source.codec)} {device.type}", TextTokenizer.from_pretrained(folder)
    # Adapters are float32 on weights of any type; weights that are trained themselves need float32.
    dtype = torch.bfloat16 if config.rank is not None and device.type != "cpu" else torch.float32
    model = HiggsAudio.from_pretrained(folder, device=device, dtype=dtype)
    if isinstance(model.text_head, NoTextHead):
        raise ValueError(f"{folder} has no text head: it speaks, and cannot be fine-tuned")
    check_range(model.state_dict(), f"{out / 'model'} is not written", "use a checkpoint within its range")

    def dataset(found: Manifest, positions: int) -> Dataset:
        found, codes = encode_audio(found, out / "codes", codec.encode, version, codec.sample_rate, MAX_SECONDS)
        examples = Dataset(found, codes, tokenizer, model.config, positions, leave_out=True)
        keys = {key for example in examples.examples for key in example.keys}
        minutes = sum(codes.frames[key] for key in keys) / codec.frame_rate / 60
        say(f"{found.path}: {len(examples)} examples, {minutes:.1f} minutes; {examples.manifest}")
        if not len(examples):
            raise DataError(examples.manifest)
        adapted = config.rank is None or config.attention or any(e.trained_keys for e in examples.examples)
        if not adapted:
            raise ValueError(f"{found.path} answers in text alone, and adapters are on audio: --attention, or --rank 0")
        return examples

    positions, replay_positions = config.budgets(replay is not None)
    examples = dataset(found, positions)
    replayed = dataset(older, replay_positions) if older else None
    save_tuned(FineTuning(model, examples, out, config, replayed).run(), folder, out / "model")
    codec.save_pretrained(out / "codec", half=True)
    hint = f"; its voice is {description!r}" if description else ""
    say(f"{out}: a checkpoint for params.yaml{hint}")
