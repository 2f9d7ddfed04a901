"""A checkpoint of the released sizes with random weights: written, inspected, loaded, spoken with, compared.

    python -m benchmarks.full_size --folder FOLDER                # 12 GB of disk, 13 GB of memory, half an hour
    python -m benchmarks.full_size --folder FOLDER --small        # the same at a small size, a minute

A limit of memory is set from outside, around one part, on a folder that `--part write` has left:

    systemd-run --scope -p MemoryMax=6G python -m benchmarks.full_size --folder FOLDER --part speak --dtype int4

Each part runs in a process of its own. Memory is what the process holds beyond mapped files (RssAnon). Speed and memory
are those of trained weights; equality with transformers' port is that of greedy codes on the same file.
"""

import argparse
import contextlib
import ctypes
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.decode import IDS, PORT_IDS, SMALL
from benchmarks.timing import NANO, clock, scaled, since
from higgs import AudioContent, AudioTokenizer, Engine, HiggsAudio
from higgs.batch import Batch
from higgs.checkpoint.config_json import ORIGINAL, TRANSFORMERS, model_to_json
from higgs.checkpoint.resolve import fingerprint
from higgs.config import CodecConfig, ModelConfig, SamplingConfig
from higgs.data.chatml import Tokens, voice_clone
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.model.matrices import BITS
from higgs.model.weights import their_name
from higgs.serve.batching import step
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.engine import EngineConfig, choose_dtype
from higgs.serve.reference.loop import generate

SHARDS, FRAMES, POSITIONS = 3, 20, 512
GREEDY = SamplingConfig(temperature=0, ras_window=None)
DTYPES = ("bfloat16", "int8", "int4")


def original_json(config: ModelConfig) -> dict[str, Any]:
    """config.json in the schema of the reference implementation."""
    ours = model_to_json(config)
    rope = dict(ours["rope_parameters"])
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "head_dim", "rms_norm_eps")
    text = {key: ours[key] for key in keys} | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    return {
        "model_type": "higgs_audio", "audio_adapter_type": "dual_ffn", "encode_whisper_embed": False,
        "encode_audio_in_tokens": True, "use_delay_pattern": True, "skip_audio_tower": True,
        "audio_num_codebooks": config.num_codebooks, "audio_codebook_size": config.codebook_size,
        "audio_dual_ffn_layers": list(range(config.num_layers)), "text_config": text,
    }  # fmt: skip


