"""Checkpoints in both layouts: whatever is wrong with one is an error that names it; what `inspect` tells."""

import itertools
import json
import math
import os
import pickle
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    noise,
    original_model_name,
    random_weights,
    write_model,
    write_original_codec,
    write_original_model,
)
from torch import Tensor

from higgs import AudioTokenizer, HiggsAudio
from higgs.checkpoint.config_json import (
    REFERENCE_DEFAULTS,
    codec_from_json,
    codec_to_json,
    model_from_json,
    model_to_json,
)
from higgs.checkpoint.tensors import INDEX, PICKLE, SINGLE, CheckpointError, read_headers
from higgs.cli.app import main
from higgs.cli.checkpoint_report import HALF, cache_bytes, fits, inspect_checkpoint, memory, model_bytes
from higgs.codec import weights as codec_weights
from higgs.config import CodecConfig, ConfigError, ModelConfig, SemanticConfig
from higgs.model import weights as model_weights
from higgs.model.kv_cache import KVCache
from higgs.model.matrices import BITS, MatrixLinear, Offloaded, QuantizedEmbedding
from higgs.serve.engine import choose_dtype

SMALL_MODEL = ModelConfig(
    vocab_size=40, hidden_size=12, intermediate_size=20, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
    codebook_size=16,
)  # fmt: skip
SMALL_CODEC = CodecConfig(
    encoder_width=2, decoder_width=32, acoustic_dim=6, codebook_size=16, codebook_dim=4,
    semantic=SemanticConfig(
        hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, conv_dim=8, position_kernel=8
    ),
)  # fmt: skip
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
KINDS = ("model-transformers", "model-original", "codec-transformers", "codec-original")


