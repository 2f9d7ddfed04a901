"""`higgs tokenize`, `higgs corpus` and `higgs parts prune`: recorded speech in buckets -> codes (docs/cluster.md)."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from higgs.cli.options import Checkpoint

parts = typer.Typer(no_args_is_help=True, help="Parts of jobs in a folder or a bucket.")


def tokenize(
    source: Annotated[str, Argument(help="s3://BUCKET/PREFIX, a folder, a listing of `higgs corpus`, or a manifest")],
    out: Annotated[str, Argument(help="s3://BUCKET/PREFIX or a folder: where parts lie")],
    index: Annotated[Path | None, Option(help="folder of index and failures", show_default="OUT, or codes")] = None,
    checkpoint: Checkpoint = "nano",
    cluster: Annotated[str | None, Option(help="local, auto or HOST:PORT of a Ray cluster")] = None,
    workers: Annotated[int | None, Option(min=1, show_default="as many as there is room for")] = None,
    device: Annotated[str | None, Option(help="cpu, cuda or cuda:TYPE (Ray's name, as H100): codes may differ")] = None,
    pad_to_hop: Annotated[bool, Option(help="whole frames")] = True,
    part_mb: Annotated[int | None, Option(min=1, show_default="800, less for a small corpus")] = None,
    skip: Annotated[list[str] | None, Option(help="ids to leave out, of clips in tars too")] = None,
) -> None:
    """Encode recorded speech, part by part.

    What is done is left alone: a run that was killed, here or on a cluster, goes on where it stopped.
    """
    from functools import partial

    from higgs.arithmetic import set_arithmetic

    set_arithmetic(True)  # before numpy and PyTorch are loaded
    from higgs import AudioTokenizer
    from higgs.checkpoint.alias import Checkpoint as Sources
    from higgs.checkpoint.resolve import fingerprint
    from higgs.data.corpus import GPUS, Encode, parts_of, read_corpus
    from higgs.data.training.codes import FAILED, INDEX, write_index
    from higgs.files import check_place
    from higgs.jobs.cluster import Cluster, declared
    from higgs.jobs.parts import Store, run
    from higgs.validation import validate
    from higgs.workflow.params import Placement

    work = out if out.startswith("s3://") else None
    validate(Placement, {"workers": workers, "cluster": cluster, "work": work, "device": device}, "")
    sources = Sources.parse(checkpoint)
    codec, device = sources.codec, declared(device, sources.device, work)
    items = read_corpus(source, skip=skip or ()).items
    listed = parts_of(items, fingerprint(codec), pad_to_hop, device, part_mb and part_mb * 10**6)
    load = partial(AudioTokenizer.from_pretrained, codec, device=device.partition(":")[0])
    place, store = Cluster(cluster, workers, device, GPUS, (codec,)), Store(out.rstrip("/"))
    index = index or Path("codes" if store.remote else out)
    check_place(index / INDEX)
    found = write_index(store, run(Encode(load, pad_to_hop), listed, store, place, "tokenize"), index)
    print(json.dumps({name: found[name] for name in ("clips", "frames", "failed")}))
    if not found["clips"]:
        raise ValueError(f"nothing could be encoded: {index / FAILED} says why")


def corpus(
    source: Annotated[str, Argument(help="s3://BUCKET/PREFIX or a folder")],
    out: Annotated[Path | None, Option(help="file, written whole or not at all", show_default="printed")] = None,
) -> None:
    """List audio files and tars, one line of JSON for each, with size and version.

    A listing that is there is renewed: what its lines leave out (`skip`) stays.
    """
    from contextlib import nullcontext

    from higgs.data.corpus import list_corpus, read_listing
    from higgs.files import replacing

    try:
        noted = {item.id: item.skip for item in read_listing(out) if item.skip} if out and out.is_file() else {}
    except ValueError as error:
        error.add_note(f"{out} is no listing, so it is not replaced: name another file")
        raise
    with replacing(out) if out else nullcontext() as new:
        with new.open("w", encoding="utf-8") if new else nullcontext() as file:
            for item in list_corpus(source):
                line = item._asdict() | {"skip": noted.get(item.id)}
                print(json.dumps({k: v for k, v in line.items() if v is not None}, ensure_ascii=False), file=file)


@parts.command()
def prune(
    place: Annotated[str, Argument(help="s3://BUCKET/PREFIX or a folder")],
    indices: Annotated[list[Path], Option("--keep", help="folder of an index whose parts stay")],
    force: Annotated[bool, Option("--force", help="delete them")] = False,
) -> None:
    """List the parts that no index names, or delete them."""
    from higgs.data.training.codes import shards_of
    from higgs.files import absent
    from higgs.jobs.parts import CONTENT, RECORD, Store

    store = Store(place.rstrip("/"))
    if not store.remote and not Path(place).is_dir():
        raise absent("folder of parts", place, "name the OUT of `higgs tokenize`")
    named = {shard["file"].removesuffix(CONTENT) for folder in indices for shard in shards_of(folder)}
    found = sorted((store.names(CONTENT) | store.names(RECORD)) - named)
    print("\n".join([*found, f"{len(found)} parts, {'deleted' if force else 'delete them with --force'}"]))
    if force:
        store.delete(found)
