"""The pages of the server: `/` to type into, `/docs` for what requests may say. They fetch from this server alone."""

import base64
import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

FOLDER = Path(__file__).parent / "page"
PAGES = {"/": "speak.html", "/docs": "docs.html"}
INSERTED = re.compile(r'<link rel="stylesheet" href="([\w.]+)">|<script src="([\w.]+)"></script>')
HEADERS = {
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def load_page(name: str) -> tuple[str, dict[str, str]]:
    """A file of the folder -> one document with its styles and scripts inside, and its headers.

    The policy names these scripts by their hashes: no other one runs, whatever text is shown.
    """
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def insert(match: re.Match) -> str:
        kind = "style" if match[1] else "script"
        content = (FOLDER / (match[1] or match[2])).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
        return f"<{kind}>{content}</{kind}>"

    page = INSERTED.sub(insert, (FOLDER / name).read_text(encoding="utf-8"))
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "media-src blob:", "base-uri 'none'"]
    policy += ["form-action 'none'", "frame-ancestors 'none'"]
    policy += [f"{kind}-src {' '.join(values)}" for kind, values in hashes.items()]
    return page, HEADERS | {"content-security-policy": "; ".join(policy)}


def readable(app: FastAPI, path: str) -> Callable:
    """A decorator: GET, and HEAD, which has no entry of its own in /openapi.json."""

    def add(function: Callable) -> Callable:
        app.head(path, include_in_schema=False)(function)
        return app.get(path)(function)

    return add


def add_pages(app: FastAPI) -> None:
    def answer(page: str, headers: dict[str, str]) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    for path, name in PAGES.items():
        route = partial(answer, *load_page(name))
        app.add_route(path, lambda _, route=route: route(), methods=["GET", "HEAD"], include_in_schema=False)
