"""`python -m higgs speak | voices`: speech from the command line."""

import argparse
import sys
from pathlib import Path

VOICES = Path("data/voices")
DEFAULT_VOICE = "ada"


def speak(arguments: argparse.Namespace) -> None:
    """Speaks a text into a file, with progress on the terminal."""
    from tqdm import tqdm

    from higgs import Engine, SamplingConfig
    from higgs.audio import check_writable, save_audio
    from higgs.data.chatml import AudioContent, voice_clone
    from higgs.data.voices import find_voice
    from higgs.params import Checkpoint

    check_writable(arguments.out)
    if not arguments.text.strip():
        raise ValueError("there is no text to speak")
    if (arguments.reference is None) != (arguments.reference_text is None):
        raise ValueError("--reference and --reference-text go together")
    checkpoint = Checkpoint.parse(arguments.checkpoint)
    if arguments.reference:
        reference = AudioContent(arguments.reference)
        sample = voice_clone(arguments.text, arguments.reference_text, reference, arguments.scene)
    else:
        sample = find_voice(arguments.voices, arguments.voice).prompt(
            arguments.text, arguments.scene
        )
    sampling = SamplingConfig(
        arguments.temperature, arguments.top_k, arguments.top_p, seed=arguments.seed
    )
    engine = Engine.from_pretrained(
        checkpoint.model, checkpoint.codec, device=checkpoint.device, dtype=checkpoint.dtype
    )
    with tqdm(unit="frame", disable=not sys.stderr.isatty()) as bar:
        response = engine.generate(
            sample, sampling, arguments.max_new_tokens, on_column=lambda _: bar.update()
        )
    if not len(response.waveform):
        raise ValueError("the model ended its turn without a frame of audio; try another --seed")
    save_audio(arguments.out, response.waveform, response.sample_rate)
    seconds = len(response.waveform) / response.sample_rate
    print(f"{arguments.out}: {seconds:.2f} s, stopped by {response.stop_reason}")


def voices(arguments: argparse.Namespace) -> None:
    """Lists the voices of the folder."""
    from higgs.data.voices import list_voices

    for voice in list_voices(arguments.voices).values():
        kind = (
            f"described: {voice.description}" if voice.description else f"recording: {voice.audio}"
        )
        print(f"{voice.name:12} {kind}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m higgs", description="Higgs Audio V2, text to speech."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    say = commands.add_parser(
        "speak", help="speak a text into an audio file", description=speak.__doc__
    )
    say.add_argument("text", help="what to say")
    say.add_argument(
        "--voice", default=DEFAULT_VOICE, help="a name that `voices` lists (default: %(default)s)"
    )
    say.add_argument(
        "--reference", metavar="FILE", help="imitate the voice of this recording instead"
    )
    say.add_argument("--reference-text", metavar="TEXT", help="what is said in that recording")
    say.add_argument("--scene", help="a description of the scene, as the model knows them")
    say.add_argument(
        "--checkpoint",
        default="nano",
        help="nano, organisation/name@revision, or a folder with model/ and codec/ (default: %(default)s)",
    )
    say.add_argument("--out", type=Path, required=True, metavar="FILE", help=".wav, .flac, ...")
    say.add_argument(
        "--temperature", type=float, default=0.4, help="0 is greedy (default: %(default)s)"
    )
    say.add_argument("--top-k", type=int, default=20, help="default: %(default)s")
    say.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    say.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    say.add_argument(
        "--max-new-tokens", type=int, default=500, help="25 are a second (default: %(default)s)"
    )
    say.set_defaults(run=speak)
    listing = commands.add_parser("voices", help="list the voices", description=voices.__doc__)
    listing.set_defaults(run=voices)
    for command in (say, listing):
        command.add_argument(
            "--voices", type=Path, default=VOICES, help="voice folder (default: %(default)s)"
        )
    return top


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (ValueError, OSError, KeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
