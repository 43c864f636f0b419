"""What a configuration promises is kept without secrets, and every change of it is named in words."""

from __future__ import annotations

import json

import pytest

from kadds.config import Effect, differences
from tests.unit.config.conftest import Files

TEXT = """\
    tenants: {default: {mask_key: "${KEY}"}}
    sources:
      shop:
        connector: pull
        url: db://person:secret@host/shop
        tables: {"public.*": {column: id}, "!public.audit_*": {}}
        poll_interval_seconds: 3
    sinks:
      warehouse: {connector: put, path: w}
      lake: {connector: put, path: l}
    subscriptions:
      s:
        source: shop
        sink: warehouse
        mode: merge
        tables:
          public.orders: {columns: ["!card"], where: "a > 1", mask: {email: redact, name: hash}, target: orders}
          public.*: {}
        schedule: {interval_seconds: 60}
"""
KEYS = {"KEY": "0123456789abcdef", "OTHER": "fedcba9876543210"}


def _differences(files: Files, *changes: tuple[str, str]) -> list[tuple[str, Effect, str]]:
    after = TEXT
    for old, new in changes:
        assert old in after
        after = after.replace(old, new)
    old, new = (json.loads(json.dumps(files.load(text, KEYS).contracts())) for text in (TEXT, after))
    return [(one.subject, one.effect, one.message) for one in differences(old, new)]


def test_the_contracts_are_json_with_full_names_and_without_secrets(files: Files) -> None:
    contracts = files.load(TEXT, KEYS).contracts()
    assert json.loads(json.dumps(contracts)) == contracts
    shop = contracts["sources"]["default/shop"]
    assert shop["settings"] == {"url": "db://person:***@host/shop"}
    assert shop["tables"] == [{"pattern": "public.*", "given": {"column": "id"}}, {"pattern": "!public.audit_*"}]
    subscription = contracts["subscriptions"]["default/s"]
    assert (subscription["source"], subscription["sink"], subscription["mode"]) == (
        "default/shop", "default/warehouse", "merge",
    )  # fmt: skip
    assert KEYS["KEY"] not in json.dumps(contracts)
    assert len(subscription["mask_key_fingerprint"]) == 12


def test_the_same_configuration_written_otherwise_has_no_difference(files: Files) -> None:
    assert _differences(files) == []
    assert _differences(files, ("source: shop", "source: default/shop"), ("      s:", "      default/s:")) == []


SHOP, S = "default/shop", "default/s"
APPLIED, ADDED, REFUSED, KEPT = Effect.APPLIED, Effect.ADDED, Effect.REFUSED, Effect.KEPT


@pytest.mark.parametrize(
    ("old", "new", "subject", "effect", "message"),
    [
        ("      lake: {connector: put, path: l}\n", "", "default/lake", KEPT, "is no longer in the file"),
        ("path: l}", "path: l}\n      sea: {connector: put, path: s}", "default/sea", ADDED, "is new"),
        ("person:secret@host", "person:secret@other", SHOP, APPLIED, "`url` was \"db://person:***@host/shop"),
        ("interval_seconds: 3", "interval_seconds: 4", SHOP, APPLIED, "`poll_interval_seconds` was 3 and"),
        ("column: id", "column: no", SHOP, APPLIED, "tables 'public.*': `column` was \"id\" and is \"no\""),
        ("path: w", "path: v", "default/warehouse", APPLIED, '`path` was "w" and is "v"'),
        ("sink: warehouse", "sink: lake", S, REFUSED, '`sink` was "default/warehouse" and is'),
        ("mode: merge", "mode: merge\n        paused: true", S, APPLIED, "`paused` was false and is true"),
        ("seconds: 60", "seconds: 61", S, APPLIED, "`schedule` was"),
        ('["!card"]', '["!card", "!pin"]', S, REFUSED, "the contract is narrower"),
        ('["!card"]', "[]", S, REFUSED, "the contract is wider"),
        ('["!card"]', '["!pin"]', S, REFUSED, "the contract is another one"),
        ('["!card"]', "[email, name]", S, REFUSED, "the contract is narrower"),
        ('where: "a > 1", ', "", S, REFUSED, "the contract is wider"),
        ('"a > 1"', '"a > 2"', S, REFUSED, "the contract is another one"),
        ("email: redact, ", "", S, REFUSED, "`mask` was"),
        ("target: orders", "target: sales", S, REFUSED, "the rows already delivered stand elsewhere"),
        ("          public.*: {}\n", "", S, REFUSED, "tables 'public.*' are no longer selected"),
        ("public.*: {}", 'public.*: {}\n          "!public.x": ', S, REFUSED, "tables 'public.x' are no longer"),
        ("public.*: {}", 'public.*: {where: "b"}', S, REFUSED, "tables 'public.*': `where` was not given"),
        ("public.*: {}", "public.*: {}\n          public.a*: {}", S, APPLIED, "the pattern 'public.a*' is added"),
        ("public.*: {}", '"*": {}', S, ADDED, "tables '*' are selected now"),
        (', "!public.audit_*": {}', "", SHOP, ADDED, "tables 'public.audit_*' are selected now"),
        ('"public.*": {column: id}', '"public.o*": {column: id}', SHOP, KEPT, "tables 'public.*' are no longer"),
        ("${KEY}", "${OTHER}", S, REFUSED, "mask key has changed"),
    ],
)  # fmt: skip
def test_a_difference_is_named_with_what_follows_from_it(
    files: Files, old: str, new: str, subject: str, effect: Effect, message: str
) -> None:
    found = _differences(files, (old, new))
    assert any(one[:2] == (subject, effect) and message in one[2] for one in found), found
    assert {one[0] for one in found} == {subject}
    assert "secret" not in str(found)


def test_a_pattern_replaced_by_a_wider_one_narrows_nothing(files: Files) -> None:
    found = _differences(files, ("          public.*: {}\n", '          "*": {}\n'))
    assert [effect for _, effect, _ in found] == [Effect.ADDED, Effect.APPLIED]


def test_a_removed_subscription_says_which_command_removes_it(files: Files) -> None:
    old = files.load(TEXT, KEYS).contracts()
    (found,) = differences(old, {**old, "subscriptions": {}})
    assert str(found) == (
        "subscription s: is no longer in the file; what the log has of it is kept\n"
        "  hint: remove it with `kadds subscription remove s`"
    )


def test_a_first_start_names_everything_as_new(files: Files) -> None:
    found = differences({}, files.load(TEXT, KEYS).contracts())
    assert {(one.section, one.subject, one.effect) for one in found} == {
        ("sources", "default/shop", Effect.ADDED),
        ("sinks", "default/warehouse", Effect.ADDED),
        ("sinks", "default/lake", Effect.ADDED),
        ("subscriptions", "default/s", Effect.ADDED),
    }


def test_a_changed_variable_is_a_difference_though_the_file_is_the_same(files: Files) -> None:
    text = TEXT.replace("target: orders", "target: '${TARGET}'")
    old, new = (files.load(text, {**KEYS, "TARGET": value}).contracts() for value in ("one", "two"))
    (found,) = differences(old, new)
    assert (found.table, found.field, found.effect) == ("public.orders", "target", Effect.REFUSED)


def test_what_came_out_of_a_file_is_kept_as_a_reference(files: Files) -> None:
    files.write("target", "canary")
    contracts = files.load(TEXT.replace("target: orders", 'target: "${file:target}"'), KEYS).contracts()
    assert "canary" not in json.dumps(contracts)
    assert contracts["subscriptions"]["default/s"]["tables"][0]["given"]["target"] == "${file:target}"
