"""Atomic writes, and reading files with errors that name the place."""

import hashlib
import os
import platform
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UMASK = os.umask(0o077)
os.umask(UMASK)
MODE = 0o666 & ~UMASK  # of new files, as everybody else writes them
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # a process number says nothing on another machine
TEMPORARY = re.compile(rf"\..*\.{HOST}-(\d+)-[0-9a-f]{{8}}\.tmp", re.DOTALL)
_swept: set[Path] = set()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` at the end, or deletes it after an error.

    Creates the folder. The old file stays until the new one is whole. Each writer of a path has its own temporary file;
    those of killed ones are deleted with a process's first write into their folder. OSErrors name `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute())
    # Of a long name the beginning: file systems allow 255 bytes.
    partial = path.with_name(f".{path.name[:48]}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        partial.chmod(MODE)  # some libraries write for their user alone
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            error.filename = str(path)
        error.add_note(f"while writing {path}, which is as it was before")
        raise


def _sweep(folder: Path) -> None:
    """Once, as folders may have millions of files."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (match := TEMPORARY.fullmatch(entry.name)) and not _is_alive(int(match[1])):
                Path(entry.path).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Text (UTF-8) or bytes, by way of `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def git(*words: str | Path) -> str:
    """What Git prints; nothing where it fails."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Below a folder, in those that links lead to as well, unless they lead back up."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from files_below(path, above)


def as_utf8(name: str) -> str:
    """The name of a file, with its bytes that are no UTF-8 as \\x..: as Python has them they can be written nowhere."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_place(path: str | Path) -> None:
    """Raises OSError where `replacing` could not write: to be called before long work."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from error


def absent(what: str, path: str | Path, advice: str = "") -> FileNotFoundError:
    """The error where `path` should be a file, or a folder, and is not: it says what is there, and what to do."""
    path = Path(path)
    there = ": that is a folder" if path.is_dir() else ": that is a file" if path.exists() else ""
    return FileNotFoundError(f"{what} {path} does not exist{there}{advice and f'; {advice}'}")


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, without a byte order mark. FileNotFoundError; ValueError for another encoding."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise absent("text file", path) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def read_lines(path: str | Path) -> list[tuple[str, str]]:
    """The lines that are not blank as pairs (place, line); a place is "FILE, line 3"."""
    lines = enumerate(read_text(path).split("\n"), start=1)  # not splitlines, which also splits at U+2028
    return [(f"{path}, line {number}", line) for number, line in lines if line.strip()]


def sha256(path: str | Path) -> str:
    """Of the bytes of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(files: Iterable[Path]) -> str:
    """Of the names and the bytes of files, in the order of their paths, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0{sha256(path)}\0".encode())
    return digest.hexdigest()