def value_of(name: str, shape: torch.Size, block: Tensor, config: ModelConfig) -> Tensor:
    """A repeated block of normal numbers, scaled so that activations stay finite; stream eos is never likely."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = block.repeat(-(-shape.numel() // len(block)))[: shape.numel()].view(shape) * shape[1] ** -0.5
    if name == "audio_head.weight":
        # Rows of very different lengths: the likeliest code is so by more than bfloat16 rounds.
        tensor = tensor * block[: shape[0], None].float().mul(1.5).exp().bfloat16()
        tensor.view(config.num_codebooks, -1, shape[1])[:, -2:] = 0
    return tensor


def write(folder: Path, config: ModelConfig, layout: str) -> None:
    """Three shards with an index, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in HiggsAudio(config).state_dict().items()}
    content = original_json(config) if layout == ORIGINAL else model_to_json(config) | PORT_IDS
    (folder / "config.json").write_text(json.dumps(content))
    # A prime number: rows that begin at the same place of the block are rare.
    block = torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)).bfloat16()
    total, seen, index = sum(shape.numel() for shape in shapes.values()), 0, {}
    parts: list[list[str]] = [[] for _ in range(SHARDS)]
    for name, shape in shapes.items():
        parts[min(SHARDS * seen // total, SHARDS - 1)].append(name)
        seen += shape.numel()
    for number, names in enumerate(parts, start=1):
        shard = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        save_file({their_name(n, layout): value_of(n, shapes[n], block, config) for n in names}, folder / shard)
        index |= {their_name(name, layout): shard for name in names}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": index})
    )


def prompt(config: ModelConfig, frames: int = 50) -> Batch:
    """Text, a reference of two seconds, and text again."""
    codes = torch.randint(0, config.codebook_size, (8, frames), generator=torch.Generator().manual_seed(1))
    text = [*range(40, 70), IDS.audio_out_bos, IDS.audio_out, IDS.audio_eos, *range(70, 110), IDS.audio_out_bos]
    return collate([expand_audio_placeholders(Tokens(text, [-100] * len(text)), [codes], IDS, config, False)], IDS)


def anonymous() -> int:
    """Bytes of memory that this process holds beyond mapped files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def kept() -> int:
    """As `anonymous`, without what was freed and the allocator keeps, more or less of it from run to run."""
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return anonymous()


class Peak:
    """The largest `anonymous` while it runs, asked a hundred times a second."""

    def __init__(self) -> None:
        self.bytes, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            self.bytes = max(self.bytes, anonymous())

    def end(self) -> int:
        self.over.set()
        self.thread.join()
        return max(self.bytes, anonymous())


@contextmanager
def timed(result: dict[str, Any], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    result[f"{name} s"] = round(time.perf_counter() - started, 2)


def of_ours(folder: Path, dtype: str, offload_text: bool) -> dict[str, Any]:
    """-> times, memory and greedy codes [K, FRAMES]"""
    result: dict[str, Any] = {"before GB": kept() / 1e9}
    peak, compute, bits = Peak(), choose_dtype(dtype, torch.device("cpu")), BITS.get(dtype)
    with timed(result, "load"):
        model = HiggsAudio.from_pretrained(folder, None, "cpu", compute, bits, offload_text)
        decoder = SlotDecoder(model, 1, POSITIONS, steps_per_sync=1)
    result |= {"peak GB": peak.end() / 1e9, "stays GB": kept() / 1e9}
    with timed(result, "prompt"):
        decoder.prefill(0, prompt(model.config), FRAMES + 1, GREEDY)
    decoder.run(1)  # the first one builds what is built once
    frames, started, of_step, of_loop = [decoder.outputs[0, :1, :-1].clone()], clock("cpu"), [], []
    draw = step.sample
    with patch.object(step, "sample", lambda logits, *more: of_step.append(logits[0].clone()) or draw(logits, *more)):
        for _ in range(FRAMES - 1):
            frames.append(decoder.run(1)[0, :, :-1].clone())
    wall, cpu = scaled(since(started), 1000 / (FRAMES - 1))
    result |= {"step ms": wall, "step CPU ms": cpu, "codes": codes_of(frames)}
    if dtype == "bfloat16":
        head = model.audio_logits
        with patch.object(model, "audio_logits", lambda hidden: of_loop.append(head(hidden)) or of_loop[-1]):
            result["loop"] = by_the_loop(model)
        same = same_frames(result, {"codes": result["loop"]})
        result |= compare_logits(of_step[: same or 1], [logits[0] for logits in of_loop[1:]])
    return result | {"resident GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def compare_logits(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    """[K, N + 2] of each step, while the codes are the same."""
    pairs = [(a[:, :-2], b[:, :-2]) for a, b in zip(ours, theirs, strict=False)]
    return {
        "steps with the same logits": sum(torch.equal(a, b) for a, b in pairs) / len(pairs),
        "equal logits": sum((a == b).float().mean().item() for a, b in pairs) / len(pairs),
        "largest difference": max((a - b).abs().max().item() for a, b in pairs),
        "largest logit": max(a.abs().max().item() for a, _ in pairs),
    }


def speaking(folder: Path, dtype: str, offload_text: bool) -> dict[str, Any]:
    """A whole request with a codec and a reference: what it takes of memory. To be run within a limit, too."""
    codec = folder / "codec"
    if not codec.exists():
        AudioTokenizer(CodecConfig()).save_pretrained(codec)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(NANO / "model" / file, folder)
    result: dict[str, Any] = {}
    peak, config = Peak(), EngineConfig(max_batch=1, max_positions=2 * POSITIONS, runaway=None)
    with timed(result, "load"):
        engine = Engine.from_pretrained(folder, codec, "cpu", dtype, config, offload_text)
    sample = voice_clone("Good morning.", "The weather was fine.", AudioContent("data/voices/cleo.flac"))
    with timed(result, "request"):
        response = engine.generate(sample, GREEDY, 30)
    result |= {"frames": response.usage.audio_frames, "peak GB": peak.end() / 1e9, "stays GB": kept() / 1e9}
    return result | {"resident GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


@torch.inference_mode()
def by_the_loop(model: HiggsAudio) -> list[list[int]]:
    """As `of_ours`, by the reference loop: it computes in the port's order, so that its roundings are the same."""
    made = generate(model, prompt(model.config), IDS, GREEDY, FRAMES + 1, (IDS.audio_eos,))
    return made.segments[0].delayed[:, 1:].tolist()


def codes_of(frames: list[Tensor]) -> list[list[int]]:
    return torch.cat(frames).T.tolist()


def of_theirs(folder: Path) -> dict[str, Any]:
    import transformers

    result: dict[str, Any] = {}
    peak = Peak()
    with timed(result, "load"):
        port = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    result |= {"peak GB": peak.end() / 1e9, "stays GB": kept() / 1e9}
    config = ModelConfig(hidden_size=port.config.hidden_size, num_layers=port.config.num_hidden_layers)
    batch = prompt(config)
    inputs = {
        "input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long(),
        "audio_input_ids": batch.codes[batch.audio_mask][None],
        "audio_input_ids_mask": torch.ones(1, int(batch.audio_mask.sum()), dtype=torch.bool),
    }  # fmt: skip
    times = []
    for steps in (1, 1, FRAMES + 1):  # the first touches the mapped files
        started = time.perf_counter()
        made = port.generate(**inputs, do_sample=False, max_new_tokens=steps)
        times.append(time.perf_counter() - started)
    columns = (made if isinstance(made, Tensor) else made.audio_sequences)[0]
    result |= {"prompt s": round(times[0], 2), "step ms": 1000 * (times[2] - times[1]) / FRAMES}
    begin = inputs["audio_input_ids"].shape[1] + 1  # the prompt's frames come back too, and stream bos
    return result | {"codes": columns[begin : begin + FRAMES].T.tolist()}


def in_a_process(arguments: argparse.Namespace, part: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.full_size", "--folder", str(arguments.folder), "--part", part, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def same_frames(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """How many frames, from the first, are equal."""
    pairs = zip(zip(*ours["codes"], strict=True), zip(*theirs["codes"], strict=True), strict=True)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), FRAMES)


def show(what: str, result: dict[str, Any]) -> None:
    values = {k: round(v, 2) if isinstance(v, float) else v for k, v in result.items() if k not in ("codes", "loop")}
    print(f"{what:34}" + ", ".join(f"{name} {value}" for name, value in values.items()), flush=True)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    folder, rows = arguments.folder, []
    config = SMALL if arguments.small else ModelConfig()

    def add(what: str, result: dict[str, Any]) -> dict[str, Any]:
        rows.append({"what": what} | result)
        show(what, result)
        return result

    for layout in (ORIGINAL, TRANSFORMERS):
        result: dict[str, Any] = {}
        with timed(result, "write"):
            write(folder, config, layout)
        try:
            with timed(result, "inspect"):
                subprocess.run([sys.executable, "-m", "higgs", "inspect", str(folder)], check=True, capture_output=True)
            with timed(result, "fingerprint"):
                fingerprint(folder)
            add(f"{layout} layout", result)
            ours = add(f"{layout}, bfloat16", in_a_process(arguments, "ours"))
            if layout == ORIGINAL:
                continue
            theirs = add("transformers, bfloat16", in_a_process(arguments, "theirs"))
            loop = same_frames({"codes": ours["loop"]}, theirs)
            add("equal frames", {"of": FRAMES, "reference loop": loop, "step": same_frames(ours, theirs)})
            add("bfloat16, text half in the file", in_a_process(arguments, "ours", "--offload-text"))
            for dtype in DTYPES[1:]:
                for more in ([], ["--offload-text"]):
                    what = f"{dtype}{', text half in the file' if more else ''}"
                    result = add(what, in_a_process(arguments, "ours", "--dtype", dtype, *more))
                    add("", {"equal frames": same_frames(result, ours)})
            add("int4, a whole request", in_a_process(arguments, "speak", "--dtype", "int4"))
        finally:
            shutil.rmtree(folder)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="is made, and deleted at the end")
    parser.add_argument("--small", action="store_true", help="rehearse at a small size")
    parser.add_argument("--part", choices=("ours", "theirs", "write", "speak"), help="one part, in this process")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--offload-text", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    arguments = parser.parse_args()
    if arguments.part == "write":
        write(arguments.folder, SMALL if arguments.small else ModelConfig(), TRANSFORMERS)
    elif arguments.part == "ours":
        print(json.dumps(of_ours(arguments.folder, arguments.dtype, arguments.offload_text)))
    elif arguments.part == "speak":
        print(json.dumps(speaking(arguments.folder, arguments.dtype, arguments.offload_text)))
    elif arguments.part == "theirs":
        print(json.dumps(of_theirs(arguments.folder)))
    else:
        if arguments.folder.exists():
            parser.error(f"{arguments.folder} exists: name a folder that can be made and deleted")
        rows = run(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