def original_model_config(config: ModelConfig) -> dict:
    """The reference's config.json with the values of the release, at other sizes."""
    return {
        "model_type": "higgs_audio", "audio_adapter_type": "dual_ffn_fast_forward", "audio_embed_avg": False,
        "audio_dual_ffn_layers": list(range(config.num_layers)), "audio_decoder_proj_num_layers": 0,
        "audio_num_codebooks": config.num_codebooks, "audio_codebook_size": config.codebook_size,
        "audio_stream_bos_id": config.stream_bos, "audio_stream_eos_id": config.stream_eos,
        "encode_whisper_embed": False, "encode_audio_in_tokens": True, "use_delay_pattern": True,
        "skip_audio_tower": True, "use_audio_out_embed_projector": False, "use_audio_out_self_attention": 0,
        "use_rq_transformer": False, "rq_transformer_hidden_size": None, "pad_token_id": 128001,
        "text_config": {
            "model_type": "llama", "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim, "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False,
            "mlp_bias": False, "tie_word_embeddings": True, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    }  # fmt: skip


def original_codec_config(config: CodecConfig) -> dict:
    """The nine keys of the reference's config.json."""
    return {
        "n_filters": 32, "D": config.acoustic_dim, "codebook_dim": config.codebook_dim,
        "target_bandwidths": [0.5, 1, 1.5, 2, 4], "ratios": list(config.strides),
        "sample_rate": config.sample_rate, "bins": config.codebook_size, "n_q": config.num_codebooks,
        "semantic_techer": "hubert_base_general",
    }  # fmt: skip


def codec_tensors(seed: int = 0) -> dict[str, Tensor]:
    """A small codec under the names of transformers."""
    with torch.device("meta"):
        shapes = AudioTokenizer(SMALL_CODEC).state_dict()
    drawn = {name: noise(name, tensor.shape, seed) for name, tensor in shapes.items()}
    return codec_weights.to_transformers(drawn)


def write(kind: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint of one of the four KINDS."""
    if kind == "model-transformers":
        return write_model(folder, model_to_json(SMALL_MODEL), seed)
    if kind == "model-original":
        tensors = random_weights(SMALL_MODEL, seed)
        return write_original_model(folder, original_model_config(SMALL_MODEL), tensors)
    if kind == "codec-original":
        return write_original_codec(folder, original_codec_config(SMALL_CODEC), codec_tensors(seed))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(codec_to_json(SMALL_CODEC)))
    save_file(codec_tensors(seed), folder / SINGLE)
    return folder


def load(folder: Path) -> HiggsAudio | AudioTokenizer:
    kind = HiggsAudio if "model" in folder.name else AudioTokenizer
    return kind.from_pretrained(folder)


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Reads every file of weights, lets `change` work on its tensors, and writes it (and the index) again."""
    index = {}
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.pth")):
        pickled = path.suffix == ".pth"
        tensors = torch.load(path, weights_only=True) if pickled else load_file(path)
        change(tensors)
        partial = path.with_suffix(".new")  # loaded tensors are mapped from the file
        torch.save(tensors, partial) if pickled else save_file(tensors, partial)
        partial.replace(path)
        index |= dict.fromkeys(tensors, path.name)
    if (folder / INDEX).exists():
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: write(kind, folder / kind) for kind in KINDS}


@pytest.fixture
def copy(whole, tmp_path) -> Callable[[str], Path]:
    return lambda kind: shutil.copytree(whole[kind], tmp_path / kind)


# A tensor of each checkpoint, another in its last file, and what a new shape of the first is called.
TENSORS = {
    "model-transformers": ("model.layers.1.audio_mlp.up_proj.weight", "[20, 12]"),
    "model-original": ("layers.1.audio_mlp.up_proj.weight", "[20, 12]"),
    "codec-transformers": ("acoustic_encoder.block.0.res_unit1.conv1.bias", "[2]"),
    "codec-original": ("encoder.block.1.block.0.block.1.bias", "[2]"),
}


# What is done to the tensors (by name) -> what the error says after the folder; SHAPE is the expected one.
FAULTS = {
    "missing": (lambda t, name: t.pop(name, None), "1 missing: NAME"),
    "unexpected": (lambda t, name: t.update({f"stray.{len(t)}": torch.ones(2)}),
                   r"\d unexpected: stray\.\d+(, stray\.\d+)?"),
    "shape": (lambda t, name: name in t and t.update({name: torch.ones(3, 5)}),
              r"1 misshapen: NAME is \[3, 5\], the config asks for SHAPE"),
    "integers": (lambda t, name: name in t and t.update({name: torch.ones_like(t[name], dtype=torch.int8)}),
                 "1 misshapen: NAME is torch.int8, a floating point type is needed"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_does_not_fit_is_named(copy, kind, fault, monkeypatch):
    """By the checkpoint's own name, before any tensor is read."""
    folder, (name, shape), (change, message) = copy(kind), TENSORS[kind], FAULTS[fault]
    edit(folder, lambda tensors: change(tensors, name))
    monkeypatch.setattr(model_weights, "read_tensors", lambda folder: pytest.fail("read"))
    monkeypatch.setattr(codec_weights, "read_tensors", lambda folder: pytest.fail("read"))
    message = message.replace("NAME", name).replace("SHAPE", re.escape(shape))
    with pytest.raises(CheckpointError, match=f"^{folder}: {message}$"):
        load(folder)


@pytest.mark.parametrize("kind", ["model-transformers", "model-original"])
def test_forced_audio_needs_no_text_head(copy, kind):
    """As transformers saves one by default. Whatever needs the head says so, and another head is no exception."""
    folder = copy(kind)
    whole = load(folder)
    edit(folder, lambda tensors: [tensors.pop(name) for name in [*tensors] if "text_lm_head" in name])
    model = load(folder)
    assert set(whole.state_dict()) - set(model.state_dict()) == {"text_head.weight"}
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no text head"):
        model.text_head(torch.zeros(1, 12))
    (report,) = inspect_checkpoint(folder)
    assert not report.problems and "text head" not in report.parameters
    assert any("no text head" in note for note in report.notes)
    edit(folder, lambda tensors: [tensors.pop(name) for name in [*tensors] if "audio_lm_head" in name])
    with pytest.raises(CheckpointError, match="1 missing: .*audio_lm_head"):
        load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_layer_and_one_too_many_are_named_by_their_layout(copy, kind):
    """A config of other sizes than the weights: the whole difference at once, before anything is read."""
    folder = copy(kind)
    text = (folder / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    text = text.replace('"audio_dual_ffn_layers": [0, 1]', '"audio_dual_ffn_layers": [0]').replace('_q": 8', '_q": 9')
    (folder / "config.json").write_text(text)
    expected = {
        "model-transformers": r"14 unexpected: .*model\.layers\.1\.",
        "model-original": r"14 unexpected: .*layers\.1\.",
        "codec-transformers": r"16 unexpected: semantic_model\.encoder\.layers\.1\.",
        "codec-original": r"5 missing: .*quantizer\.vq\.layers\.8\._codebook\.embed",
    }[kind]
    with pytest.raises(CheckpointError, match=expected):
        load(folder)


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    ("kind", "share"), [*itertools.product(KINDS, [0.0, 0.001, 0.5, 0.999]), ("model-transformers", 1.1)]
)
def test_a_file_of_another_length_is_named(copy, kind, share):
    folder = copy(kind)
    path = folder / {"model-original": SHARDS[1], "codec-original": PICKLE}.get(kind, SINGLE)
    truncate(path, share)
    with pytest.raises(CheckpointError, match=rf"{path} is damaged or not completely downloaded"):
        load(folder)


class Code(str):
    """A shell command that a pickle runs when it is read."""

    def __reduce__(self):
        return os.system, (str(self),)


@pytest.mark.parametrize("container", ["zip", "pickle"])
@pytest.mark.parametrize("kind", ["codec-original", "model-original"])
def test_code_in_a_pickle_is_not_run(copy, tmp_path, kind, container):
    folder, marker = copy(kind), tmp_path / "marker"
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink(missing_ok=True)
    code = Code(f"touch {marker}")
    if container == "zip":
        torch.save({"fc_prior.weight": torch.ones(2), "more": code}, folder / PICKLE)
    else:
        (folder / PICKLE).write_bytes(pickle.dumps({"more": code}, protocol=2))
    with pytest.raises(CheckpointError, match=rf"{folder / PICKLE} holds code \(posix\.system\); it was not"):
        load(folder)
    assert not marker.exists()
    if container == "pickle":  # the same file does run where nobody takes care
        pickle.loads((folder / PICKLE).read_bytes())
        assert marker.exists()


def test_the_old_pickle_format_is_read(copy):
    folder = copy("codec-original")
    before = load(folder).state_dict()
    tensors = torch.load(folder / PICKLE, weights_only=True)
    (folder / PICKLE).unlink()
    torch.save(tensors, folder / PICKLE, _use_new_zipfile_serialization=False)
    assert_equal(load(folder).state_dict(), before)


NORMED = "decoder_2.model.1.block.1.weight"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]


def leave_incomplete(folder: Path) -> None:
    """As `hf download --local-dir` does."""
    place = folder / ".cache" / "huggingface" / "download"
    place.mkdir(parents=True)
    (folder / SINGLE).rename(place / f"{SINGLE}.1234.incomplete")


def edit_index(*removed: str, **added: str) -> Callable[[Path], None]:
    """Changes the index's map from tensors to shards; dots of tensor names are written as __."""

    def change(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        weight_map |= {name.replace("__", "."): shard for name, shard in added.items()}
        weight_map = {name: shard for name, shard in weight_map.items() if name not in removed and "*" not in removed}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return change


def changed(name: str, tensor: Tensor | None = None) -> Callable[[Path], None]:
    """Sets one tensor, in the last file of weights, or removes it."""
    removed = tensor is None
    ends = {"norm.weight", "fc2.bias"}
    return lambda f: edit(f, lambda t: t.pop(name) if removed else ends & t.keys() and t.update({name: tensor}))


def compress_pickle(folder: Path) -> None:
    """A gigabyte of zeros where the names of tensors are, in a megabyte."""
    with zipfile.ZipFile(folder / PICKLE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))


def repeat_shard(folder: Path) -> None:
    shutil.copy(folder / SHARDS[0], folder / "model-00003-of-00003.safetensors")
    edit_index(more="model-00003-of-00003.safetensors")(folder)


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("model-transformers", remove("config.json"), "holds no config.json"),
        ("model-transformers", remove(SINGLE), "holds no model.safetensors, .*only .'config.json'"),
        ("codec-original", remove(PICKLE), "no model.pth: only .'config.json'"),
        ("model-original", remove(SHARDS[1]), f"names missing shards: .'{SHARDS[1]}'"),
        ("model-original", remove(INDEX), f"{SHARDS[0]}.*{SHARDS[1]}.* without {INDEX}"),
        ("model-transformers", leave_incomplete, f"broken off .*{SINGLE}.1234.incomplete"),
        ("codec-original", lambda f: truncate(f / "config.json", 0.5), "config.json is damaged"),
        ("codec-original", lambda f: (f / "config.json").write_text("[1]"), "expected a JSON object"),
        ("model-original", lambda f: truncate(f / INDEX, 0.5), f"{INDEX} is damaged"),
        ("model-original", edit_index("*"), f"{INDEX}: no weight_map"),
        ("model-original", edit_index(norm__weight="../secret.safetensors"), "secret.* is no name of a shard"),
        ("model-original", edit_index(norm__weight=[SHARDS[0]]), f"{INDEX}: .*is no name of a shard"),
        ("model-original", edit_index(norm__weight={"a": 1}), f"{INDEX}: .*is no name of a shard"),
        ("model-original", edit_index(norm__weight=None), f"{INDEX}: None is no name of a shard"),
        ("model-original", lambda f: (f / INDEX).write_text("[" * 200_000), f"{INDEX} is damaged.*not JSON"),
        ("model-original", lambda f: (f / INDEX).write_text('{"weight_map": [1]}'), f"{INDEX}: no weight_map"),
        ("codec-original", lambda f: (f / "config.json").write_text('{"a":' * 100_000), "config.json is damaged"),
        ("codec-original", lambda f: (f / "config.json").write_text("1" * 5000), "config.json is damaged"),
        ("codec-original", lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json .*not text in UTF-8"),
        ("codec-original", lambda f: os.truncate(f / "config.json", 1 << 27), "config.json: 134,217,728 bytes"),
        ("codec-original", compress_pickle, f"{PICKLE} holds [0-9,]+ bytes, compressed"),
        ("model-original", edit_index("norm.weight"), "'norm.weight'. are not in the index"),
        ("model-original", edit_index(layers__9__mlp__up_proj__weight=SHARDS[0]), "up_proj.* are not in the shards"),
        ("model-original", repeat_shard, "00003-of-00003.safetensors: .* are in another shard"),
        ("codec-original", lambda f: torch.save(["a list"], f / PICKLE), "expected names and tensors, got list"),
        ("codec-original", lambda f: torch.save({"a": {"b": 1}}, f / PICKLE), "got dict at 'a'"),
        ("model-transformers", lambda f: (f / SINGLE).write_text(LFS_POINTER), f"{SINGLE} .*pointer of Git LFS"),
        ("codec-original", lambda f: (f / PICKLE).write_text(LFS_POINTER), f"{PICKLE} .*pointer of Git LFS"),
        ("model-transformers", lambda f: save_file({"bert.bias": torch.ones(1)}, f / SINGLE), "names like .*bert"),
        ("codec-transformers", changed("quantizer.quantizers.3.codebook.inited", torch.zeros(1)), "never trained"),
        ("codec-original", changed(f"{NORMED}_g"), f"{NORMED}_v is there, {NORMED}_g is missing"),
        ("codec-original", changed(f"{NORMED}_v"), f"{NORMED}_g is there, {NORMED}_v is missing"),
        ("model-original", changed("audio_tower.conv1.weight", torch.ones(2)), "conv1.weight: the release has no such"),
        ("model-original", changed("layers.0.audio_attn.q_proj.weight", torch.ones(2)), "the release has no such part"),
    ],
)  # fmt: skip
def test_half_a_download_and_damaged_files_are_named(copy, kind, damage, message):
    folder = copy(kind)
    damage(folder)
    with pytest.raises((FileNotFoundError, CheckpointError), match=message):
        load(folder)


def test_the_folder_above_is_recognised(whole, tmp_path):
    (tmp_path / "model").symlink_to(whole["model-transformers"])
    with pytest.raises(FileNotFoundError, match=f"did you mean {tmp_path / 'model'}"):
        HiggsAudio.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_rows_tuned_apart_are_joined(copy, layout):
    """Frozen and trainable rows of embeddings and heads, as they are saved while new rows are tuned."""
    folder, join = (copy(f"model-{layout}"), "embed_tokens" if layout == "original" else "model.embed_tokens")
    before = load(folder).state_dict()
    head = "audio_decoder_proj.text_lm_head" if layout == "original" else "text_lm_head"

    def split(tensors: dict[str, Tensor]) -> None:
        for name, kind in ((join, "embedding"), (head, "linear")):
            if (tensor := tensors.pop(f"{name}.weight", None)) is not None:
                tensors[f"{name}.{kind}_frozen.weight"] = tensor[:33].clone()
                tensors[f"{name}.{kind}_trainable.weight"] = tensor[33:].clone()

    edit(folder, split)
    assert_equal(load(folder).state_dict(), before)
    edit(folder, lambda tensors: tensors.pop(f"{head}.linear_trainable.weight", None))
    with pytest.raises(CheckpointError, match=f"{head}.linear_trainable.weight is missing"):
        load(folder)


def test_heads_under_both_names_must_agree(copy):
    folder, copied = copy("model-transformers"), "audio_decoder_proj.text_lm_head.weight"
    edit(folder, lambda t: t.update({copied: t["text_lm_head.weight"].clone()}))
    load(folder)
    edit(folder, lambda t: t[copied].add_(1))
    with pytest.raises(CheckpointError, match=f"{copied} and text_lm_head.weight are one .*, and differ"):
        load(folder)


# -- both layouts side by side, as the hub's repositories hold them


@pytest.mark.parametrize("config", ["transformers", "original"])
@pytest.mark.parametrize("kind", ["model", "codec"])
def test_the_config_decides_between_two_layouts(copy, whole, tmp_path, kind, config):
    """Both layouts' weights (with different numbers) in one folder, with the config.json of one."""
    folder, other = copy(f"{kind}-{config}"), "original" if config == "transformers" else "transformers"
    for path in write(f"{kind}-{other}", tmp_path / "other", seed=1).iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder / path.name)
    assert_equal(load(folder).state_dict(), load(whole[f"{kind}-{config}"]).state_dict())
    (report,) = inspect_checkpoint(folder)
    assert report.layout == config and not report.problems
    assert (SINGLE in report.weights) == (config == "transformers") and SINGLE in report.files


