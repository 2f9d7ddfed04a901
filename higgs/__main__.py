"""`python -m higgs speak | serve | voices | inspect`: speech from the command line."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from higgs.serve.command import add_options

VOICES = Path("data/voices")
VOICES_HELP = "voice folder (default: data/voices)"
DEFAULT_VOICE = "ada"
ONE_SENTENCE = {"max_words": 14, "context_chunks": 0, "alone": True}
CHUNKS = {
    "nano": ONE_SENTENCE
}  # what a checkpoint was trained on, where that is less than long talks
# The options of long texts: those of `higgs.data.text.chunks.ChunkOptions`.
LONG_TEXT = {
    "max_words": (int, "the most words of a chunk; a text of no more is spoken in one go"),
    "context_chunks": (int, "how many earlier chunks a chunk hears"),
    "alone": (bool, "the prompt of a chunk of a dialogue holds its own speaker only"),
    "retries": (int, "how often a chunk without audio, or one that is cut off, is spoken again"),
    "sentence_pause": (float, "seconds of silence between chunks"),
    "paragraph_pause": (float, "the same between paragraphs"),
    "speaker_pause": (float, "the same between speakers"),
}
PLAYERS = (
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("paplay",),
    ("aplay", "-q"),
    ("afplay",),
    ("play", "-q"),
)


def speak(arguments: argparse.Namespace) -> None:
    """Speaks a text into a file; a text of more than --max-words words in chunks that end with sentences."""
    from tqdm import tqdm

    from higgs import Engine, SamplingConfig
    from higgs.audio import check_writable, save_audio
    from higgs.checkpoint.preset import Checkpoint
    from higgs.data.text.chunks import ChunkOptions, chunk_script, count_words
    from higgs.files import check_place
    from higgs.serve.long_form import SilentChunk, speak_long
    from higgs.validation import validate

    check_writable(arguments.out)
    checkpoint = Checkpoint.parse(arguments.checkpoint)
    text = text_to_speak(arguments)
    given = {name: getattr(arguments, name) for name in LONG_TEXT}
    given = {name: value for name, value in given.items() if value is not None}
    options = validate(ChunkOptions, CHUNKS.get(checkpoint.name, {}) | given, "")
    prompt = prompt_maker(arguments, text, options.alone and not arguments.one_go)
    split = count_words(text) > options.max_words or (arguments.speaker and options.alone)
    in_chunks = split and not arguments.one_go
    chunks = chunk_script(text, options) if in_chunks else []
    # Before the checkpoint is read, whatever is wrong with the text or the place.
    samples = [prompt(chunk.text) for chunk in chunks] or [prompt(text)]
    check_place(arguments.out)
    sampling = SamplingConfig(
        arguments.temperature, arguments.top_k, arguments.top_p, seed=arguments.seed
    )
    engine = Engine.from_pretrained(
        checkpoint.model, checkpoint.codec, device=checkpoint.device, dtype=checkpoint.dtype
    )
    quiet, limit = not sys.stderr.isatty(), arguments.max_new_tokens
    with tqdm(unit="chunk" if chunks else "frame", total=len(chunks) or None, disable=quiet) as bar:
        if chunks:
            try:
                response = speak_long(
                    engine, chunks, prompt, sampling, options, limit, lambda *_: bar.update()
                )
            except SilentChunk as error:
                keep_what_came_before(error, arguments.out)
                raise
        else:
            response = engine.generate(
                samples[0], sampling, limit, on_column=lambda _: bar.update()
            )
    if not len(response.waveform):
        raise ValueError("the model ended its turn without a frame of audio; try another --seed")
    save_audio(arguments.out, response.waveform, response.sample_rate)
    rate = response.sample_rate
    for row in response.rows(arguments.out.name) if chunks else ():
        where = f"{row['start'] / rate:7.2f} to {row['end'] / rate:7.2f} s"
        print(f"{where}  seed {row['seed']:<10}  {row['stop']:6}  {row['text']}")
    seconds = len(response.waveform) / rate
    print(f"{arguments.out}: {seconds:.2f} s, stopped by {response.stop_reason}")


def keep_what_came_before(error: Any, out: Path) -> None:
    """The chunks before the one that stayed silent go into a file of their own: they may have taken hours."""
    from higgs.audio import save_audio

    if error.before is not None:
        path = out.with_stem(f"{out.stem}.before")
        save_audio(path, error.before.waveform, error.before.sample_rate)
        error.add_note(f"what came before it is in {path}")


def text_to_speak(arguments: argparse.Namespace) -> str:
    """The text of the command line or of --file, its figures in words where that is asked for."""
    from higgs.data.text.checks import check_text
    from higgs.data.text.numbers import spell_out
    from higgs.files import read_text

    if (arguments.text is None) == (arguments.file is None):
        raise ValueError("give a text or --file, one of them")
    text = arguments.text
    if arguments.file is not None:
        text = read_text(arguments.file)
    check_text(text)
    return spell_out(text) if arguments.normalize and not arguments.keep_figures else text


def prompt_maker(arguments: argparse.Namespace, text: str, alone: bool) -> Callable:
    """What makes a conversation of each chunk: the voice, the reference or the speakers, and the scene."""
    from higgs.audio import probe
    from higgs.data.text.chunks import speaker_turns
    from higgs.data.text.normalize import normalize_prompt
    from higgs.data.voices import Voice, cast_prompt, find_voice, list_voices, speaker_prompt

    turns = speaker_turns(text)
    if (arguments.reference is None) != (not (arguments.reference_text or "").strip()):
        raise ValueError(
            "--reference and --reference-text go together: the recording and its words"
        )
    if bool(turns) != bool(arguments.speaker):
        raise ValueError(
            "[SPEAKERn] tags in the text and --speaker go together, as in --speaker 0=ada --speaker 1=ben; "
            f"voices are: {', '.join(list_voices(arguments.voices))}"
        )
    if turns:
        cast = {}
        for pair in arguments.speaker:
            number, _, name = pair.partition("=")
            if not number.isdigit() or not name:
                raise ValueError(f"--speaker takes NUMBER=VOICE, got {pair!r}")
            if int(number) in cast:
                raise ValueError(
                    f"--speaker {int(number)} is given twice; each speaker has one voice"
                )
            cast[int(number)] = find_voice(arguments.voices, name)
        form = speaker_prompt if alone else cast_prompt
        prompt = partial(form, cast, scene=arguments.scene)
    else:
        if arguments.reference is not None:
            probe(arguments.reference)  # an error now, not when the checkpoint is loaded
            voice = Voice("reference", arguments.reference, arguments.reference_text)
        else:
            voice = find_voice(arguments.voices, arguments.voice)
        prompt = partial(voice.prompt, scene=arguments.scene)
    return (lambda said: normalize_prompt(prompt(said))) if arguments.normalize else prompt


def voices_list(arguments: argparse.Namespace) -> None:
    """Lists the voices of the folder."""
    from higgs.audio import probe
    from higgs.data.voices import list_voices

    for voice in list_voices(arguments.voices).values():
        kinds = [f"described: {voice.description}"] if voice.description else []
        if voice.audio is not None:
            try:
                length = f"{probe(voice.audio)[2]:.1f} s"
            except (ValueError, OSError) as error:  # the others are listed all the same
                length = f"cannot be read: {error}"
            kinds.insert(0, f"recording: {voice.audio} ({length})")
        print(f"{voice.name:12} {'; '.join(kinds)}")


def voices_add(arguments: argparse.Namespace) -> None:
    """Adds a recording and its transcript as a voice: mono, 24 kHz, FLAC. Ask the one who speaks."""
    from higgs.data.voices import add_voice

    voice, findings = add_voice(
        arguments.voices, arguments.name, arguments.file, arguments.text, arguments.force
    )
    for finding in findings:
        print(f"{voice.name}: warning: {finding.message}")
    print(f"{voice.audio}: `python -m higgs voices check {voice.name}` also hears what is said")


def voices_play(arguments: argparse.Namespace) -> None:
    """Plays the recording of a voice, with whatever player the system has."""
    import shutil
    import subprocess
    import tempfile

    from higgs.audio import load_audio, save_audio
    from higgs.data.voices import find_voice

    voice = find_voice(arguments.voices, arguments.name)
    if voice.audio is None:
        raise ValueError(f"{voice.name} is a description ({voice.description}): nothing to play")
    player = next((command for command in PLAYERS if shutil.which(command[0])), None)
    if player is None:
        print(f"{voice.audio}: no player here ({', '.join(p[0] for p in PLAYERS)}); open this file")
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{voice.name}.wav"  # every player reads it
        save_audio(copy, *load_audio(voice.audio))
        if subprocess.run([*player, str(copy)]).returncode:
            raise ValueError(f"{player[0]} could not play {voice.audio}")
    print(voice.audio)


def voices_check(arguments: argparse.Namespace) -> None:
    """Checks recordings: length, sample rate, level, silence, clipping, and the transcript against a recogniser."""
    from higgs.data.voices import check_recording, find_voice, list_voices

    folder = arguments.voices
    chosen = (
        [find_voice(folder, arguments.name)] if arguments.name else list_voices(folder).values()
    )
    recorded = [voice for voice in chosen if voice.audio is not None]
    if not recorded:
        what = (
            f"{arguments.name} is a description" if arguments.name else f"no recording in {folder}"
        )
        raise ValueError(f"{what}: nothing to check")
    from higgs.evaluate.transcripts import misheard, recogniser

    judge = recogniser()
    unfit = 0
    for voice in recorded:
        findings = check_recording(voice.audio, voice.transcript)
        unfit += any(finding.fatal for finding in findings)
        said = [f"{'error' if f.fatal else 'warning'}: {f.message}" for f in findings]
        if judge is not None and not any(finding.fatal for finding in findings):
            said += misheard(judge, voice)
        print("\n".join(f"{voice.name}: {line}" for line in said or ["as it should be"]))
    if unfit:
        raise ValueError(f"{unfit} of {len(recorded)} recordings cannot serve as a reference")


def inspect(arguments: argparse.Namespace) -> None:
    """Prints what a checkpoint holds, what it lacks, and the memory it needs, without loading it."""
    from higgs.inspection import inspect_checkpoint, to_json, to_text

    reports = [r for source in arguments.checkpoints for r in inspect_checkpoint(source)]
    print(json.dumps(to_json(reports), indent=2) if arguments.json else to_text(reports))
    if problems := sum(len(report.problems) for report in reports):
        raise ValueError(f"{problems} problems: this checkpoint does not load")


def compare(arguments: argparse.Namespace) -> None:
    """Compares two runs text by text: differences with intervals, tests, and a page."""
    from higgs.evaluate.report.compare_page import start

    print(start(arguments))


def serve(arguments: argparse.Namespace) -> None:
    """Serves speech over HTTP, in the form of OpenAI's interface."""
    from higgs.serve.command import start

    start(arguments)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m higgs", description="Higgs Audio V2, text to speech."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    say = commands.add_parser(
        "speak", help="speak a text into an audio file", description=speak.__doc__
    )
    say.add_argument(
        "text", nargs="?", help="what to say; [SPEAKER0] ... [SPEAKER1] ... for several speakers"
    )
    say.add_argument(
        "--file", type=Path, metavar="FILE", help="read the text from this file instead"
    )
    say.add_argument(
        "--voice", default=DEFAULT_VOICE, help="a name that `voices` lists (default: %(default)s)"
    )
    say.add_argument(
        "--reference", metavar="FILE", help="imitate the voice of this recording instead"
    )
    say.add_argument("--reference-text", metavar="TEXT", help="what is said in that recording")
    say.add_argument(
        "--speaker",
        action="append",
        metavar="NUMBER=VOICE",
        help="the voice of [SPEAKERn]; once for each",
    )
    say.add_argument("--scene", help="a description of the scene, as the model knows them")
    say.add_argument(
        "--checkpoint",
        default="nano",
        help="nano, organisation/name@revision, or a folder or s3:// prefix with model/ and codec/ "
        "(default: %(default)s)",
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
    long_text_arguments(say)
    say.set_defaults(run=speak)
    look = commands.add_parser(
        "inspect", help="what a checkpoint holds, and what it needs", description=inspect.__doc__
    )
    look.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="nano, a folder, organisation/name@revision or s3://bucket/prefix",
    )
    look.add_argument("--json", action="store_true", help="for programs")
    look.set_defaults(run=inspect)
    say.add_argument("--voices", type=Path, default=VOICES, help=VOICES_HELP)
    compare_parser(commands)
    voices_parser(commands)
    server_parser(commands)
    return top


