"""`higgs speak`: a text into an audio file, in a single pass or, when it is long or a dialogue, in chunks."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from higgs.cli.options import FOLDER, OWN, Checkpoint, Dtype, MaxNewTokens, OffloadText, Temperature, TopK, TopP, Voices

STDIO = Path("-")
STREAMED = {".mp3": "mp3", ".opus": "opus", ".ogg": "opus"}  # written as the server sends them

Normalize = Annotated[
    bool,
    Option(
        "--normalize",
        help="take markup off; numbers, dates, times, money and units in words, in English and Chinese; "
        "then clean up as the reference implementation does ([laugh] and others become sound events)",
    ),
]


def speak(
    out: Annotated[Path, Option(help="a .wav, .flac, .mp3 or .opus file; - writes WAV to standard output")],
    text: Annotated[str | None, Argument(help="what to say, - for standard input; [SPEAKER0] ... a dialogue")] = None,
    file: Annotated[Path | None, Option(help="read the text from this file instead")] = None,
    voice: Annotated[str, Option(help="a name that `higgs voices` lists")] = "ada",
    reference: Annotated[Path | None, Option(help="imitate the voice of this recording instead")] = None,
    reference_text: Annotated[str | None, Option(help="the transcript of that recording")] = None,
    speaker: Annotated[list[str] | None, Option(metavar="NUMBER=VOICE", help="voice of [SPEAKERn]; repeatable")] = None,
    scene: Annotated[str | None, Option(help="a description of the scene")] = None,
    captions: Annotated[Path | None, Option(help="also write when each word is spoken: .json, .srt or .vtt")] = None,
    voices: Voices = FOLDER,
    checkpoint: Checkpoint = "nano",
    dtype: Dtype = None,
    offload_text: OffloadText = False,
    as_json: Annotated[bool, Option("--json", help="one line of JSON about the result")] = False,
    seed: Annotated[int, Option(min=0)] = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    normalize: Normalize = False,
    keep_digits: Annotated[
        bool, Option("--keep-digits", help="with --normalize: only as the reference implementation")
    ] = False,
    no_chunking: Annotated[bool, Option("--no-chunking", help="a single pass, however long the text is")] = False,
    max_words: Annotated[int | None, Option(min=1, help="of a chunk; less is a single pass", show_default=OWN)] = None,
    context_chunks: Annotated[int | None, Option(min=0, help="earlier chunks in the context", show_default=OWN)] = None,
    per_speaker_context: Annotated[bool | None, Option(help="turns with own speaker only", show_default=OWN)] = None,
    retries: Annotated[int | None, Option(min=0, help="seeds for a silent or cut-off chunk", show_default=OWN)] = None,
    sentence_pause: Annotated[float | None, Option(min=0, help="seconds between chunks", show_default=OWN)] = None,
    paragraph_pause: Annotated[float | None, Option(min=0, help="between paragraphs", show_default=OWN)] = None,
    speaker_pause: Annotated[float | None, Option(min=0, help="between speakers", show_default=OWN)] = None,
) -> None:
    """Speak a text into an audio file.

    A text of more than --max-words words is spoken in chunks that end with sentences.
    """
    check_pairs((text is None) != (file is None), reference, reference_text, speaker, keep_digits and not normalize)
    numbered = parse_speakers(speaker)
    from higgs.data.text.chunks import SPEAKER_TAG, speaker_turns

    check_out(out, captions)  # whatever is wrong with the request is reported before the checkpoint is read
    text = read_text(file) if file is not None or text == str(STDIO) else text
    named = find_voices(voices, voice, reference, reference_text, numbered, "[" in text and bool(speaker_turns(text)))
    from higgs.data.speech import speech_request  # after what may be refused: it imports torch
    from higgs.serve import long_form

    chunking = {"max_words": max_words, "context_chunks": context_chunks, "retries": retries}
    chunking |= {"per_speaker_context": per_speaker_context, "sentence_pause": sentence_pause}
    chunking |= {"paragraph_pause": paragraph_pause, "speaker_pause": speaker_pause}
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    options, settings = checkpoint_settings(checkpoint, chunking, sampling)
    chunked, mode = False if no_chunking else None, ("reference" if keep_digits else "words") if normalize else None
    request = speech_request(text, named, options, scene, chunked, mode, settings, max_new_tokens)
    with progress(out, len(request.chunks)) as update:
        digits = not normalize and any(map(str.isdigit, SPEAKER_TAG.sub("", text)))
        engine = load_engine(checkpoint, digits, dtype, offload_text)
        response = long_form.speak(engine, request, update, update)
    write(out, response)
    write_captions(captions, engine, request, response)
    report(response, out, as_json, {"checkpoint": checkpoint, "seed": seed})


def check_pairs(one_text: bool, reference: Path | None, reference_text: str | None, speaker: Any, lone: bool) -> None:
    if not one_text:
        raise BadParameter("give a text, or - for standard input, or --file, one of them")
    if (reference is None) != (not (reference_text or "").strip()):
        raise BadParameter("--reference and --reference-text go together: the recording and its transcript")
    if speaker and reference is not None:
        raise BadParameter("--speaker takes voices of the folder: add the recording to it by `higgs voices add`")
    if lone:
        raise BadParameter("--keep-digits goes with --normalize")


def check_out(out: Path, captions: Path | None) -> None:
    from higgs.containers import WRITABLE
    from higgs.files import check_place
    from higgs.serve.captions import check_suffix

    if captions is not None:
        check_suffix(captions)
        check_place(captions)
    if out != STDIO:
        if (suffix := out.suffix.lower()) not in (*WRITABLE, *STREAMED):
            raise ValueError(f"{out}: audio is written as {', '.join((*WRITABLE, *STREAMED))}, not as {suffix!r}")
        check_place(out)


def write_captions(path: Path | None, engine: Any, request: Any, response: Any) -> None:
    """By a pass over the finished codes: they are the same without it."""
    if path is None:
        return
    from higgs.serve.alignment import times_of
    from higgs.serve.captions import write_times

    spans = [(span.frames, span.start / response.sample_rate) for span in getattr(response, "chunks", [])]
    times = times_of(engine, request.samples, response.codes, spans)
    if not times:
        print(f"warning: no words were aligned: {path} is empty", file=sys.stderr)
    write_times(path, times)


def read_text(file: Path | None) -> str:
    """A file, or standard input."""
    from higgs.files import read_text

    if file is not None:
        return read_text(file)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not text in UTF-8: {error}") from error


def checkpoint_settings(checkpoint: str, chunking: dict[str, Any], sampling: dict[str, Any]) -> tuple[Any, Any]:
    """-> `ChunkOptions` and `SamplingConfig`: the checkpoint's, but for options that are given."""
    from higgs.checkpoint.alias import Checkpoint
    from higgs.data.text.chunks import ChunkOptions
    from higgs.serve.generation_config import GenerationConfig
    from higgs.validation import validate

    own = GenerationConfig.from_pretrained(Checkpoint.parse(checkpoint).model)
    options = dict(own.chunks) | {name: value for name, value in chunking.items() if value is not None}
    return validate(ChunkOptions, options, ""), own.sampling.override(**sampling)


