"""An executed notebook as one HTML page that loads nothing from outside: `python -m higgs.workflow.page STAGE`.

A page is no result: it says at which commit it was made, and its sounds are encoded here, which other processors do
with other bits. What DVC keeps is reports/STAGE.rendered, the hash of the notebook. Without a stage, the pages that are
missing or of another notebook are made. Each time the list of all pages, reports/index.html, is written too.
"""

import html
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from higgs.files import git, sha256, write_atomically
from higgs.workflow.outputs import SOUNDS, in_script

FILES = Path(__file__).parent / "templates"  # styles, scripts and the template of nbconvert
REPORTS, INDEX = Path("reports"), "index.html"
STAGES = ("tokenize", "generate", "evaluate")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"
HEADING = re.compile(r'<h([23]) id="([^"]+)">(.*?)<a class="anchor-link"', re.S)
MAX_CHANGED = 12
Facts = Mapping[str, str]


class NotSelfContained(ValueError):
    """The page would load something from outside itself."""


@dataclass(frozen=True)
class Extra:
    """What a page has beside the common style and script: .css and .js files, and what they read from "data"."""

    files: Sequence[Path] = ()
    data: Any = None

    def contents(self, suffix: str) -> list[str]:
        return [path.read_text(encoding="utf-8") for path in self.files if path.suffix == suffix]


def to_html(notebook: NotebookNode, title: str, links: Sequence[str] = (), facts: Facts | None = None) -> str:
    """The whole page; its title is the first heading, or else `title`. Raises NotSelfContained.

    `links` are names of pages beside it, `facts` are shown with the provenance.
    """
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    headings = (re.search(r"^# +(.+)$", cell.source, re.M) for cell in notebook.cells if cell.cell_type == "markdown")
    heading = next((_plain(match[1]) for match in headings if match), title)
    question = re.search(r"\*\*(.+?)\*\*", first, re.S)
    _describe_pictures(notebook)
    sounds = _sounds(notebook)
    scripts = ["page.js", *(["spectrogram.js", "utterances.js"] if sounds is not None else [])]
    resources = {
        "page_title": heading, "page_question": _plain(question[1]) if question else "", "page_style": page_style(),
        "page_links": _links(links), "page_facts": facts or {}, "page_scripts": [_read(name) for name in scripts],
        "page_sounds": None if sounds is None else in_script(sounds),
    }  # fmt: skip
    page, _ = _exporter().from_notebook_node(notebook, resources=resources)
    page = page.replace("<!--contents-->", _contents(page), 1)
    page = page.replace('<a class="anchor-link"', '<a class="anchor-link" aria-label="link to this part"')
    return check_self_contained(page)


def bare_page(
    title: str, body: str, question: str = "", links: Sequence[str] = STAGES, extra: Extra | None = None
) -> str:
    """HTML as a page in the same style; `question` is its line in the list of pages. Raises NotSelfContained."""
    extra = extra or Extra()
    data = f'<script type="application/json" id="data">{in_script(extra.data)}</script>' if extra.data else ""
    scripts = "".join(f"<script>{script}</script>\n" for script in (_read("page.js"), *extra.contents(".js")))
    style = "\n".join([page_style(), *extra.contents(".css")])
    named = re.sub(r"<h2>(.*?)</h2>", _with_id, body)
    return check_self_contained(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="description" content="{html.escape(question)}">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>{_links(links)}"
        f'<div class="columns"><main>{named}</main></div>\n{data}{scripts}</body></html>\n'
    )


def _with_id(heading: re.Match) -> str:
    """A heading that can be linked to."""
    place = re.sub(r"\W+", "-", re.sub(r"<[^>]*>|&\w+;", "", heading[1])).strip("-").lower()
    return f'<h2 id="{place}">{heading[1]}</h2>'


def check_self_contained(page: str) -> str:
    """-> the page; NotSelfContained with the elements that would load something. Links to follow are allowed."""
    finder = _ExternalLoads()
    finder.feed(page)
    finder.close()
    if finder.loads:
        loads = "; ".join(finder.loads[:10])
        raise NotSelfContained(f"the page loads from outside itself: {loads} (embed it as a data: URI)")
    return page


def write_page(path: Path, page: str) -> None:
    """The page, and in reports/ the list of the pages."""
    write_atomically(path, page)
    if path.parent.name == REPORTS.name:
        write_atomically(path.with_name(INDEX), _index(path.parent))


def revision() -> dict[str, str]:
    """The commit of the working tree, and the files that differ from it."""
    if not (commit := git("rev-parse", "HEAD")):
        return {"Git commit": "not known: this is no working tree of Git"}
    names = [line[3:] for line in git("status", "--porcelain").splitlines()]
    more = f" and {len(names) - MAX_CHANGED} more" if len(names) > MAX_CHANGED else ""
    return {"Git commit": commit.strip(), "changed since": ", ".join(names[:MAX_CHANGED]) + more or "nothing"}


@cache
def page_style() -> str:
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    night = f"@media screen and (prefers-color-scheme: dark) {{ {dark} }}"
    return "\n".join([light, night, _read("style.css"), _read("utterances.css")])


