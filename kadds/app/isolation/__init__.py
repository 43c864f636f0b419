"""A streaming source in a process of its own (`isolation: process`).

A busy thread of Python in the engine's process then no longer slows the receiving loop, and a driver that crashes takes
only its own process with it. `source` is the engine's half, `child` the other; between them go frames of `wire`: Arrow
IPC bytes, sequences, resume, and acknowledgements back.

The process is started anew, never forked: forking a process that has threads is not safe. It gets its settings over the
wire, for they hold secrets, and it ends when the wire does, however the engine's process ended.
"""

from __future__ import annotations

from kadds.app.isolation.source import IsolatedSource, open_isolated

__all__ = ["IsolatedSource", "open_isolated"]
