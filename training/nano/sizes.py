"""The sizes of higgs-nano, the default checkpoint: the release's architecture, small enough to travel with the code.

And its generation config: short sentences, each in the prompt of its own speaker and without those before.
"""

from higgs.config import CodecConfig, ModelConfig, SemanticConfig
from higgs.data.chatml import GENERATE, MULTI_SPEAKER, QUIET_ROOM, ROLES

NANO_CODEC = CodecConfig(
    encoder_width=12,
    decoder_width=256,
    acoustic_dim=64,
    codebook_dim=32,
    semantic=SemanticConfig(hidden_size=128, intermediate_size=384, num_layers=2, num_heads=4, conv_dim=96),
)

NANO_MODEL = ModelConfig(
    vocab_size=352, hidden_size=192, intermediate_size=448, num_layers=6, num_heads=3, num_kv_heads=3, head_dim=64
)

# What every prompt repeats: one token each in the byte-level text tokenizer.
NANO_PHRASES = (
    *(GENERATE, MULTI_SPEAKER, QUIET_ROOM, *ROLES, "\n\n"),
    *(f"SPEAKER{n}: {kind}" for n in (0, 1) for kind in ("feminine", "masculine", "childlike")),
    *(f"[SPEAKER{n}] " for n in (0, 1)),
)

NANO_GENERATION = {
    "do_sample": True,
    "temperature": 0.2,
    "top_k": 20,
    "top_p": 1.0,
    "ras_window": 7,
    "ras_max_repeats": 2,
    "strict_eos": True,
    "chunking": {"max_words": 14, "context_chunks": 0, "per_speaker_context": True},
}