def compare_parser(commands: argparse._SubParsersAction) -> None:
    where = "a folder with utterances.parquet, a Git revision, an experiment, or `workspace`"
    pair = commands.add_parser(
        "compare", help="whether two runs differ by more than chance", description=compare.__doc__
    )
    pair.add_argument("a", metavar="A", help=where)
    pair.add_argument("b", metavar="B", help=where)
    for name, default, what in (
        ("--group", "generated", "which utterances"),
        ("--cluster", "script", "what is drawn again: script, speaker or voice"),
        ("--resamples", 10_000, "of texts"),
        ("--seed", 0, "of the resampling"),
        ("--out", Path("reports/compare.html"), "the page"),
    ):
        kind = Path if isinstance(default, Path) else type(default)
        pair.add_argument(name, type=kind, default=default, help=f"{what} (default: %(default)s)")
    pair.set_defaults(run=compare)


def server_parser(commands: argparse._SubParsersAction) -> None:
    server = commands.add_parser(
        "serve", help="speech over HTTP, as OpenAI's interface has it", description=serve.__doc__
    )
    add_options(server, VOICES)
    server.set_defaults(run=serve)


def long_text_arguments(say: argparse.ArgumentParser) -> None:
    from higgs.data.text.chunks import ChunkOptions

    clean = say.add_argument_group("clean-up")
    clean.add_argument(
        "--normalize",
        action="store_true",
        help="clean the text up as the original does ([laugh], [music start] and others become sound events), "
        "and write numbers, dates, times, money and units in words, in English and Chinese",
    )
    clean.add_argument(
        "--keep-figures", action="store_true", help="with --normalize: leave numbers as they are"
    )
    group = say.add_argument_group(
        "long texts",
        "They are spoken in chunks, which end with sentences, and with pauses between.",
    )
    group.add_argument("--one-go", action="store_true", help="no chunks, however long the text is")
    for name, (kind, what) in LONG_TEXT.items():
        default = getattr(ChunkOptions(), name)
        if name in ONE_SENTENCE:
            default = f"{ONE_SENTENCE[name]} for nano, else {default}"
        how = (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": kind, "metavar": "N"}
        )
        group.add_argument(
            f"--{name.replace('_', '-')}", default=None, help=f"{what} (default: {default})", **how
        )


