"""The tree of folders: every step goes through an open folder and follows no symbolic link.

Below the configured folder nothing is opened by a path, so that neither a name nor a link leads out of it. What is
written appears at once and complete: temporary name, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from kadds.api.errors import KaddsError, RefusedError, RetryableError

TEMPORARY = ".tmp-"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LINKS = {errno.ELOOP, errno.ENOTDIR}


@contextmanager
def translated(where: Path) -> Iterator[None]:
    """Raises the operating system's errors inside as errors of Kadds."""
    try:
        yield
    except KaddsError as error:
        error.where = error.where or str(where)
        raise
    except OSError as error:
        raise as_ours(error, where) from error


def as_ours(error: OSError, where: Path) -> KaddsError:
    """The error of Kadds that says what the caller does about `error`."""
    what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
    if error.errno in _NO_ROOM:
        hint = "make room on the disk; nothing half written can be seen"
        return RetryableError(what, where=str(where), hint=hint, waiting_for=f"room in {where}")
    if error.errno in _LINKS:
        hint = "below its folder the sink follows no symbolic link; put a real folder there"
        return RefusedError(what, where=str(where), hint=hint)
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError) or error.errno == errno.EROFS:
        return RefusedError(what, where=str(where), hint="see that the folder is there and may be written")
    return RetryableError(what, where=str(where))


class HashedFile(io.RawIOBase):
    """A file being written, with the SHA-256 and the number of its bytes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        """It is written and never read."""
        return True

    def write(self, data: object) -> int:
        """Write all of `data`; a short write of the operating system goes on where it ended."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += os.write(self._descriptor, view[done:])
        self.bytes += done
        return done

    def tell(self) -> int:
        """How many bytes have been written."""
        return self.bytes

    @property
    def sha256(self) -> str:
        """Of what has been written."""
        return self._hash.hexdigest()


class Folder:
    """An open folder; close it, or use it with `with`."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path

    @classmethod
    def root(cls, path: Path, *, create: bool) -> Self:
        """The configured folder, which may be a link of the operator's; FileNotFoundError if it is not to be made."""
        if create:
            path.mkdir(parents=True, exist_ok=True)
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY), path)

    def folder(self, name: str, *, create: bool) -> Folder:
        """A folder in this one."""
        if create:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
                os.fsync(self.descriptor)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        return Folder(os.open(name, flags, dir_fd=self.descriptor), self.path / name)

    def open(self, name: str, flags: int) -> int:
        """A file in this folder, as a descriptor."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=self.descriptor)

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self.descriptor)

    def has(self, name: str) -> bool:
        """Whether there is something called `name`."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """A whole file."""
        with open(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, fill: Callable[[HashedFile], object]) -> HashedFile:
        """Make or replace a file by what `fill` writes; complete on disk, under its name, when this returns.

        A temporary file left by a crash is overwritten; one of a failure is removed.
        """
        temporary = TEMPORARY + name
        descriptor = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with HashedFile(descriptor) as file:
                fill(file)
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self.descriptor)
            raise
        finally:
            os.close(descriptor)
        self.sync()
        return file

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Make the names in it durable."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the folder."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
