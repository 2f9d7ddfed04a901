"""The codec: equal to the original code on its golden numbers, in both layouts; clear about bad input."""

import json
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from safetensors.torch import load_file
from tiny import write_original_codec

from higgs import AudioTokenizer
from higgs.codec.acoustic import AcousticDecoder
from higgs.codec.weights import TRAINING_ONLY
from higgs.config import CodecConfig, ConfigError

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
def test_codes_equal_the_original(codec, numbers, length):
    codes = codec.encode(numbers[f"n{length}.wave"])
    assert torch.equal(codes, numbers[f"n{length}.codes"].long())


@pytest.mark.parametrize("length", (12345, 23040, 24500))
def test_decoded_waveform_equals_the_original(codec, numbers, length):
    waveform = codec.decode(numbers[f"n{length}.codes"].long())
    assert_close(waveform, numbers[f"n{length}.decoded"])


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
    for (name, a), (same, b) in zip(
        codec.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert name == same
        assert (a - b).abs().max() <= 1e-7, name
    for length in LENGTHS:
        assert torch.equal(
            other.encode(numbers[f"n{length}.wave"]), numbers[f"n{length}.codes"].long()
        )


@pytest.mark.parametrize(
    ("samples", "frames"), [(960, 1), (1078, 1), (1079, 2), (1591, 2), (1592, 2), (700, 1)]
)
def test_number_of_frames(codec, samples, frames):
    assert codec.encode(torch.randn(samples) * 0.1).shape == (8, frames)
    assert frames == (samples + 841) // 960


def test_shapes(codec):
    waveform = torch.randn(2, 1, 4800) * 0.1
    codes = codec.encode(waveform)
    assert codes.shape == (2, 8, 5) and codes.dtype == torch.int64
    assert torch.equal(codec.encode(waveform[0, 0]), codes[0])
    assert codec.decode(codes).shape == (2, 1, 4800)
    assert codec.decode(codes[0]).shape == (4800,)
    several = codec.encode([waveform[0, 0], waveform[1, 0, :2880]])
    assert [c.shape for c in several] == [(8, 5), (8, 3)]
    assert [w.shape for w in codec.decode(several)] == [(4800,), (2880,)]
    assert codec.decode(codes[:, :3]).shape == (2, 1, 4800)
    assert codec.encode(torch.randn(1000) * 0.1, pad_to_hop=True).shape == (8, 2)
    assert codec.encode(torch.randn(16_000) * 0.1, sample_rate=16_000).shape == (8, 25)
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (24_000, 960, 25)
    assert (codec.num_codebooks, codec.codebook_size) == (8, 1024)


def test_decoder_reaches_ten_frames_to_each_side():
    torch.manual_seed(0)
    decoder = AcousticDecoder(8, 32, (8, 5, 4, 2, 3)).double()
    z = torch.randn(1, 8, 60, dtype=torch.float64)
    changed = z.clone()
    changed[..., 30] += 1
    with torch.no_grad():
        touched = (decoder(z) != decoder(changed))[0, 0].nonzero()[:, 0]
    assert touched.min() >= 960 * 30 - 9458
    assert touched.max() < 960 * 31 + 9433


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(0), "empty"),
        (torch.full((2000,), float("nan")), "NaN"),
        (torch.zeros(2, 5000), "mono"),
        (torch.zeros(1, 2, 5000), "mono"),
        (torch.zeros(631), "too short"),
    ],
)
def test_bad_audio_is_refused(codec, waveform, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(waveform)


def test_integers_are_refused(codec):
    with pytest.raises(TypeError, match="floating point"):
        codec.encode(torch.zeros(5000, dtype=torch.int16))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(8, 0, dtype=torch.long), "no frame"),
        (torch.full((8, 3), 1024), "0 ... 1023"),
        (torch.zeros(9, 3, dtype=torch.long), "K <= 8"),
    ],
)
def test_bad_codes_are_refused(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes)


def test_released_sizes_on_the_meta_device():
    """The tensors of the release: 602, each loaded or on the list of what only training uses."""
    with torch.device("meta"):
        codec = AudioTokenizer(CodecConfig())
    ours = codec.state_dict()
    folded = sum(
        name.startswith("acoustic_") and name.endswith(".weight") for name in ours
    )  # weight_g and weight_v
    training_only = [
        *(f"decoder_semantic.conv{i}.conv.weight" for i in (1, 2)),
        *(
            f"decoder_semantic.conv_blocks.{b}.conv.conv.{p}"
            for b in (0, 1)
            for p in ("weight", "bias")
        ),
        *(
            f"decoder_semantic.conv_blocks.{b}.res_units.{u}.{c}.weight"
            for b in (0, 1)
            for u in (0, 1)
            for c in ("conv1.conv", "conv2")
        ),
        "fc_post1.weight",
        "fc_post1.bias",
        "semantic_model.masked_spec_embed",
        *(
            f"quantizer.vq.layers.{i}._codebook.{p}"
            for i in range(8)
            for p in ("cluster_size", "embed_avg")
        ),
    ]
    assert all(TRAINING_ONLY.fullmatch(name) for name in training_only)
    inited = 8  # read, and checked to be 1
    assert len(ours) + folded + len(training_only) + inited == 602
    assert ours["acoustic_encoder.blocks.4.down.weight"].shape == (2048, 1024, 6)
    assert ours["acoustic_decoder.blocks.0.up.weight"].shape == (1024, 512, 16)
    assert ours["quantizer.layers.7.embed"].shape == (1024, 64)
    assert ours["fuse.weight"].shape == (1024, 1024) and ours["to_acoustic.weight"].shape == (
        256,
        1024,
    )
    positions = "semantic_encoder.teacher.encoder.pos_conv_embed.conv.parametrizations.weight"
    assert ours[f"{positions}.original0"].shape == (1, 1, 128)
    assert ours[f"{positions}.original1"].shape == (768, 48, 128)


def test_untrained_codebooks_are_refused(golden, tmp_path):
    from safetensors.torch import save_file

    tensors = load_file(golden / "codec" / "model.safetensors")
    tensors["quantizer.quantizers.3.codebook.inited"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden / "codec" / "config.json").read_text())
    with pytest.raises(ValueError, match="never trained"):
        AudioTokenizer.from_pretrained(tmp_path)


def test_missing_and_damaged_tensors_are_named(golden, tmp_path):
    from safetensors.torch import save_file

    tensors = load_file(golden / "codec" / "model.safetensors")
    tensors.pop("fc2.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden / "codec" / "config.json").read_text())
    with pytest.raises(ValueError, match="to_acoustic.bias"):
        AudioTokenizer.from_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not completely downloaded"):
        AudioTokenizer.from_pretrained(tmp_path)


def test_other_configs_are_refused(golden):
    config = json.loads((golden / "codec" / "config.json").read_text())
    with pytest.raises(ConfigError, match="unit_kernel_size"):
        CodecConfig.from_json(config | {"unit_kernel_size": 5})
    with pytest.raises(ConfigError, match="not a Higgs"):
        CodecConfig.from_json({"model_type": "dac"})


def test_saved_codec_loads_again(codec, tmp_path, numbers):
    codec.save_pretrained(tmp_path)
    again = AudioTokenizer.from_pretrained(tmp_path)
    assert again.config == codec.config
    waveform = numbers["n24000.wave"]
    assert torch.equal(again.encode(waveform), codec.encode(waveform))
