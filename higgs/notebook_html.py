"""An executed notebook as one page that loads nothing from outside: for phone, print, archive."""

import html
import re
from functools import cache
from html.parser import HTMLParser

from nbformat import NotebookNode

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c2024; font: 16px/1.6 system-ui, sans-serif;
  overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 1rem 0; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid #e3e6ea; }
h3 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
a { color: #0b5cad; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: 4px solid #c9d3de;
  background: #f6f8fa; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: .85em; }
pre { margin: 0; white-space: pre-wrap; line-height: 1.45; }
p code, li code, td code { background: #f2f4f7; padding: .1em .3em; border-radius: 3px; }
img, svg { max-width: 100%; height: auto; }
details.code { margin: .4rem 0; color: #5a646e; }
details.code summary { cursor: pointer; font-size: .75rem; letter-spacing: .04em; }
details.code .highlight { margin: .3rem 0 .8rem; padding: .6rem .8rem; background: #f6f8fa;
  border-left: 3px solid #d5dce4; overflow-x: auto; }
.output_subarea { margin: .4rem 0; overflow-x: auto; }
.output_subarea > pre { background: none; color: #333b43; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; }
th, td { padding: .25rem .7rem; border: 0; border-bottom: 1px solid #e3e6ea; text-align: left;
  vertical-align: middle; }
th { border-bottom: 2px solid #aab4be; }
td.number, table.dataframe td { text-align: right; white-space: nowrap; }
figure.player { margin: .3rem 0; }
figure.player figcaption { font-size: .85rem; color: #47515b; }
audio { display: block; width: 22rem; max-width: 100%; height: 2.4rem; }
td audio { width: 15rem; min-width: 9rem; }
.card { display: grid; grid-template-columns: 1fr 18rem; gap: .2rem 1.2rem; padding: .7rem 0;
  border-bottom: 1px solid #e3e6ea; break-inside: avoid; }
.card p { margin: .2rem 0; }
.card small { color: #5a646e; }
.card audio, .card img { width: 100%; }
del { color: #a3301f; }
ins { color: #0b5cad; text-decoration: none; font-style: italic; }
@media (max-width: 40rem) { body { font-size: 15px; } main { padding: .6rem .7rem 3rem; }
  h1 { font-size: 1.5rem; } td audio { width: 12rem; }
  .card { grid-template-columns: 1fr; } table { font-size: .78rem; } th, td { padding: .2rem .3rem; } }
@media print { main { max-width: none; padding: 0; } details.code:not([open]) { display: none; }
  figure, tr, img, .output_area { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""

# Built on nbconvert's plain template. Code is folded away, except for the parameters that the stage
# ran with; the cell they were injected after only says where an explorer gets them from, so it is
# left out.
TEMPLATE = """
{%- extends 'basic/index.html.j2' -%}
{%- block header -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ resources.page_title | e }}</title>
<style>{{ resources.page_style }}</style>
</head>
<body>
<main>
{% endblock header -%}
{%- block input_group -%}
{%- set tags = cell.metadata.get('tags', []) -%}
{%- set injected = 'injected-parameters' in tags -%}
{%- if cell.source.strip() and 'parameters' not in tags -%}
<details class="code"{{ ' open' if injected }}>
<summary>{{ 'parameters' if injected else 'code' }}</summary>
{{ cell.source | highlight_code(metadata=cell.metadata) }}
</details>
{%- endif -%}
{%- endblock input_group -%}
{%- block output_area_prompt -%}{%- endblock output_area_prompt -%}
{%- block footer -%}
</main>
</body>
</html>
{% endblock footer -%}
"""


class NotSelfContained(ValueError):
    """The page would load something from outside itself."""


def to_html(notebook: NotebookNode, title: str) -> str:
    """The whole page; its title is the first heading, or else `title`. Raises NotSelfContained."""
    resources = {"page_title": _first_heading(notebook) or title, "page_style": page_style()}
    page, _ = _exporter().from_notebook_node(notebook, resources=resources)
    check_self_contained(page)
    return page


def bare_page(title: str, body: str) -> str:
    """HTML that is no notebook, as a page of the same looks. Raises NotSelfContained."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{page_style()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    check_self_contained(page)
    return page


def check_self_contained(page: str) -> None:
    """Raises NotSelfContained, naming each element of the page that would load something.

    A link that a reader may follow loads nothing by itself and is allowed.
    """
    finder = _OutsideFinder()
    finder.feed(page)
    finder.close()
    if finder.found:
        raise NotSelfContained(
            "the page loads from outside itself: "
            + "; ".join(finder.found[:10])
            + " (embed it as a data: URI)"
        )


@cache
def page_style() -> str:
    from pygments.formatters import HtmlFormatter

    return STYLE + HtmlFormatter(style="default").get_style_defs(".highlight")


@cache
def _exporter():
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic",
        template_file="stage.html.j2",
        extra_loaders=[DictLoader({"stage.html.j2": TEMPLATE})],
        exclude_anchor_links=True,
    )
    # Its own templates would fetch these two from a content delivery network.
    exporter.require_js_url = exporter.mathjax_url = ""
    return exporter


def _first_heading(notebook: NotebookNode) -> str | None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (match := re.search(r"^# +(.+)$", cell.source, re.M)):
            return re.sub(r"[*_`]", "", match[1]).strip()
    return None


class _OutsideFinder(HTMLParser):
    LOADING = {"src", "srcset", "poster", "data", "background", "xlink:href"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_style = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.in_style = tag == "style"
        for name, value in attributes:
            value = (value or "").strip()
            loads = name in self.LOADING or (
                name == "href" and tag in {"link", "base", "use", "image"}
            )
            if loads and value and not value.startswith(("data:", "#")):
                self.found.append(f"<{tag} {name}={html.escape(value[:80])}>")
            if name == "style":
                self._check_style(value)

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self._check_style(data)

    def _check_style(self, style: str) -> None:
        for match in re.finditer(r"@import[^;]*|url\(\s*['\"]?(?!data:|#|['\"])[^)]*\)", style):
            self.found.append(match[0][:80])
