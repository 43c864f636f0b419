"""`make fidelity`: every type of PostgreSQL with its edge values, by every route into every sink, as a table.

    python -m tests.fidelity [--quick]

A line is a type and a route; a cell says how many values are equal, and how many are refused and by which rule. The
exit code is 1 if a single value is neither. `--quick` leaves out most arrays and keys.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import click
import psycopg

from tests.support.fidelity import Grid, Outcome, Route, Sink, Verdict, samples
from tests.support.postgres_values import kinds
from tests.support.servers import PostgresServer

FAULTS_SHOWN = 60
HEADINGS = ("type", "values", "route", *(sink.value for sink in Sink))


@click.command()
@click.option("--quick", is_flag=True, help="Leave out most arrays and keys.")
def main(quick: bool) -> None:
    """Run the grid and print it."""
    with PostgresServer({"wal_level": "logical"}) as server, tempfile.TemporaryDirectory() as folder:
        source, target = (server.create_database(name).replace("+psycopg", "") for name in ("shop", "copy"))
        with psycopg.connect(source) as connection:
            found = samples(list(kinds(connection, arrays=not quick)), quick=quick)
        grid = Grid(Path(folder), source, target, found)
        grid.run()
        verdicts = grid.verdicts()
    for line in table(verdicts):
        click.echo(line)
    sys.exit(any(one.outcome is Outcome.DIFFERENT for one in verdicts))


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The grid, line by line, then what is different, then the sums."""
    rows = [HEADINGS, *_rows(verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    faults = [one for one in verdicts if one.outcome is Outcome.DIFFERENT]
    yield ""
    for one in faults[:FAULTS_SHOWN]:
        yield f"{one.outcome.value}: {one.kind}, {one.route.value}, {one.sink.value}: {one.why}"
    for sink in Sink:
        yield f"{sink.value}: {_summary([one for one in verdicts if one.sink is sink])}"


def _rows(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, ...]]:
    """Routes that came out alike share a line."""
    in_order = {kind: number for number, kind in enumerate(dict.fromkeys(one.kind for one in verdicts))}
    for kind, some in groupby(sorted(verdicts, key=lambda one: in_order[one.kind]), key=lambda one: one.kind):
        cells, alike = list(some), dict[tuple[str, ...], list[Route]]()
        for route in Route:
            of_route = [one for one in cells if one.route is route]
            if not of_route:
                continue  # a type that has no order is no key
            values = len(of_route) // len({one.sink for one in of_route})
            sums = (_summary([one for one in of_route if one.sink is sink]) for sink in Sink)
            alike.setdefault((str(values), *sums), []).append(route)
        for (count, *sums), routes in alike.items():
            name = ", ".join(route.value for route in routes) if len(routes) < len(Route) - 1 else "all but as a key"
            yield (kind.replace("\n", " "), count, name, *sums)


def _summary(verdicts: Sequence[Verdict]) -> str:
    counts = Counter((one.outcome, one.why if one.outcome is Outcome.REFUSED else "") for one in verdicts)
    ordered = sorted(counts.items(), key=lambda item: list(Outcome).index(item[0][0]))
    return ", ".join(f"{outcome.value} {count}" + (f" ({why})" if why else "") for (outcome, why), count in ordered)


if __name__ == "__main__":
    main()
