"""`higgs speak`: a text into an audio file, in one go or, when it is long or a dialogue, in chunks."""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from higgs.cli.options import FOLDER, OWN, Checkpoint, MaxNewTokens, Temperature, TopK, TopP, Voices

STREAM = Path("-")
SAMPLING = ("temperature", "top_k", "top_p", "seed")
# Options that are fields of `higgs.data.text.chunks.ChunkOptions`.
CHUNKING = ("max_words", "context_chunks", "per_speaker_context", "retries")
CHUNKING += ("sentence_pause", "paragraph_pause", "speaker_pause")

Text = Annotated[
    str | None,
    Argument(help="what to say; - is standard input; [SPEAKER0] ... [SPEAKER1] ... a dialogue"),
]
File = Annotated[Path | None, Option(help="read the text from this file instead")]
Out = Annotated[Path, Option(help="a .wav or .flac file; - writes WAV to standard output")]
Voice = Annotated[str, Option(help="a name that `higgs voices` lists")]
Reference = Annotated[Path | None, Option(help="imitate the voice of this recording instead")]
ReferenceText = Annotated[str | None, Option(help="what is said in that recording")]
Speaker = Annotated[
    list[str] | None,
    Option(metavar="NUMBER=VOICE", help="the voice of [SPEAKERn]; once for each"),
]
Scene = Annotated[str | None, Option(help="a description of the scene")]
Seed = Annotated[int, Option(min=0)]
Json = Annotated[bool, Option("--json", help="one line of JSON about what was made")]
Normalize = Annotated[
    bool,
    Option("--normalize", help="clean the text up as the original does ([laugh] and others become sound events); "
                               "numbers, dates, times, money and units in words, in English and Chinese"),
]  # fmt: skip
KeepDigits = Annotated[bool, Option("--keep-digits", help="with --normalize: leave numbers as digits")]
NoChunking = Annotated[bool, Option("--no-chunking", help="in one go, however long the text is")]
MaxWords = Annotated[
    int | None,
    Option(min=1, help="of a chunk; a text of no more is spoken in one go", show_default=OWN),
]
ContextChunks = Annotated[
    int | None,
    Option(min=0, help="earlier chunks that are the context of a chunk", show_default=OWN),
]
PerSpeakerContext = Annotated[
    bool | None,
    Option(help="prompt each turn of a dialogue with its own speaker only", show_default=OWN),
]
Retries = Annotated[
    int | None,
    Option(min=0, help="other seeds for a chunk without audio, or one cut off", show_default=OWN),
]
SentencePause = Annotated[float | None, Option(min=0, help="seconds of silence between chunks", show_default=OWN)]
ParagraphPause = Annotated[float | None, Option(min=0, help="between paragraphs", show_default=OWN)]
SpeakerPause = Annotated[float | None, Option(min=0, help="between speakers", show_default=OWN)]


def speak(
    out: Out,
    text: Text = None,
    file: File = None,
    voice: Voice = "ada",
    reference: Reference = None,
    reference_text: ReferenceText = None,
    speaker: Speaker = None,
    scene: Scene = None,
    voices: Voices = FOLDER,
    checkpoint: Checkpoint = "nano",
    as_json: Json = False,
    seed: Seed = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    normalize: Normalize = False,
    keep_digits: KeepDigits = False,
    no_chunking: NoChunking = False,
    max_words: MaxWords = None,
    context_chunks: ContextChunks = None,
    per_speaker_context: PerSpeakerContext = None,
    retries: Retries = None,
    sentence_pause: SentencePause = None,
    paragraph_pause: ParagraphPause = None,
    speaker_pause: SpeakerPause = None,
) -> None:
    """Speak a text into an audio file.

    A text of more than --max-words words is spoken in chunks that end with sentences.
    """
    asked = SimpleNamespace(**locals())
    check_options(asked)
    response = make(asked, text_to_speak(asked))
    write(asked.out, response)
    tell(asked, response)


def check_options(asked: SimpleNamespace) -> None:
    """Raises BadParameter for options that do not go together."""
    if (asked.text is None) == (asked.file is None):
        raise BadParameter("give a text, or - for standard input, or --file, one of them")
    if (asked.reference is None) != (not (asked.reference_text or "").strip()):
        raise BadParameter("--reference and --reference-text go together: the recording and its words")
    numbers = []
    for pair in asked.speaker or ():
        number, _, name = pair.partition("=")
        if not number.isdecimal() or not name:
            raise BadParameter(f"--speaker takes NUMBER=VOICE, got {pair!r}")
        if int(number) in numbers:
            raise BadParameter(f"--speaker {int(number)} is given twice; each speaker has one voice")
        numbers.append(int(number))


def text_to_speak(asked: SimpleNamespace) -> str:
    """The text from wherever it comes, its numbers in words where that is asked for."""
    from higgs.data.text.checks import check_text
    from higgs.data.text.numbers import spell_out
    from higgs.files import read_text

    text = asked.text
    if asked.file is not None:
        text = read_text(asked.file)
    elif text == str(STREAM):
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not text in UTF-8: {error}") from error
    check_text(text)
    return spell_out(text) if asked.normalize and not asked.keep_digits else text