@pytest.mark.parametrize("config", ["transformers", "original"])
@pytest.mark.parametrize("kind", ["model", "codec"])
def test_weights_of_the_other_layout_alone_are_refused(copy, kind, config):
    other = "original" if config == "transformers" else "transformers"
    folder = copy(f"{kind}-{other}")
    shutil.copy(copy(f"{kind}-{config}") / "config.json", folder / "config.json")
    with pytest.raises(CheckpointError, match=f"config.json is in the {config} layout, but .* has {other} names"):
        load(folder)


def test_the_layout_is_that_of_the_tensor_names(copy):
    """The reference's in one file, transformers' in shards: containers that neither uses, and both load."""
    folder = copy("model-original")
    before = load(folder).state_dict()
    tensors = {name: t for shard in SHARDS for name, t in load_file(folder / shard).items()}
    remove(INDEX, *SHARDS)(folder)
    save_file(tensors, folder / SINGLE)
    assert_equal(load(folder).state_dict(), before)
    folder = copy("model-transformers")
    save_file(load_file(folder / SINGLE), folder / SHARDS[0])
    remove(SINGLE)(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / SHARDS[0]), SHARDS[0])}))
    load(folder)


@pytest.mark.parametrize("kind", ["model-transformers", "codec-transformers"])
def test_saving_over_the_file_that_a_model_is_mapped_from(copy, kind):
    folder = copy(kind)
    loaded = load(folder)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    loaded.save_pretrained(folder, *([{}] if "model" in kind else []), half=True)
    assert_equal(loaded.state_dict(), before)
    assert not list(folder.glob("*.part"))
    loaded.save_pretrained(folder, *([{}] if "model" in kind else []))
    assert_equal(load(folder).state_dict(), before)
    assert load(folder).config == loaded.config


