"""The README says what is true: its Python runs, its commands and files exist, its numbers are measured."""

import json
import re
import shutil
import subprocess

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_ten_lines_speak(nano, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    from higgs.audio import load_audio

    waveform, rate = load_audio("hello.wav")
    assert rate == 24_000 and len(waveform) > 24_000


def test_named_files_exist():
    for name in set(re.findall(r"`((?:notebooks|training|docs|higgs)/[\w./]+)`", README)):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in re.findall(r"python -m higgs\.([\w.]+)", README):
        assert (ROOT / "higgs" / (module.replace(".", "/") + ".py")).is_file(), module
    assert shutil.which("make")


def committed(name: str) -> str:
    """A file as it was committed: a run on another type of CPU may have written other numbers since."""
    shown = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else (ROOT / name).read_text()


def test_the_numbers_are_those_of_the_committed_run():
    metrics = json.loads(committed("metrics.json"))
    table = re.search(r"<!-- metrics -->(.*?)<!-- /metrics -->", README, re.DOTALL)[1]
    for name in ("recordings", "codec", "generated"):
        assert f"{metrics[f'{name}_wer_percent']:.1f} %" in table, name


def test_the_hub_line_is_the_one_that_params_name():
    from higgs.checkpoint.preset import Checkpoint

    (line,) = re.findall(r"^checkpoint: (\S+)$", README, re.MULTILINE)
    assert line in (ROOT / "params.yaml").read_text()
    checkpoint = Checkpoint.parse(line)
    assert checkpoint.dtype == "bfloat16" and checkpoint.device == "auto"
    assert checkpoint.codec.startswith("bosonai/higgs-audio-v2-tokenizer@")