def load_engine(checkpoint: str, has_digits: bool = False, dtype: str | None = None, offload_text: bool = False) -> Any:
    """Warns where the text has digits and the checkpoint, which reads words by a lexicon, cannot read them."""
    from higgs import Engine
    from higgs.checkpoint.alias import Checkpoint
    from higgs.serve.engine import EngineConfig

    source, config = Checkpoint.parse(checkpoint), EngineConfig(max_batch=1)  # chunks come one after another
    dtype = dtype or source.dtype
    engine = Engine.from_pretrained(source.model, source.codec, source.device, dtype, config, offload_text)
    if has_digits and engine.text_tokenizer.lexicon is not None:
        print("warning: this checkpoint cannot read digits; --normalize writes them in words", file=sys.stderr)
    return engine


def parse_speakers(pairs: list[str] | None) -> dict[int, str]:
    """["0=ada", ...] -> {0: "ada", ...}. Raises BadParameter."""
    numbered: dict[int, str] = {}
    for pair in pairs or ():
        number, _, name = pair.partition("=")
        if not number.isdecimal() or not name:
            raise BadParameter(f"--speaker takes NUMBER=VOICE, got {pair!r}")
        if int(number) in numbered:
            raise BadParameter(f"--speaker {int(number)} is given twice; each speaker has one voice")
        numbered[int(number)] = name
    return numbered


