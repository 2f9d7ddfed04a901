"""Special tokens by name; ids are looked up by string in a text tokenizer."""

from dataclasses import dataclass, fields
from typing import Protocol

SPECIAL_TOKENS = {
    "begin_of_text": "<|begin_of_text|>", "end_of_text": "<|end_of_text|>", "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>", "end_of_message": "<|eom_id|>", "end_of_turn": "<|eot_id|>",
    "audio_bos": "<|audio_bos|>", "audio_eos": "<|audio_eos|>", "audio_out_bos": "<|audio_out_bos|>",
    "audio_in": "<|AUDIO|>", "audio_out": "<|AUDIO_OUT|>", "recipient": "<|recipient|>",
    "scene_start": "<|scene_desc_start|>", "scene_end": "<|scene_desc_end|>",
    "instruction_start": "<|generation_instruction_start|>", "instruction_end": "<|generation_instruction_end|>",
    "sound_event": "<SE>", "sound_event_close": "</SE>", "sound_start": "<SE_s>", "sound_start_close": "</SE_s>",
    "sound_stop": "<SE_e>", "sound_stop_close": "</SE_e>",
}  # fmt: skip


class TokenLookup(Protocol):
    def token_id(self, token: str) -> int: ...


@dataclass(frozen=True)
class TokenIds:
    """The ids of one text tokenizer that prompts and generation use."""

    begin_of_text: int
    end_of_text: int
    start_header: int
    end_header: int
    end_of_turn: int
    audio_bos: int
    audio_eos: int
    audio_out_bos: int
    audio_in: int
    audio_out: int

    @classmethod
    def of(cls, tokenizer: TokenLookup) -> "TokenIds":
        """Looks every token up by its string; KeyError names one that the tokenizer lacks."""
        names = (field.name for field in fields(cls))
        return cls(**{name: tokenizer.token_id(SPECIAL_TOKENS[name]) for name in names})