def make(asked: SimpleNamespace, text: str) -> Any:
    """-> a `Response`, or a `LongResponse` where the text is spoken in chunks."""
    from tqdm import tqdm

    from higgs import Engine
    from higgs.audio import check_writable
    from higgs.checkpoint.preset import Checkpoint
    from higgs.data.text.chunks import ChunkOptions, chunk_script, count_words
    from higgs.files import check_place
    from higgs.serve.generation import GenerationConfig
    from higgs.serve.long_form import SilentChunk, speak_long
    from higgs.validation import validate

    # Before the checkpoint is read, whatever is wrong with the place or the text.
    if asked.out != STREAM:
        check_writable(asked.out)
        check_place(asked.out)
    source = Checkpoint.parse(asked.checkpoint)
    own = GenerationConfig.from_pretrained(source.model)
    given = {name: getattr(asked, name) for name in CHUNKING if getattr(asked, name) is not None}
    options = validate(ChunkOptions, dict(own.chunks) | given, "")
    by_speaker = options.per_speaker_context and not asked.no_chunking
    prompt = prompt_maker(asked, text, by_speaker)
    split = count_words(text) > options.max_words or (asked.speaker and by_speaker)
    chunks = chunk_script(text, options) if split and not asked.no_chunking else []
    samples = [prompt(chunk.text) for chunk in chunks] or [prompt(text)]
    sampling = own.sampling.override(**{name: getattr(asked, name) for name in SAMPLING})
    engine = Engine.from_pretrained(source.model, source.codec, source.device, source.dtype)
    quiet, limit = not sys.stderr.isatty(), asked.max_new_tokens
    with tqdm(unit="chunk" if chunks else "frame", total=len(chunks) or None, disable=quiet) as bar:
        if not chunks:
            return engine.generate(samples[0], sampling, limit, on_column=lambda _: bar.update())
        try:
            return speak_long(engine, chunks, prompt, sampling, options, limit, lambda *_: bar.update())
        except SilentChunk as error:
            keep_what_came_before(error, asked.out)
            raise


def prompt_maker(asked: SimpleNamespace, text: str, by_speaker: bool) -> Callable:
    """What makes a conversation of each chunk: the voice, the reference or the speakers, and the scene."""
    from higgs.audio import probe
    from higgs.data.text.chunks import speaker_turns
    from higgs.data.text.normalize import normalize_prompt
    from higgs.data.voices import Voice, dialogue_prompt, find_voice, list_voices, speaker_prompt

    turns = speaker_turns(text)
    if bool(turns) != bool(asked.speaker):
        raise ValueError(
            "[SPEAKERn] tags in the text and --speaker go together, as in --speaker 0=ada --speaker 1=ben; "
            f"voices are: {', '.join(list_voices(asked.voices))}"
        )
    if turns:
        pairs = [pair.partition("=") for pair in asked.speaker]
        speakers = {int(number): find_voice(asked.voices, name) for number, _, name in pairs}
        form = speaker_prompt if by_speaker else dialogue_prompt
        prompt = partial(form, speakers, scene=asked.scene)
    else:
        if asked.reference is not None:
            probe(asked.reference)  # an error now, not when the checkpoint is loaded
            voice = Voice("reference", asked.reference, asked.reference_text)
        else:
            voice = find_voice(asked.voices, asked.voice)
        prompt = partial(voice.prompt, scene=asked.scene)
    return (lambda text: normalize_prompt(prompt(text))) if asked.normalize else prompt


def keep_what_came_before(error: Any, out: Path) -> None:
    """The chunks before the one that stayed silent go into a file of their own: they may have taken hours."""
    from higgs.audio import save_audio

    if error.before is not None:
        path = Path("speech.wav") if out == STREAM else out
        path = path.with_stem(f"{path.stem}.before")
        save_audio(path, error.before.waveform, error.before.sample_rate)
        error.add_note(f"what came before it is in {path}")


def write(out: Path, response: Any) -> None:
    from higgs.audio import save_audio

    if not len(response.waveform):
        raise ValueError("the model ended its turn without a frame of audio; try another --seed")
    if out != STREAM:
        save_audio(out, response.waveform, response.sample_rate)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        save_audio(path, response.waveform, response.sample_rate)
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()


def tell(asked: SimpleNamespace, response: Any) -> None:
    """What was made, for people or as JSON; on standard error where the audio has standard output."""
    rate, seconds = response.sample_rate, len(response.waveform) / response.sample_rate
    rows = response.rows(asked.out.name) if hasattr(response, "rows") else []
    for row in rows:
        row |= {"start": row["start"] / rate, "end": row["end"] / rate}
    if asked.as_json:
        keys = ("text", "speaker", "start", "end", "seed", "stop")
        made = {
            "out": str(asked.out),
            "seconds": seconds,
            "sample_rate": rate,
            "stop": response.stop_reason,
        }
        made |= {"checkpoint": asked.checkpoint, "seed": asked.seed}
        made["chunks"] = [{key: row[key] for key in keys} for row in rows]
        lines = [json.dumps(made, ensure_ascii=False)]
    else:
        lines = [
            f"{row['start']:7.2f} to {row['end']:7.2f} s  seed {row['seed']:<10}  {row['stop']:6}  {row['text']}"
            for row in rows
        ]
        lines.append(f"{asked.out}: {seconds:.2f} s, stopped by {response.stop_reason}")
    print("\n".join(lines), file=sys.stderr if asked.out == STREAM else sys.stdout)
