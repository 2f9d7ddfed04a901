"""How a checkpoint is meant to be used: `generation_config.json` beside its weights.

`do_sample`, `temperature`, `top_k`, `top_p` and `max_new_tokens` are transformers' fields. Ours are `ras_window`,
`ras_max_repeats`, `strict_eos`, and `chunking` with fields of `ChunkOptions`. What is absent or null is the
reference implementation's; 0 for `top_k` is no limit, and for `ras_window` off. Other fields are transformers' own, and
ignored.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from higgs.checkpoint.resolve import resolve
from higgs.checkpoint.tensors import GENERATION_CONFIG, read_json
from higgs.config import SamplingConfig
from higgs.data.text.chunks import ChunkOptions
from higgs.validation import Positive, validate

SAMPLING = ("temperature", "top_k", "top_p", "ras_window", "ras_max_repeats", "strict_eos")
FIELDS = (*SAMPLING, "do_sample", "max_new_tokens", "chunking")
PORT_NAMES = {"ras_win_len": "ras_window", "ras_win_max_num_repeat": "ras_max_repeats"}


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of a checkpoint; the defaults are those of the reference implementation.

    `chunks.max_words` is also the length up to which a text is spoken in a single pass.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    chunks: ChunkOptions = field(default_factory=ChunkOptions)
    max_new_tokens: int = 1024

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "GenerationConfig":
        """Folder, hub id or s3:// prefix of a model. Raises ValueError naming the file and the key that is wrong."""
        path = resolve(source, weights=False) / GENERATION_CONFIG
        if not path.is_file():
            return cls()
        content = read_json(path)
        try:
            return cls.from_json(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "GenerationConfig":
        """The content of the file. Raises ValueError naming the key."""
        named = {PORT_NAMES.get(k, k): value for k, value in content.items() if value is not None}
        for key in named.keys() - set(FIELDS):
            if near := difflib.get_close_matches(key, FIELDS, 1, cutoff=0.9):
                raise ValueError(f"unknown key {key!r}: did you mean {near[0]!r}?")
        settings = {name: named.get(name) for name in SAMPLING}
        if not validate(bool, named.get("do_sample", True), "do_sample"):
            settings["temperature"] = 0.0
        return cls(
            SamplingConfig().override(**settings),
            validate(ChunkOptions, named.get("chunking", {}), "chunking"),
            validate(Positive, named.get("max_new_tokens", 1024), "max_new_tokens"),
        )

    def to_json(self) -> dict[str, Any]:
        """Every setting, for a record of what was done."""
        settings = {"chunking": dict(self.chunks), "max_new_tokens": self.max_new_tokens}
        return asdict(self.sampling) | settings
