"""A job as parts: names, cuts, writes, resuming, failures, the index; in folders and buckets, without a cluster."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from parts_jobs import RATE, HashCodec, contents, corpus, make_index, noise
from s3_server import be_user, serving
from test_dataset import CONFIG, TOKENIZER, manifest

from higgs.data import corpus as corpus_module
from higgs.data.corpus import Corpus, Encode, Item, list_corpus, parts_of, read_corpus, read_listing
from higgs.data.recordings import file_name, subset_by_hash
from higgs.data.training import codes as codes_module
from higgs.data.training.codes import CodesReader, load_codes, write_index
from higgs.data.training.dataset import Dataset
from higgs.data.training.manifest import read_manifest
from higgs.evaluate.judges.ge2e import GE2E
from higgs.evaluate.judges.hub import WavLMXVector
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.report.gather import Results, gather
from higgs.evaluate.result_cache import ResultCache
from higgs.evaluate.utterances import Evaluator, Utterance
from higgs.jobs import cluster as cluster_module
from higgs.jobs import parts as parts_module
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Result, Store, digests, make_part, run
from higgs.validation import ParamsError
from higgs.workers import DEVICE, WORK
from higgs.workflow.outputs import STAGE_VARIABLE

BUCKET = "parts"
ONE = Cluster(None, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("s3") / "server", BUCKET) as server:
        yield server


@pytest.fixture
def use(server, monkeypatch, tmp_path):
    """-> sets the environment of a user with a key."""

    def use(key: str | None = "writer", secret: str | None = None, endpoint: str | None = None) -> None:
        be_user(monkeypatch, endpoint or server.endpoint, key, secret)

    monkeypatch.setenv("HIGGS_CACHE", str(tmp_path / "cache"))
    use()
    return use


@pytest.fixture(params=["folder", "bucket"])
def places(request, tmp_path):
    """-> a function that puts files -> their place, and an empty place for results."""
    name = uuid.uuid4().hex[:12]
    if request.param == "bucket":
        server = request.getfixturevalue("server")
        request.getfixturevalue("use")

    def put(files: dict[str, bytes]) -> tuple[str, str]:
        for file, content in files.items():
            if request.param == "bucket":
                server.client.put_object(Bucket=BUCKET, Key=f"{name}/in/{file}", Body=content)
            else:
                path = tmp_path / "in" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        above = f"s3://{BUCKET}/{name}" if request.param == "bucket" else str(tmp_path)
        return f"{above}/in", f"{above}/out"

    return put


# Names and cuts


def test_a_name_is_of_content_order_settings_and_files_and_of_nothing_else(tmp_path):
    voice, copy = tmp_path / "a.flac", tmp_path / "b.flac"
    for path in (voice, copy):
        path.write_bytes(b"a voice")
    own, job = digests([voice]), {"codec": "x"}
    name = make_part(job, [1, 2], own).name
    assert name == make_part(job, [1, 2], digests([voice, None, tmp_path / "not there"])).name and len(name) == 32
    others = [
        make_part({"codec": "y"}, [1, 2], own), make_part({"codec": "x", "top_k": 1}, [1, 2], own),
        make_part(job, [2, 1], own), make_part(job, [1, 2, 3], own), make_part(job, ["1", 2], own),
        make_part(job, [1, 2]), make_part(job, [1, 2], digests([copy])),
    ]  # fmt: skip
    voice.write_bytes(b"another voice")
    others.append(make_part({"codec": "x"}, [1, 2], digests([voice])))
    assert len({name, *(part.name for part in others)}) == len(others) + 1
    with pytest.raises(TypeError, match="object cannot be part of the name"):
        make_part({}, [object()])


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda items: items[5:], 2), (lambda items: items[:9000] + items[9001:], 2),
        (lambda items: [*items, *(Item(f"z{n:05d}", "", 100, "e") for n in range(200))], 4),
        (lambda items: sorted([*items, *(Item(f"07000-{n:03d}", "", 100, "e") for n in range(200))]), 5),
        (lambda items: [items[0], items[1]._replace(etag="new"), *items[2:]], 1),
    ],
    ids=["the first are gone", "one is gone", "more at the end", "a folder in the middle", "one has changed"],
)  # fmt: skip
def test_a_change_of_the_corpus_changes_the_parts_around_it_alone(change, most):
    items = [Item(f"{n:05d}", "", 50 + n % 100, f"e{n}") for n in range(20_000)]
    before = list(parts_of(items, "codec", True, target=25_000))
    sizes = [sum(item.size for item in part.items) for part in before]
    assert 60 < len(before) < 110 and all(12_500 <= size <= 50_100 for size in sizes[:-1])
    changed = list(parts_of(change(items), "codec", True, target=25_000))
    content = {}
    for part in [*before, *changed]:
        own = [(item.id, item.size, item.etag) for item in part.items]
        assert content.setdefault(part.name, own) == own, "a name is of one content"
    after = {part.name for part in changed}
    assert len({part.name for part in before} - after) <= most and len(after - {part.name for part in before}) <= most
    assert {part.name for part in parts_of(items[::-1], "codec", True, target=25_000)} == {p.name for p in before}
    assert after.isdisjoint(part.name for part in parts_of(items, "another codec", True, target=25_000))


def test_ids_are_there_once():
    with pytest.raises(ValueError, match="'a' is there twice"):
        list(parts_of([Item("a", "x", 1, ""), Item("b", "y", 1, ""), Item("a", "z", 1, "")], "codec", True))


@pytest.mark.parametrize("sizes", [[0], [0, 0, 0], [15], [1] * 40])
def test_a_corpus_of_empty_or_tiny_files_is_one_part(sizes):
    (part,) = parts_of([Item(f"{n}", "x", size, "e") for n, size in enumerate(sizes)], "codec", True)
    assert len(part.items) == len(sizes)


# Writes and resuming


def made(place: str, names: str = "abcde", fail: str = "", calls: list | None = None, once: str = "") -> list[dict]:
    def function(items):
        if fail and items[0] == fail:
            raise RuntimeError(f"no {fail}")
        if calls is not None:
            calls.append(items[0])
        tensor = torch.full((2, 3), ord(items[0]), dtype=torch.int16)
        return Result({"clips": 1}, {items[0]: tensor}, final=items[0] not in once)

    return list(run(lambda: function, [make_part("job", [name]) for name in names], Store(place), ONE))


def test_a_job_goes_on_where_it_stopped_and_ends_with_the_same(places):
    _, whole = places({})
    records = made(whole)
    assert [record["clips"] for record in records] == [1] * 5
    cut_off, calls = f"{whole}-cut", []
    with pytest.raises(RuntimeError, match="no c"):
        made(cut_off, fail="c")
    done = Store(cut_off).names()
    assert done == {record["part"] for record in records[:2]}
    assert made(cut_off, calls=calls) == records and calls == ["c", "d", "e"]
    assert made(cut_off, "edcba", calls=calls) == records[::-1] and len(calls) == 3, "the order is that of the parts"
    assert made(cut_off, "aab", calls=calls) == [records[0], *records[:2]] and len(calls) == 3
    for store in (Store(whole), Store(cut_off)):
        files = sorted(store.names()), sorted(store.names(".safetensors"))
        assert files[0] == files[1] == sorted(record["part"] for record in records)
    names = [f"{record['part']}.safetensors" for record in records]
    assert Store(whole).read(names) == Store(cut_off).read(names)


def test_a_result_that_is_not_final_is_used_once(places):
    _, place = places({})
    calls: list = []
    first = made(place, calls=calls, once="bd")
    assert made(place, calls=calls) == first and calls == [*"abcdebd"]


def test_a_part_whose_content_is_lost_or_cut_off_is_made_again(places):
    _, place = places({})
    records, calls = made(place), []
    (whole,) = Store(place).read([f"{records[1]['part']}.safetensors"])
    Store(place).delete([records[1]["part"]])
    Store(place).write(records[1]["part"], None, records[1])
    if not Store(place).remote:
        Store(place).write(records[3]["part"], whole[:-1], None)
    assert made(place, calls=calls) == records and calls == [*"bd"][: 1 if Store(place).remote else 2]
    assert Store(place).read([f"{records[1]['part']}.safetensors"]) == [whole]
    assert made(place, calls=calls) == records and len(calls) < 3


@pytest.mark.parametrize("moment", [0, 1, 2, 3, 4, 5])
def test_a_process_killed_at_any_write_leaves_nothing_wrong(tmp_path, moment):
    """A part's content, then its record, each by a rename: killed before each of them."""
    child = os.fork()
    if child == 0:
        real, renames = os.replace, []

        def replace(source, target):
            renames.append(target)
            if len(renames) == moment + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replace
        made(str(tmp_path / "cut"), "abc")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    store = Store(str(tmp_path / "cut"))
    assert len(store.names()) == moment // 2, "a part is done when its record is there"
    for record in store.records(sorted(store.names())):
        (content,) = store.read([f"{record['part']}.safetensors"])
        assert len(content) == record["bytes"]
    calls: list = []
    records = made(str(tmp_path / "cut"), "abc", calls=calls)
    assert records == made(str(tmp_path / "whole"), "abc") and calls == [*"abc"][moment // 2 :]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_name_does_not_depend_on_tools_and_builds(monkeypatch):
    """A cluster's image has other packages beside the same libraries."""
    from higgs import resumable

    def code(*installed: str) -> str:
        found = [SimpleNamespace(name=name, version=version) for name, version in (i.split("==") for i in installed)]
        monkeypatch.setattr(resumable, "distributions", lambda: found)
        resumable.code_hash.cache_clear()
        return resumable.code_hash("cpu", "codec/")

    try:
        names = [code("torch==2.1", *more) for more in ([], ["ray==2.60.0", "msgpack==1.2.4"], ["pytest==9"])]
        assert len({*names, code("torch==2.1+cpu")}) == 1
        assert len({names[0], code("torch==2.2"), code("torch==2.1", "numpy==2")}) == 3
    finally:
        resumable.code_hash.cache_clear()


def test_parts_of_a_notebook_that_is_explored_are_not_those_of_its_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(WORK, raising=False)
    monkeypatch.setenv(STAGE_VARIABLE, "tokenize")
    made(Store.of_stage("tokenize").place)
    monkeypatch.delenv(STAGE_VARIABLE)
    explored = Store.of_stage("tokenize")
    made(explored.place)
    explored.clear()
    assert len(Store("results/partial/tokenize").names()) == 5 and not Path("results/explore/partial/tokenize").exists()


def test_parts_stay_until_the_last_cell_of_a_stage():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert not any("store.clear()" in cell for cell in code[:-1]), path.name
        assert ("Store.of_stage" in "".join(code)) == ("store.clear()" in code[-1]), path.name


# Corpora and the index

FAILED = {
    "bad/cut.flac": "unusable audio", "bad/empty.flac": "unusable audio", "bad/noise.flac": "unusable audio",
    "bad/short.flac": "unusable audio", "bad/torn.tar": "unusable audio",
}  # fmt: skip


def test_broken_clips_are_listed_and_all_others_have_codes(places, tmp_path):
    files = corpus(20)
    source, place = places(files)
    assert [item.id for item in list_corpus(source)] == sorted(set(files) - {"notes.txt"})
    found = make_index(source, place, tmp_path / "index")
    failed = [json.loads(line) for line in (tmp_path / "index/failed.jsonl").read_text().splitlines()]
    assert {f["id"]: f["kind"] for f in failed} == FAILED and all(str(tmp_path) not in f["what"] for f in failed)
    assert found["failed"] == {"unusable audio": 5} and sorted(map(str, found["first"])) == sorted(map(str, failed))
    reader = CodesReader(tmp_path / "index", place) if place.startswith("s3://") else CodesReader(place_links(tmp_path))
    reader.verify()
    good = [n for n in files if n.startswith("clips/")] + [f"pack.tar/in/{n}.flac" for n in range(5)]
    torn = [name for name in reader if name.startswith("bad/torn.tar/")]
    assert sorted(reader) == sorted(good + torn) and len(torn) < 5 and found["clips"] == len(reader)
    assert found["frames"] == sum(reader.frames.values())
    alone = Encode(HashCodec, True)()
    for name in good:
        number, is_packed = int(Path(name).stem), "pack" in name
        content = noise(1000 + number, 2000) if is_packed else noise(number, 1500 + 37 * number)
        (tmp_path / "one.flac").write_bytes(content)
        result = alone([Item("one", str(tmp_path / "one.flac"), 1, corpus_module.sha256(tmp_path / "one.flac"))])
        assert torch.equal(reader[name], result.tensors["one"].long())


@pytest.mark.parametrize("name", ["pack.tar", "PACK.TAR"])
@pytest.mark.parametrize(
    ("damage", "clips", "what"),
    [(lambda tar, at: tar, 5, None),
     (lambda tar, at: tar[:at], 1, "empty header at byte"),
     (lambda tar, at: tar[: at + 100], 1, "truncated header at byte"),
     (lambda tar, at: tar[: at + 10] + bytes([tar[at + 10] ^ 255]) + tar[at + 11 :], 1, "bad checksum at byte")],
)  # fmt: skip
def test_a_damaged_tar_is_listed_wherever_the_damage_is(tmp_path, name, damage, clips, what):
    """A header that is none, or the end without a block of zeros, is not the end of the tar."""
    tar = corpus(0, broken=False)["pack.tar"]
    (tmp_path / name).write_bytes(damage(tar, tar.index(b"in/1.flac")))
    result = Encode(HashCodec, True)()(read_corpus(str(tmp_path)).items)
    assert len(result.tensors) == result.record["clips"] == clips
    assert [(f["kind"], f["id"]) for f in result.record["failed"]] == [("unusable audio", name)] * bool(what)
    assert all(what in failure["what"] for failure in result.record["failed"])
    (item,) = read_corpus(str(tmp_path), skip=[f"{name}/in/0.flac"]).items
    assert item.skip == (f"{name}/in/0.flac",)


def place_links(tmp_path: Path) -> Path:
    """The index of a folder has the shards beside it, which stay when the store is removed."""
    shutil.rmtree(tmp_path / "out")
    return tmp_path / "index"


def test_an_index_in_a_table_is_read_as_one_in_json_is(places, tmp_path, monkeypatch):
    source, place = places(corpus(12, broken=False))
    make_index(source, place, tmp_path / "json")
    monkeypatch.setattr(codes_module, "MOST_CLIPS", 6)
    make_index(source, place, tmp_path / "table")
    assert not (tmp_path / "table/index.json").exists() and not (tmp_path / "table/failed.jsonl").exists()
    plain, table = (CodesReader(tmp_path / form, place) for form in ("json", "table"))
    assert plain.frames == table.frames and plain.hashes == table.hashes and plain.num_codebooks == 8
    assert all(torch.equal(plain[name], table[name]) for name in plain)
    monkeypatch.setattr(codes_module, "MOST_CLIPS", 1000)
    make_index(source, place, tmp_path / "table")
    assert contents(tmp_path / "table")["index.json"] == contents(tmp_path / "json")["index.json"]
    assert not (tmp_path / "table/index.parquet").exists(), "the older index is gone"


def test_an_object_that_is_gone_or_another_is_listed_until_it_is_back(places, tmp_path):
    files = corpus(6, broken=False)
    source, place = places(files)
    make_index(source, place, tmp_path / "whole")
    listing = list(list_corpus(source))
    parts = list(parts_of(listing, "stand-in", True, target=6000))
    places({"clips/001.flac": noise(9, 2222), "pack.tar": corpus(0, False)["pack.tar"][:-512] + b"\1" * 512})
    gone = [item._replace(url=item.url + "x") if item.id == "clips/003.flac" else item for item in listing]
    changed = list(parts_of(gone, "stand-in", True, target=6000))
    assert [part.name for part in changed] == [part.name for part in parts], "what lies there has not changed the names"
    encode, store = Encode(HashCodec, True), Store(f"{place}-2")
    records = list(run(encode, changed, store, ONE))
    failed = {f["id"]: f["kind"] for record in records for f in record["failed"]}
    assert failed == {"clips/001.flac": "changed audio", "clips/003.flac": "missing audio", "pack.tar": "changed audio"}
    assert sum(record["clips"] for record in records) == 4 and len(store.names()) < len(parts)
    places(files)
    again = write_index(store, run(encode, parts, store, ONE), tmp_path / "again")
    indices = [contents(tmp_path / name)["index.json"] for name in ("again", "whole")]
    assert again["failed"] == {} and indices[0] == indices[1]


@pytest.mark.parametrize("named", ["absolute", "by a link", "linked files"])
def test_an_index_beside_the_shards_leaves_them_however_the_folder_is_named(tmp_path, monkeypatch, named):
    source, place = tmp_path / "in", tmp_path / "out"
    for name, content in corpus(3, broken=False).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    make_index(str(source), "out", "out")
    before = contents(place)
    folder = place if named == "absolute" else tmp_path / "index"
    if named == "by a link":
        folder.symlink_to("out")
    elif named == "linked files":
        folder.mkdir()
        for path in place.glob("*.safetensors"):
            path.symlink_to(path.rename(folder / path.name))
    make_index(str(source), "out", folder)
    assert contents(place) == before and contents(folder)["index.json"] == before["index.json"]
    CodesReader(folder).verify()


def test_one_name_is_one_clip(tmp_path):
    store = Store(str(tmp_path / "out"))
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.flac").write_bytes(noise(ord(folder), 3000))
    parts = [list(parts_of(list_corpus(str(tmp_path / folder)), "stand-in", True))[0] for folder in "ab"]
    with pytest.raises(ValueError, match=r"\['x.flac'\] are in another part too"):
        write_index(store, run(Encode(HashCodec, True), parts, store, ONE), tmp_path / "index")


def test_a_listing_is_read_line_by_line(tmp_path):
    path = tmp_path / "corpus.jsonl"
    items = [Item("a", "s3://b/a", 1, "e"), Item("b", "s3://b/b", 2, "f")]
    path.write_text("".join(json.dumps(item._asdict()) + "\n" for item in items))
    assert list(read_listing(path)) == items
    faults = {
        '{"id": "a"}': "line 1: missing key 'url'",
        "[": "line 1: .*JSON",
        '{"id": "", "url": "u", "size": 1, "etag": ""}': "line 1.id",
        '{"id": "a", "url": "u", "size": 1, "etag": "", "id": "b"}': "line 1: duplicate key 'id'",
        '{"id": "a", "url": "u", "size": 1, "etag": "", "skip": [1]}': r"line 1.skip\[0\]",
    }
    for line, message in faults.items():
        path.write_text(line + "\n")
        with pytest.raises(ParamsError, match=f"corpus.jsonl, {message}"):
            list(read_listing(path))


@pytest.mark.parametrize("form", ["{}\n", "\ufeff{}\n", "\n \n{}\n", "{}\r\n\r\n", "\ufeff\n{}"])
def test_a_listing_is_no_manifest_whatever_wrote_it(tmp_path, form):
    """The mark of some editors and blank lines, as in other files that people write."""
    item = Item("a.tar", "s3://b/a.tar", 1, "e", ("a.tar/x.flac",))
    (tmp_path / "corpus.jsonl").write_bytes(form.format(json.dumps(item._asdict())).encode())
    assert read_corpus(str(tmp_path / "corpus.jsonl")).items == [item]


def test_a_folder_is_listed_with_what_links_lead_to(tmp_path):
    """Not with the files that macOS writes beside others, and without end where links lead back."""
    for name in ("in/a.flac", "in/._a.flac", "in/sub/b.flac", "else/c.flac", "else/deep/d.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(noise(1, 2000))
    for link, target in (
        ("in/linked", "else"),
        ("in/one.flac", "else/c.flac"),
        ("in/sub/up", "in"),
        ("else/back", "in"),
    ):
        (tmp_path / link).symlink_to(tmp_path / target)
    ids = [item.id for item in list_corpus(str(tmp_path / "in"))]
    assert ids == ["a.flac", "linked/c.flac", "linked/deep/d.flac", "one.flac", "sub/b.flac"]


def test_names_that_are_not_utf_8_have_codes_too(tmp_path):
    """Of a file, and of a tar's member: with these bytes as \\x.., since an index is text."""
    name, content = os.fsdecode(b"caf\xe9.flac"), noise(1, 2000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with tarfile.open(tmp_path / "in/more.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        member = tarfile.TarInfo("th\xe9.flac")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    store = Store(str(tmp_path / "out"))
    parts = parts_of(list_corpus(str(tmp_path / "in")), "codec", True)
    write_index(store, run(Encode(HashCodec, True), parts, store, ONE), tmp_path / "out")
    assert set(CodesReader(tmp_path / "out")) == {"caf\\xe9.flac", "more.tar/th\\xe9.flac"}


def test_training_starts_from_an_index_in_a_bucket(server, use, tmp_path):
    for name, content in corpus(6, broken=False).items():
        server.client.put_object(Bucket=BUCKET, Key=f"train/{name}", Body=content)
    make_index(f"s3://{BUCKET}/train", f"s3://{BUCKET}/train-out", tmp_path / "index")
    codes = CodesReader(tmp_path / "index", f"s3://{BUCKET}/train-out")
    assert not (tmp_path / "cache").exists(), "nothing is fetched before it is asked for"
    rows = [{"id": name, "text": "Hello.", "codes": name} for name in codes]
    dataset = Dataset(read_manifest(manifest(tmp_path, *rows)), codes, TOKENIZER, CONFIG)
    assert len(dataset) == 11 and all(dataset[index] for index in range(11))
    for path in (tmp_path / "cache/codes").iterdir():
        path.unlink()
    record = next(iter(Store(codes.store.place).records(sorted(Store(codes.store.place).names()))))
    Store(codes.store.place).write(record["part"], b"another", None)
    with pytest.raises(ValueError, match=f"{record['part']}.safetensors is not the shard that"):
        [CodesReader(tmp_path / "index", codes.store.place)[name] for name in codes]


def manifest_of(folder: Path, names: str) -> Path:
    """`in/manifest.jsonl` of one-second clips: those of capital letters are French."""
    path = folder / "in/manifest.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = []
    for name in names:
        (folder / f"in/{name}.flac").write_bytes(noise(ord(name), RATE))
        line = {"id": name, "path": f"in/{name}.flac", "text": "Yes.", "language": "fr" if name.isupper() else "en"}
        digest = corpus_module.sha256(folder / line["path"])
        lines.append(json.dumps(line | {"speaker": "x", "seconds": 1.0, "sha256": digest}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("kind", ["manifest", "listing", "listing with notes", "folder", "bucket"])
def test_a_corpus_is_a_manifest_a_listing_a_folder_or_a_bucket(kind, server, use, tmp_path):
    """Ids are left out, of clips in tars too; this changes the name of their part alone. So do notes of a listing."""
    noted = ["pack.tar/in/0.flac"] if "notes" in kind else []
    if kind == "manifest":
        source, skip, ids = str(manifest_of(tmp_path, "acBb")), ["c"], ["B", "a", "b"]
    else:
        files = corpus(6, broken=False)
        skip, ids = ["clips/002.flac", "pack.tar/in/3.flac", "nobody"], sorted({*files} - {"clips/002.flac"})
        source = f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}" if kind == "bucket" else str(tmp_path / "in")
        for name, content in files.items():
            if kind == "bucket":
                key = f"{source.removeprefix(f's3://{BUCKET}/')}/{name}"
                server.client.put_object(Bucket=BUCKET, Key=key, Body=content)
            else:
                (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "in" / name).write_bytes(content)
        if "listing" in kind:
            listed = [item._asdict() for item in list_corpus(source)]
            listed = [line | {"skip": noted} if line["id"] == "pack.tar" else line for line in listed]
            source = str(tmp_path / "corpus.jsonl")
            Path(source).write_text("".join(json.dumps(line) + "\n" for line in listed))
    whole, some = read_corpus(source, ["fr", "en"]), read_corpus(source, ["fr", "en"], skip=skip)
    assert [item.id for item in some.items] == ids and bool(some.recordings) == some.is_small == (kind == "manifest")
    assert whole.digest != some.digest == read_corpus(source, ["fr", "en"], skip=skip).digest
    parts = [list(parts_of(read.items, "stand-in", True, target=1)) for read in (whole, some)]
    names = [{part.items[0].id: part.name for part in cut} for cut in parts]
    changed = {name for name in names[1] if names[0][name] != names[1][name]}
    assert changed == ({"pack.tar"} if kind != "manifest" else set())
    store = Store(str(tmp_path / "out"))
    encode = Encode(HashCodec, True)
    write_index(store, run(encode, parts[1], store, ONE), store.place)
    reader, clips = CodesReader(store.place), some.sample(CodesReader(store.place))
    assert not set(reader) & {*skip, *noted} and sorted(clip.id for clip in clips) == sorted(reader)
    languages = [clip.language for clip in clips]
    assert languages == (["fr", "en", "en"] if kind == "manifest" else ["all"] * (9 - len(noted)))
    for clip in clips:
        content = clip.audio if isinstance(clip.audio, bytes) else clip.audio.read_bytes()
        (waveform, _) = corpus_module.load_audio(content, RATE)
        codes = HashCodec().codes(waveform.numpy().tobytes(), reader[clip.id].shape[1])
        assert torch.equal(reader[clip.id], codes)
    with pytest.raises(ValueError, match="holds no audio file and no tar"):
        read_corpus(source, skip=[item.id for item in whole.items])


def test_a_sample_of_tars_reads_few_of_them(tmp_path, monkeypatch):
    """By hashes: whatever the order; loose clips as they always were."""
    monkeypatch.setattr(corpus_module, "SAMPLE", 4)
    read: list = []
    monkeypatch.setattr(corpus_module, "_contents", lambda items, _: read.extend(items) or [(n, b"") for n in names])
    names = [f"{tar}.tar/{n}.flac" for tar in "abc" for n in range(5)]
    packed = Corpus([Item(f"{tar}.tar", "", 1, "e") for tar in "abc"], [])
    chosen = [clip.id for clip in packed.sample(names)]
    assert len(chosen) == 4 and len(read) == 1 and all(name.startswith(f"{read[0].id}/") for name in chosen)
    assert [clip.id for clip in packed.sample(names[::-1])] == chosen
    names = [f"{n}.flac" for n in range(9)]
    loose = Corpus([Item(name, "", 1, "e") for name in names], [])
    assert {clip.id for clip in loose.sample(names)} == subset_by_hash(names, 4)
    with pytest.raises(ValueError, match="none of 9 recordings or tars could be encoded"):
        loose.sample([])


@pytest.mark.parametrize(
    ("name", "file"),
    [("en-conf.2_x~", "en-conf.2_x~"), ("a b/../c.flac", "a%20b%2F..%2Fc.flac"), ("..", ".."), ("é", "%C3%A9"),
     ("/etc/x", "%2Fetc%2Fx"), ("a\0", "a%00"), ("x" * 300, None), ("/" * 100, None)],
)  # fmt: skip
def test_an_id_is_no_path(name, file):
    found = file_name(name)
    assert found == file or (file is None and len(found) == 64 and found != file_name(name + "x"))


@pytest.mark.slow
def test_the_stage_reads_a_listing_and_its_sample_is_decoded(tokenized):
    """Of a clip and a tar of two, one of them left out; evaluate then finds no recordings to judge."""
    folder, made = tokenized
    audio = {Path(name).name for name in made if "/audio/" in name}
    assert audio == {"a%20b.flac.flac", "pack.tar%2Fx%2F1.flac.flac"}
    summary = json.loads(made["results/tokenize/summary.json"])
    assert [(row["language"], row["clips"]) for row in summary["languages"]] == [("all", 2)]
    reader = CodesReader(folder / "results/tokenize/codes")
    assert sorted(reader) == ["a b.flac", "pack.tar/x/1.flac"]
    kept = load_codes(folder / "results/tokenize/codes.safetensors")
    assert all(torch.equal(kept[name], reader[name]) for name in reader) and len(kept) == 2
    results = Results(folder / "results", summary, {}, [], [])
    assert results.recordings == [] and gather(results, ["en"]) == [] and len(summary["corpus"]) == 64


# Places that do not work


@pytest.mark.parametrize(
    ("key", "secret", "place", "error", "message"),
    [
        ("writer", "wrong", BUCKET, PermissionError, "access denied.*AWS_SECRET_ACCESS_KEY"),
        ("nobody", "x", BUCKET, PermissionError, "access denied"),
        ("reader", None, BUCKET, PermissionError, "access denied.*to write where results go"),
        ("writer", None, "no-such-bucket", FileNotFoundError, "bucket"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_error_before_work(use, server, key, secret, place, error, message):
    use(key, secret)
    before = server.objects(BUCKET, "refused/")
    with pytest.raises(error, match=f"(?s)s3://{place}/refused.*{message}|{message}"):
        made(f"s3://{place}/refused", fail="a")
    assert server.objects(BUCKET, "refused/") == before == {}


@pytest.mark.parametrize("where", ["read-only", "a file", "full"])
def test_a_folder_that_cannot_be_written_is_one_error_and_nothing_stays(tmp_path, monkeypatch, where):
    place = tmp_path / "out"
    if where == "read-only":
        place.mkdir()
        monkeypatch.setattr(parts_module, "check_place", refuse)
    elif where == "a file":
        place.write_text("")
    else:
        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"out"):
        made(str(place))
    monkeypatch.undo()
    assert place.is_file() or not list(place.iterdir())


def refuse(path):
    raise PermissionError(f"{path} cannot be written: Permission denied")


def full(self, content):
    self.open("wb").write(bytes(content)[:10])
    raise OSError(28, "No space left on device", str(self))


def test_a_full_disk_is_no_fault_of_a_clip(tmp_path, monkeypatch):
    """The error stops the job: no clip is listed as unusable."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.flac").write_bytes(noise(1, 2000))
    (part,) = parts_of(list_corpus(str(tmp_path / "in")), "stand-in", True)
    monkeypatch.setattr(corpus_module, "load_audio", lambda *_: full(tmp_path / "scratch", b"x"))
    with pytest.raises(OSError, match="No space left"):
        list(run(Encode(HashCodec, True), [part], Store(str(tmp_path / "out")), ONE))
    assert not Store(str(tmp_path / "out")).names()


# Devices


@pytest.mark.parametrize(
    ("device", "own", "work", "found", "expected"),
    [
        (None, "cpu", None, "cuda", "cpu"), (None, "auto", None, "cuda", "cuda"), (None, "auto", None, "cpu", "cpu"),
        ("cuda:H100", "cpu", "s3://b", "cpu", "cuda:H100"), ("cuda", "auto", "s3://b", "cpu", "cuda"),
        ("cpu", "auto", None, "cuda", "cpu"), (None, "cpu", "s3://b", "cuda", "cpu"),
        ("cuda", None, None, "cuda", "cpu"), (None, "auto", "s3://b", "cuda", ValueError),
    ],
)  # fmt: skip
def test_a_device_is_declared_or_the_checkpoints_own_and_names_parts(device, own, work, found, expected, monkeypatch):
    for name, value in ((DEVICE, device), (WORK, work)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster_module, "choose_device", lambda: torch.device(found))
    if expected is ValueError:
        with pytest.raises(ValueError, match="device: say cpu, cuda or cuda:TYPE, as s3://b is shared"):
            Cluster.of_environment(own)
        return
    cluster = Cluster.of_environment(own, gpus=0.5)
    kind, _, accelerator = expected.partition(":")
    assert (cluster.device, cluster.kind, cluster.here) == (expected, kind, kind if kind == found else "cpu")
    needs = {"num_cpus": 1, "num_gpus": 0 if kind == "cpu" else 0.5, "accelerator_type": accelerator or None}
    assert cluster.needs == needs and cluster.processes == (None if kind == "cpu" else 1)
    parts = [next(parts_of([Item("a", "a", 1, "e")], "codec", True, name)).name for name in ("cpu", cluster.device)]
    assert (parts[0] == parts[1]) == (expected == "cpu")


@pytest.mark.parametrize(
    ("device", "name", "refused"),
    [
        ("cpu", None, False), ("cuda", None, True), ("cuda:H100", None, True), ("cuda", "NVIDIA L4", False),
        ("cuda:H100", "NVIDIA H100 80GB HBM3", False), ("cuda:A100", "NVIDIA H100 80GB HBM3", True),
        ("cuda:A100-40G", "NVIDIA A100-SXM4-40GB", False), ("cuda:RTX-PRO-6000", "NVIDIA RTX PRO 6000", False),
    ],
)  # fmt: skip
def test_a_machine_without_the_device_makes_no_part_and_reads_all(device, name, refused, tmp_path, monkeypatch):
    records = made(str(tmp_path), "ab")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    job = partial(
        run, lambda: lambda items: Result({"clips": 1}), store=Store(str(tmp_path)), cluster=Cluster(None, 1, device)
    )
    assert list(job([make_part("job", [name]) for name in "ab"])) == records
    if refused:
        with pytest.raises(ValueError, match=f"device {device}: there is {name and 'NVIDIA' or 'no GPU'}"):
            job([make_part("job", ["c"])])
    assert refused or list(job([make_part("job", ["c"])]))[0]["clips"] == 1


def test_judged_records_are_of_a_device_where_a_judge_computes_on_it(tmp_path, monkeypatch):
    task, names = Utterance("generated", "x", "x", "Hi.", None), {}
    for declared in ("cpu", "cuda:H100"):
        for model in (GE2E, WavLMXVector):
            monkeypatch.setenv(DEVICE, declared)
            judge = SimpleNamespace(name="judge", on_accelerator=model.on_accelerator)
            evaluator = partial(Evaluator, MetricModels(speaker=judge))
            cache = ResultCache(evaluator, Store(str(tmp_path)))
            names[declared, model] = cache._part([task]).name
            assert cache.job.cluster.device == (declared if model is WavLMXVector else "cpu")
    assert names["cpu", GE2E] == names["cuda:H100", GE2E] and len(set(names.values())) == 2


# Without Ray


def test_nothing_of_ray_is_imported_without_a_cluster_and_its_absence_is_one_line(tmp_path):
    code = """
import sys
class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray": raise ImportError("no ray here")
sys.meta_path.insert(0, NoRay())
from parts_jobs import *
assert make_index(sys.argv[1], sys.argv[2], sys.argv[2], Cluster(None, 1))["clips"] == 1
assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
try:
    make_index(sys.argv[1], sys.argv[2] + "-2", sys.argv[2], Cluster("local"))
except ImportError as error:
    print(error)
"""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.flac").write_bytes(noise(1, 2000))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out")], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": paths}, check=True,
    )  # fmt: skip
    assert "pip install" in done.stdout and "higgs[cluster]" in done.stdout


def large(name: str, *arguments) -> dict:
    """What a function of many_parts.py returns, in a process of its own, for its memory is measured."""
    command = [sys.executable, "tests/many_parts.py", json.dumps([name, *arguments])]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(("count", "most_mb"), [(2000, 700), pytest.param(1_000_000, 2000, marks=pytest.mark.fuzz)])
def test_the_driver_of_many_parts_is_small(count, most_mb, tmp_path):
    """A million parts of ten hours are ten million hours of speech; their index is a table."""
    found = large("driver", count, str(tmp_path / "parts"))
    assert found["clips"] == 3600 * count and found["peak"] < most_mb
    assert (tmp_path / "parts/index.parquet").is_file() and not (tmp_path / "parts/index.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hours", [5, pytest.param(200, marks=pytest.mark.fuzz)])
def test_memory_does_not_grow_with_the_corpus(hours, tmp_path):
    clip = tmp_path / "minute.flac"
    clip.write_bytes(noise(0, 60 * RATE))
    found = large("one_process", hours, str(clip), str(tmp_path / "parts"), str(tmp_path / "index"))
    assert found["clips"] == 60 * hours and found["parts"] > 10 and found["late"] < found["early"] + 60
