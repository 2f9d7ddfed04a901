"""The same weights in the port that lives in transformers: other sizes, another seed, computed here and now."""

import pytest
import torch
from conftest import assert_close
from tiny import noise, write_model
from transformers import HiggsAudioV2Config, HiggsAudioV2TokenizerConfig
from transformers import HiggsAudioV2ForConditionalGeneration as PortModel
from transformers import HiggsAudioV2TokenizerModel as PortCodec

from higgs import AudioTokenizer, HiggsAudio
from higgs.batch import Batch
from higgs.checkpoint.config_json import codec_to_json, model_to_json
from higgs.config import CodecConfig, ModelConfig, RopeConfig, SamplingConfig, SemanticConfig
from higgs.data.chatml import Tokens
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.serve.reference.loop import generate
from higgs.tokens import TokenIds

CONFIG = ModelConfig(
    vocab_size=384, hidden_size=128, intermediate_size=160, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32,
    rope=RopeConfig(theta=10_000.0, factor=8.0, low_factor=1.0, high_factor=4.0, original_context=256),
)  # fmt: skip
IDS = TokenIds(256, 257, 258, 259, 260, 261, 262, 263, 264, 265)
CODEC = CodecConfig(
    encoder_width=4, decoder_width=96, acoustic_dim=24, codebook_dim=12,
    semantic=SemanticConfig(hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, conv_dim=24),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    extra = {
        "pad_token_id": IDS.end_of_text, "audio_token_id": IDS.audio_out, "audio_delay_token_id": 300,
        "audio_bos_token_id": IDS.audio_out_bos, "eos_token_id": IDS.end_of_turn, "bos_token_id": 256,
    }  # fmt: skip
    return write_model(tmp_path_factory.mktemp("port"), model_to_json(CONFIG) | extra, seed=11)


@pytest.fixture(scope="module")
def pair(folder):
    config = HiggsAudioV2Config.from_pretrained(folder)
    port = PortModel.from_pretrained(folder, config=config, use_text_head=True)
    return HiggsAudio.from_pretrained(folder), port.eval()


def conversation() -> Batch:
    """Text, a reference, text, a second reference: 7 and 4 frames."""
    generator = torch.Generator().manual_seed(3)
    codes = [torch.randint(0, 1024, (8, frames), generator=generator) for frames in (7, 4)]
    input_ids = [256, 5, 6, 7, IDS.audio_out_bos, IDS.audio_out, IDS.audio_eos, 9, 10, IDS.audio_out_bos, IDS.audio_out]
    input_ids += [IDS.audio_eos, 260, 17]
    features = expand_audio_placeholders(Tokens(input_ids, input_ids), codes, IDS, CONFIG, True)
    return collate([features], IDS, labels=True)


@torch.inference_mode()
def test_logits_equal_the_port(pair):
    ours, port = pair
    batch = conversation()
    output = ours(batch)
    theirs = port(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        audio_input_ids=batch.codes[batch.audio_mask][None],
        audio_input_ids_mask=torch.ones(1, int(batch.audio_mask.sum()), dtype=torch.bool),
        output_hidden_states=True,
    )
    mask = batch.audio_out_mask
    expected = theirs.logits.view(*mask.shape, 8, 1026)[mask]
    assert_close(output.audio_logits[mask], expected)
    assert_close(output.text_logits, port.text_lm_head(theirs.hidden_states[-1]))
    for ours_state, port_state in zip(output.hidden_states, theirs.hidden_states, strict=True):
        assert_close(ours_state, port_state)


@torch.inference_mode()
def test_greedy_codes_equal_the_port_until_the_end_of_stream(pair):
    """The two differ in how a segment ends; before that, every code must be the same."""
    ours, port = pair
    text = [256, *range(40, 60), IDS.audio_out_bos]  # the port looks back eight tokens: shorter ones misplace its delay
    prompt = collate([expand_audio_placeholders(Tokens(text, [-100] * len(text)), [], IDS, CONFIG, False)], IDS)
    made = generate(ours, prompt, IDS, SamplingConfig(temperature=0, ras_window=None), 40, (IDS.audio_eos,))
    inputs = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask.long()}
    theirs = port.generate(**inputs, do_sample=False, max_new_tokens=40)
    columns = (theirs if isinstance(theirs, torch.Tensor) else theirs.audio_sequences)[0].T
    delayed = made.segments[0].delayed
    ends = (delayed == 1025).any(0).nonzero()
    same = min(int(ends[0]) if len(ends) else delayed.shape[1], columns.shape[1], delayed.shape[1])
    assert same > 8
    assert torch.equal(delayed[:, :same], columns[:, :same])


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """The port's codec with our random weights, saved by it and read by us."""
    folder = tmp_path_factory.mktemp("port-codec")
    port = PortCodec(HiggsAudioV2TokenizerConfig(**codec_to_json(CODEC)))
    with torch.no_grad():
        for name, tensor in port.state_dict().items():
            draw = noise(name, tensor.shape, seed=5)
            if name.endswith("inited"):
                tensor.fill_(1)
            elif name.endswith("alpha"):
                tensor.copy_(1 + 0.3 * draw.tanh())
            elif tensor.dim() < 2:
                tensor.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.05 * draw)
            else:
                fan = tensor[0].numel() if "conv_t1" not in name else tensor.shape[0] * 2
                tensor.copy_(draw * (0.5 if "res_unit" in name else 1.0) / fan**0.5)
    port.eval().save_pretrained(folder)
    return AudioTokenizer.from_pretrained(folder), port


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 2, 13, 50])
def test_codec_equals_the_port(codecs, frames):
    ours, port = codecs
    generator = torch.Generator().manual_seed(frames)
    waveform = 0.2 * torch.randn(1, 1, frames * 960, generator=generator)
    expected = port.encode(waveform).audio_codes
    codes = ours.encode(waveform)
    assert torch.equal(codes, expected)
    assert len(codes.unique()) > 4
    assert_close(ours.decode(codes), port.decode(expected).audio_values)


def test_our_checkpoints_load_in_the_port(nano):
    """Every tensor that transformers needs for running is there; what only training uses may be missing."""
    _, info = PortModel.from_pretrained(nano / "model", output_loading_info=True, use_text_head=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    _, info = PortCodec.from_pretrained(nano / "codec", output_loading_info=True)
    training_only = ("decoder_semantic", "fc1", "cluster_size", "embed_avg")
    assert not [key for key in info["missing_keys"] if not any(part in key for part in training_only)]
    assert not info["unexpected_keys"]
