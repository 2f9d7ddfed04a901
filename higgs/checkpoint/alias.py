"""The key `checkpoint` of params.yaml and the command line -> sources of model and codec, dtype and device."""

import re
from dataclasses import dataclass
from pathlib import Path

from higgs.validation import ParamsError

RELEASED_MODEL = "bosonai/higgs-audio-v2-generation-3B-base"
RELEASED_MODEL_REVISION = "10840182ca4ad5d9d9113b60b9bb3c1ef1ba3f84"
RELEASED_CODEC = "bosonai/higgs-audio-v2-tokenizer@9d4988fbd4ad07b4cac3a5fa462741a41810dbec"


@dataclass(frozen=True)
class Checkpoint:
    """Sources of model and codec for `resolve`, and the dtype and device to run them with."""

    name: str
    model: str
    codec: str
    dtype: str
    device: str

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """`nano`, `organisation/name@revision`, or a folder (or s3://) with `model/` and `codec/`.

        A model from the hub, at a full commit hash, is used with the released codec. Anything else is a ParamsError.
        """
        folder = "data/checkpoints/nano" if text == "nano" else text.rstrip("/")
        if text == "nano":
            return cls(text, f"{folder}/model", f"{folder}/codec", "float32", "cpu")  # repeats bit by bit
        if text.startswith("s3://") or Path(text).is_dir():
            missing = [part for part in ("model", "codec") if not Path(text, part).is_dir()]
            if missing and not text.startswith("s3://"):
                advice = ": name the folder above it" if Path(text, "config.json").is_file() else ""
                raise ParamsError(f"checkpoint: {text!r} has no {'/ and no '.join(missing)}/ in it{advice}")
            return cls(text, f"{folder}/model", f"{folder}/codec", "auto", "auto")
        name, _, revision = text.partition("@")
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            known = "'nano', nor 'organisation/name@revision', nor a folder here"
            raise ParamsError(f"checkpoint: {text!r} is neither {known}")
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            commit = RELEASED_MODEL_REVISION if name == RELEASED_MODEL else "<40 hexadecimal digits>"
            advice = f"as a hub id it must pin a full commit: write {name}@{commit}"
            raise ParamsError(f"checkpoint: {text!r} is no folder here, and {advice}")
        return cls(text, text, RELEASED_CODEC, "bfloat16", "auto")