@cache
def _read(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


@cache
def _exporter():
    from jinja2 import FileSystemLoader
    from nbconvert import HTMLExporter

    settings = {"template_file": "stage.html.j2", "extra_loaders": [FileSystemLoader(FILES)]}
    exporter = HTMLExporter(template_name="basic", **settings)
    # Its own templates would fetch these two from a content delivery network.
    exporter.require_js_url = exporter.mathjax_url = ""
    return exporter


def _plain(markdown: str) -> str:
    return " ".join(re.sub(r"[*_`#]", "", markdown).split())


def _links(names: Sequence[str]) -> str:
    pages = [("all reports", INDEX), *((name, f"{name}.html") for name in names)]
    links = "".join(f'<a href="{html.escape(page)}">{html.escape(name)}</a>' for name, page in pages)
    return f'<header class="pages"><nav aria-label="reports">{links}</nav></header>' if names else ""


def _contents(page: str) -> str:
    items = [f'<li class="h{level}"><a href="#{place}">{text}</a></li>' for level, place, text in HEADING.findall(page)]
    listed = f"<details><summary>Contents</summary><ul>{''.join(items)}</ul></details>"
    return f'<nav class="contents" aria-label="contents">{listed}</nav>' if len(items) > 2 else ""


def _describe_pictures(notebook: NotebookNode) -> None:
    """A figure without a description has the sentence that stands above its cell. In place, for the page alone."""
    sentence, number = "", 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            sentence = _plain(cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                number += 1
                described = output.metadata.setdefault("image/png", {})
                described.setdefault("alt", f"Figure {number}. {sentence}".strip())


def _sounds(notebook: NotebookNode) -> dict[str, str] | None:
    outputs = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    paths = next((data[SOUNDS] for data in outputs if SOUNDS in data), None)
    return None if paths is None else embedded(paths)


def embedded(paths: Sequence[str | None]) -> dict[str, str]:
    """Number of a file in the list -> its data: URI, where `encode` has one; none outside of the working directory."""
    from higgs.workflow.sounds import encode

    here = Path.cwd().resolve()
    sounds = encode([Path(path) if path and Path(path).resolve().is_relative_to(here) else None for path in paths])
    known = {str(number): place for number, place in enumerate(sounds.of) if place is not None}
    return {number: f"data:audio/ogg;base64,{sounds.encoded[place]}" for number, place in known.items()}


class _ExternalLoads(HTMLParser):
    LOADING = {"src", "srcset", "poster", "data", "background", "xlink:href"}

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            value = (value or "").strip()
            is_load = name in self.LOADING or (name == "href" and tag in {"link", "base", "use", "image"})
            if is_load and value and not value.startswith(("data:", "#")):
                self.loads.append(f"<{tag} {name}={html.escape(value[:80])}>")
            if name == "style":
                self._check_style(value)

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self._check_style(data)

    def _check_style(self, style: str) -> None:
        found = re.findall(r"@import[^;]*|url\(\s*['\"]?(?!data:|#|['\"])[^)]*\)", style)
        self.loads += [load[:80] for load in found]


class _Head(HTMLParser):
    """The title, the description, the notebook's hash and the first paragraph of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "meta" and named.get("content"):
            self.found[named.get("name") or ""] = named["content"]
        if tag in ("title", "p") and tag not in self.found:
            self._inside, self.found[tag] = tag, ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[self._inside] += data


def _index(folder: Path) -> str:
    """The list of the pages in a folder, each with what it answers in one line."""
    known = [f"{name}.html" for name in (*STAGES, "compare", "listen", "speed")]
    pages = [path for path in folder.glob("*.html") if path.name != INDEX]
    pages.sort(key=lambda path: (known.index(path.name) if path.name in known else len(known), path.name))
    items = []
    for path in pages:
        head = _Head(path.read_text(encoding="utf-8", errors="replace")).found  # it may be of another program
        title = html.escape(head.get("title") or path.stem)
        line = html.escape(head.get("description") or head.get("p", ""))
        items.append(f'<li><p><a href="{html.escape(path.name)}">{title}</a><br>{line}</p></li>')
    return bare_page("Reports", f"<h1>Reports</h1><ul>{''.join(items)}</ul>")


def _render(stage: str) -> None:
    """reports/<stage>.ipynb -> reports/<stage>.html and reports/<stage>.rendered."""
    source = REPORTS / f"{stage}.ipynb"
    digest = sha256(source)
    facts = {"notebook": digest} | revision()
    write_page(source.with_suffix(".html"), to_html(nbformat.read(source, as_version=4), stage, STAGES, facts))
    write_atomically(source.with_suffix(".rendered"), f"{digest}\n")


def _is_current(stage: str) -> bool:
    page = REPORTS / f"{stage}.html"
    if not page.is_file():
        return False
    return _Head(page.read_text(encoding="utf-8")).found.get("notebook") == sha256(REPORTS / f"{stage}.ipynb")


def main(stage: str | None = None) -> int:
    stages = [stage] if stage else [s for s in STAGES if (REPORTS / f"{s}.ipynb").is_file() and not _is_current(s)]
    for name in stages:
        try:
            _render(name)
        except (FileNotFoundError, NotSelfContained) as error:
            sys.stderr.write(f"{REPORTS / name}.ipynb: {error}\n")
            return 1
    if not stages:
        write_atomically(REPORTS / INDEX, _index(REPORTS))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
