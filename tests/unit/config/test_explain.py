"""`kadds validate --explain TABLE`: where each setting of a table comes from."""

from __future__ import annotations

import pytest

from kadds.api.errors import ConfigurationError
from kadds.config import explain
from tests.unit.config.conftest import Files

TEXT = """\
    sources:
      shop: {connector: pull, url: db://x, tables: {"*": {column: any}, public.orders: {overlap: 3, token: "${T}"}}}
      acme/crm: {connector: stream, url: db://y, tables: ["crm.*", "!*.orders"]}
    sinks: {warehouse: {connector: put, path: w}}
    subscriptions:
      s: {source: shop, sink: warehouse, mode: merge, tables: {"public.*": {where: "a > ${LEAST}"}}}
      t: {source: shop, sink: warehouse, mode: merge, tables: ["other.*"]}
"""


def _explained(files: Files, table: str) -> str:
    loaded = files.load(TEXT, {"T": "canary", "LEAST": "5"})
    return explain(loaded, table).replace(f"{files.folder}/", "")


def test_each_setting_is_shown_with_its_value_and_place(files: Files) -> None:
    assert _explained(files, "shop/public.orders") == "\n".join(
        [
            "public.orders",
            "  source shop  (kadds.yml:2:3)",
            '    selected by "*"  (kadds.yml:2:49)',
            '    selected by "public.orders"  (kadds.yml:2:69)',
            '    column: "any"  (kadds.yml:2:55)',
            "    overlap: 3  (kadds.yml:2:85)",
            '    token: "${T}"  (kadds.yml:2:97)',
            "  subscription s  (kadds.yml:6:3)",
            '    selected by "public.*"  (kadds.yml:6:60)',
            '    where: "a > ${LEAST}"  (kadds.yml:6:73)',
            "  subscription t  (kadds.yml:7:3)",
            "    not selected: no pattern of `subscriptions.t.tables` matches it",
        ]
    )


def test_an_exclusion_is_shown_with_its_place(files: Files) -> None:
    assert _explained(files, "acme/crm/crm.orders").splitlines()[1:] == [
        "  source acme/crm  (kadds.yml:3:3)",
        '    not selected: "!*.orders" excludes it  (kadds.yml:3:64)',
    ]


def test_without_a_source_every_source_is_looked_at(files: Files) -> None:
    text = _explained(files, "public.orders")
    assert "  source shop" in text
    assert "  source acme/crm" in text


def test_a_source_that_does_not_exist_is_named(files: Files) -> None:
    with pytest.raises(ConfigurationError, match="no source 'shp'"):
        _explained(files, "shp/public.orders")
