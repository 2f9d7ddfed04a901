"""README, CONTRIBUTING and docs/ agree with the code: links, commands, snippets, tables, measured numbers."""

import dataclasses
import inspect
import json
import re
import runpy
import shlex
import types
import typing
from xml.etree import ElementTree

import pytest
import torch
import typer
from conftest import ROOT

import higgs
from higgs import AudioTokenizer, HiggsAudio
from higgs.audio import load_audio
from higgs.checkpoint.alias import Checkpoint
from higgs.cli.app import app
from higgs.config import CodecConfig, ModelConfig
from higgs.data.text.chunks import ChunkOptions
from higgs.delay import add_stream_ids, delayed_segment
from higgs.serve.engine import Response
from higgs.validation import parse_yaml
from higgs.workflow.lock import committed
from higgs.workflow.outputs import STAGE_VARIABLE
from higgs.workflow.params import PLACES, SCALARS, SECTIONS, SpeechParams, read_params, scalars_of
from higgs.workflow.tables import read_rows

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FIGURES = sorted((DOCS / "figures").glob("*.svg"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def read(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for named, content in fenced if named == language]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, heads and rules left out."""
    lines = re.findall(r"^\|(.*)\|$\n(?!\|[-|]+\|)", text, re.MULTILINE)
    found = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    return [cells for cells in found if not re.fullmatch(r"-+", cells[0])]


def slug(heading: str) -> str:
    """As GitHub makes anchors of headings."""
    text = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return text.replace(" ", "-")


def test_the_pages_are_those_that_the_readme_links():
    linked = set(re.findall(r"\]\(docs/([\w-]+)\.md\)", (ROOT / "README.md").read_text()))
    assert linked == {page.stem for page in DOCS.glob("*.md")}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists() and linked.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


@pytest.mark.parametrize("page", PAGES[:-1], ids=lambda page: page.stem)
def test_named_files_exist(page):
    named = r"(?:`|!\[[^\]]*\]\()((?:higgs|notebooks|docs|tests|training|data)/[\w./-]+)[`)]"
    for name in set(re.findall(named, page.read_text())):
        assert (ROOT / name.rstrip("/")).exists(), name


def commands(text: str) -> set[str]:
    """Lines of blocks without a language, and what stands in backticks."""
    lines = [line for block in blocks(text, "") for line in block.splitlines()]
    return {line.partition(" #")[0].strip() for line in [*lines, *re.findall(r"`([^`\n]+)`", text)]}


@each_page
def test_commands_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page.read_text()):
        if match := re.match(r"make ([a-z][\w-]*)", command):
            assert match[1] in targets, command
        if match := re.match(r"python (-m )?((?:higgs|training|docs)[\w./]*)(.*)", command):
            path = match[2].replace(".", "/") + ".py" if match[1] else match[2]
            assert path == "higgs.py" or (ROOT / path).is_file(), command
        if match := re.match(r"(?:python -m )?higgs (.*)", command):
            check_higgs_command(match[1])


def check_higgs_command(arguments: str) -> None:
    """`higgs` takes these arguments; a command alone names itself."""
    command, words = typer.main.get_command(app), shlex.split(arguments)
    while words and (inner := getattr(command, "commands", {}).get(words[0])):
        command, words = inner, words[1:]
    if words and hasattr(command, "commands"):
        assert any(words[0] in option.opts for option in command.params), arguments
    elif words:
        command.make_context("higgs", words)


WITH_PYTHON = [page for page in PAGES if blocks(page.read_text(), "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_snippets_run(page, nano, tmp_path, monkeypatch):
    """All of a page in one namespace, in a folder that has `data/` and nothing else."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for snippet in blocks(page.read_text(), "python"):
        exec(compile(snippet, page.name, "exec"), names)
    if page.stem == "README":
        waveform, rate = load_audio("hello.wav")
        assert rate == 24_000 and len(waveform) > 24_000


def test_the_numbers_of_the_readme_are_those_of_the_committed_run():
    """Another type of CPU may have written other numbers since."""
    metrics = json.loads(committed(ROOT, "evaluation.json") or (ROOT / "evaluation.json").read_text())
    text = (ROOT / "README.md").read_text()
    (table,) = re.findall(r"<!-- metrics -->(.*?)<!-- /metrics -->", text, re.DOTALL)
    for name in ("recordings", "codec", "generated"):
        assert f"{metrics[f'{name}_wer_percent']:.1f} %" in table, name
    (line,) = re.findall(r"^checkpoint: (\S+)$", text, re.MULTILINE)
    assert line in (ROOT / "params.yaml").read_text() and Checkpoint.parse(line).dtype == "bfloat16"


def annotation(hint: object) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(annotation(choice) for choice in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


@pytest.mark.parametrize("section", ["scalars", *SECTIONS])
def test_the_configuration_is_that_of_the_code(section):
    """Names, types and defaults, in the order of params.yaml."""
    params = read_params(ROOT / "params.yaml")
    heading = "At the top" if section == "scalars" else f"`{section}`"
    (part,) = re.findall(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", read("configuration"), re.DOTALL | re.MULTILINE
    )
    hints = {"workers": int | None, "cluster": str | None, "work": str | None, "device": str | None}
    if section == "scalars":
        names = [name for name in params if name not in SECTIONS]
        hints |= typing.get_type_hints(SpeechParams)
        assert set(names) == {*SCALARS, *PLACES}
    else:
        names = list(params[section])
        hints |= typing.get_type_hints(SECTIONS[section])
        assert [*scalars_of(section), *names] == list(SECTIONS[section].model_fields)
    defaults = params if section == "scalars" else params[section]
    table = [(key.strip("`"), kind.strip("`"), value.strip("`")) for key, kind, value, _ in rows(part)]
    assert [(key, kind) for key, kind, _ in table] == [(n, annotation(hints[n])) for n in names]
    assert {key: parse_yaml(value) for key, _, value in table} == {n: defaults[n] for n in names}


def test_the_chunk_options_are_those_of_the_code():
    (part,) = re.findall(r"`ChunkOptions`.*?(?=^## )", read("data-formats"), re.DOTALL | re.MULTILINE)
    described = {key.strip("`"): parse_yaml(value) for key, value, _ in rows(part)}
    assert described == ChunkOptions().model_dump()


def test_the_environment_variables_that_the_code_reads_are_described():
    sources = "\n".join(path.read_text() for path in (ROOT / "higgs").rglob("*.py"))
    read_here = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", sources)) | {STAGE_VARIABLE}
    table = rows(read("configuration").partition("## Environment variables")[2])
    named = {name for cells in table for name in re.findall(r"`([A-Z_]+)`", cells[0])}
    assert "HIGGS_CACHE" in read_here and read_here <= named


@pytest.mark.slow
def test_the_result_tables_have_the_columns_of_the_page(clone, first_run):
    text = read("data-formats").partition("## Results")[2]
    described = {cells[0].strip("`"): re.findall(r"`(\w+)`", cells[1]) for cells in rows(text)}
    written = [p for p in (clone / "results").glob("*/*.*") if p.suffix in (".csv", ".parquet")]
    tables = {str(p.relative_to(clone / "results")): p for p in written}
    heads = {
        name: list(read_rows(path)[0]) if path.suffix == ".parquet" else path.read_text().splitlines()[0].split(",")
        for name, path in tables.items()
        if path.suffix == ".csv" or name in described or not name.startswith("evaluate/")
    }
    assert heads == {n: c for n, c in described.items() if n in heads or "chunks" not in n}


def signature(thing: object) -> str:
    """Without annotations, `self` and `cls`."""
    found = inspect.signature(thing)
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values() if p.name != "self"]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


def test_the_public_names_are_described_with_their_signatures():
    text = read("api")
    assert re.findall(r"^## `(\w+)`", text, re.MULTILINE) == list(higgs.__all__)
    described = [line for block in blocks(text, "text") for line in block.strip().splitlines()]
    assert {line.partition("(")[0].partition(".")[0] for line in described} == set(higgs.__all__)
    for line in described:
        name, method = re.match(r"(\w+)(?:\.(\w+))?\(", line).groups()
        thing = getattr(higgs, name)
        thing = getattr(thing, method) if method else thing
        assert line == f"{name}{f'.{method}' if method else ''}{signature(thing)}"


def test_a_response_is_described_whole():
    (part,) = re.findall(r"^### Response\n(.*?)(?=^##)", read("api"), re.DOTALL | re.MULTILINE)
    named = [name for cells in rows(part) for name in re.findall(r"`(\w+)`", cells[0])]
    assert named == [field.name for field in dataclasses.fields(Response)]


def test_the_numbers_of_the_release_are_those_of_the_code():
    config = ModelConfig()
    with torch.device("meta"):
        model, codec = HiggsAudio(config), AudioTokenizer(CodecConfig())

    def size(part: torch.nn.Module) -> int:
        return sum(t.numel() for t in part.state_dict().values())

    layer = model.layers[0]
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    for page, number in (
        ("architecture", size(model)), ("architecture", size(model.text_embedding)),
        ("architecture", size(layer.attention)), ("architecture", size(layer.audio_ffn)),
        ("architecture", size(model.audio_head)), ("gpu-and-docker", size(model)),
        ("gpu-and-docker", 2 * size(model)), ("gpu-and-docker", size(codec)), ("gpu-and-docker", position),
    ):  # fmt: skip
        assert f"{number:,}" in read(page), f"{page}: {number:,}"
    assert size(layer.text_ffn) == size(layer.audio_ffn)
    picture = (DOCS / "figures" / "dual-ffn.svg").read_text()
    assert f"{size(layer.attention):,}" in picture and f"{size(layer.audio_ffn[1]):,}" in picture
    assert f"{config.num_layers} layers" in picture


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_stands_by_itself(path):
    """Drawn by hand, with its own background, a title, and nothing from outside."""
    text = path.read_text()
    tree = ElementTree.fromstring(text)
    width, height = tree.get("viewBox").split()[2:]
    background = next(e for e in tree if e.tag.endswith("rect"))
    assert (background.get("width"), background.get("height")) == (width, height)
    assert tree.find("{*}title").text
    assert not re.search(r"<(script|image|foreignObject)|href=\"(?!#)|url\((?!#)|@import", text)


def test_the_delay_pattern_is_drawn_as_it_is_computed():
    tree = ElementTree.parse(DOCS / "figures" / "delay-pattern.svg")
    codes, bos, eos = torch.arange(1, 6).expand(8, 5), 0, 6
    shown = "B12345E"
    for group, expected in (("before", add_stream_ids(codes, bos, eos)), ("after", delayed_segment(codes, bos, eos))):
        drawn = [text.text for text in tree.findall(f".//*[@id='{group}']/")]
        assert drawn == ["".join(shown[i] for i in row) for row in expected.tolist()]


def test_prompting_is_measured_rightly():
    """Two tones of 0.5 s with 0.3 s between them."""
    measure = runpy.run_path(str(DOCS / "measure_prompting.py"))
    time = torch.arange(12_000) / 24_000
    for hertz in (90, 130, 200, 300):
        tone = sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 12))
        spoken = torch.cat([torch.zeros(2400), tone, torch.zeros(7200), tone, torch.zeros(4800)])
        assert measure["pitch"](spoken, 24_000) == pytest.approx(hertz, rel=0.01)
        assert measure["longest_pause"](spoken, 24_000) == pytest.approx(300, abs=20)
        assert measure["pace"](spoken, 24_000, "one two three") == pytest.approx(3 / 1.3, rel=0.02)
    for words, texts in measure["WORDS"].items():
        assert [len(text.split()) for text in texts.split("|")] == [words] * 8


def test_what_was_measured_is_the_checkpoint_that_is_here():
    """After another checkpoint: measure again with the commands that stand before the tables, in two pages."""
    provenance = json.loads((ROOT / "evaluation.json").read_text())["provenance"]
    for page in ("prompting", "architecture"):
        (table,) = re.findall(r"<!-- measured -->(.*?)<!-- /measured -->", read(page), re.DOTALL)
        assert f"model `{provenance['model']}`, codec `{provenance['codec']}`" in table, page
