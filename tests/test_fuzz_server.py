"""Random requests made from the server's own OpenAPI document: each is answered, and each refusal in OpenAI's form.

In a normal run 40 requests, the same ones each time; `pytest -m fuzz` draws 2,000.
"""

import logging
import time
from copy import deepcopy
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from higgs import Engine
from higgs.config import SamplingConfig
from higgs.data.text.chunks import ChunkOptions
from higgs.serve.engine import EngineConfig
from higgs.serve.http.app import ServerConfig, make_app

COUNTS = [40, pytest.param(2000, marks=pytest.mark.fuzz)]
SECONDS = 20.0  # in which each request is answered
ANSWERS = {200, 400, 404, 405, 408, 413, 414, 415, 422, 429}
KINDS = {"invalid_request_error", "rate_limit_error"}
TEXT = st.text(max_size=30) | st.sampled_from(
    ["Hi.", "It is 10:30.", "", " ", "...", "a\0", "[SPEAKER0] Hi.", "x" * 300]
)
NUMBERS = st.sampled_from([0, 1, -1, 9, 10, 13, 14, 2**31, 2**63, 10**400, 0.5, 1e-40, 1e308, -0.0])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client(tiny_parts, tmp_path_factory):
    """The tiny model, which never ends a segment by itself, so that each request that is taken has audio."""
    model, *others = tiny_parts
    model = deepcopy(model)
    model.audio_head.weight.view(8, 1026, -1)[:, 1024:] = 0
    engine = Engine(model, *others, EngineConfig(max_batch=2, max_positions=700, runaway=None))
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text('{"ada": "feminine"}')
    chunks = ChunkOptions(max_words=20, match_levels=False, retries=0)
    config = ServerConfig("tiny", folder, SamplingConfig(seed=1), 14, chunks, max_characters=200, max_seconds=SECONDS)
    options = {"raise_server_exceptions": False, "client": ("127.0.0.1", 50_000)}  # recordings come from here alone
    with TestClient(make_app(engine, config), "http://127.0.0.1", **options) as client:
        yield client


def values(schema: dict, document: dict) -> st.SearchStrategy:
    """A JSON schema of the document -> values that it allows, as far as it says."""
    if "$ref" in schema:
        return values(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    if kinds := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([values(kind, document) for kind in kinds])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object":
            named = {name: values(of, document) for name, of in schema.get("properties", {}).items()}
            needed = set(schema.get("required", ()))
            optional = {name: of for name, of in named.items() if name not in needed}
            return st.fixed_dictionaries({name: named[name] for name in needed}, optional=optional)
        case "array":
            return st.lists(values(schema.get("items", {}), document), max_size=3)
        case "integer":
            most = schema.get("maximum", schema.get("exclusiveMaximum", 2**63) - 1)
            return st.integers(schema.get("minimum", -(2**63)), most) | st.integers(10, 14)
        case "number":
            least, most = schema.get("minimum", schema.get("exclusiveMinimum", -10)), schema.get("maximum", 10)
            return st.floats(least, most) | st.sampled_from([1.0, least, most])
        case "boolean":
            return st.booleans()
        case "string":
            return TEXT | st.just("ada")
        case "null":
            return st.none()
    return ANYTHING


@st.composite
def requests(draw, document: dict):
    """-> method, path, body or bytes: speech as a rule, right in most fields; and the other paths."""
    paths = [(path, method, what) for path, methods in document["paths"].items() for method, what in methods.items()]
    with_body = [each for each in paths if "requestBody" in each[2]]
    path, method, what = draw(st.sampled_from(paths) | st.sampled_from(with_body))
    for parameter in what.get("parameters", ()):
        path = path.replace(f"{{{parameter['name']}}}", quote(draw(TEXT), safe=""))
    contents = what.get("requestBody", {}).get("content", {})
    if "application/json" not in contents:
        return method.upper(), path, draw(st.none() | ANYTHING)
    body = draw(values(contents["application/json"]["schema"], document))
    right = {"model": "tiny", "voice": "ada", "input": "Hi there.", "speed": 1.0, "max_new_tokens": 12}
    for name in draw(st.sets(st.sampled_from([*right]), min_size=2)):
        body[name] = right[name]
    if draw(st.booleans()):  # one field of any kind, or one that is not there
        body[draw(st.sampled_from([*body]) | TEXT)] = draw(ANYTHING)
    return method.upper(), path, draw(st.just(body) | st.just(body) | st.just(body) | st.binary(max_size=20) | ANYTHING)


@pytest.mark.parametrize("count", COUNTS)
def test_random_requests(client, caplog, record_property, count):
    document, statuses = client.get("/openapi.json").json(), {}

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(requests(document))
    def run(request) -> None:
        method, path, body = request
        sent = (
            {"content": body, "headers": {"content-type": "application/json"}}
            if isinstance(body, bytes)
            else {"json": body}
        )
        started = time.monotonic()
        try:
            answer = client.request(method, path, **sent)
        except (ValueError, UnicodeError):  # what no client can send: a lone surrogate, or a URL too long
            return
        assert time.monotonic() - started < SECONDS
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in ANSWERS, (request, answer.text)
        if answer.status_code == 200:
            assert answer.content or method == "HEAD"
            return
        if method != "HEAD":
            (error,) = answer.json().values()
            assert set(error) == {"message", "type", "param", "code"} and error["type"] in KINDS, answer.text
            assert 0 < len(error["message"]) < 1000

    with caplog.at_level(logging.ERROR):
        run()
    assert not [record for record in caplog.records if record.exc_info], "a traceback"
    assert client.app.state.async_engine.open == 0 and statuses[200] > count // 20 and statuses[400] > count // 20
    record_property("answers", str(sorted(statuses.items())))
