"""What `higgs inspect` reports: contents, faults and memory of a checkpoint, from configs and tensor headers alone."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from higgs.checkpoint.alias import Checkpoint
from higgs.checkpoint.config_json import CODEC, MODEL, ORIGINAL, codec_from_json, model_from_json, recognise
from higgs.checkpoint.resolve import resolve
from higgs.checkpoint.tensors import CONFIG, CheckpointError, config_errors, read_config, read_headers, weight_files
from higgs.codec import weights as codec_weights
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import CodecConfig, ModelConfig
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.data.text.lexicon import Lexicon
from higgs.model import weights as model_weights
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.matrices import BITS, rounded_bytes
from higgs.validation import flat

# Part -> the names of this package that belong to it; the first match counts.
PARTS = {
    MODEL: {
        "text embedding": r"text_embedding\.", "audio embedding": r"audio_embedding\.",
        "attention": r"layers\.\d+\.attention\.", "text FFN": r"layers\.\d+\.text_ffn\.1\.",
        "audio FFN": r"layers\.\d+\.audio_ffn\.1\.", "norms": r"norm\.|layers\.",
        "text head": r"text_head\.", "audio head": r"audio_head\.",
    },
    CODEC: {
        "acoustic encoder": r"acoustic_encoder\.", "acoustic decoder": r"acoustic_decoder\.",
        "semantic teacher": r"semantic_encoder\.teacher\.", "semantic encoder": r"semantic_encoder\.",
        "quantiser": r"quantizer\.", "projections": r"fuse\.|to_acoustic\.",
    },
}  # fmt: skip
POSITIONS, BATCHES = 2048, (1, 16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16, "int4": torch.bfloat16}
SAYS = ("acoustic decoder", "quantiser", "projections")  # of the codec: the rest is for references
HALF = "offloaded"


@dataclass
class Report:
    """One model or codec. `files` are in bytes; `dtypes`, `parameters` (by part) and `training_only` count elements.

    `problems` prevent loading. `config` is None where the sizes follow from weights that cannot be read.
    """

    source: str
    kind: str
    layout: str
    files: dict[str, int]
    weights: list[str] = field(default_factory=list)
    dtypes: dict[str, int] = field(default_factory=dict)
    config: ModelConfig | CodecConfig | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    training_only: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect_checkpoint(source: str | Path) -> list[Report]:
    """`nano`, a folder, hub id or s3:// prefix of a model or a codec, or of both in `model/` and `codec/`.

    From the hub and S3 only the small files are fetched; where the weights are not in the cache, a note says so.
    """
    place = Path(Checkpoint.parse("nano").model).parent if source == "nano" else source
    folder = resolve(place, weights=False)
    parts = [folder / name for name in (MODEL, CODEC) if (folder / name / CONFIG).is_file()]
    folders = parts if parts and not (folder / CONFIG).is_file() else [folder]
    return [_inspect(each, local=Path(place).is_dir()) for each in folders]


def _inspect(folder: Path, local: bool) -> Report:
    content = read_config(folder)
    kind, layout = recognise(content, str(folder / CONFIG))
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    report = Report(str(folder), kind, layout, files)
    headers: dict[str, Tensor] = {}
    try:
        report.weights = [path.name for path in weight_files(folder)]
        headers = read_headers(folder)
    except (FileNotFoundError, CheckpointError) as error:
        if local or report.weights:
            report.problems.append(str(error))
        else:
            report.notes.append("the weights are not in the cache: this is what the config says")
    if kind == MODEL and "tokenizer.json" not in files:
        report.notes.append("no tokenizer.json: it is needed to speak")
    if kind == MODEL and LEXICON in files:
        try:
            words = len(Lexicon.read(folder).words)
            report.notes.append(f"{LEXICON}: {words:,} words are read as phonemes")
        except ValueError as error:
            report.problems.append(str(error))
    if (kind, layout) == (CODEC, ORIGINAL) and not headers:
        report.notes.append("the sizes follow from the weights, which cannot be read")
        return report
    with config_errors(folder), torch.device("meta"):
        if kind == MODEL:
            report.config = model_from_json(content)
            weights, expected = model_weights, HiggsAudio(report.config).state_dict()
        else:
            report.config = codec_from_json(content, {name: tuple(tensor.shape) for name, tensor in headers.items()})
            weights, expected = codec_weights, AudioTokenizer(report.config).state_dict()
    report.parameters = dict.fromkeys(PARTS[kind], 0)
    if kind == MODEL and headers and not any("text_lm_head" in name for name in headers):
        del expected[model_weights.TEXT_HEAD], report.parameters["text head"]
        report.notes.append("no text head: it speaks, and cannot write text nor be fine-tuned")
    for name, tensor in expected.items():
        part = next(part for part, names in PARTS[kind].items() if re.match(names, name))
        report.parameters[part] += tensor.numel()
    for name, tensor in headers.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        report.dtypes[dtype] = report.dtypes.get(dtype, 0) + tensor.numel()
        if codec_weights.TRAINING_ONLY.fullmatch(name):
            report.training_only += tensor.numel()
    if headers:
        try:
            report.problems += weights.differences(folder, expected)
        except CheckpointError as error:
            report.problems.append(str(error))
    return report


def cache_bytes(config: ModelConfig, positions: int, element_bytes: int) -> int:
    """Keys and values of one request."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * positions * element_bytes


