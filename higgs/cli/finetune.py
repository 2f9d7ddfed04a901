"""`higgs finetune`. The defaults are those of `higgs.train.finetune.TuneConfig` (checked by a test)."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from higgs.cli.options import Checkpoint


def finetune(
    manifest: Annotated[Path, Argument(help='JSON Lines: {"audio": "a.wav", "text": "..."}, or conversations')],
    out: Annotated[Path, Option(help="folder of the tuned checkpoint")],
    description: Annotated[str | None, Option(help="of the voice, where a record has none and no reference")] = None,
    checkpoint: Checkpoint = "nano",
    steps: Annotated[int | None, Option(min=1, show_default="by the amount of speech")] = None,
    rank: Annotated[int, Option(min=0, help="of LoRA; 0: all weights")] = 16,
    rate: Annotated[float | None, Option(min=0, help="learning rate", show_default="6e-4; all weights: 2e-4")] = None,
    positions: Annotated[int, Option(min=1, help="of a batch, padding included")] = 1500,
    seed: Annotated[int, Option(min=0, max=2**63 - 1)] = 0,
    recompute: Annotated[bool, Option("--recompute", help="gradient checkpointing")] = False,
    attention: Annotated[bool, Option("--attention", help="adapters on attention, too")] = False,
    noise: Annotated[float, Option(min=0, max=1, help="largest share of an example's frames that are corrupted")] = 0.5,
    replay: Annotated[Path | None, Option(help="a manifest of older voices, each with its `description`")] = None,
    allow_special: Annotated[bool, Option("--allow-special", help="for trusted texts: <|...|> is that token")] = False,
) -> None:
    """Fine-tune a checkpoint on recordings or conversations.

    Unusable records are reported and left out; a killed run is resumed.
    """
    from higgs.train.finetune import TuneConfig, finetune

    config = TuneConfig(steps, rank or None, rate, positions, seed, recompute, attention, noise)
    finetune(manifest, checkpoint, out, config, description, replay, allow_special)
