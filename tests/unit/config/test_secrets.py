"""A secret appears in no message, repr, print or schema, wherever it was written and whatever else is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kadds.config import ConfigurationProblems, json_schema, load
from tests.unit.config.conftest import Files
from tests.unit.config.fake_connectors import INSTALLED

CANARY = "canary-0123456789-canary"
ENVIRONMENT = {"SECRET": f"{CANARY}-environment", "HOST": "db.example", "URL": f"db://u:{CANARY}@host/x"}

EVERYWHERE = f"""\
    tenants:
      default: {{mask_key: {CANARY}}}
      acme: {{mask_key: "${{file:secret}}"}}
    sources:
      shop:
        connector: pull
        url: "db://person:{CANARY}@${{HOST}}/shop?password={CANARY}&mode=fast"
        password: "x-{CANARY}-${{SECRET}}"
        retries: {{attempts: 2, token: "${{GONE:-{CANARY}}}"}}
        level: "${{file:secret}}"
        tables:
          public.*: {{column: id, token: {CANARY}, labels: {{a: "${{file:secret}}", b: plain}}}}
      other: {{connector: pull, url: "${{URL}}", tables: {{a: {{column: b}}}}}}
      third: {{connector: pull, url: "db://person:${{SECRET}}@host/x", tables: {{a: {{column: b}}}}}}
    sinks:
      warehouse: {{connector: put, path: w, key: {CANARY}, label: "${{file:secret}}"}}
    subscriptions:
      s:
        source: shop
        sink: warehouse
        mode: merge
        tables: {{public.orders: {{target: "${{HOST}}", mask: {{email: hash}}}}}}