def voices_parser(commands: argparse._SubParsersAction) -> None:
    """`voices` alone lists them; the folder may be named before or behind the action."""
    shelf = commands.add_parser("voices", help="list, add, play and check voices")
    shelf.add_argument("--voices", type=Path, default=VOICES, help=VOICES_HELP)
    shelf.set_defaults(run=voices_list)
    actions = shelf.add_subparsers(metavar="ACTION")
    for name, run in (
        ("list", voices_list),
        ("add", voices_add),
        ("play", voices_play),
        ("check", voices_check),
    ):
        action = actions.add_parser(name, help=run.__doc__, description=run.__doc__)
        action.add_argument("--voices", type=Path, default=argparse.SUPPRESS, help=VOICES_HELP)
        action.set_defaults(run=run)
        if name == "add":
            action.add_argument("name", help="letters, figures, '-', '_' and '.'")
            action.add_argument("file", type=Path, help="a recording of 3 to 30 s")
            action.add_argument("--text", required=True, help="what is said in it, word by word")
            action.add_argument(
                "--force", action="store_true", help="replace the voice of that name"
            )
        elif name != "list":
            action.add_argument("name", nargs="?" if name == "check" else None, help="a voice")


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (ValueError, OSError, KeyError) as error:
        notes = [note for note in getattr(error, "__notes__", []) if note not in str(error)]
        print("; ".join([f"{type(error).__name__}: {error}", *notes]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
