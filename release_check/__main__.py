"""`make release-check`: the released checkpoint from download to judged speech, on one page: `reports/release.html`.

For whoever has a GPU, the hub and the weights' licence. Every step's result is kept in `results/release`: a run that
was stopped goes on, and a step that failed is tried again. A step that fails takes only those along that need it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from higgs.checkpoint.alias import RELEASED_MODEL, RELEASED_MODEL_REVISION, Checkpoint
from higgs.checkpoint.resolve import fingerprint
from higgs.files import content_hash
from higgs.jobs.parts import make_part
from higgs.resumable import code_hash
from higgs.workers import choose_device
from higgs.workflow.outputs import write_json
from higgs.workflow.page import revision, write_page
from higgs.workflow.speed import cpu_name
from higgs.workflow.tables import Row
from release_check.page import DONE, differences, page_of
from release_check.steps import ALWAYS, RECORDINGS, STEPS_IN_ORDER, VOICES, Check, Step

FAILURES = (ValueError, OSError, RuntimeError, KeyError, ImportError, TypeError, AttributeError)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def identity(check: Check) -> dict[str, Any]:
    """What results depend on, once `download` is done: folders and buckets by content, of the hub the pinned names."""
    sources = {
        part: fingerprint(check.folder(part)) if source.startswith("s3://") or Path(source).is_dir() else source
        for part, source in check.sources.items()
    }
    checkpoint = {"device": str(choose_device(check.checkpoint.device)), "dtype": check.checkpoint.dtype}
    data = [RECORDINGS, Path("data/scripts/default.jsonl"), *(path for path in VOICES.rglob("*") if path.is_file())]
    here = sorted(Path(__file__).parent.glob("*.py"))
    asked = {"judges": check.judges, "sentences": check.sentences, "utterances": check.utterances}
    public = [path for end in ("meta.lst", "*.wav") for path in (check.seed_tts.rglob(end) if check.seed_tts else ())]
    return sources | checkpoint | asked | {"seed_tts": check.seed_tts, "files": content_hash([*data, *here, *public])}


def made_or_kept(check: Check, step: Step, path: Path) -> tuple[Row, str]:
    """-> the result of a step, and whether it was there. Raises what the step does; ValueError for NaN in it."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8")), ", by an earlier run"
    result = step(check)
    write_json(path, result)
    return result, ""


def run(
    check: Check, report: Callable[[dict[str, str], dict[str, Any]], None]
) -> tuple[dict[str, str], dict[str, Any]]:
    """-> the state of each step, and the results of those that were done; `report` gets both after each step."""
    states: dict[str, str] = {}
    kept: Path | None = None
    for name, step, needed in STEPS_IN_ORDER:
        if name == "seedtts" and check.seed_tts is None:
            states[name] = "not asked for: name its folder with --seed-tts"
        elif lacking := [other for other in needed if other not in check.results]:
            states[name] = f"not run: it needs {', '.join(lacking)}"
        else:
            say(f"{name} ...")
            started = time.monotonic()
            try:
                if name in ALWAYS:
                    result, when = step(check), ""
                else:
                    kept = kept or check.out / "steps" / make_part(code_hash(), [identity(check)]).name
                    result, when = made_or_kept(check, step, kept / f"{name}.json")
            except FAILURES as error:
                states[name] = f"failed: {type(error).__name__}: {error}"
            else:
                check.results[name] = result
                states[name] = DONE + (when or f" in {time.monotonic() - started:.0f} s")
        say(f"{name}: {states[name]}")
        report(states, check.results)
    return states, check.results


def facts(check: Check) -> dict[str, str]:
    device = choose_device(check.checkpoint.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "checkpoint": check.checkpoint.model, "codec": check.checkpoint.codec, "device": card,
        "dtype": check.checkpoint.dtype, "torch": torch.__version__, "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    } | revision()  # fmt: skip


def parse(words: Sequence[str] | None) -> tuple[Check, Path]:
    released = f"{RELEASED_MODEL}@{RELEASED_MODEL_REVISION}"
    parser = argparse.ArgumentParser(prog="python -m release_check", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=released, help="as in params.yaml (default: the release)")
    parser.add_argument("--codec", help="another codec: a folder or ORGANISATION/NAME@COMMIT")
    parser.add_argument("--device", help="default: the checkpoint's, for the release the GPU")
    parser.add_argument("--dtype", help="default: the checkpoint's, for the release bfloat16")
    parser.add_argument("--seed-tts", type=Path, metavar="FOLDER", help="SeedTTS-Eval's en or zh, with meta.lst")
    parser.add_argument("--utterances", type=int, default=50, help="of SeedTTS-Eval (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=20, help="of the default set (default: %(default)s)")
    judge = "recogniser; published figures are whisper-large-v3's, in Chinese paraformer-zh's (default: %(default)s)"
    parser.add_argument("--judge", default="whisper-large-v3", help=judge)
    speaker = "published figures are those of wavlm-large-sv:FILE (default: %(default)s)"
    parser.add_argument("--speaker-encoder", default="ge2e", help=speaker)
    parser.add_argument("--naturalness", default="dnsmos", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/release"))
    parser.add_argument("--page", type=Path, default=Path("reports/release.html"))
    a = parser.parse_args(words)
    if min(a.utterances, a.sentences) < 1:
        parser.error("--utterances and --sentences are at least 1")
    if a.seed_tts and not a.seed_tts.is_dir():
        parser.error(f"--seed-tts: there is no folder {a.seed_tts}")
    if not a.out.resolve().is_relative_to(Path.cwd().resolve()):
        parser.error(f"--out: {a.out} is not a folder below this one, from which the page takes its sounds")
    try:
        made = Checkpoint.parse(a.checkpoint)
    except ValueError as error:
        parser.error(str(error))
    made = replace(made, codec=a.codec or made.codec, device=a.device or made.device, dtype=a.dtype or made.dtype)
    try:
        torch.empty(0, device=choose_device(made.device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last two of PyTorch without CUDA
        parser.error(f"--device: {made.device} is not there: {str(error).partition(chr(10))[0]}")
    judges = tuple(None if name == "none" else name for name in (a.judge, a.speaker_encoder, a.naturalness))
    return Check(made, a.out, judges, a.sentences, a.utterances, a.seed_tts), a.page


def main(words: Sequence[str] | None = None) -> int:
    check, page = parse(words)
    about = facts(check)
    states, results = run(check, lambda states, results: write_page(page, page_of(about, states, results)))
    for difference in differences(states, results):
        say(f"differs: {difference}")
    print(page)
    return int(any(state.startswith(("failed", "not run")) for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
