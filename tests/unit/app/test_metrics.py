"""The endpoint for Prometheus and probes, over a real run."""

import re
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from kadds.api.errors import RefusedError
from kadds.app import App, load_configuration, serve_metrics
from kadds.app import metrics as metrics_module
from tests.house.source_tree import ROOT
from tests.unit.app.shops import Shop


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_a_scrape_shows_rows_lag_errors_and_states_by_source_table_and_subscription(shop: Shop) -> None:
    shop.add_orders(1, 8)
    app = App.for_running(load_configuration(shop.config))
    try:
        port = serve_metrics(app, "127.0.0.1", 0).port
        assert get(port, "/readyz") == (503, "starting\n")
        app.start()
        app.wait_until_caught_up(threading.Event())
        code, text = get(port, "/metrics")
        assert code == 200
        found = samples(text)
        name = "default/shop-to-warehouse"
        assert found["kadds_source_rows_total", "source=default/shop"] == 7
        assert found["kadds_source_table_rows_total", "source=default/shop", "table=orders"] == 7
        assert found["kadds_subscription_rows_total", f"subscription={name}"] == 7
        table = "table=default/shop/orders"
        assert found["kadds_subscription_table_lag_bytes", f"subscription={name}", table] == 0
        assert found["kadds_subscription_lag_seconds", f"subscription={name}"] == 0
        assert found["kadds_subscription_errors", f"subscription={name}"] == 0
        assert found["kadds_source_lag_seconds", "source=default/shop"] >= 0
        assert [key for key in found if key[:2] == ("kadds_source_state", "source=default/shop")]
        assert found["kadds_log_size_bytes", "part=journal"] > 0
        assert get(port, "/livez") == (200, "alive\n")
        assert get(port, "/readyz") == (200, "ready\n")
        assert get(port, "/elsewhere")[0] == 404
        app.drain()
        assert get(port, "/readyz") == (503, "ending\n")
    finally:
        app.close()
    with pytest.raises(urllib.error.URLError):
        get(port, "/livez")


def test_every_metric_of_the_alert_rules_is_there(shop: Shop) -> None:
    page = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    [block] = re.findall(r"## Alerts\n+```yaml\n(.*?)```", page, re.DOTALL)
    rules = YAML(typ="safe").load(block)["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"kadds_\w+", rule["expr"])}
    shop.configure(sources=shop.source(poll_interval_seconds=None, schedule={"interval_seconds": 3600}))
    app = App.for_running(load_configuration(shop.config))
    try:
        port = serve_metrics(app, "127.0.0.1", 0).port
        app.start()
        app.wait_until_caught_up(threading.Event())
        assert asked - {key[0] for key in samples(get(port, "/metrics")[1])} == set()
    finally:
        app.close()


def test_too_many_tables_leave_out_the_series_of_single_tables(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "TABLES_MAX", 1)
    app = App.for_running(load_configuration(shop.config))
    try:
        port = serve_metrics(app, "127.0.0.1", 0).port
        app.start()
        app.wait_until_caught_up(threading.Event())
        found = samples(get(port, "/metrics")[1])
        assert found["kadds_tables_left_out",] >= 2
        assert not [key for key in found if "_table_" in key[0]]
        assert found["kadds_source_rows_total", "source=default/shop"] == 0
        app.drain()
    finally:
        app.close()


def test_an_address_that_is_taken_is_refused_by_name(shop: Shop) -> None:
    app = App.for_running(load_configuration(shop.config))
    try:
        port = serve_metrics(app, "127.0.0.1", 0).port
        with pytest.raises(RefusedError, match="cannot be used"):
            serve_metrics(app, "127.0.0.1", port)
    finally:
        app.close()
