"""An executed notebook as one HTML page that loads nothing from outside: `python -m higgs.workflow.page STAGE`."""

import html
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from higgs.files import replacing

FILES = Path(__file__).parent / "templates"  # style.css and the template of nbconvert


class NotSelfContained(ValueError):
    """The page would load something from outside itself."""


def to_html(notebook: NotebookNode, title: str) -> str:
    """The whole page; its title is the first heading, or else `title`. Raises NotSelfContained."""
    headings = (re.search(r"^# +(.+)$", cell.source, re.M) for cell in notebook.cells if cell.cell_type == "markdown")
    heading = next((re.sub(r"[*_`]", "", match[1]).strip() for match in headings if match), title)
    resources = {"page_title": heading, "page_style": page_style()}
    page, _ = _exporter().from_notebook_node(notebook, resources=resources)
    return check_self_contained(page)


def bare_page(title: str, body: str) -> str:
    """HTML as a page in the same style. Raises NotSelfContained."""
    return check_self_contained(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{page_style()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def check_self_contained(page: str) -> str:
    """-> the page; NotSelfContained with the elements that would load something. Links to follow are allowed."""
    finder = _ExternalLoads()
    finder.feed(page)
    finder.close()
    if finder.loads:
        loads = "; ".join(finder.loads[:10])
        raise NotSelfContained(f"the page loads from outside itself: {loads} (embed it as a data: URI)")
    return page


@cache
def page_style() -> str:
    from pygments.formatters import HtmlFormatter

    style = (FILES / "style.css").read_text(encoding="utf-8")
    return style + HtmlFormatter(style="default").get_style_defs(".highlight")


@cache
def _exporter():
    from jinja2 import FileSystemLoader
    from nbconvert import HTMLExporter

    settings = {"template_file": "stage.html.j2", "extra_loaders": [FileSystemLoader(FILES)]}
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True, **settings)
    # Its own templates would fetch these two from a content delivery network.
    exporter.require_js_url = exporter.mathjax_url = ""
    return exporter


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


def main(stage: str) -> int:
    """reports/<stage>.ipynb -> reports/<stage>.html."""
    source = Path(f"reports/{stage}.ipynb")
    try:
        page = to_html(nbformat.read(source, as_version=4), stage)
    except (FileNotFoundError, NotSelfContained) as error:
        sys.stderr.write(f"{source}: {error}\n")
        return 1
    with replacing(source.with_suffix(".html")) as partial:
        partial.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
