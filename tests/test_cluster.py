"""Parts on Ray: two nodes on the loopback and a real S3 server. Workers, nodes and drivers are killed.

`HIGGS_KILLS=10 pytest -m 'slow or fuzz' tests/test_cluster.py` kills ten times in place of once, at random moments.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from parts_jobs import POISON, contents, corpus, make_index, noise, run_tokenize
from s3_server import environment, serving

from higgs.data.corpus import Encode, list_corpus, parts_of
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import LostParts, Result, Store, digests, make_part, run

# Ray reads these when it is imported.
RAY = {
    "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_prestart_worker_first_driver": "0",
}
os.environ.update(RAY)
pytest.importorskip("ray")
pytestmark = pytest.mark.slow
BUCKET = "cluster"
KILLS = int(os.environ.get("HIGGS_KILLS", "1"))
times = pytest.mark.parametrize("attempt", range(KILLS))
rarely = pytest.mark.fuzz  # the rest takes less than a minute


class Nodes:
    """A head and another node with a place each, by HOST:PORT."""

    def __init__(self):
        from ray.cluster_utils import Cluster as Machines

        self.machines, self.nodes = Machines(), []
        self.start(no_monitor=True)
        self.hire()
        self.cluster = Cluster(self.machines.address, 2)

    def start(self, **options):
        """On a busy machine Ray's own processes may miss their 15 seconds."""
        for tries_left in (3, 2, 1, 0):
            try:
                return self.machines.add_node(**NODE | options)
            except Exception:
                if not tries_left:
                    self.machines.shutdown()
                    raise

    def hire(self):
        self.nodes.append(self.start())

    def lose(self):
        self.machines.remove_node(self.nodes.pop(0), allow_graceful=False)


NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "node_ip_address": "127.0.0.1"}
NODE |= {"include_dashboard": False, "include_log_monitor": False}  # each process of Ray takes two seconds of a core


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("s3") / "server", BUCKET) as server:
        yield server


@pytest.fixture(scope="module")
def nodes(server, tmp_path_factory):
    """The environment of a user who has keys, a home of their own, and a cluster."""
    import ray

    before, here = dict(os.environ), Path.cwd()
    home = tmp_path_factory.mktemp("home")
    (home / "work").mkdir()
    os.environ.update({name: value for name, value in environment(server.endpoint).items()})
    os.environ.update({
        "HOME": str(home), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), before.get("PYTHONPATH", "")]),
    })  # fmt: skip
    os.chdir(home / "work")
    nodes = None
    try:
        nodes = Nodes()
        yield nodes
    finally:
        ray.shutdown()
        if nodes:
            nodes.machines.shutdown()
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def source(server) -> str:
    for name, content in corpus(40).items():
        server.client.put_object(Bucket=BUCKET, Key=f"in/{name}", Body=content)
    return f"s3://{BUCKET}/in"


@pytest.fixture(scope="module")
def plain(nodes, source, tmp_path_factory) -> dict[str, bytes]:
    """The index that the plain loop makes."""
    folder = tmp_path_factory.mktemp("plain")
    make_index(source, f"s3://{BUCKET}/plain", folder)
    return contents(folder)


@pytest.fixture
def place() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


def shards(server, place: str) -> dict[str, bytes]:
    prefix = place.removeprefix(f"s3://{BUCKET}/") + "/"
    found = server.objects(BUCKET, prefix)
    return {key.removeprefix(prefix): content for key, content in found.items() if "/files/" not in key}


def test_the_index_and_every_shard_are_those_of_the_plain_loop(nodes, server, source, plain, place, tmp_path):
    found = make_index(source, place, tmp_path, nodes.cluster)
    assert contents(tmp_path) == plain and found["failed"] == {"unusable audio": 5} and found["clips"] > 40
    assert shards(server, place) == shards(server, f"s3://{BUCKET}/plain")


