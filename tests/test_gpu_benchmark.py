"""`make gpu` without a GPU: the cheap parts to their end, parts that are killed, the tables, and the plain step."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_step import NAMES, prefill

from benchmarks.counts import of_their_steps
from benchmarks.gpu import table
from benchmarks.gpu.__main__ import DONE, Results, main, run_child
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.plain_step import PlainDecoder
from benchmarks.gpu.report import Report
from benchmarks.gpu.wheels import pinned
from benchmarks.timing import per_step
from higgs.serve.batching.slots import SlotDecoder

ABOUT = {"size": "released", "device": "cuda", "rehearsal": False, "card": "a card", "commit": "abc", "torch": "2"}


def test_the_cheap_parts_run_to_their_end_and_are_a_rehearsal(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--json", str(path), "--only", "bandwidth", "profile"]
    assert main(words) == 0
    content = json.loads(path.read_text())
    assert {name: part["state"] for name, part in content["parts"].items()} == {"bandwidth": DONE, "profile": DONE}
    figures = table.Figures(content)
    assert figures("bandwidth", "read") > 0.1 and figures("profile", "ours, waits") == 0
    assert figures("profile", "ours, kernels") < 0.7 * figures("profile", "transformers, kernels")
    assert content["about"]["rehearsal"] and content["about"]["size"] == "tiny"
    assert capsys.readouterr().out.startswith("**Rehearsal")
    before = path.stat().st_mtime_ns
    assert main(words) == 0 and path.stat().st_mtime_ns == before, "what is done is not done again"
    page = tmp_path / "page.md"
    page.write_text(table.BEGIN + table.END)
    with pytest.raises(ValueError, match="a rehearsal is no measurement"):
        table.write(content, page)
    assert main([*words, "--size", "small"]) == 1 and path.stat().st_mtime_ns == before
    assert "of another run ({'size': 'tiny'})" in capsys.readouterr().err


class Ends:
    """In the place of a port: one operator a step, and a run ends after 15 steps with each of the first seeds."""

    device = "cpu"

    def __init__(self, seeds: int):
        self.seeds = seeds

    def generate(self, max_new_tokens: int, **_) -> torch.Tensor:
        steps = min(max_new_tokens, 15) if torch.initial_seed() < self.seeds else max_new_tokens
        one = torch.ones(1)
        for _ in range(steps):
            one = one + 1
        return torch.zeros(1, steps, 8)


def test_a_run_that_ends_by_itself_is_not_counted():
    prompt = SimpleNamespace(input_ids=torch.zeros(1, 4), attention_mask=torch.ones(1, 4))
    assert of_their_steps(Ends(3), prompt)["operators"] == 1
    with pytest.raises(RuntimeError, match="with each of 20 seeds transformers ended a run early"):
        of_their_steps(Ends(20), prompt)


FIGURE = 'print(\'{"name": "%s", "value": 1.0}\', flush=True);'


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("import time; time.sleep(60)", "stopped after 2 s"),
        ("import os; os.kill(os.getpid(), 11)", f"ended with signal {signal.SIGSEGV.value}"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import subprocess; subprocess.run(['sleep', '60'])", "stopped after 2 s"),
        ("pass", DONE),
    ],
    ids=["stopped", "crashed", "failed", "waits for a child", "whole"],
)  # fmt: skip
def test_a_part_that_is_killed_loses_nothing(tmp_path, end, state):
    path = tmp_path / "gpu.json"
    results = Results(path, ABOUT)
    for part, script in (("first", "pass"), ("second", end), ("third", "pass")):
        command = [sys.executable, "-c", FIGURE % "a" + FIGURE % "b" + script]
        run_child(command, results, part, 2, {})
    parts = Results(path, ABOUT).content["parts"]
    assert [part["state"] for part in parts.values()] == [DONE, state, DONE]
    assert all(part["figures"].keys() == {"a", "b"} and part["seconds"] < 15 for part in parts.values())
    assert [Results(path, ABOUT).is_done(part) for part in parts] == [True, state == DONE, True]
    assert (f"- second: {state}" in table.markdown(json.loads(path.read_text()))) is (state != DONE)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"about": {}}'])
def test_a_file_that_holds_no_figures_stays_as_it_is(tmp_path, content):
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="gpu.json holds no figures .* say --again"):
        Results(path, ABOUT)
    assert path.read_text() == content and Results(path, ABOUT, again=True).content["parts"] == {}


def test_a_part_ends_with_the_run_that_is_told_to_end(tmp_path):
    """A part that nobody waits for would keep the GPU."""
    words = ["--device", "cpu", "--json", str(tmp_path / "gpu.json"), "--only", "batches"]
    run = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline, part = time.monotonic() + 60, None
    while part is None and time.monotonic() < deadline:
        time.sleep(0.1)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        part = next((pid for pid in children if b"--part" in Path(f"/proc/{pid}/cmdline").read_bytes()), None)
    run.terminate()
    assert run.wait(10) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{part}").exists()


def test_the_file_is_whole_after_every_figure(tmp_path):
    """Whatever ends the run itself."""
    results = Results(tmp_path / "gpu.json", ABOUT)
    results.begin("decode")
    for number in range(3):
        results.add("decode", {"name": str(number), "value": number})
        assert len(json.loads(results.path.read_text())["parts"]["decode"]["figures"]) == number + 1


def test_a_measure_that_fails_is_named_and_the_others_go_on(tmp_path):
    calls = []

    def fails():
        calls.append("fails")
        raise RuntimeError("no such kernel\nand a page of advice")

    with (tmp_path / "lines").open("w") as sink:
        Report(sink).in_turns({"broken": fails, "good": lambda: (0.002, 0.001)}, 2, "ms")
    figures = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert figures[0] == {"name": "broken", "value": "not available: RuntimeError: no such kernel", "unit": ""}
    assert figures[-1] == {"name": "good", "value": 2.0, "unit": "ms", "low": 2.0, "high": 2.0, "n": 2}
    assert calls == ["fails"]


def test_a_failure_in_a_later_round_keeps_what_was_measured(tmp_path):
    values = iter([0.009, 0.003, 0.001])
    with (tmp_path / "lines").open("w") as sink:
        Report(sink).in_turns({"step": lambda: (next(values), 0.0)}, 4, "ms")
    figures = {json.loads(line)["name"]: json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()}
    assert (figures["step"]["value"], figures["step"]["n"]) == (2.0, 2)
    assert figures["step, round 3"]["value"].startswith("not available: StopIteration")


def test_the_longest_run_is_measured_first():
    """transformers keeps the length of its first static cache."""
    asked = []
    measure = per_step(asked.append, torch.device("cpu"), 4, 8)
    measure()
    assert asked == [8, 4]


def content_of(**parts: dict) -> dict:
    made = {
        part: {"state": DONE, "figures": {name: {"value": value, "unit": ""} for name, value in figures.items()}}
        for part, figures in parts.items()
    }
    return {"about": ABOUT, "date": "2026-01-01", "parts": made}


@pytest.mark.parametrize(
    ("parts", "goal", "line"),
    [
        ({"bandwidth": {"read": 3000.0}, "decode": {"bytes of a step": 5.7, "compiled": 2.0}}, 0, "95 % | met"),
        ({"bandwidth": {"read": 3000.0}, "decode": {"bytes of a step": 5.7, "graph": 3.0}}, 0, "63 % | **not met**"),
        ({"decode": {"transformers, growing cache": 12.0, "compiled": 2.0}}, 1, "6.00x | met"),
        ({"decode": {"transformers, static cache, compiled": 3.0, "compiled": 2.0}}, 2, "1.50x | **not met**"),
        ({"slots": {"batch 64, contexts 200 to 1200": 6.0}}, 3, "10,667 | met"),
        ({"first_packet": {"after 512, graph": 80.0, "after 512, compiled": 60.0}}, 4, "60 ms | met"),
        ({"first_packet": {"after 512, graph": 80.0}}, 4, "80 ms | **not met**"),
        ({"decode": {"compiled": 3.0}, "int8": {"int8": "not available: x"}}, 5, "not measured | "),
        ({"codec": {"encode, encode(list)": 0.4}}, 7, "2,500 | met"),
    ],
)  # fmt: skip
def test_goals_follow_from_the_figures(parts, goal, line):
    text = table.markdown(content_of(**parts))
    rows = text[text.index("| goal |") :].splitlines()[2:]
    assert f"| {line}" in rows[goal], rows[goal]


def test_a_part_that_failed_takes_no_table_along():
    """Its figure has the name of the part."""
    figures = {"batch 2, eager": 3.0, "batches": "not available: OutOfMemoryError: "}
    assert "| 2 | 3.00 (667) |" in table.markdown(content_of(batches=figures))


def test_the_tables_are_put_in_their_place(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}old\n{table.END}after\n")
    content = content_of(plain_step={"fused, compiled": 2.0, "plain, compiled": 2.1}, batches={"batch 8, graph": 4.0})
    for _ in range(2):
        table.write(content, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and text.count("a card") == 1
    assert "1.05 times as long as the fused step: the fused step is needed on the CPU alone" in text
    assert "| 8 |  | 4.00 (2,000) |" in text
    assert table.BEGIN in table.PAGE.read_text() and table.END in table.PAGE.read_text()


def test_the_plain_step_draws_what_the_fused_one_draws(model, prompts):
    drawn = []
    for kind in (SlotDecoder, PlainDecoder):
        decoder = kind(model, slots=2, positions=400, steps_per_sync=4)
        prefill(decoder, prompts, NAMES[:2], 60)
        drawn.append(torch.cat([decoder.run(4).clone() for _ in range(6)], 1))
    assert torch.equal(*drawn) and len(drawn[0].unique()) > 20


def test_parts_and_wheels_are_named_where_they_have_to_be():
    assert sum(limit for _, limit in PARTS.values()) / 60 < 20 and len(pinned()) == 9
    assert "python -m benchmarks.gpu" in (ROOT / "BENCHMARKS.md").read_text()
