"""The generation model: equal to the reference implementation and to the port on golden numbers, in both layouts."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from safetensors.torch import load_file
from tiny import original_model_name, prompt_batch, random_weights, write_original_model

from higgs import HiggsAudio
from higgs.batch import Batch
from higgs.checkpoint.config_json import model_from_json
from higgs.config import ModelConfig, RopeConfig
from higgs.model.kv_cache import KVCache
from higgs.model.llama import rope_frequencies
from higgs.model.weights import convert, to_transformers


@pytest.mark.parametrize("name", ["smart_voice", "clone", "multi_scene", "batch2"])
def test_logits_equal_the_port_and_the_reference(model, prompts, golden, name):
    port, reference = (load_file(golden / f"{code}.safetensors") for code in ("port", "original"))
    batch = prompt_batch(prompts, name)
    output = model(batch)
    expected = port[f"{name}.logits"]
    assert_close(model.audio_head(output.hidden_states[-1][:, -expected.shape[1] :]), expected)
    if f"{name}.text_logits_last" in reference:
        assert_close(output.text_logits[:, -4:], reference[f"{name}.text_logits_last"])
    if f"{name}.audio_logits_last" in reference:
        assert_close(output.audio_logits[batch.audio_out_mask][-4:], reference[f"{name}.audio_logits_last"])
    assert output.audio_logits.shape == (*batch.input_ids.shape, 8, 1026)
    assert (output.audio_logits[~batch.audio_out_mask] == 0).all()
    assert (output.audio_logits[batch.audio_out_mask] != 0).any(-1).all()


def test_hidden_states_and_text_logits_equal_the_port(model, prompts, golden):
    port = load_file(golden / "port.safetensors")
    output = model(prompt_batch(prompts, "clone"))
    for index, state in enumerate(output.hidden_states):
        expected = port[f"clone.hidden.{index}"]
        assert_close(state[:, -expected.shape[1] :], expected)
    assert_close(output.text_logits[:, -20:], port["clone.text_logits"])


def test_loss_under_the_port_s_labels(model, prompts, golden):
    expected = load_file(golden / "port.safetensors")["train.loss_audio_only"]
    output = model(prompt_batch(prompts, "train", labels=True))
    assert_close(output.codebook_losses.sum()[None], expected)


def test_text_without_audio_has_a_loss(model, prompts):
    batch = prompt_batch(prompts, "smart_voice")
    batch.labels, batch.code_labels = batch.input_ids.clone(), torch.full_like(batch.codes, -100)
    output = model(batch)
    assert output.loss.isfinite() and (output.codebook_losses == 0).all()
    assert_close(output.loss, output.text_loss)


def test_both_layouts_load_to_equal_models(model, golden, config, tmp_path):
    original = json.loads((golden / "original-gen" / "config.json").read_text())
    tensors = random_weights(model_from_json(config))
    other = HiggsAudio.from_pretrained(write_original_model(tmp_path, original, tensors))
    # The rope of one schema is the other's with all lengths divided by eight.
    ropes = [rope_frequencies(m.config.rope, 16, torch.device("cpu")) for m in (model, other)]
    assert torch.equal(*ropes)
    assert replace(other.config, rope=model.config.rope) == model.config
    for (name, a), (same, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same and torch.equal(a, b)


def test_released_sizes_on_the_meta_device():
    with torch.device("meta"):
        model = HiggsAudio(ModelConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 397
    assert sum(p.numel() for p in model.parameters()) == 5_771_283_456
    names = {original_model_name(n): n for n in to_transformers(model.state_dict())}
    expected = {
        "embed_tokens.weight": (128256, 3072),
        "norm.weight": (3072,),
        "audio_codebook_embeddings.weight": (8208, 3072),
        "audio_decoder_proj.text_lm_head.weight": (128256, 3072),
        "audio_decoder_proj.audio_lm_head.weight": (8208, 3072),
    }
    for layer in range(28):
        top = f"layers.{layer}"
        for projection, rows in (("q_proj", 3072), ("k_proj", 1024), ("v_proj", 1024), ("o_proj", 3072)):
            expected[f"{top}.self_attn.{projection}.weight"] = (rows, 3072)
        for mlp in ("mlp", "audio_mlp"):
            expected[f"{top}.{mlp}.gate_proj.weight"] = (8192, 3072)
            expected[f"{top}.{mlp}.up_proj.weight"] = (8192, 3072)
            expected[f"{top}.{mlp}.down_proj.weight"] = (3072, 8192)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{top}.{norm}.weight"] = expected[f"{top}.audio_{norm}.weight"] = (3072,)
    assert set(names) == set(expected)
    loaded = convert({name: torch.empty(shape, device="meta") for name, shape in expected.items()})
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == shapes


def test_prefill_and_steps_equal_one_forward(model, prompts):
    batch = prompt_batch(prompts, "multi_scene")
    with torch.inference_mode():
        whole, _ = model.hidden(batch)
        length, start = batch.input_ids.shape[1], 100
        cache = KVCache(model.config, 1, length)
        head = Batch(**{k: v if v is None else v[:, :start] for k, v in vars(batch).items()})
        last = model.prefill(head, cache)
        assert_close(last, whole[:, start - 1])
        for position in range(start, length):
            audio = bool(batch.audio_mask[0, position])
            one = slice(position, position + 1)
            x = model.embed_codes(batch.codes[:, one]) if audio else model.text_embedding(batch.input_ids[:, one])
            assert_close(model.decode_step(x, audio, cache), whole[:, position])
    with pytest.raises(ValueError, match="cache holds"):
        model.decode_step(x, audio, cache)


def test_padding_changes_nothing(model, prompts):
    short, long = prompt_batch(prompts, "smart_voice"), prompt_batch(prompts, "clone")
    extra = long.input_ids.shape[1] - short.input_ids.shape[1]

    def pad(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value, value.new_zeros(1, extra, *value.shape[2:])], dim=1)

    fields = ("input_ids", "codes", "audio_mask", "audio_out_mask", "attention_mask")
    together = Batch(*(torch.cat([pad(getattr(short, f)), getattr(long, f)]) for f in fields))
    hidden, _ = model.hidden(together)
    assert_close(hidden[:1, : short.input_ids.shape[1]], model.hidden(short)[0])
    assert_close(hidden[1:], model.hidden(long)[0])


def test_rope_frequencies():
    """Values of the release: head dim 128, theta 500,000, Llama-3 scaling by 32."""
    f = rope_frequencies(RopeConfig(), 128, torch.device("cpu"))
    for index, value in {
        0: 1.0, 1: 0.8146172, 28: 3.211446e-3, 29: 2.118407e-3, 30: 1.290548e-3,
        34: 9.708288e-5, 35: 2.389053e-5, 63: 7.672315e-8,
    }.items():  # fmt: skip
        assert f[index].item() == pytest.approx(value, rel=1e-6)
    scaled = RopeConfig(low_factor=0.125, high_factor=0.5, original_context=1024)
    assert torch.equal(f, rope_frequencies(scaled, 128, torch.device("cpu")))