def workers() -> list[int]:
    """The processes of actors that this test's cluster runs now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
                mine = os.environ["RAY_AUTH_TOKEN"].encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if mine and line.startswith(b"ray::Worker"):
                found.append(int(entry.name))
    return found


def kill_worker(nodes):
    while not (found := workers()):
        time.sleep(0.02)
    os.kill(random.choice(found), signal.SIGKILL)


def lose_node(nodes):
    nodes.lose()


@rarely
@times
@pytest.mark.parametrize("fault", [kill_worker, lose_node], ids=lambda fault: fault.__name__)
def test_a_lost_worker_or_node_loses_nothing(nodes, server, source, plain, place, tmp_path, fault, attempt):
    done = []

    def strike():
        wanted = random.randint(0, 7)
        while len(Store(place).names()) < wanted:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.6))
        fault(nodes)
        done.append(len(Store(place).names()))

    thread = threading.Thread(target=strike)
    thread.start()
    make_index(source, place, tmp_path, nodes.cluster, seconds=0.3)
    thread.join()
    if not nodes.nodes:
        nodes.hire()
    assert contents(tmp_path) == plain and done[0] < len(Store(place).names())
    assert shards(server, place) == shards(server, f"s3://{BUCKET}/plain")


def test_a_clip_that_kills_its_worker_is_lost_and_all_others_are_done(nodes, server, place, tmp_path):
    """Its part is named, and not done: the next run tries it again."""
    name = place.removeprefix(f"s3://{BUCKET}/")
    for number in range(12):
        content = noise(number, POISON if number == 5 else 3000 + number)
        server.client.put_object(Bucket=BUCKET, Key=f"{name}-in/{number:02d}.flac", Body=content)
    with pytest.raises(LostParts, match=r"(?s)^1 of 12 parts are lost, all others are done.*05.flac.*died 3 times"):
        make_index(f"{place}-in", place, tmp_path, nodes.cluster, target=1)
    store = Store(place)
    assert len(store.names()) == 11 and sum(record["clips"] for record in store.records(store.names())) == 11


class FullDisk:
    """A worker whose disk is full as long as `sign` is there: of each file that it writes 10 bytes fit."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __call__(self):
        real = Path.write_bytes

        def write_bytes(path: Path, content: bytes) -> int:
            if self.sign.exists():
                real(path, content[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return real(path, content)

        Path.write_bytes = write_bytes
        return sizes()


def sizes():
    return lambda items: Result({"sizes": [len(Path(name).read_bytes()) for name in items]})


def test_a_full_disk_of_a_worker_is_one_error_and_the_next_run_completes(nodes, server, place, tmp_path, monkeypatch):
    """What lies in the bucket is whole; nothing is left of the files that workers fetch."""
    monkeypatch.chdir(tmp_path)
    names = [f"{number}.bin" for number in range(6)]
    for number, name in enumerate(names):
        Path(name).write_bytes(os.urandom(1000 + number))
    parts = [make_part("job", [name], digests([name])) for name in names]
    sign, store = tmp_path / "full", Store(place)
    before = scratch()
    sign.touch()
    with pytest.raises(OSError, match="No space left on device"):
        run(FullDisk(sign), parts, store, replace(nodes.cluster, workers=1))
    assert not store.names() and not store.names(".safetensors") and scratch() == before
    sign.unlink()
    records = list(run(sizes, parts, store, Cluster(None, 1)))
    assert [record["sizes"] for record in records] == [[1000 + number] for number in range(6)]
    assert len(store.names()) == 6


def scratch() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("higgs-*"))


@rarely
def test_an_error_of_a_worker_stops_the_job_with_its_text(nodes, source, place):
    store, parts = Store(place), list(parts_of(list_corpus(source), "stand-in", True, target=6000))
    for make, error in ((broken_load, "no such checkpoint"), (broken_work, "a bug")):
        with pytest.raises(Exception, match=error):
            run(make, parts, store, nodes.cluster)
    assert not store.names()
    dying = run_dying, "3 workers in a row died before they were ready"
    with pytest.raises(RuntimeError, match=dying[1]):
        run(dying[0], parts, store, nodes.cluster)


def broken_load():
    raise FileNotFoundError("no such checkpoint")


def broken_work():
    def work(items):
        raise RuntimeError("a bug")

    return work


def run_dying():
    os.kill(os.getpid(), signal.SIGKILL)


WEIGHTS = ("data/checkpoints/nano/model", "data/checkpoints/nano/codec")
VOICE = Path("data/voices/cleo.flac")
DRIVER = [sys.executable, str(ROOT / "tests" / "parts_jobs.py")]


@times
@pytest.mark.parametrize("first", ["cluster", pytest.param("plain", marks=rarely)])
def test_a_driver_that_was_killed_is_taken_over(nodes, server, source, plain, place, tmp_path, first, attempt):
    """One that used the cluster by the plain loop without Ray, and the reverse."""
    job = {"source": source, "place": place, "folder": str(tmp_path), "seconds": 0.3, "workers": min(KILLS, 2)}
    job["cluster"] = nodes.cluster.address if first == "cluster" else None
    (tmp_path / "job.json").write_text(json.dumps(job))
    driver = subprocess.Popen([*DRIVER, str(tmp_path / "job.json")], stderr=subprocess.DEVNULL)
    store, wanted = Store(place), random.randint(1, 8)
    while driver.poll() is None and len(store.names()) < wanted:
        time.sleep(0.1)
    time.sleep(random.uniform(0, 0.5))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = store.names()
    before = {name: content for name, content in shards(server, place).items() if name.removesuffix(".json") in done}
    make_index(source, place, tmp_path / "index", None if first == "cluster" else nodes.cluster)
    assert contents(tmp_path / "index") == plain and wanted <= len(done)
    after = shards(server, place)
    assert after == shards(server, f"s3://{BUCKET}/plain") and all(after[name] == before[name] for name in before)


@rarely
@times
def test_a_server_that_stops_for_a_while_is_waited_for(nodes, server, source, plain, place, tmp_path, attempt):
    """20 seconds, in which nothing is written; the job goes on by itself."""

    def stop():
        time.sleep(random.uniform(1, 5))
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(20)
        server.process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    make_index(source, place, tmp_path, nodes.cluster, seconds=0.3)
    thread.join()
    assert contents(tmp_path) == plain and shards(server, place) == shards(server, f"s3://{BUCKET}/plain")


@pytest.mark.parametrize("where", ["address", pytest.param("local", marks=rarely)])
def test_a_stage_on_a_cluster_writes_the_same_files(nodes, server, place, tokenized, tmp_path, monkeypatch, where):
    """Its notebook from the first cell to the last; with `cluster: local` no token stays in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = {"cluster": nodes.cluster.address, "work": place}
    if where == "local":
        places = {"cluster": "local"}
        for name in RAY:
            monkeypatch.delenv(name)
    made = run_tokenize(tmp_path / "stage", **places)
    made |= {f"results/tokenize/codes/{name}": content for name, content in shards(server, place).items()}
    assert {name: made[name] for name in tokenized[1]} == tokenized[1]
    assert not (tmp_path / "home/.ray").exists()


@pytest.fixture
def repository(nodes, tmp_path, monkeypatch):
    """A working directory that is sent to the workers: with the default checkpoint, and other data that are not."""
    import ray

    ray.shutdown()
    for name in ("checkpoints/nano", "recordings", "voices"):
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    shutil.copy(ROOT / ".gitignore", tmp_path)  # which names data/
    monkeypatch.setenv("HIGGS_CACHE", str(tmp_path / "cache"))  # of compiled kernels, by default in the home folder
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ray.shutdown()


@rarely
def test_the_three_stages_make_the_same_with_the_default_checkpoint(nodes, place, repository, nano):
    """Codes, waveforms in float32 and judged records; what workers read of the working directory goes by the bucket."""
    from higgs import AudioTokenizer, Engine
    from higgs.audio import save_audio
    from higgs.config import SamplingConfig
    from higgs.data.corpus import read_corpus
    from higgs.data.scripts import read_scripts
    from higgs.evaluate.judges.registry import load_metric_models
    from higgs.evaluate.result_cache import ResultCache
    from higgs.evaluate.utterances import Utterance, load_evaluator
    from higgs.serve.many_scripts import TENSORS, speak_all

    items = sorted(read_corpus("data/recordings/manifest.jsonl", ["en"]).items, key=lambda item: item.size)[:4]
    load_codec = partial(AudioTokenizer.from_pretrained, "data/checkpoints/nano/codec")
    parts = list(parts_of(items, "nano", True, target=60_000))
    lines = [{"id": f"x{n}", "form": "voice_clone", "voice": "cleo", "text": f"It is {n}."} for n in range(2)]
    lines.append({"id": "y", "form": "smart_voice", "voice": "ada", "text": "It is late."})
    Path("scripts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = [(script, 0) for script in read_scripts("scripts.jsonl", "data/voices")]
    load_engine = partial(
        Engine.from_pretrained, "data/checkpoints/nano/model", "data/checkpoints/nano/codec", device="cpu"
    )
    judges = partial(load_metric_models, "moonshine-tiny-en-float32", "ge2e")
    made = []
    for store, cluster in ((Store("plain"), Cluster(None, 1)), (Store(place), replace(nodes.cluster, weights=WEIGHTS))):
        codes = list(run(Encode(load_codec, True), parts, store, cluster))
        shards = store.read([record["part"] + ".safetensors" for record in codes])
        spoken = list(speak_all(load_engine, tasks, SamplingConfig(temperature=0.4), 30, store, {}, cluster))
        items = []
        for sample in spoken:
            save_audio(f"results/{sample.name}.flac", sample.waveform, 24_000)
            path = Path(f"results/{sample.name}.flac")
            items.append(
                Utterance("generated", sample.name, "x", "It is late.", path, reference=Path("data/voices/cleo.flac"))
            )
        items.append(Utterance("generated", "gone", "x", "It is late.", Path("results/gone.flac")))
        cache = ResultCache(partial(load_evaluator, judges, {}), store)
        cache.job.cluster = cluster
        made.append((codes, shards, spoken, list(cache.judge_all(items))))
    (codes, shards, spoken, rows), other = made
    assert codes == other[0] and shards == other[1] and rows == other[3] and len(parts) > 1
    assert [row["status"] for (row,) in rows] == ["ok", "ok", "ok", "missing"] and rows[0][0]["similarity"] is not None
    for one, two in zip(spoken, other[2], strict=True):
        assert one.record == two.record and len(one.waveform)
        for name in TENSORS:
            assert getattr(one, name).equal(getattr(two, name))


def test_nothing_listens_elsewhere_and_no_token_is_left(nodes):
    """Everything that these tests have started is on the loopback; the home folder is empty."""
    sockets = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.environ["RAY_AUTH_TOKEN"].encode() in (entry / "environ").read_bytes():
                links = [os.readlink(link) for link in (entry / "fd").iterdir()]
                sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
        except OSError:
            continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in sockets:
                listening.append(local.rpartition(":")[0])
    assert len(listening) >= 5 and set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    left = [path for path in Path(os.environ["HOME"]).rglob("*") if path.is_file()]
    assert not [path for path in left if "onnxruntime" not in str(path)], "that library has a cache of its own"
