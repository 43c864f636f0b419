"""`/metrics` for Prometheus, `/livez` and `/readyz` for probes.

Nothing is counted here: each scrape reads the status. Names begin with `kadds_`, units come last. Labels are names from
the configuration and of tables; above `TABLES_MAX` tables the series of single tables are left out, and one says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from kadds import __version__
from kadds.api.errors import RefusedError
from kadds.app.app import App
from kadds.app.status import status

TABLES_MAX = 1000
_REQUEST_SECONDS = 10.0


class StatusCollector:
    """Turns the status into metrics, at each scrape."""

    def __init__(self, app: App) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        plain = status(self._app)
        yield InfoMetricFamily("kadds_build", "Which Kadds this is.", {"version": __version__})
        yield from _log(plain["log"])
        tables = sum(len(one["tables"]) for one in (*plain["sources"], *plain["subscriptions"]))
        single = tables <= TABLES_MAX
        yield _gauge("kadds_tables_left_out", "Tables without series of their own, because there are too many.", {
            (): 0 if single else tables
        })  # fmt: skip
        yield from _things("source", plain["sources"], ("source",), lambda one: (one["name"],))
        yield from _things("subscription", plain["subscriptions"], ("subscription",), lambda one: (one["name"],))
        if single:
            captured = [(one["name"], table) for one in plain["sources"] for table in one["tables"]]
            delivered = [(one["name"], table) for one in plain["subscriptions"] for table in one["tables"]]
            yield from _tables("source", "table", captured)
            yield from _tables("subscription", "stream", delivered)
        yield from _jobs(plain["jobs"])


Series = dict[tuple[str, ...], float]


def _gauge(name: str, text: str, series: Series, labels: tuple[str, ...] = ()) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for values, number in series.items():
        metric.add_metric(values, number)
    return metric


def _counter(name: str, text: str, series: Series, labels: tuple[str, ...]) -> Metric:
    metric = CounterMetricFamily(name, text, labels=labels)
    for values, number in series.items():
        metric.add_metric(values, number)
    return metric


def _log(log: dict[str, Any]) -> Iterator[Metric]:
    failed = float(log["failure"] is not None or log["sealing_failure"] is not None)
    yield _gauge("kadds_log_failed", "1 where the log can take nothing more, or cannot be sealed.", {(): failed})
    yield _gauge("kadds_log_end_offset", "The offset behind the last durable change.", {(): log["end_offset"]})
    yield _gauge("kadds_log_free_bytes", "Room on the log's disk.", {(): log["free_bytes"]})
    parts: Series = {("journal",): log["journal_bytes"], ("segments",): log["segment_bytes"]}
    yield _gauge("kadds_log_size_bytes", "What the log takes on its disk.", parts, ("part",))


def _things(kind: str, things: list[dict[str, Any]], labels: tuple[str, ...], key: Any) -> Iterator[Metric]:
    name = f"kadds_{kind}"
    yield from _states(name, kind, [(key(one), one) for one in things], labels)


def _tables(kind: str, label: str, tables: list[tuple[str, dict[str, Any]]]) -> Iterator[Metric]:
    named: list[tuple[tuple[str, ...], dict[str, Any]]] = [((owner, table[label]), table) for owner, table in tables]
    yield from _states(f"kadds_{kind}_table", f"table of a {kind}", named, (kind, "table"))


def _states(
    name: str, what: str, things: list[tuple[tuple[str, ...], dict[str, Any]]], labels: tuple[str, ...]
) -> Iterator[Metric]:
    def known(field: str) -> Series:
        return {key: one[field] for key, one in things if one.get(field) is not None}

    states: Series = {(*key, one["state"]): 1 for key, one in things}
    yield _gauge(f"{name}_state", f"1 for the state of each {what}.", states, (*labels, "state"))
    yield _counter(f"{name}_rows", f"Rows moved since the start, by {what}.", known("rows"), labels)
    lags = known("lag_seconds")
    yield _gauge(f"{name}_lag_seconds", f"How old what has not been moved is, by {what}.", lags, labels)
    if any("lag_bytes" in one for _, one in things):
        behind = known("lag_bytes")
        yield _gauge(f"{name}_lag_bytes", f"About how much of the log is still to be read, by {what}.", behind, labels)
    if beats := known("heartbeat_lag_seconds"):
        help_text = f"How long the oldest heartbeat that has not got there has been under way, by {what}."
        yield _gauge(f"{name}_heartbeat_lag_seconds", help_text, beats, labels)
    errors: Series = {key: one["problem"]["attempts"] if one["problem"] else 0 for key, one in things}
    yield _gauge(f"{name}_errors", f"Failures in a row, 0 while all is well, by {what}.", errors, labels)


def _jobs(jobs: list[dict[str, Any]]) -> Iterator[Metric]:
    last: Series = {
        (job["job"],): float(job["last_run"]["outcome"] in ("failed", "interrupted")) for job in jobs if job["last_run"]
    }
    yield _gauge("kadds_job_last_run_failed", "1 where the last run of a job failed.", last, ("job",))


class Metrics:
    """The HTTP endpoint; answers from now on until `close`."""

    def __init__(self, app: App, host: str, port: int) -> None:
        """RefusedError where the address cannot be listened on."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StatusCollector(app))
        handler = type("Handler", (_Handler,), {"app": app, "registry": registry})
        try:
            self._server = _server_class(host)((host, port), handler)
        except OSError as error:
            raise RefusedError(
                f"the address of `metrics.listen` cannot be used: {error.strerror or error}",
                where=f"{host}:{port}",
                hint="choose another port, or end the process that has it",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="kadds-metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True

    if ":" in host:
        Server.address_family = AF_INET6
    return Server


class _Handler(BaseHTTPRequestHandler):
    app: App
    registry: CollectorRegistry
    timeout = _REQUEST_SECONDS
    server_version = "kadds"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one of the three paths."""
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, encode(self.registry), content_type)
            case "/livez":
                self._answer(200, b"alive\n")
            case "/readyz":
                reason = not_ready(self.app)
                self._answer(503 if reason else 200, f"{reason or 'ready'}\n".encode())
            case _:
                self._answer(404, b"there are /metrics, /livez and /readyz\n")

    def _answer(self, code: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the library calls it by
        """Say nothing: a scrape every few seconds is no news."""


def not_ready(app: App) -> str | None:
    """Why no work should be expected: starting, ending, or a log that failed. One sink's trouble is not a reason."""
    if app.closing.is_set():
        return "ending"
    if app.engine is None:
        return "starting"
    if app.engine.fatal is not None or app.log.failure is not None:
        return "the log has failed"
    return None


def serve_metrics(app: App, host: str, port: int) -> Metrics:
    """Listen until the app closes."""
    metrics = Metrics(app, host, port)
    app.on_close(metrics.close)
    return metrics
