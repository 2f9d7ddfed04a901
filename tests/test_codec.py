"""The codec: equal to the reference implementation on golden numbers, in both layouts; errors of checkpoints."""

import json
import math
import threading
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from safetensors.torch import load_file
from tiny import original_codec_names, write_original_codec

from higgs import AudioTokenizer
from higgs.codec.tokenizer import EXACT
from higgs.codec.weights import convert, to_transformers
from higgs.config import CodecConfig

LENGTHS = (12345, 23040, 24000, 24500, 24959, 25000, 48000)


@pytest.fixture(scope="module")
def codec(golden) -> AudioTokenizer:
    return AudioTokenizer.from_pretrained(golden / "codec")


@pytest.fixture(scope="module")
def numbers(golden) -> dict[str, torch.Tensor]:
    return load_file(golden / "original.safetensors")


@pytest.fixture(scope="module")
def original_folder(golden, tmp_path_factory) -> Path:
    config = json.loads((golden / "original-codec" / "config.json").read_text())
    tensors = load_file(golden / "codec" / "model.safetensors")
    return write_original_codec(tmp_path_factory.mktemp("original-codec"), config, tensors)


@pytest.mark.parametrize("length", LENGTHS)
def test_codes_and_waveforms_equal_the_reference(codec, numbers, length):
    codes = codec.encode(numbers[f"n{length}.wave"])
    assert torch.equal(codes, numbers[f"n{length}.codes"].long())
    if f"n{length}.decoded" in numbers:
        assert_close(codec.decode(codes), numbers[f"n{length}.decoded"])


def test_intermediate_values_equal_the_port(codec, numbers, golden):
    port, waveform = load_file(golden / "port.safetensors"), numbers["n24000.wave"]
    with torch.inference_mode():
        assert_close(codec.semantic_encoder.features(waveform), port["n24000.semantic_features"])
        assert_close(codec.semantic_encoder(waveform), port["n24000.e_semantic"])
        assert_close(codec.acoustic_encoder(waveform), port["n24000.e_acoustic"])
        assert_close(codec.embed(waveform), port["n24000.embedding"])
        quantised = codec.quantizer.decode(codec.encode(waveform))
        assert_close(quantised, port["n24000.quantized"])


def test_both_layouts_load_to_equal_codecs(codec, original_folder, numbers):
    """Weight norm with |v| far from g, so that a forgotten norm shows."""
    other = AudioTokenizer.from_pretrained(original_folder)
    assert other.config == codec.config
    for (name, a), (same, b) in zip(codec.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same
        folded = name.startswith("acoustic_") and name.endswith("weight")
        assert torch.equal(a, b) or (folded and (a - b).abs().max() <= 1e-7), name
    for length in LENGTHS:
        assert torch.equal(other.encode(numbers[f"n{length}.wave"]), numbers[f"n{length}.codes"].long())


def test_shapes(codec):
    waveform = torch.randn(2, 1, 4800) * 0.1
    codes, back = codec.encode(waveform), codec.decode(codec.encode(waveform))
    assert codes.shape == (2, 8, 5) and codes.dtype == torch.int64
    assert torch.equal(codes, torch.stack([codec.encode(waveform[0, 0]), *codec.encode([waveform[1, 0]])]))
    assert back.shape == (2, 1, 4800) and torch.equal(back[:, 0], torch.stack(codec.decode(list(codes))))
    assert codec.encode([]) == [] and codec.decode([]) == []
    several = codec.encode([waveform[0, 0], waveform[1, 0, :2880]])
    assert [c.shape for c in several] == [(8, 5), (8, 3)]
    assert [w.shape for w in codec.decode(several)] == [(4800,), (2880,)]
    assert codec.decode(codes[:, :3]).shape == (2, 1, 4800)
    assert codec.encode(torch.randn(1000) * 0.1, pad_to_hop=True).shape == (8, 2)
    assert codec.encode(torch.randn(16_000) * 0.1, sample_rate=16_000).shape == (8, 25)
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (24_000, 960, 25)
    assert (codec.num_codebooks, codec.codebook_size) == (8, 1024)


def released_shapes(codec: AudioTokenizer) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the release's `model.pth`, made from ours by the test's own table."""
    theirs = to_transformers(codec.state_dict())
    shapes = {}
    for name, original in original_codec_names(theirs).items():
        shape = tuple(theirs[name].shape)
        if original.startswith(("encoder.", "decoder_2.")) and original.endswith(".weight"):
            shapes[f"{original}_g"] = (shape[0], *(1 for _ in shape[1:]))
            shapes[f"{original}_v"] = shape
        else:
            shapes[original] = shape
    width, hidden = codec.config.embedding_dim, codec.config.semantic.hidden_size
    for i in range(8):
        shapes[f"quantizer.vq.layers.{i}._codebook.cluster_size"] = (1024,)
        shapes[f"quantizer.vq.layers.{i}._codebook.embed_avg"] = (1024, 64)
    shapes |= {f"decoder_semantic.conv{i}.conv.weight": (hidden, hidden, 3) for i in (1, 2)}
    for block in ("decoder_semantic.conv_blocks.0", "decoder_semantic.conv_blocks.1"):
        shapes |= {f"{block}.conv.conv.weight": (hidden, hidden, 3), f"{block}.conv.conv.bias": (hidden,)}
        shapes |= {f"{block}.res_units.{unit}.conv1.conv.weight": (hidden, hidden, 3) for unit in (0, 1)}
        shapes |= {f"{block}.res_units.{unit}.conv2.weight": (hidden, hidden, 1) for unit in (0, 1)}
    shapes |= {"fc_post1.weight": (hidden, width), "fc_post1.bias": (hidden,)}
    return shapes | {"semantic_model.masked_spec_embed": (hidden,)}


def test_released_sizes_on_the_meta_device():
    """602 tensors of 201,426,474 elements, each loaded or on the list of what only training uses."""
    with torch.device("meta"):
        codec = AudioTokenizer(CodecConfig())
    shapes = released_shapes(codec)
    assert len(shapes) == 602
    assert sum(math.prod(shape) for shape in shapes.values()) == 201_426_474
    ours, left_out = convert({name: torch.empty(s, device="meta") for name, s in shapes.items()}, num_strides=5)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in codec.state_dict().items()}
    assert len(left_out) == 16 + 2 + 4 + 8 + 2 + 1
    for name, shape in {
        "encoder.block.5.block.4.weight_v": (2048, 1024, 6),
        "encoder.block.7.weight_v": (256, 2048, 3),
        "decoder_2.model.1.block.1.weight_g": (1024, 1, 1),
        "decoder_2.model.5.block.4.block.1.weight_v": (32, 32, 7),
        "semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1": (768, 48, 128),
        "encoder_semantic.conv_blocks.1.res_units.0.conv1.conv.weight": (768, 768, 3),
        "encoder_semantic.conv_blocks.0.conv.conv.bias": (768,),
        "quantizer.vq.layers.7._codebook.embed": (1024, 64),
        "fc_prior.weight": (1024, 1024),
        "fc_post2.weight": (256, 1024),
    }.items():
        assert shapes[name] == shape


def test_exact_convolutions_end_with_the_last_of_several_threads():
    """The flags are the process's: a decode that ends must not take them from another one."""

    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32

    before, inside, ended = flags(), threading.Event(), threading.Event()

    def decode() -> None:
        with EXACT:
            inside.set()
            ended.wait(10)

    with EXACT:
        thread = threading.Thread(target=decode)
        thread.start()
        inside.wait(10)
    assert flags() == (True, False)
    ended.set()
    thread.join()
    assert flags() == before
