"""Files that are written whole or not at all, and text files that say what is wrong with them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path`, to be written; at the end it takes the place of `path`, or is gone where anything failed.

    The folder is made. A full disk, a kill or an error leaves the file that was there as it was, and a reader never
    sees half of the new one. What a killed writer left, the next one overwrites: one writer of a path at a time.
    Errors of the system name `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            error.filename = str(path)
        error.add_note(f"while writing {path}, which is as it was before")
        raise


def check_place(path: str | Path) -> None:
    """OSError where `replacing` could not write, by trying it: before hours of work, not after them."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is to be written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from error


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, without the mark that some editors put at its start. ValueError names one that is not."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def read_lines(path: str | Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, each behind its place ("FILE, line 3") for errors."""
    lines = enumerate(read_text(path).split("\n"), start=1)  # not splitlines: U+2028 is no end
    return [(f"{path}, line {number}", line) for number, line in lines if line.strip()]