def find_voices(
    folder: Path, name: str, reference: Path | None, reference_text: str | None, numbered: dict[int, str], tagged: bool
) -> Any:
    """-> the voice, or the voice of each speaker of a dialogue."""
    from higgs.containers import probe
    from higgs.data.voice_folder import Voice, find_voice, read_voices

    if tagged != bool(numbered):
        raise ValueError(
            "[SPEAKERn] tags in the text and --speaker go together, as in --speaker 0=ada --speaker 1=ben; "
            f"voices are: {', '.join(read_voices(folder)[0])}"
        )
    if numbered or reference is None:
        voices = {number: find_voice(folder, each) for number, each in (numbered or {0: name}).items()}
        return voices if numbered else voices[0]
    probe(reference)  # an error now, not when the checkpoint is loaded
    return Voice("reference", reference, reference_text)


@contextmanager
def progress(out: Path, num_chunks: int) -> Iterator[Callable[..., None]]:
    """A bar of chunks, or of frames in a single pass.

    Where a chunk has no audio, the speech before it, which may have taken hours, goes into a file of its own.
    """
    from tqdm import tqdm

    from higgs.audio import save_audio
    from higgs.serve.long_form import SilentChunkError

    unit, total = ("chunk", num_chunks) if num_chunks else ("frame", None)
    with tqdm(unit=unit, total=total, disable=not sys.stderr.isatty()) as bar:
        try:
            yield lambda *_: bar.update()
        except SilentChunkError as error:
            if error.before is not None:
                path = Path("speech.wav") if out == STDIO else out
                path = path.with_name(f"{path.stem}.before{'.wav' if path.suffix.lower() in STREAMED else path.suffix}")
                save_audio(path, error.before.waveform, error.before.sample_rate)
                error.add_note(f"the speech before it is in {path}")
            raise


def write(out: Path, response: Any) -> None:
    from higgs.audio import encoded, save_audio
    from higgs.files import write_atomically
    from higgs.serve.http.audio_encoder import AudioEncoder

    if not len(response.waveform):
        raise ValueError("the model ended its turn without a frame of audio; try another --seed")
    if kind := STREAMED.get(out.suffix.lower()):
        encoder = AudioEncoder(kind, response.sample_rate)
        write_atomically(out, encoder.write(response.waveform) + encoder.finish())
    elif out != STDIO:
        save_audio(out, response.waveform, response.sample_rate)
    else:
        sys.stdout.buffer.write(encoded(response.waveform, response.sample_rate))
        sys.stdout.buffer.flush()


def report(response: Any, out: Path, as_json: bool, settings: dict[str, Any]) -> None:
    """The result for people or as JSON; on standard error where the audio is on standard output."""
    rate, seconds = response.sample_rate, len(response.waveform) / response.sample_rate
    records = response.records(out.name) if hasattr(response, "records") else []
    for record in records:
        record |= {"start": record["start"] / rate, "end": record["end"] / rate}
    if as_json:
        keys = ("text", "speaker", "start", "end", "seed", "stop")
        result = {"out": str(out), "seconds": seconds, "sample_rate": rate, "stop": response.stop_reason} | settings
        result["chunks"] = [{key: record[key] for key in keys} for record in records]
        lines = [json.dumps(result, ensure_ascii=False)]
    else:
        lines = [
            f"{r['start']:7.2f} to {r['end']:7.2f} s  seed {r['seed']:<10}  {r['stop']:6}  {r['text']}" for r in records
        ]
        lines.append(f"{out}: {seconds:.2f} s, stopped by {response.stop_reason}")
    print("\n".join(lines), file=sys.stderr if out == STDIO else sys.stdout)
