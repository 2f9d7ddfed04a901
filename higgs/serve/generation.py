"""How a checkpoint is meant to be used: `generation_config.json` beside its weights.

`do_sample`, `temperature`, `top_k`, `top_p` and `max_new_tokens` are transformers' fields. Ours are `ras_window`,
`ras_max_repeats`, `strict_eos`, and `chunking` with fields of `ChunkOptions`. What is absent or null is as recommended
for the release; 0 for `top_k` is no limit, and for `ras_window` off. Other fields are transformers' own, and ignored.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import model_validator

from higgs.checkpoint.folder import GENERATION_CONFIG, read_json
from higgs.checkpoint.resolve import resolve
from higgs.config import SamplingConfig
from higgs.data.text.chunks import ChunkOptions
from higgs.validation import Positive, Record, validate

PORT_NAMES = {"ras_win_len": "ras_window", "ras_win_max_num_repeat": "ras_max_repeats"}


class GenerationFields(Record):
    """The fields of the file that are read."""

    do_sample: bool = True
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: Positive = 1024
    ras_window: int | None = None
    ras_max_repeats: int | None = None
    strict_eos: bool | None = None
    chunking: ChunkOptions = ChunkOptions()

    @property
    def sampling(self) -> SamplingConfig:
        names = ("top_k", "top_p", "ras_window", "ras_max_repeats", "strict_eos")
        temperature = self.temperature if self.do_sample else 0.0
        named = {name: getattr(self, name) for name in names}
        return SamplingConfig().override(temperature=temperature, **named)

    @model_validator(mode="after")
    def _in_range(self) -> "GenerationFields":
        assert self.sampling
        return self


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of a checkpoint; the defaults are those recommended for the release.

    `chunks.max_words` is also the length up to which a text is spoken in one go.
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
        known = GenerationFields.model_fields
        named = {PORT_NAMES.get(k, k): value for k, value in content.items() if value is not None}
        for key in named.keys() - known.keys():
            if near := difflib.get_close_matches(key, known, 1, cutoff=0.9):
                raise ValueError(f"unknown key {key!r}: did you mean {near[0]!r}?")
        read = validate(GenerationFields, {key: named[key] for key in known if key in named}, "")
        return cls(read.sampling, read.chunking, read.max_new_tokens)

    def to_json(self) -> dict[str, Any]:
        """Every setting, for a record of what was done."""
        told = {"chunking": dict(self.chunks), "max_new_tokens": self.max_new_tokens}
        return asdict(self.sampling) | told
