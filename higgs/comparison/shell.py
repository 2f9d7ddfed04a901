"""The frame of a page: our styles and scripts inline, a policy that lets it load nothing, text escaped."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from higgs.workflow.outputs import in_script
from higgs.workflow.page import check_self_contained

ASSETS = Path(__file__).parent / "assets"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"


def page(title: str, body: str, data: Any, scripts: Sequence[str]) -> str:
    """-> the whole page; `data` is what the scripts (files of assets/) find in the element "data"."""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    code = "".join(f"<script>\n{(ASSETS / name).read_text(encoding='utf-8')}</script>\n" for name in scripts)
    return check_self_contained(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n<body><main>{body}</main>\n"
        f'<script type="application/json" id="data">{in_script(data)}</script>\n{code}</body></html>\n'
    )
