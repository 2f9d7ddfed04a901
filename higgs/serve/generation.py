"""How a checkpoint is meant to be used: `generation_config.json` beside its weights.

`do_sample`, `temperature`, `top_k`, `top_p` and `max_new_tokens` are transformers' fields. Ours are `ras_window`,
`ras_max_repeats`, `strict_eos`, and `chunking` with fields of `ChunkOptions`. What is absent or null is as recommended
for the release; 0 for `top_k` is no limit, and for `ras_window` off. Other fields are transformers' own, and ignored.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from higgs.checkpoint import GENERATION_CONFIG, read_json
from higgs.config import SamplingConfig
from higgs.data.chunks import ChunkOptions
from higgs.hub import resolve
from higgs.params import from_section

PORT_NAMES = {"ras_win_len": "ras_window", "ras_win_max_num_repeat": "ras_max_repeats"}


@dataclass(frozen=True)
class GenerationFields:
    """The fields of the file that are read."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    ras_window: int | None = None
    ras_max_repeats: int | None = None
    strict_eos: bool | None = None
    chunking: dict | None = None


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of a checkpoint; the defaults are those recommended for the release.

    `chunks.max_words` is also the length up to which a text is spoken in one go.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    chunks: ChunkOptions = field(default_factory=ChunkOptions)
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")

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
        named = {PORT_NAMES.get(key, key): value for key, value in content.items()}
        known = [entry.name for entry in fields(GenerationFields)]
        for key in named.keys() - set(known):
            if near := difflib.get_close_matches(key, known, 1, cutoff=0.9):
                raise ValueError(f"unknown key {key!r}: did you mean {near[0]!r}?")
        read = from_section(GenerationFields, {key: named[key] for key in known if key in named})
        given = asdict(read)
        chunks = from_section(ChunkOptions, given.pop("chunking") or {})
        limit = given.pop("max_new_tokens")
        if given.pop("do_sample") is False:
            given["temperature"] = 0.0
        made = cls(SamplingConfig().override(**given), chunks)
        return made if limit is None else replace(made, max_new_tokens=limit)
