"""A local folder, a hub id with a revision or s3://bucket/prefix -> a local folder with a complete checkpoint."""

import re
from pathlib import Path

from higgs.checkpoint.config_json import MODEL, model_from_json, recognise
from higgs.checkpoint.tensors import CONFIG, choose_weights, config_errors, read_config, weight_files
from higgs.files import content_hash, sha256

SMALL_FILES = ["*.json", "*.jinja"]
CHECKPOINT_FILES = [*SMALL_FILES, "*.safetensors", "*.pth"]


def resolve(source: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """-> a local folder that holds the checkpoint; from the hub and S3 it is downloaded into a cache.

    `source` is a folder, `organisation/name`, `organisation/name@revision`, or `s3://bucket/prefix`. With
    `weights=False` only the small files of a remote checkpoint are fetched: configs and the text tokenizer.

    Raises FileNotFoundError when it is none of them, or the hub has no such repository or revision; OSError for a
    failed or damaged download; ConfigError, before weights are fetched, for a config that this package does not run.
    """
    text = str(source)
    is_s3, is_folder = text.startswith("s3://"), Path(text).is_dir()
    if revision is not None and (is_s3 or is_folder):
        raise ValueError(f"{text} is a {'prefix of S3' if is_s3 else 'folder'}: it has no revision {revision!r}")
    if is_s3:
        from higgs.checkpoint.s3 import download

        return download(text, CHECKPOINT_FILES if weights else SMALL_FILES)
    if is_folder:
        return Path(text)
    name, _, pinned = text.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/")):
        pull = "; in the repository's root `dvc pull data.dvc` fetches it" if text.startswith("data/") else ""
        neither = "no such folder, and not a hub id (organisation/name@revision)"
        raise FileNotFoundError(f"checkpoint {text!r}: {neither}{pull}")
    if revision and pinned and revision != pinned:
        raise ValueError(f"{text!r} and revision={revision!r} name two revisions: give one")
    return _from_hub(name, revision or pinned or "main", weights)


def _from_hub(name: str, revision: str, weights: bool) -> Path:
    """-> the snapshot in the hub's cache, with only the weights in the layout of its config. No network: as it is."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _small_files(name, revision)
    try:
        sizes = {f.path: f.size for f in get_cached_repo_tree(name, revision=folder.name)}
    except CachedRepoTreeNotFoundError:  # no network, and an older library filled the cache
        sizes = None
    for path, expected in (sizes or {}).items():
        cached = folder / path
        if cached.exists() and (size := cached.stat().st_size) != expected:
            cached.resolve().unlink()
            raise OSError(f"{cached} has {size:,} bytes, on the hub {expected:,}. It is deleted here: run it again")
    config = read_config(folder)
    if recognise(config, f"{name}@{revision}: {CONFIG}")[0] == MODEL:
        with config_errors(folder):
            model_from_json(config)
    if weights and sizes is None:
        weight_files(folder)
    elif weights:
        wanted = choose_weights(folder, sizes.keys())
        for path in wanted:
            if not (folder / path).exists():
                _fetch(name, folder, path)
        snapshot_download(name, revision=folder.name, allow_patterns=wanted)
    return folder


def _small_files(name: str, revision: str) -> Path:
    """-> the snapshot's folder with configs and text tokenizer."""
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{name} on {constants.ENDPOINT}"
    log_in = "`hf auth login` or set HF_TOKEN"
    silent = _silence(name, revision)
    try:
        files = {"allow_patterns": SMALL_FILES, "local_files_only": bool(silent)}
        return Path(snapshot_download(name, revision=revision, **files))
    except errors.RevisionNotFoundError as error:
        advice = f"{constants.ENDPOINT}/{name}/commits/main lists the commits; write {name}@COMMIT"
        raise FileNotFoundError(f"{where} has no revision {revision!r}. {advice}") from error
    except errors.GatedRepoError as error:
        raise PermissionError(f"{where} asks you to accept its terms: do so on its page, then {log_in}") from error
    except errors.RepositoryNotFoundError as error:
        advice = f"or it is private: check the name; for a private one {log_in}"
        raise FileNotFoundError(f"there is no folder {name!r} here, and no {where}, {advice}") from error
    except errors.LocalEntryNotFoundError as error:
        offline = silent or f"no answer: {_first_line(error)}"
        missing = f"{constants.HF_HUB_CACHE} does not hold all of revision {revision!r}: run it once with network"
        raise FileNotFoundError(f"{where}: {offline}, and {missing}, or give a folder") from error
    except errors.HTTPError as error:
        raise ConnectionError(f"{where}: {_first_line(error)}") from error


def _silence(name: str, revision: str) -> str:
    """Why the hub does not answer; "" where it may. For a commit snapshot_download would try for half a minute."""
    from huggingface_hub import HfApi, constants, errors, get_cached_repo_tree

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if not re.fullmatch("[0-9a-f]{40}", revision):
        return ""
    try:
        get_cached_repo_tree(name, revision=revision)
    except errors.CachedRepoTreeNotFoundError:
        try:
            HfApi().repo_info(name, revision=revision, timeout=10)
        except errors.HTTPError as error:
            response = error.response if isinstance(error, errors.HfHubHTTPError) else None
            if response is None or response.status_code >= 500:
                return f"no answer: {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    """Of an error's text, which the library continues with pages of advice."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _fetch(name: str, folder: Path, path: str) -> None:
    """Downloads one large file into the hub's cache, resumes a partial one, and checks its sha256.

    huggingface_hub 2.4 starts a partial file again with every run, but uses a blob that is in its place.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url, where = hf_hub_url(name, path, revision=folder.name), f"{name}@{folder.name}: {path}"
    try:
        listed = get_hf_file_metadata(url)
    except (HTTPError, OSError) as error:
        advice = f"cannot be fetched: {_first_line(error)}. Run it again with network"
        raise ConnectionError(f"{where} is not in the cache, and {advice}") from error
    if not re.fullmatch("[0-9a-f]{64}", listed.etag or ""):
        return  # a small file without a sha256: the library fetches it
    storage = folder.parent.parent
    blob = storage / "blobs" / listed.etag
    partial = blob.with_name(f"{blob.name}.incomplete")
    lock = storage.parent / ".locks" / storage.name / f"{blob.name}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        try:
            with partial.open("ab") as sink:
                options = {"headers": build_hf_headers(), "displayed_filename": path}
                http_get(url, sink, resume_size=sink.tell(), expected_size=listed.size, **options)
        except (HTTPError, OSError) as error:
            have = partial.stat().st_size
            if have > listed.size:
                partial.unlink()
            missing = f"{have:,} of {listed.size:,} bytes are here ({_first_line(error)})"
            raise OSError(f"{where}: {missing}. Run it again: it goes on") from error
        if (digest := sha256(partial)) != listed.etag:
            partial.unlink()
            differs = f"its sha256 is {digest}, on the hub {listed.etag}"
            raise OSError(f"{where} arrived damaged: {differs}. It is deleted here: run it again")
        partial.rename(blob)


def fingerprint(source: str | Path) -> str:
    """-> sha256 over the names and bytes of all that is read of a checkpoint, for the provenance of results.

    That is every small file that `resolve` fetches (configs, text tokenizer, lexicon), and the weights that are chosen.
    """
    folder = resolve(source)
    small = {path for pattern in SMALL_FILES for path in folder.glob(pattern) if path.name[0] != "."}
    return content_hash([*small, *weight_files(folder)])
