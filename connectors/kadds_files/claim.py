"""Claims: one process per subscription and folder, and in it one session.

A process holds the subscription by `flock`, which ends with the process; a second process is refused. Inside the
process a new claim takes the lock over from the older session, whose epoch no longer fits. The epoch itself stands in
the manifest and rises with every claim.
"""

from __future__ import annotations

import fcntl
import os
import threading
from typing import ClassVar

from kadds.api.errors import FencedError, LockedError
from kadds_files.manifest import Manifest
from kadds_files.tree import Folder

LOCK = "lock"


class Claim:
    """The lock of one subscription in one folder, held by this process; `guard` is held while anything changes."""

    _held: ClassVar[dict[tuple[int, int], Claim]] = {}
    _held_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, descriptor: int, place: tuple[int, int], folder: Folder) -> None:
        self.guard = threading.RLock()
        self.manifest: Manifest | None = None
        self._descriptor = descriptor
        self._place = place
        self._folder = folder

    @classmethod
    def take(cls, folder: Folder, subscription: str, at: str) -> tuple[Claim, Manifest]:
        """Lock the subscription, or take it over from an older session here; read its manifest and raise the epoch.

        LockedError names another process that has it. `folder` is the manifest's and belongs to the claim from here on.
        """
        with cls._held_lock:
            claim = cls._locked(folder, subscription)
            with claim.guard:
                try:
                    return claim, claim._begin(subscription, at)
                except BaseException:
                    claim._let_go()
                    raise

    @classmethod
    def _locked(cls, folder: Folder, subscription: str) -> Claim:
        descriptor = folder.open(LOCK, os.O_RDWR | os.O_CREAT)
        status = os.fstat(descriptor)
        place = (status.st_dev, status.st_ino)
        if (held := cls._held.get(place)) is not None:
            os.close(descriptor)
            folder.close()
            return held
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "not known"
            os.close(descriptor)
            folder.close()
            raise LockedError(
                f"subscription {subscription} is delivered by another process, PID {holder}",
                hint="stop that process, or give this sink another folder",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        claim = cls._held[place] = cls(descriptor, place, folder)
        return claim

    def _begin(self, subscription: str, at: str) -> Manifest:
        if self.manifest is not None:
            self.manifest.close()
            self.manifest = None
        manifest = Manifest.open(self._folder, subscription)
        manifest.append({"kind": "claim", "epoch": manifest.epoch + 1, "at": at})
        self.manifest = manifest
        return manifest

    def of_epoch(self, epoch: int, subscription: str) -> Manifest:
        """The manifest, for the session of `epoch`; FencedError for any other."""
        if self.manifest is None or self.manifest.epoch != epoch:
            raise FencedError(
                f"subscription {subscription} was claimed again or let go (this session has epoch {epoch})",
                hint="a newer session delivers it now; this one stops",
            )
        return self.manifest

    def release(self, epoch: int) -> None:
        """Unlock, unless a newer session has taken over."""
        with self._held_lock, self.guard:
            if self.manifest is not None and self.manifest.epoch == epoch:
                self._let_go()

    def _let_go(self) -> None:
        if self.manifest is not None:
            self.manifest.close()
            self.manifest = None
        del self._held[self._place]
        os.close(self._descriptor)
        self._folder.close()