# -- configs that are not run


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("audio_adapter_type", "stack"), ("encode_whisper_embed", True), ("skip_audio_tower", False),
        ("use_audio_out_self_attention", True), ("use_audio_out_embed_projector", True),
        ("use_rq_transformer", True), ("audio_embed_avg", True), ("use_delay_pattern", False),
        ("encode_audio_in_tokens", False), ("audio_decoder_proj_num_layers", 2), ("audio_dual_ffn_layers", [0]),
        ("audio_stream_eos_id", 7),
    ],
)  # fmt: skip
def test_what_the_release_does_not_use_is_refused(key, value):
    """An absent key has the reference's default, which turns on a part that is not run: a Whisper tower."""
    config = original_model_config(SMALL_MODEL)
    assert model_from_json(config) == SMALL_MODEL
    absent = {name: entry for name, entry in config.items() if name != key}
    for wrong in [config | {key: value}, *([absent] if key in REFERENCE_DEFAULTS else [])]:
        with pytest.raises(ConfigError, match=re.escape(f"{key} is {wrong.get(key, REFERENCE_DEFAULTS.get(key))!r}")):
            model_from_json(wrong)


def nested(config: dict, path: str, value: object) -> dict:
    config = json.loads(json.dumps(config))
    *above, last = path.split(".")
    inner = config
    for key in above:
        inner = inner[key]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("schema", "path", "value", "message"),
    [
        ("model-original", "text_config", None, "lacks text_config"),
        ("model-original", "text_config.rope_scaling", "llama3", "rope_scaling: .*'llama3'"),
        ("model-original", "text_config.rope_scaling.rope_type", "yarn", "rope_type is 'yarn'"),
        ("model-original", "text_config.rope_scaling", {"type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
        ("model-original", "text_config.rope_scaling", {"rope_type": "default"}, "rope_type is 'default'"),
        ("model-transformers", "rope_parameters", {"rope_type": "default"}, "is 'default'.*only 'llama3'"),
        ("model-transformers", "rope_parameters", {"rope_type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
        ("model-original", "text_config.hidden_size", "12", "hidden_size: .*'12'"),
        ("model-original", "text_config.num_key_value_heads", 3, "num_attention_heads is 4: no multiple .* 3"),
        ("model-transformers", "num_hidden_layers", 0, "num_layers: .*0"),
        ("model-transformers", "rope_parameters", {}, "lacks rope_theta"),
        ("model-transformers", "hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("codec-transformers", "acoustic_model_config", [], "expected a JSON object"),
        ("codec-transformers", "semantic_model_config.do_stable_layer_norm", True, "do_stable_layer_norm is True"),
        ("codec-transformers", "unit_kernel_size", 5, "unit_kernel_size is 5"),
        ("codec-original", "bins", [8, 8], r"bins is \[8, 8\]"),
        ("codec-original", "semantic_techer", "wavlm_base_plus", "semantic_techer is 'wavlm_base_plus'"),
    ],
)  # fmt: skip
def test_configs_of_other_shape_are_refused(whole, schema, path, value, message):
    config = nested(json.loads((whole[schema] / "config.json").read_text()), path, value)
    with pytest.raises(ConfigError, match=message):
        if "model" in schema:
            model_from_json(config)
        else:
            shapes = {name: tuple(t.shape) for name, t in read_headers(whole[schema]).items()}
            codec_from_json(config, shapes)


# Values that no config has, by the key that holds them: each is refused before anything is built.
NONSENSE = {
    "model-transformers": {
        "rms_norm_eps": ["x", -1, 0, None, [1], 1e30], "num_hidden_layers": [10**5, 10**9, "x", 1.5, [6]],
        "rope_parameters.rope_theta": ["x", -1, 0, [1], 1e300], "rope_parameters.factor": ["x", -1, 0, [1], 1e300],
        "rope_parameters.low_freq_factor": ["x", -1, 0, [1], 8.0], "rope_parameters.high_freq_factor": [-1, 0.5, "x"],
        "rope_parameters.original_max_position_embeddings": ["x", -1, 0, 0.5, 10**12],
        "codebook_size": ["x", None, [1], -5, 10**9], "num_codebooks": [0, 10**6, "8"], "head_dim": [3, 0, 10**9],
        "vocab_size": [10**12], "hidden_size": [10**12, -1], "model_type": [["a"], {}, 7],
        "rope_parameters": [[1], "x"],
    },
    "model-original": {
        "text_config.num_hidden_layers": [10**9, "x", [2], 1.5],
        "audio_dual_ffn_layers": ["x", 5, {}, [[0]], [0, 1, 2]],
        "text_config.rope_scaling": [[1], 5], "audio_codebook_size": ["x", None, [1]], "text_config": [[1], 5],
    },
    "codec-transformers": {
        "target_bandwidths": [[1e9], [], "x", ["x"], [None], [1e308], 5, {}], "sample_rate": [0, 7, 10**12, "x"],
        "semantic_sample_rate": [1, 7, 16_001, 10**9, "x"], "codebook_size": [1, 0, 10**9, "x"],
        "codebook_dim": [10**9, [1]],
        "acoustic_model_config.downsampling_ratios": [[], [10**9], "x", 5, [0], [8.5], [60, 60, 60], [1]],
        "semantic_model_config.num_hidden_layers": [10**5, 10**9],
        "semantic_model_config.conv_dim": [[], [[1]], 5, ["x"]],
        "semantic_model_config.num_conv_pos_embeddings": [10**9],
        "semantic_model_config.num_attention_heads": [5, 10**9],
        "semantic_model_config.hidden_size": [10**6], "semantic_model_config.num_conv_pos_embedding_groups": [5, 0],
    },
    "codec-original": {
        "ratios": [[], [10**9], "x", 5, [0]], "bins": [10**9, 0, True], "n_q": [0, 10**9, "x"], "D": [10**9, [1]],
        "sample_rate": [0, 7, "x"],
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in NONSENSE.items() for key in keys])
def test_values_that_no_config_has_are_refused_with_the_name_of_the_file(copy, kind, key):
    folder = copy(kind)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for value in NONSENSE[kind][key]:
        changes = nested(config, key, value)
        if key == "acoustic_model_config.downsampling_ratios":
            changes = nested(changes, "acoustic_model_config.upsampling_ratios", value)
        path.write_text(json.dumps(changes))
        start = time.monotonic()
        with pytest.raises((ConfigError, CheckpointError), match=f"^{folder}"):
            load(folder)
        assert time.monotonic() - start < 5, f"{value!r}: too long"


def test_a_model_is_no_codec(whole):
    with pytest.raises(ConfigError, match="config of a codec, got that of a model"):
        AudioTokenizer.from_pretrained(whole["model-transformers"])
    with pytest.raises(ConfigError, match="config of a model, got that of a codec"):
        HiggsAudio.from_pretrained(whole["codec-original"])


# -- higgs inspect


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["higgs", *arguments])
    status = main()
    return status, *capsys.readouterr()


def test_inspect_tells_the_default_checkpoint(nano, monkeypatch, capsys):
    monkeypatch.chdir(nano.parent.parent.parent)
    status, out, _ = run(monkeypatch, capsys, "inspect", "nano", "--json")
    output = json.loads(out)
    assert status == 0
    model, codec = output["checkpoints"]
    for kind, report in (("model", model), ("codec", codec)):
        state = load(nano / kind).state_dict().values()
        assert (report["kind"], report["layout"]) == (kind, "transformers") and not report["problems"]
        assert sum(report["parameters"].values()) == sum(tensor.numel() for tensor in state)
        assert report["files"][SINGLE] == (Path(report["source"]) / SINGLE).stat().st_size
    assert model["config"]["num_codebooks"] == 8
    status, text, _ = run(monkeypatch, capsys, "inspect", "nano")
    assert status == 0 and text.count("every tensor is there and fits") == 2
    first = text.split("\n\n")[0].splitlines()
    assert len(first) < 24 and all(len(line) <= 100 for line in text.splitlines())


def test_inspect_lists_what_is_wrong_and_fails(copy, monkeypatch, capsys):
    folder = copy("codec-original")

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["fc_post2.bias"]
        tensors |= {"stray": torch.ones(1), "fc_prior.bias": torch.ones(3)}

    edit(folder, change)
    status, out, err = run(monkeypatch, capsys, "inspect", str(folder))
    assert status == 1 and "3 problems" in err
    for line in ("1 missing: fc_post2.bias", "1 unexpected: stray", "1 misshapen: fc_prior.bias is [3], the config"):
        assert f"PROBLEM   {line}" in out
    truncate(folder / PICKLE, 0.5)
    status, out, err = run(monkeypatch, capsys, "inspect", str(folder))
    assert status == 1 and "not completely downloaded" in out.replace("\n" + " " * 12, " ")


def header_only(path: Path, shapes: dict[str, torch.Size], dtype: str = "BF16", size: int = 2) -> None:
    """A safetensors file of any size without its data: a hole in the file takes its place."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)


def released_model(folder: Path, layout: str) -> Path:
    """The release's config and headers; its 11.5 GB are holes."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        state = model_weights.to_transformers(HiggsAudio(ModelConfig()).state_dict())
    shapes = {name: tensor.shape for name, tensor in state.items()}
    if layout == "transformers":
        (folder / "config.json").write_text(json.dumps(model_to_json(ModelConfig())))
        header_only(folder / SINGLE, shapes)
        return folder
    (folder / "config.json").write_text(json.dumps(original_model_config(ModelConfig())))
    names, index = sorted(shapes), {}
    for number, some in enumerate((names[:164], names[164:365], names[365:]), start=1):
        shard = f"model-0000{number}-of-00003.safetensors"
        header_only(folder / shard, {original_model_name(name): shapes[name] for name in some})
        index |= {original_model_name(name): shard for name in some}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


def released_codec(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with torch.device("meta"):
        state = codec_weights.to_transformers(AudioTokenizer(CodecConfig()).state_dict())
    (folder / "config.json").write_text(json.dumps(codec_to_json(CodecConfig())))
    header_only(folder / SINGLE, {name: tensor.shape for name, tensor in state.items()}, "F32", 4)
    return folder


def test_the_number_of_codebooks_survives_rounding():
    """transformers' schema has a bandwidth in its place."""
    sizes = [(24_000, 1000, 9), (22_050, 512, 13), (16_000, 1024, 8), (24_000, 16, 3)]
    for rate, size, count in sizes:
        config = replace(SMALL_CODEC, sample_rate=rate, codebook_size=size, num_codebooks=count)
        assert codec_from_json(codec_to_json(config), {}).num_codebooks == count


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_inspect_needs_no_weights_of_the_release(tmp_path, layout):
    """5.77 billion parameters by config and headers alone: the files have no data to read."""
    released_model(tmp_path / "model", layout)
    released_codec(tmp_path / "codec")
    held = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*.safetensors"))
    assert held < 10e6
    model, codec = inspect_checkpoint(tmp_path)
    assert model.layout == layout and not model.problems and not codec.problems
    assert model.parameters == {
        "text embedding": 394_002_432, "audio embedding": 25_214_976, "attention": 704_643_072,
        "text FFN": 2_113_929_216, "audio FFN": 2_113_929_216, "norms": 172_032 + 172_032 + 3_072,
        "text head": 394_002_432, "audio head": 25_214_976,
    }  # fmt: skip
    assert sum(model.parameters.values()) == 5_771_283_456
    assert model.dtypes == {"bfloat16": 5_771_283_456}
    assert sum(model.files[name] for name in model.weights) > 11_542_566_912
    table = memory([model, codec])
    assert memory([model, codec] * 2) == table  # of one pair
    assert table["bfloat16"]["model's weights"] == 11_542_566_912
    assert table["bfloat16"]["KV cache, 1,000 positions"] == 114_688_000
    codec_bytes = 4 * sum(codec.parameters.values())
    assert table["bfloat16"]["codec's weights"] == table["float32"]["codec's weights"] == codec_bytes
    for batch in (1, 16):
        together = 11_542_566_912 + codec_bytes + batch * 2048 * 114_688
        assert table["bfloat16"][f"together, {batch} x 2,048 positions"] == together
    assert table["float32"]["together, 1 x 2,048 positions"] == 2 * 11_542_566_912 + codec_bytes + 2048 * 229_376
    most = {("bfloat16", ""): 12.3e9, ("int8", ""): 6.6e9, ("int4", ""): 4.0e9, ("int8", HALF): 3.4e9}
    for (dtype, half), limit in most.items():
        end = f", {half}" if half else ""
        assert sum(table[dtype][f"{part}'s weights{end}"] for part in ("model", "codec")) <= limit, (dtype, half)
    free = {"no": 2.0e9, "one *": 2.5e9, "one": 4.8e9, "16 at once": 9e9}
    for answer, size in free.items():
        assert fits(table["int4"], size) == answer


@pytest.mark.parametrize("offload_text", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_model_takes_what_inspect_says(tmp_path, dtype, offload_text):
    """Of weights that stay in the file, nothing is counted; prompt and steps are the same without a copy of them."""
    config = replace(SMALL_MODEL, hidden_size=128, intermediate_size=192, num_heads=2, num_kv_heads=1, head_dim=64)
    write_model(tmp_path, model_to_json(config))
    compute, bits = choose_dtype(dtype, torch.device("cpu")), BITS.get(dtype)
    model = HiggsAudio.from_pretrained(tmp_path, dtype=compute, bits=bits, offload_text=offload_text)
    held = 0
    for module in model.modules():
        half = isinstance(module, Offloaded)
        matrices = [module.matrix] if isinstance(module, MatrixLinear | QuantizedEmbedding) else []
        held += sum(tensor.nbytes for matrix in matrices for tensor in matrix)
        held += sum(p.nbytes for p in module.parameters(recurse=half)) * (-1 if half else 1)
    assert held == model_bytes(inspect_checkpoint(tmp_path)[0], dtype, offload_text)


def test_the_cache_takes_what_inspect_says():
    cache = KVCache(SMALL_MODEL, 1, 100, dtype=torch.bfloat16)
    held = sum(layer.nbytes for layer in cache.layers)
    assert cache_bytes(SMALL_MODEL, 100, 2) == held
