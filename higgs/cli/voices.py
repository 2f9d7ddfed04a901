"""`higgs voices`: list, add, play and check the voices of a folder. It may be named before or after the action."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from higgs.cli.options import FOLDER, Voices

PLAYERS = ("ffplay -nodisp -autoexit -loglevel error", "paplay", "aplay -q", "afplay", "play -q")
AsJson = Annotated[bool, Option("--json", help="for programs")]
SameFolder = Annotated[Path | None, Option(help="voice folder", show_default="data/voices")]

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def voices(context: typer.Context, voices: Voices = FOLDER, as_json: AsJson = False) -> None:
    """List, add, play and check voices."""
    context.obj = voices
    if context.invoked_subcommand is None:
        list_(context, as_json=as_json)


@app.command("list")
def list_(context: typer.Context, voices: SameFolder = None, as_json: AsJson = False) -> None:
    """List the voices of the folder."""
    from higgs.containers import probe
    from higgs.data.voice_folder import read_voices

    usable, faults = read_voices(voices or context.obj)
    records = []
    for voice in usable.values():
        record = {"name": voice.name, "description": voice.description, "transcript": voice.transcript}
        record |= {"audio": voice.audio and str(voice.audio), "seconds": None, "fault": None}
        if voice.audio is not None:
            try:
                record["seconds"] = probe(voice.audio)[2]
            except (ValueError, OSError) as error:  # the others are listed all the same
                record["fault"] = f"cannot be read: {error}"
        records.append(record)
    if as_json:
        records += [{"name": name, "fault": fault} for name, fault in faults.items()]
        print(json.dumps(records, ensure_ascii=False, indent=2))
        return
    for record in records:
        kinds = [f"described: {record['description']}"] if record["description"] else []
        if record["audio"]:
            length = record["fault"] or f"{record['seconds']:.1f} s"
            kinds.insert(0, f"recording: {record['audio']} ({length})")
        print(f"{record['name']:12} {'; '.join(kinds)}")
    for name, fault in faults.items():
        print(f"{name:12} cannot be used: {fault}", file=sys.stderr)


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, Argument(help="letters, digits, '-', '_' and '.'")],
    file: Annotated[Path, Argument(help="a recording of 3 to 30 s")],
    text: Annotated[str, Option(help="what is said in it, word for word")],
    force: Annotated[bool, Option("--force", help="replace the voice of that name")] = False,
    voices: SameFolder = None,
) -> None:
    """Add a recording and its transcript as a voice: mono, 24 kHz, FLAC. Ask the person who speaks."""
    from higgs.data.voices import add_voice

    voice, findings = add_voice(voices or context.obj, name, file, text, force)
    for finding in findings:
        print(f"{voice.name}: warning: {finding.message}")
    print(f"{voice.audio}: `higgs voices check {voice.name}` also compares what is said with the text")


@app.command()
def play(context: typer.Context, name: Annotated[str, Argument(help="a voice")], voices: SameFolder = None) -> None:
    """Play the recording of a voice, with whatever player the system has."""
    from higgs.data.voice_folder import find_voice

    voice = find_voice(voices or context.obj, name)
    if voice.audio is None:
        raise ValueError(f"{voice.name} is a description ({voice.description}): nothing to play")
    players = [player.split() for player in PLAYERS]
    player = next((player for player in players if shutil.which(player[0])), None)
    if player is None:
        print(f"{voice.audio}: no player here ({', '.join(player[0] for player in players)}); open this file")
        return

    from higgs.audio import load_audio, save_audio

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{voice.name}.wav"  # every player reads it
        save_audio(copy, *load_audio(voice.audio))
        if subprocess.run([*player, str(copy)]).returncode:
            raise ValueError(f"{player[0]} could not play {voice.audio}")
    print(voice.audio)


@app.command()
def check(
    context: typer.Context,
    name: Annotated[str | None, Argument(help="a voice; all of them without a name")] = None,
    voices: SameFolder = None,
) -> None:
    """Check recordings: length, sample rate, level, silence, clipping, and the transcript against a recogniser."""
    from higgs.data.voice_folder import find_voice, read_voices

    folder = voices or context.obj
    usable, faults = ({name: find_voice(folder, name)}, {}) if name else read_voices(folder)
    chosen = usable.values()
    recorded = [voice for voice in chosen if voice.audio is not None]
    if not recorded and not faults:
        what = f"{name} is a description" if name else f"no recording in {folder}"
        raise ValueError(f"{what}: nothing to check")

    from higgs.audio import load_audio
    from higgs.data.voices import check_recording
    from higgs.evaluate.utterances import hear

    judge = recogniser()
    unfit = len(faults)
    for name, fault in faults.items():
        print(f"{name}: error: {fault}")
    for voice in recorded:
        findings = check_recording(voice.audio, voice.transcript)
        fatal = any(finding.fatal for finding in findings)
        unfit += fatal
        lines = [f"{'error' if f.fatal else 'warning'}: {f.message}" for f in findings]
        if judge is not None and not fatal:
            lines += [f"warning: {doubt}" for doubt in hear(judge, *load_audio(voice.audio), voice.transcript)[1]]
        print("\n".join(f"{voice.name}: {line}" for line in lines or ["as it should be"]))
    if unfit:
        raise ValueError(f"{unfit} of {len(recorded) + len(faults)} recordings cannot serve as a reference")


def recogniser() -> Any:
    """What transcribes the recordings; None, and advice on standard error, where it is not installed."""
    from higgs.evaluate.judges.registry import make_judge

    try:
        return make_judge("moonshine-tiny-en-float32", ["en"])
    except RuntimeError as error:
        print(f"transcripts are not checked: {error}", file=sys.stderr)
        return None
