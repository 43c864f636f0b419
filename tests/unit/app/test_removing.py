"""Sources that are taken out of the file: what was made for them on their servers is taken back, or named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kadds import plugins
from kadds.api.connector import Capture, Connector, Event, Finding, SourceAbilities, SourceSide
from kadds.api.errors import RefusedError
from kadds.api.schema import Table
from kadds.api.settings import SecretUrl, Settings
from kadds.app import Place, ask, load_configuration
from kadds.app.app import App
from kadds.plugins import Installed


class SlotSettings(Settings):
    """Where it is."""

    url: SecretUrl
    slot: str = "kadds"
    certificate: Path | None = None


class SlotSource:
    """Has a slot on its server."""

    opened: list[SlotSettings] = []  # noqa: RUF012 - the tests clear it
    refuses = False

    def __init__(self, settings: SlotSettings) -> None:
        self.settings = settings
        self.opened.append(settings)

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        return []

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        return []

    def close(self) -> None:
        return None

    def remove(self, *, drop_slot: bool) -> Sequence[str]:
        if self.refuses:
            raise RefusedError("the slot is being read")
        return [f"slot {self.settings.slot} {'dropped' if drop_slot else 'stays; to drop it: DROP'}"]


SLOTTED = Connector(
    "slotted",
    "for tests",
    SourceSide(
        SlotSettings,
        SourceAbilities(Capture.STREAM, frozenset({Event.CREATE})),
        lambda settings, _: SlotSource(settings),
    ),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    known = {**plugins.connectors(), "slotted": Installed("slotted", SLOTTED, "tests", "1")}
    for module in ("kadds.plugins", "kadds.config.load"):
        monkeypatch.setattr(sys.modules[module], "connectors", lambda: known)
    SlotSource.opened.clear()
    monkeypatch.setattr(SlotSource, "refuses", False)
    return Place(tmp_path / "log", tmp_path / "kadds.yml")


ENVIRONMENT = {"SHOP_PASSWORD": "geheim"}


def remembered(place: Place, url: str = "slot://kadds:${SHOP_PASSWORD}@host/shop", **more: Any) -> None:
    """The log remembers a source that stands in the file no more."""
    assert place.config is not None
    source = {"connector": "slotted", "url": url, "slot": "mine", "tables": ["*"], **more}
    place.config.write_text(json.dumps({"log": {"path": "log"}, "sources": {"shop": source}}))
    loaded = load_configuration(place.config, ENVIRONMENT)
    app = App.open(place, writable=True)
    app.remembered.keep(loaded.contracts())
    app.close()
    place.config.write_text(json.dumps({"log": {"path": "log"}}))


def remove(place: Place, environment: Mapping[str, str] = ENVIRONMENT, **arguments: Any) -> Any:
    return ask(place, "source.remove", {"name": "shop", **arguments}, environment=environment)


def sources(place: Place) -> list[str]:
    return [one["name"] for one in ask(place, "source.list")]


@pytest.mark.parametrize(("drop_slot", "said"), [(True, "dropped"), (False, "stays; to drop it: DROP")])
def test_a_source_that_is_no_longer_in_the_file_is_reached_by_what_the_log_remembers(
    place: Place, drop_slot: bool, said: str
) -> None:
    remembered(place, certificate="ca.pem")
    assert remove(place, drop_slot=drop_slot) == {"removed": "default/shop", "said": [f"slot mine {said}"]}
    [settings] = SlotSource.opened
    assert settings.url.reveal() == "slot://kadds:geheim@host/shop"
    assert place.config is not None
    assert settings.certificate == place.config.parent / "ca.pem"
    assert sources(place) == []


def test_the_log_keeps_no_secret_of_a_source(place: Place) -> None:
    remembered(place)
    app = App.open(place, writable=True)
    kept = json.dumps(app.remembered.contracts())
    app.close()
    assert "SHOP_PASSWORD" in kept
    assert "geheim" not in kept


@pytest.mark.parametrize("url", ["slot://kadds:geheim@host/shop", "slot://kadds:${SHOP_PASSWORD:-geheim}@host/shop"])
def test_a_secret_in_plain_text_is_not_kept_and_so_the_source_is_not_reached(place: Place, url: str) -> None:
    remembered(place, url)
    app = App.open(place, writable=True)
    kept = json.dumps(app.remembered.contracts())
    app.close()
    assert "geheim" not in kept
    with pytest.raises(RefusedError, match="does not keep all"):
        remove(place, drop_slot=True)


@pytest.mark.parametrize("why", ["no value", "refused"])
def test_what_cannot_be_reached_is_forgotten_only_without_drop_slot(
    place: Place, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(place)
    environment = {} if why == "no value" else ENVIRONMENT
    monkeypatch.setattr(SlotSource, "refuses", True)
    with pytest.raises(RefusedError, match="nothing was removed") as caught:
        remove(place, environment, drop_slot=True)
    assert "leave --drop-slot away" in str(caught.value.hint)
    assert sources(place) == ["default/shop"]
    [sentence] = remove(place, environment)["said"]
    assert sentence.startswith("what was made for it on its server, if anything, stays there")
    assert sources(place) == []


def test_a_start_with_another_reference_to_the_same_value_is_no_difference(place: Place) -> None:
    remembered(place)
    assert place.config is not None
    source = {"connector": "slotted", "url": "slot://kadds:${OTHER}@host/shop", "slot": "mine", "tables": ["*"]}
    place.config.write_text(json.dumps({"log": {"path": "log"}, "sources": {"shop": source}}))
    loaded = load_configuration(place.config, {"OTHER": "geheim"})
    app = App.open(place, writable=True)
    assert app.remembered.compare(loaded) == []
    app.close()
