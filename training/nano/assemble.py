"""Assembles a checkpoint from the results of the training jobs. `python -m training.nano.assemble --help`."""

import argparse
import json
from pathlib import Path

from higgs.checkpoint.tensors import GENERATION_CONFIG
from higgs.data.text.lexicon import Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.files import replacing
from higgs.model.higgs_audio import HiggsAudio
from higgs.tokens import TokenIds
from training.nano.byte_tokenizer import save_byte_tokenizer
from training.nano.codec import trained_codec
from training.nano.job import check_parts, read_part
from training.nano.mel_autoencoder import trained_autoencoder
from training.nano.sizes import NANO_CODEC, NANO_GENERATION, NANO_MODEL, NANO_PHRASES


def save_model(folder: Path, target: Path, part: str = "cloning") -> None:
    """The model of `folder/PART.pt`, its text tokenizer, generation_config.json.

    Token ids are in the config as transformers reads them.
    """
    model = HiggsAudio(NANO_MODEL)
    model.load_state_dict(read_part(folder, part, "model"))
    target.mkdir(parents=True, exist_ok=True)
    save_byte_tokenizer(target, NANO_PHRASES, Lexicon.read(folder))
    ids = TokenIds.of(TextTokenizer.from_pretrained(target))
    names = {
        "bos_token_id": ids.begin_of_text,
        "eos_token_id": ids.end_of_turn,
        "pad_token_id": ids.end_of_text,
        "audio_token_id": ids.audio_out,
        "audio_bos_token_id": ids.audio_out_bos,
        # transformers marks the last delayed frames of a prompt's audio with a token of their own; ours has none.
        "audio_delay_token_id": ids.audio_in,
    }
    model.save_pretrained(target, names, half=True)
    with replacing(target / GENERATION_CONFIG) as partial:
        partial.write_text(json.dumps(NANO_GENERATION, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=Path, default=Path("training/out"))
    parser.add_argument("--out", type=Path, default=Path("training/out/nano"))
    arguments = parser.parse_args()
    check_parts(arguments.parts, ("quantizer", "encoder", "finished_decoder", "cloning"))
    autoencoder = trained_autoencoder(arguments.parts, NANO_CODEC)
    codec = trained_codec(autoencoder, arguments.parts, NANO_CODEC, "finished_decoder")
    codec.save_pretrained(arguments.out / "codec", half=True)
    save_model(arguments.parts, arguments.out / "model")


if __name__ == "__main__":
    main()