"""


def _folder(files: Files) -> Files:
    files.write("secret", f"{CANARY}-file\n")
    return files


def test_nothing_that_is_printed_holds_a_secret(files: Files) -> None:
    loaded = _folder(files).load(EVERYWHERE, ENVIRONMENT)
    shop = loaded.configuration.sources["default/shop"]
    assert CANARY in shop.settings.url.reveal()  # type: ignore[attr-defined]
    assert shop.tables.settings("public.orders").token.reveal() == CANARY
    for text in (
        loaded.printable(),
        json.dumps(loaded.contracts()),
        repr(loaded),
        repr(loaded.configuration),
        str(loaded.configuration),
        repr(loaded.root),
        repr(shop.tables.explain("public.orders")),
        *map(str, loaded.warnings),
    ):
        assert CANARY not in text


def test_what_is_printed_keeps_references_and_masks_literals(files: Files) -> None:
    text = _folder(files).load(EVERYWHERE, ENVIRONMENT).printable()
    for line in (
        "    mask_key: '***'",
        "    mask_key: ${file:secret}",
        "    url: db://person:***@${HOST}/shop?password=***&mode=fast",
        "    password: '***${SECRET}'",
        "      token: ${GONE:-***}",
        "    level: ${file:secret}",
        "        token: '***'",
        "          a: ${file:secret}",
        "          b: plain",
        "    url: ${URL}",
        "    path: w",
        "        target: ${HOST}",
    ):
        assert line in text.splitlines(), f"{line!r} is not in\n{text}"


def test_what_is_printed_can_be_loaded_again(files: Files) -> None:
    text = EVERYWHERE.replace(f"{{mask_key: {CANARY}}}", '{mask_key: "${SECRET}"}')
    text = text.replace(f"token: {CANARY}", 'token: "${SECRET}"').replace(f"key: {CANARY}", 'key: "${SECRET}"')
    text = text.replace(f"x-{CANARY}-", "").replace(f"${{GONE:-{CANARY}}}", "${SECRET}").replace(CANARY, "${SECRET}")
    loaded = _folder(files).load(text, ENVIRONMENT)
    again = files.load(loaded.printable().replace("***", "${SECRET}"), ENVIRONMENT)
    assert again.printable() == loaded.printable()
    assert again.contracts() == loaded.contracts()


def test_secrets_written_into_a_file_are_warned_of(files: Files) -> None:
    loaded = _folder(files).load(EVERYWHERE, ENVIRONMENT)
    found = {(one.line, one.message.split("`")[1]) for one in loaded.warnings}
    assert found == {
        (2, "tenants.default.mask_key"),
        (7, "sources.shop.url"),
        (12, "sources.shop.tables"),
        (16, "sinks.warehouse.key"),
    }


@pytest.mark.parametrize(
    "fault",
    [
        "level: loud",  # a model that quotes the URL and the password in its own message
        "fetch_rows: many",
        "pasword: {canary}",  # a misspelt secret
        "token: {canary}",
        "url2: db://x:{canary}@y/z",
        "retries: {{attempts: 0, token: {canary}}}",
        "retries: {{attemts: 0, tokn: {canary}}}",
        "retries: {canary}",
        "connector2: {canary}",
        'schedule: {{cron: "${{file:secret}}"}}',
        'poll_interval_seconds: "${{file:secret}}"',
    ],
)
def test_no_message_holds_a_secret(files: Files, fault: str) -> None:
    _folder(files)
    text = EVERYWHERE.replace('level: "${file:secret}"', fault.format(canary=CANARY))
    with pytest.raises(ConfigurationProblems) as caught:
        files.load(text, ENVIRONMENT)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)
    assert all(CANARY not in repr(one) for one in caught.value.problems)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or CANARY not in repr(caught.value.__context__)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f'url: "db://person:{CANARY}@${{HOST}}/shop?password={CANARY}&mode=fast"', f"url: {CANARY}"),
        (
            f'url: "db://person:{CANARY}@${{HOST}}/shop?password={CANARY}&mode=fast"',
            f'url: "db://x:{CANARY}@host:nan/"',
        ),
        (f"mask_key: {CANARY}", f"mask_key: {{{CANARY}: 1}}"),
        (f"mask_key: {CANARY}", f"mask_key: [{CANARY}]"),
        ("mode: merge", 'mode: "${file:secret}"'),
        ("source: shop", 'source: "${file:secret}"'),
        ("sink: warehouse", 'sink: "${file:secret}"'),
        ("connector: put", 'connector: "${file:secret}"'),
        ('target: "${HOST}"', 'where: "${file:secret} ="'),
        ('target: "${HOST}"', 'columns: ["${file:secret}", "${file:secret}"]'),
        ("tables: {public.orders:", 'tables: ["${file:secret}"]\n        more: {x:'),
        ("sinks:", 'include: ["${file:secret}"]\n    sinks:'),
    ],
)
def test_no_message_holds_a_secret_that_stands_where_it_should_not(files: Files, old: str, new: str) -> None:
    _folder(files)
    assert old in EVERYWHERE
    with pytest.raises(ConfigurationProblems) as caught:
        files.load(EVERYWHERE.replace(old, new), ENVIRONMENT)
    if f"{{{CANARY}: 1}}" in new:
        return  # a secret written as a key is beyond telling: a key is the name of something
    assert CANARY not in str(caught.value)


def test_settings_of_a_table_that_do_not_hold_together_say_so_without_their_secret(files: Files) -> None:
    text = EVERYWHERE.replace("labels: {", "overlap: 1, labels: {never: x, ")
    tables = _folder(files).load(text, ENVIRONMENT).configuration.sources["default/shop"].tables
    from kadds.api.errors import ConfigurationError

    with pytest.raises(ConfigurationError) as caught:
        tables.settings("public.items")
    assert "has a label `never` beside an overlap" in str(caught.value)
    assert "kadds.yml:12:7: table public.items" in str(caught.value)
    assert CANARY not in str(caught.value)


def test_the_schema_for_editors_holds_no_default_of_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "kadds.yml"
    path.write_text(f"tenants: {{default: {{mask_key: {CANARY}}}}}\n")
    load(path, {}, installed=INSTALLED)
    assert CANARY not in json.dumps(json_schema(INSTALLED))
