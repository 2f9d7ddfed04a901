"""Makes data/recordings: recorded human speech with transcripts, from Debian's Asterisk prompts.

The codec is evaluated on these clips and the speech recogniser is anchored on them, so they must be human recordings
with known words and a licence that lets anyone copy them. Eight packages hold them, four languages with the audio
(-g722) and the transcripts:

    for language in en es fr it; do
        apt-get download asterisk-core-sounds-$language asterisk-core-sounds-$language-g722
    done
    for package in *.deb; do dpkg -x "$package" unpacked; done
    python training/corpus/recordings.py --source unpacked --out data/recordings

recordings.txt beside this file names the clips and their words. The script writes the FLAC files and manifest.jsonl;
README.md and LICENSE.txt in that folder are written by hand. It needs an ffmpeg with libsoxr (Debian's has it).
"""

import argparse
import difflib
import gzip
import hashlib
import json
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 24_000
MIN_SECONDS, MAX_SECONDS = 2.0, 10.0
MIN_RMS_DBFS = -40.0
MIN_AGREEMENT = 0.985  # of letters with the package's own list: lets a typing error through, but no other sentence

# language: (folder of the voice in the package, speaker as the packages' copyright file says)
VOICES = {
    "en": ("en_US_f_Allison", "Allison Smith"),
    "es": ("es_MX_f_Allison", "Allison Smith"),
    "fr": ("fr_CA_f_June", "June Wallack"),
    "it": ("it_IT_m_Carlo", "Carlo Flora"),
}


@dataclass(frozen=True)
class Clip:
    """One line of recordings.txt: the prompt's name in its package and the words that are spoken."""

    language: str
    prompt: str
    text: str

    @property
    def id(self) -> str:
        """Unique among all languages and fit for a file name."""
        return f"{self.language}-{self.prompt.replace('/', '-')}"


def read_clips(path: Path) -> list[Clip]:
    """The chosen clips in order of id; a line is `language prompt | text`, `#` starts a comment line."""
    clips = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, text = line.split(" | ", 1)
            clips.append(Clip(*name.split(), text.strip()))
    clips.sort(key=lambda clip: clip.id)
    ids = [clip.id for clip in clips]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path} names a clip twice: {sorted({i for i in ids if ids.count(i) > 1})}")
    return clips


def read_transcripts(source: Path, language: str) -> dict[str, str]:
    """The package's list: prompt name -> text."""
    name = f"asterisk-core-sounds-{language}"
    path = source / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8-sig") as file:
        pairs = [line.split(":", 1) for line in file if ":" in line and not line.startswith(";")]
    return {prompt.strip(): text.strip() for prompt, text in pairs}


def letters(text: str) -> str:
    """Only letters and digits, lower case, without accents: what two spellings of the same words share."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).lower() if c.isalnum())


def check_text(clip: Clip, transcript: str) -> None:
    """Raises ValueError where the words are not those of the package's list (spelling and punctuation may differ)."""
    agreement = difflib.SequenceMatcher(None, letters(clip.text), letters(transcript), autojunk=False).ratio()
    if agreement < MIN_AGREEMENT:
        raise ValueError(
            f"{clip.id}: the text agrees to {agreement:.3f}, less than {MIN_AGREEMENT}: {clip.text!r}, {transcript!r}"
        )


def ffmpeg(*arguments: str, data: bytes | None = None) -> bytes:
    """Runs ffmpeg on one thread -> its standard output. Raises RuntimeError with its message."""
    stdin = "-nostdin" if data is None else "-y"
    command = ["ffmpeg", stdin, "-v", "error", "-threads", "1", *arguments]
    result = subprocess.run(command, input=data, capture_output=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr.decode().strip()}")
    return result.stdout


def decode(path: Path) -> np.ndarray:
    """G.722 file at 16 kHz -> int16 [L] at 24 kHz, mono, not trimmed, filtered or normalised; silent above 8 kHz.

    soxr returns floats, which are rounded here: for 16 bits it adds random dither, and no two runs give equal bytes.
    """
    resample = f"aresample={SAMPLE_RATE}:resampler=soxr:precision=28:osf=flt"
    write = f"-ac 1 -af {resample} -f f32le -bitexact pipe:1"
    out = ffmpeg("-f", "g722", "-i", str(path), *write.split())
    return np.rint(np.frombuffer(out, dtype="<f4") * 32768).clip(-32768, 32767).astype("<i2")


def check_audio(clip: Clip, samples: np.ndarray) -> None:
    """int16 [L]. Raises ValueError for a clip that is too short, too long, clipped or nearly silent."""
    seconds = len(samples) / SAMPLE_RATE
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ValueError(f"{clip.id}: {seconds:.2f} s, expected {MIN_SECONDS} to {MAX_SECONDS}")
    waveform = samples.astype(np.float64) / 32768
    peak, rms_dbfs = np.abs(waveform).max(), 10 * np.log10(np.mean(waveform**2) + 1e-12)
    if peak >= 32767 / 32768 or rms_dbfs < MIN_RMS_DBFS:
        raise ValueError(f"{clip.id}: peak {peak:.4f}, RMS {rms_dbfs:.1f} dBFS, expected below 1, above {MIN_RMS_DBFS}")


def encode(samples: np.ndarray, path: Path) -> None:
    """int16 [L] at 24 kHz -> a FLAC file without tags of time or tool: equal samples give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    read = f"-f s16le -ar {SAMPLE_RATE} -ac 1 -i pipe:0"
    write = "-c:a flac -compression_level 12 -sample_fmt s16 -map_metadata -1 -bitexact"
    ffmpeg(*read.split(), *write.split(), str(path), data=samples.tobytes())


def make_clip(clip: Clip, source: Path, out: Path) -> dict:
    """Converts and checks one clip -> its record of the manifest."""
    folder, speaker = VOICES[clip.language]
    samples = decode(source / "usr/share/asterisk/sounds" / folder / f"{clip.prompt}.g722")
    check_audio(clip, samples)
    path = out / clip.language / f"{clip.id}.flac"
    encode(samples, path)
    return {
        "id": clip.id,
        "path": path.relative_to(out.parent).as_posix(),
        "text": clip.text,
        "language": clip.language,
        "speaker": speaker,
        "seconds": round(len(samples) / SAMPLE_RATE, 3),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the unpacked packages (it holds usr/)")
    parser.add_argument("--out", type=Path, default=Path("data/recordings"), help="paths start at its parent")
    arguments = parser.parse_args()
    clips = read_clips(Path(__file__).with_name("recordings.txt"))
    transcripts = {language: read_transcripts(arguments.source, language) for language in VOICES}
    for clip in clips:
        check_text(clip, transcripts[clip.language][clip.prompt])
    records = [make_clip(clip, arguments.source, arguments.out) for clip in clips]
    manifest = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (arguments.out / "manifest.jsonl").write_text(manifest, encoding="utf-8")
    print(f"{len(records)} clips, {sum(record['seconds'] for record in records):.1f} s")


if __name__ == "__main__":
    main()