def model_bytes(report: Report, dtype: str, offload_text: bool) -> int:
    """What the model's weights take on the device."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in HiggsAudio(report.config).state_dict().items()}
    if "text head" not in report.parameters:
        del shapes[model_weights.TEXT_HEAD]
    total = 0
    for name, shape in shapes.items():
        if not (offload_text and model_weights.TEXT_HALF.match(name)):
            bits = BITS.get(dtype) if model_weights.is_rounded(name, len(shape)) else None
            total += rounded_bytes(shape, bits) if bits else shape.numel() * DTYPES[dtype].itemsize
    return total


def memory(reports: Sequence[Report]) -> dict[str, dict[str, int]]:
    """Type of the model's weights -> what -> bytes on the device, of the first model and the first codec.

    The codec is always float32, the cache never int.
    """
    by_dtype: dict[str, dict[str, int]] = {}
    models = [report for report in reports if isinstance(report.config, ModelConfig)]
    codecs = [report.parameters for report in reports if report.kind == CODEC][:1]
    for dtype, compute in DTYPES.items():
        needed = by_dtype[dtype] = {}
        for end, offload in (("", False), (f", {HALF}", True)):
            used = sum(4 * n for parts in codecs for part, n in parts.items() if part in SAYS or not offload)
            if models:
                needed[f"model's weights{end}"] = model_bytes(models[0], dtype, offload)
                used += needed[f"model's weights{end}"]
            if codecs:
                needed[f"codec's weights{end}"] = used - needed.get(f"model's weights{end}", 0)
            for batch in BATCHES if models else ():
                caches = batch * cache_bytes(models[0].config, POSITIONS, compute.itemsize)
                needed[f"together, {batch} x {POSITIONS:,} positions{end}"] = used + caches
        if models:
            needed["KV cache, 1,000 positions"] = cache_bytes(models[0].config, 1000, compute.itemsize)
    return by_dtype


def free_memory() -> dict[str, int]:
    """Device of this machine -> bytes that are free there."""
    free = {}
    if torch.cuda.is_available():
        free["cuda"] = torch.cuda.mem_get_info()[0]
    if (meminfo := Path("/proc/meminfo")).is_file():
        free["cpu"] = 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])
    return free


def fits(needed: Mapping[str, int], free: int) -> str:
    """The best of the plans that fit, with a tenth of what is free left for activations."""
    plans = {f"{BATCHES[1]} at once": f"{BATCHES[1]} x", "one": f"{BATCHES[0]} x"}
    for end in ("", f", {HALF}"):
        for answer, batch in plans.items():
            if needed[f"together, {batch} {POSITIONS:,} positions{end}"] <= 0.9 * free:
                return f"{answer}{' *' * bool(end)}"
    return "no"


def to_text(reports: Sequence[Report]) -> str:
    """The same as lines of at most 100 characters, a screen for each checkpoint."""
    by_dtype = memory(reports)
    rows = [("memory on the device", *by_dtype)]
    rows += [(what, *(_size(by_dtype[dtype][what]) for dtype in by_dtype)) for what in by_dtype["float32"]]
    if any(isinstance(report.config, ModelConfig) for report in reports):
        for device, free in free_memory().items():
            rows.append((f"fits here, {device} with {_size(free)} free", *(fits(by_dtype[d], free) for d in by_dtype)))
    lines = [f"{what:44}" + "".join(f"{value:>12}" for value in values) for what, *values in rows]
    lines.append(f"{HALF}, *: with --offload-text what only prompts need stays in its files, on the host.")
    lines.append("Activations, graphs and CUDA itself come on top; the codec is float32 always.")
    return "\n\n".join([*map(_text, reports), "\n".join(lines)])


def _text(report: Report) -> str:
    files = ", ".join(f"{name} {_size(size)}" for name, size in report.files.items())
    dtypes = ", ".join(f"{number:,} {dtype}" for dtype, number in report.dtypes.items())
    elements = f"{dtypes}, in {', '.join(report.weights)}" if report.weights else "not read"
    lines = [f"{report.source}: {report.kind}, {report.layout} layout"]
    lines += _wrapped("files", files) + _wrapped("elements", elements)
    counts = dict(report.parameters)
    if report.config is not None:
        lines += _wrapped("config", ", ".join(f"{name} {size}" for name, size in flat(asdict(report.config)).items()))
        counts["parameters"] = sum(counts.values())
    if report.training_only:
        counts["for training only"] = report.training_only
    lines += [f"  {part:18}{number:>16,}" for part, number in counts.items()]
    if report.dtypes and not report.problems:
        lines.append("  every tensor is there and fits")
    messages = [("PROBLEM", problem) for problem in report.problems] + [("note", note) for note in report.notes]
    return "\n".join(lines + [line for title, message in messages for line in _wrapped(title, message)])


def _wrapped(title: str, text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"  {title:9} ", subsequent_indent=" " * 12)


def _size(size: int) -> str:
    """Bytes with three digits, in powers of ten as the hub shows them."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.{2 if size < 10 * step else 1}f} {unit}"
    return f"{size} B"
