"""Schedules: what runs by itself, what is kept of it, and what a failed run leaves alone."""

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kadds.api.errors import ConfigurationError
from kadds.app import App, Place, ask, load_configuration
from kadds.app.verbs import answer
from kadds.jobs import Jobs
from tests.support.waiting import wait_until
from tests.unit.app.shops import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@contextmanager
def scheduled(shop: Shop) -> Iterator[App]:
    app = App.for_running(load_configuration(shop.config))
    try:
        app.start()
        jobs = Jobs(app)
        jobs.start()
        yield app
        jobs.close()
        app.drain()
    finally:
        app.close()


def by_interval(shop: Shop, seconds: float = 0.2, **changes: object) -> None:
    schedule = {"interval_seconds": seconds}
    shop.configure(sources=shop.source(poll_interval_seconds=None, schedule=schedule, **changes))


def delivered(app: App) -> int:
    """The rows that went to the sink since the start; its file is in use while the engine runs."""
    return int(answer(app, "subscription.list", {})[0]["rows"])


def polled(app: App, table: str) -> bool:
    """Whether the table was read to its end at least once."""
    tables = answer(app, "source.list", {})[0]["tables"]
    return any(one["table"] == table and one["last_polled_at"] for one in tables)


def runs(app: App, job: str) -> list[dict[str, object]]:
    return [run for one in answer(app, "jobs.list", {}) if one["job"] == job for run in one["runs"]]


def test_a_source_on_an_interval_runs_at_once_and_again_and_its_runs_are_kept(shop: Shop) -> None:
    shop.add_orders(1, 4)
    by_interval(shop)
    with scheduled(shop) as app:
        wait_until(lambda: delivered(app) == 3, waiting_for="the first run")
        shop.add_orders(4, 6)
        wait_until(lambda: delivered(app) == 5, waiting_for="a later run")
        wait_until(lambda: len([r for r in runs(app, "source:default/shop") if r["outcome"] == "done"]) >= 2)
    [job] = ask(Place(shop.log), "jobs.list")
    assert (job["job"], job["interval_seconds"], job["next_run_at"]) == ("source:default/shop", 0.2, None)
    assert sum(run["rows"] for run in job["runs"]) == 5
    assert {run["trigger"] for run in job["runs"]} == {"schedule"}


def test_cron_is_meant_in_its_named_time_zone(shop: Shop) -> None:
    schedule = {"cron": "30 2 * * sun", "timezone": "Asia/Kolkata"}
    shop.configure(subscriptions=shop.subscription(schedule=schedule))
    shop.add_orders(1, 3)
    with scheduled(shop) as app:
        [job] = answer(app, "jobs.list", {})
        following = dt.datetime.fromisoformat(job["next_run_at"])
        assert following.utcoffset() == dt.timedelta(hours=5, minutes=30)
        assert (following.hour, following.minute, following.strftime("%a")) == (2, 30, "Sun")
        assert following > dt.datetime.now(dt.UTC)
        assert job["last_run"] is None
        wait_until(lambda: polled(app, "orders"), waiting_for="capture, which has no schedule")
        assert delivered(app) == 0
        run = answer(app, "jobs.run", {"name": "subscription:shop-to-warehouse"})
        assert (run["outcome"], run["rows"], run["trigger"]) == ("done", 2, "manual")
    assert len(shop.delivered()) == 2


def test_a_run_that_fails_is_shown_with_its_reason_and_loses_nothing(shop: Shop) -> None:
    shop.add_orders(1, 4)
    by_interval(shop, 3600.0, tables={"orders": {"incrementing": "id", "overlap": 10}})
    with scheduled(shop) as app:
        wait_until(lambda: [run["outcome"] for run in runs(app, "source:default/shop")] == ["done"])
        shop.execute("ALTER TABLE orders RENAME TO hidden; ")
        run = answer(app, "jobs.run", {"name": "source:shop"})
        assert run["outcome"] == "failed"
        [problem] = run["problems"].values()
        assert problem["message"]
        shop.execute("ALTER TABLE hidden RENAME TO orders")
        shop.add_orders(4, 6)
        answer(app, "source.resume", {"name": "shop"})
        wait_until(lambda: answer(app, "jobs.run", {"name": "source:shop"})["outcome"] == "done")
        wait_until(lambda: delivered(app) == 5, waiting_for="the rows after the cure")
    assert [row[0] for row in shop.delivered()] == [1, 2, 3, 4, 5]


def test_a_job_that_there_is_not_is_refused_by_name(shop: Shop) -> None:
    by_interval(shop, 3600.0)
    with scheduled(shop) as app:
        with pytest.raises(ConfigurationError, match="there are: source:shop") as found:
            answer(app, "jobs.run", {"name": "subscription:shop-to-warehouse"})
        assert "no job" in found.value.message
        with pytest.raises(ConfigurationError, match="is not the name of a job"):
            answer(app, "jobs.run", {"name": "shop"})


def test_until_caught_up_runs_what_is_scheduled_once_without_its_schedule(shop: Shop) -> None:
    shop.add_orders(1, 4)
    schedule = {"cron": "0 0 1 1 *"}
    shop.configure(
        sources=shop.source(poll_interval_seconds=None, schedule=schedule),
        subscriptions=shop.subscription(schedule=schedule),
    )
    app = App.for_running(load_configuration(shop.config))
    try:
        app.start()
        assert app.wait_until_caught_up(threading.Event()).exit_code == 0
        app.drain()
    finally:
        app.close()
    assert len(shop.delivered()) == 3
    found = ask(Place(shop.log), "jobs.list")
    assert [job["last_run"]["trigger"] for job in found] == ["until-caught-up"] * 2
