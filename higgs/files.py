"""Files that are written whole or not at all."""

import os
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
