"""Small runs to compare: tables as the stage evaluate leaves them, with sines for speech."""

import json
from pathlib import Path

import torch

from higgs.audio import save_audio
from higgs.workflow.tables import Row, write_rows

RATE = 24_000
TEXTS = (
    "One red apple.",
    "Two old boats.",
    "He said: <script>alert(1)</script> & left.",
    "Four.",
    "Five?",
    "Six it is.",
)


def chirp(low: float, high: float, seconds: float, gain: float = 0.3) -> torch.Tensor:
    """[L], whose frequency says how much time has passed."""
    time = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    return (gain * torch.sin(2 * torch.pi * (low * time + (high - low) * time**2 / (2 * seconds)))).float()


def record(group: str, script: str, seed: int | None, path: str, **more) -> Row:
    row = {
        "group": group,
        "name": Path(path).stem,
        "script": script,
        "language": "en",
        "speaker": "ada",
        "voice": "ada",
    }
    row |= {"form": "smart_voice", "seed": seed, "text": "one two three four", "heard": "one two three four"}
    row |= {"status": "ok", "note": "", "path": path, "words": 4, "word_errors": 0, "wer_percent": 0.0}
    row |= {"characters": 15, "character_errors": 0, "seedtts_wer_percent": 0.0, "above_50": False, "similarity": 0.7}
    row |= {"similarity_to_others": 0.5, "mos_overall": 3.0, "mos_signal": 3.0, "mos_background": 3.0, "mos_p808": 3.0}
    return row | {"length_ratio": 1.0, "silence_share": 0.1, "cap_hit": False, "retries": 0, "seconds": 1.0} | more


def make_run(
    root: Path, tones: tuple[float, float], gain: float = 0.3, errors=(), texts=TEXTS, **origin: float
) -> Path:
    """Texts as chirps of a second, with so many word errors; two recordings, and the same through the codec."""
    rows = []
    for number, text in enumerate(texts):
        name = f"t{number}-s0"
        row = record("generated", f"t{number}", 0, f"results/generate/audio/{name}.flac", text=text)
        if number < len(errors) and errors[number]:
            row |= {"word_errors": errors[number], "wer_percent": 25.0 * errors[number], "heard": f"<i>{number}</i>"}
        rows.append(row)
        low, high = (tone * (1 + number / 50) for tone in tones)
        file = root / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        save_audio(file, chirp(low, high, 1.0, gain), RATE)
    for number in range(2):
        for group, folder, tone in (
            ("recordings", "tokenize/human", 500),
            ("recordings through the codec", "tokenize/audio", 700),
        ):
            path = f"results/{folder}/r{number}.flac"
            rows.append(record(group, f"r{number}", None, path))
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            save_audio(root / path, chirp(tone, tone + 100 * number, 1.0), RATE)
    write_rows((root / "results/evaluate/utterances.parquet"), rows)
    judges = {"recogniser": "R", "speaker": "S", "naturalness": "N"}
    (root / "results/evaluate/provenance.json").write_text(json.dumps({"judges": judges, "sampling": origin}))
    return root
