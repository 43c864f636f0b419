"""Loading a configuration: what comes out, and every fault named at its place, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadds.api.connector import Mode
from kadds.api.errors import ConfigurationError
from kadds.config import ConfigurationProblems, load
from tests.unit.config.conftest import Files
from tests.unit.config.fake_connectors import INSTALLED

WHOLE = """\
    # a whole configuration
    log: {path: data/log, free_space_floor_bytes: 128MiB, seal_after_seconds: 60}
    memory_limit: 512MB
    metrics: {listen: "[::1]:9187"}
    tenants:
      default: {mask_key: "${MASK_KEY}"}
      acme: {mask_key: "fedcba9876543210"}
    sources:
      shop:
        connector: pull
        url: ${SHOP_URL}
        tables:
          public.*: {column: id}
          "!public.audit_*": {}
        schedule: {cron: "0 4 * * 1", timezone: UTC}
      acme/crm:
        connector: stream
        url: "db://crm"
        tables: ["*"]
    sinks:
      warehouse: {connector: put, path: warehouse.db}
      acme/lake: {connector: put, path: /lake, key: "${MASK_KEY}"}
    subscriptions:
      shop-to-warehouse:
        source: shop
        sink: warehouse
        mode: merge
        tables:
          public.orders: {target: sales.orders, columns: ["!card"], where: "status <> 'draft'", mask: {email: hash}}
          public.*: {}
        batch_rows: 1000
        schedule: {interval_seconds: 3600}
      history: {source: crm, sink: acme/lake, mode: append, tables: ["*"], paused: true}
"""
ENVIRONMENT = {"MASK_KEY": "0123456789abcdef", "SHOP_URL": "db://person:canary@host/shop"}

SMALL = """\
    sources:
      shop: {connector: pull, url: "db://x", tables: {"public.*": {column: id}}}
    sinks:
      warehouse: {connector: put, path: w}
    subscriptions:
      s:
        source: shop
        sink: warehouse
        mode: merge
        tables: [public.orders]
"""


def test_a_whole_configuration_comes_out_as_types(files: Files) -> None:
    configuration = files.load(WHOLE, ENVIRONMENT).configuration
    assert configuration.log.path == files.folder / "data/log"
    assert configuration.log.free_space_floor_bytes == 128 << 20
    assert configuration.memory_limit == 512_000_000
    assert configuration.metrics is not None
    assert configuration.metrics.address == ("::1", 9187)
    shop = configuration.sources["default/shop"]
    assert shop.settings.url.reveal() == ENVIRONMENT["SHOP_URL"]  # type: ignore[attr-defined]
    assert shop.tables.matches("public.orders")
    assert not shop.tables.matches("public.audit_log")
    assert shop.schedule is not None
    assert shop.schedule.cron_fields()["day_of_week"] == "mon"
    assert configuration.sinks["default/warehouse"].settings.path == files.folder / "warehouse.db"  # type: ignore[attr-defined]
    assert configuration.sinks["acme/lake"].settings.path == Path("/lake")  # type: ignore[attr-defined]
    subscription = configuration.subscriptions["default/shop-to-warehouse"]
    assert (subscription.source, subscription.sink, subscription.mode) == (
        "default/shop", "default/warehouse", Mode.MERGE,
    )  # fmt: skip
    orders = subscription.tables.settings("public.orders")
    assert (orders.target, orders.mask, orders.selects("card"), orders.selects("id")) == (
        "sales.orders", {"email": "hash"}, False, True,
    )  # fmt: skip
    assert subscription.tables.settings("public.items").target is None
    assert subscription.schedule is not None
    assert subscription.schedule.interval_seconds == 3600
    assert configuration.tenant("acme").mask_key is not None
    assert configuration.tenant("nobody").mask_key is None


def test_a_subscription_belongs_to_its_sinks_tenant_and_looks_there_first(files: Files) -> None:
    history = files.load(WHOLE, ENVIRONMENT).configuration.subscriptions["acme/history"]
    assert (history.tenant, history.source, history.sink, history.paused) == ("acme", "acme/crm", "acme/lake", True)


def test_what_is_not_given_has_its_default(files: Files) -> None:
    configuration = files.load(SMALL).configuration
    assert configuration.log.path == files.folder / "data/log"
    assert (configuration.memory_limit, configuration.metrics) == (None, None)
    assert configuration.subscriptions["default/s"].batch_rows == 65_536
    assert configuration.sources["default/shop"].poll_interval_seconds == 5


def test_every_place_can_be_asked_for(files: Files) -> None:
    loaded = files.load(WHOLE, ENVIRONMENT)
    for name in ("shop", "default/shop"):
        place = loaded.place_of(("sources", name, "url"))
        assert (place.file.name, place.line, place.column) == ("kadds.yml", 11, 10)
    assert loaded.place_of(("subscriptions", "shop-to-warehouse", "tables", "public.orders", "where")).line == 29
    assert loaded.place_of(("sources", "acme/crm")).line == 16
    assert loaded.place_of(("sources", "shop", "fetch_rows")).line == 9


# ------------------------------------------------------------------------------------------------------------ faults


def test_every_fault_is_named_in_one_go_with_its_place_and_what_was_meant(files: Files) -> None:
    found = files.refused(
        """\
        log: {pth: x, seal_after_seconds: -1}
        memory_limit: many
        surces: {}
        sources:
          shop:
            connector: pul
          other:
            connector: pull
            url: no-url
            fetch_rows: 0
            retries: {attempts: 0, atempts: 1}
            tables: {"a.*": {colum: x}}
        sinks:
          out: {connector: put}
        subscriptions:
          s: {source: othr, sink: out, mode: merg, tables: [], batch: 5}
        """
    )
    expected = [
        "1:7: `log.pth` is not a setting | did you mean `path`?",
        "1:35: `log.seal_after_seconds` must be greater than 0",
        "2:15: `memory_limit` must be a size such as 512MB",
        "3:1: `surces` is not a setting | did you mean `sources`?",
        "5:3: `sources.shop` needs the setting `tables` | write",
        "6:16: `sources.shop.connector`: no connector called 'pul' is installed | did you mean `pull`?",
        "9:10: `sources.other.url` must be a URL such as",
        "10:17: `sources.other.fetch_rows` must be greater than or equal to 1",
        "11:25: `sources.other.retries.attempts` must be greater than or equal to 1",
        "11:28: `sources.other.retries.atempts` is not a setting | did you mean `attempts`?",
        "12:22: `sources.other.tables.a.*.colum` is not a setting | did you mean `column`?",
        "14:3: `sinks.out` needs the setting `path`",
        "16:15: `subscriptions.s.source`: there is no source 'othr' | did you mean `other`?",
        "16:38: `subscriptions.s.mode` must be 'transactional', 'merge', 'append' or 'snapshot'",
        "16:52: `subscriptions.s.tables` selects no table",
        "16:56: `subscriptions.s.batch` is not a setting | did you mean `batch_rows`?",
    ]
    assert len(found) == len(expected), "\n".join(found)
    for line, begin in zip(found, expected, strict=True):
        assert line.startswith(begin), (line, begin)


def test_the_text_of_the_error_holds_every_problem_with_file_line_and_column(files: Files) -> None:
    with pytest.raises(ConfigurationError) as caught:
        files.load("log: {pth: x}\nsnks: {}\n")
    assert isinstance(caught.value, ConfigurationProblems)
    assert str(caught.value) == (
        f"{files.folder}/kadds.yml:1:7: `log.pth` is not a setting\n  hint: did you mean `path`?\n"
        f"{files.folder}/kadds.yml:2:1: `snks` is not a setting\n  hint: did you mean `sinks`?"
    )


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationProblems, match="cannot be read: No such file"):
        load(tmp_path / "no.yml", {}, installed=INSTALLED)


PULLED = 'url: "db://x", tables: {"public.*": {column: id}}'
TABLES = "tables: [public.orders]"
UNEXECUTED = "is not executed by this version"


def test_the_small_configuration_that_is_broken_below_is_whole(files: Files) -> None:
    files.load(SMALL)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("mode: merge", "mode: transactional", "9:11: `subscriptions.s.mode: transactional` is nothing that"),
        ("mode: merge", "mode: snapshot", "9:11: `subscriptions.s.mode: snapshot` is not executed by this version"),
        (TABLES, "tables: [other.orders]", "source shop does not capture other.orders"),
        (TABLES, 'tables: ["!public.orders"]', "10:13: `subscriptions.s.tables` selects no table"),
        (TABLES, "tables: [public.a, public.a]", "has the pattern 'public.a' twice"),
        (TABLES, "tables: public.a", "must be a list of patterns or a map"),
        (TABLES, "tables: [{public.a: {}}]", "holds something that is no pattern"),
        (TABLES, 'tables: {"!public.a": {target: x}, public.b: {}}', "excludes tables and has settings"),
        (TABLES, 'tables: {"public.*": {target: x}}', "several tables into one target"),
        (TABLES, "tables: {public.a: {target: x}, public.b: {target: x}}", "has the target x twice"),
        (TABLES, 'tables: {public.a: {where: "a in (select 1)"}}', "holds no subquery"),
        (TABLES, "tables: {public.a: {where: 5}}", "must be a valid string | quote it"),
        (TABLES, "tables: {public.a: {mask: {a: hide}}}", "10:35: `subscriptions.s.tables.public.a.mask.a` must"),
        (TABLES, "tables: {public.a: {mask: {a: hash}}}", "10:35: `subscriptions.s.tables.public.a.mask.a: hash`"),
        (TABLES, 'tables: {public.a: {columns: ["!a"], mask: {a: redact}}}', "masks a, which"),
        (TABLES, 'tables: {public.a: {columns: [a, "!a"]}}', "names a twice"),
        (TABLES, "tables: {public.a: {on_new_table: hold}}", UNEXECUTED),
        (TABLES, "tables: {public.a: {on_schema_change: {add: later}}}", "must be 'apply', 'hold' or 'ignore'"),
        (TABLES, "tables: {public.a: {on_schema_change: {adds: hold}}}", "must be 'add', 'drop'"),
        (TABLES, "tables: [public.orders]\n        on_new_table: hold", UNEXECUTED),
        (TABLES, "tables: [public.orders]\n        gate: strict", UNEXECUTED),
        ("sink: warehouse", "sink: acme/warehouse", "there is no sink 'acme/warehouse' | did you mean `warehouse`?"),
        ("source: shop", "source: warehouse", "there is no source 'warehouse' | there are: shop"),
        ("      s:", "      s p:", "`subscriptions.s p` has a name that cannot be used"),
        ("      s:", "      _s:", "has a name that cannot be used"),
        ("      s:", "      a/b/c:", "has a name that cannot be used"),
        ("      s:", "      acme/s:", "a subscription belongs to its sink's tenant: call it default/s"),
        ("connector: put", "connector: pull", "`sinks.warehouse.connector`: pull cannot be a sink | there are: put"),
        (f"pull, {PULLED}", 'stream, poll_interval_seconds: 1, url: "db://x", tables: ["*"]', "is for sources"),
        ("connector: pull", "connector: pull, schedule: {interval_seconds: 1}, poll_interval_seconds: 2", "no effect"),
        ("connector: pull", "connector: pull, schedule: {}", "needs either `cron` or `interval_seconds`"),
        ("connector: pull", "connector: pull, schedule: {cron: '* * * *'}", "must have five fields"),
        ("connector: pull", "connector: pull, schedule: {cron: '* * * * *', timezone: Mars/X}", "is not a time zone"),
        ("connector: pull", "connector: pull, isolation: process", "2:27: `sources.shop.isolation` is for sources"),
        (f"pull, {PULLED}", 'stream, isolation: fork, url: "db://x", tables: ["*"]', "must be 'thread' or 'process'"),
        ("connector: pull", "connector: pull, snapshot: initial", "2:27: `sources.shop.snapshot` is not executed"),
        ("{column: id}", "{}", "`sources.shop.tables` needs the setting `column`"),
        ("{column: id}}", "{column: 5}}", "`sources.shop.tables.public.*.column` must be a valid string"),
        ("{column: id}", "5", "`sources.shop.tables.public.*` must be a map of settings"),
        ('{"public.*": {column: id}}', '["public.*"]', "`sources.shop.tables` needs the setting `column`"),
        ("    sources:", "    retention: {}\n    sources:", "`retention` is not executed by this version"),
        ("    sources:", "    log: {retention: {}}\n    sources:", "`log.retention` is not executed by this version"),
        ("    sources:", "    tenants: {default: {shares: {}}}\n    sources:", UNEXECUTED),
        ("    sources:", "    tenants: {default: {mask_key: short}}\n    sources:", "must have at least 16 characters"),
        ("    sources:", "    tenants: {default: {mask_key: 1234}}\n    sources:", "must be text | quote it"),
        ("    sources:", "    tenants: {a/b: {}}\n    sources:", "has a name that cannot be used"),
        ("    sources:", "    metrics: {listen: 9187}\n    sources:", "must be a valid string | quote it"),
        ("    sources:", "    metrics: {listen: localhost}\n    sources:", "must be an address and a port"),
        ("    sources:", "    metrics: [x]\n    sources:", "`metrics` must be a map of settings"),
        ("    sources:", "    memory_limit: 1MB\n    sources:", "`memory_limit` must be greater than or equal to"),
    ],
)  # fmt: skip
def test_a_fault_is_refused_by_name(files: Files, old: str, new: str, expected: str) -> None:
    assert old in SMALL
    found = files.refused(SMALL.replace(old, new, 1))
    assert len(found) == 1, "\n".join(found)
    assert expected in found[0], found[0]


def test_another_tenants_source_needs_a_share_which_is_not_executed(files: Files) -> None:
    text = SMALL.replace("warehouse: {", "acme/warehouse: {").replace("sink: warehouse", "sink: acme/warehouse")
    found = files.refused(text)
    assert len(found) == 1
    assert "`subscriptions.acme/s` belongs to tenant acme and uses source default/shop of another tenant" in found[0]
    assert "not executed by this version" in found[0]


def test_a_hash_is_refused_without_the_key_of_its_own_tenant(files: Files) -> None:
    text = WHOLE.replace('      default: {mask_key: "${MASK_KEY}"}\n', "")
    (found,) = files.refused(text, ENVIRONMENT)
    assert found.startswith("28:107: `subscriptions.shop-to-warehouse.tables.public.orders.mask.email: hash` needs")
    assert 'tenants: {default: {mask_key: "${KADDS_MASK_KEY}"}}' in found


def test_a_filter_in_append_needs_before_images_where_rows_change(files: Files) -> None:
    filtered = SMALL.replace("mode: merge", "mode: append").replace(TABLES, 'tables: {public.orders: {where: "a > 1"}}')
    (found,) = files.refused(filtered)
    assert "a filter in mode append needs full before images, which connector pull does not give" in found
    streaming = filtered.replace('connector: pull, url: "db://x", tables: {"public.*": {column: id}}',
                                 'connector: stream, url: "db://x", tables: ["public.*"]')  # fmt: skip
    assert files.load(streaming).configuration.subscriptions["default/s"].mode is Mode.APPEND


def test_tables_without_settings_take_none(files: Files) -> None:
    text = SMALL.replace("connector: pull", "connector: stream")
    (found,) = files.refused(text)
    assert "`sources.shop.tables.public.*.column` is not a setting" in found


def test_a_named_table_must_have_all_that_its_entries_give_together(files: Files) -> None:
    text = SMALL.replace(
        '{"public.*": {column: id}}',
        '{"public.*": {overlap: 3}, public.orders: {labels: {never: x}}, "other.*": {column: a}}',
    )
    found = files.refused(text)
    assert found == ["2:77: `sources.shop.tables.public.orders` needs the setting `column`"]
    text = text.replace("{labels: {never: x}}", "{column: a, labels: {never: x}}")
    assert files.refused(text) == ["2:77: `sources.shop.tables.public.orders` has a label `never` beside an overlap"]


def test_a_value_that_is_missing_is_said_once_and_its_consequences_are_not(files: Files) -> None:
    text = (
        SMALL.replace('"db://x"', '"${GONE}"')
        .replace("path: w", 'path: "${GONE:?ask}"')
        .replace("mode: merge", "mode: ${GONE}")
    )
    found = files.refused(text)
    assert [line.split(":", 1)[0] for line in found] == ["2", "4", "9"]
    assert all("the environment variable GONE is not set" in line for line in found)


def test_an_unreadable_file_hides_the_faults_that_would_follow_from_it(files: Files) -> None:
    files.write("more.yml", "sinks: {warehouse: {connector: put, path: ${X}}}\n")
    text = 'include: [more.yml]\nsubscriptions: {s: {source: a, sink: warehouse, mode: merge, tables: ["*"]}}\n'
    assert files.refused(text) == [
        'more.yml:1:43: inside braces or brackets an unquoted ${…} is not YAML | quote it: "${…}"'
    ]


def test_a_connector_that_takes_kadds_own_words_is_refused(files: Files) -> None:
    from dataclasses import replace

    from kadds.api.settings import Settings

    class Greedy(Settings):
        schedule: str = ""

    fake = INSTALLED["pull"]
    assert fake.connector.source is not None
    connector = replace(fake.connector, source=replace(fake.connector.source, settings=Greedy))
    installed = {**INSTALLED, "pull": replace(fake, connector=connector)}
    found = files.refused(SMALL, installed=installed)
    assert "the connector declares schedule, which belongs to Kadds" in found[0]


# ----------------------------------------------------------------------------------------------------------- include


def test_included_files_hold_the_same_keys_and_their_paths_are_their_own(files: Files) -> None:
    files.write("conf/a.yml", "sinks: {one: {connector: put, path: here.db}}\nlog: {path: ../log}\n")
    files.write("conf/b.yml", 'sinks: {two: {connector: put, path: "${file:name}"}}\nlog: {seal_after_seconds: 5}\n')
    files.write("conf/name", "there.db\n")
    loaded = files.load('include: ["conf/*.yml"]\nsinks: {three: {connector: put, path: x}}\n')
    paths = {name: one.settings.path for name, one in loaded.configuration.sinks.items()}  # type: ignore[attr-defined]
    assert paths == {
        "default/three": files.folder / "x",
        "default/one": files.folder / "conf/here.db",
        "default/two": files.folder / "conf/there.db",
    }
    assert loaded.configuration.log.path.resolve() == files.folder / "log"
    assert loaded.configuration.log.seal_after_seconds == 5
    assert [path.name for path in loaded.files] == ["kadds.yml", "a.yml", "b.yml"]
    assert loaded.place_of(("sinks", "two", "connector")).file.name == "b.yml"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("sinks: {a: {connector: put, path: x}}", "sinks: {a: {connector: put, path: y}}", "`sinks.a` is given twice"),
        ("sinks: {a: {connector: put, path: x}}", "sinks: {default/a: {connector: put, path: y}}", "`sinks.default/a`"),
        ("memory_limit: 1GB", "memory_limit: 2GB", "`memory_limit` is given twice"),
        ("log: {path: a}", "log: {path: b}", "`log.path` is given twice"),
        ("tenants: {a: {}}", "tenants: {a: {}}", "`tenants.a` is given twice"),
    ],
)  # fmt: skip
def test_a_name_given_twice_names_both_places(files: Files, first: str, second: str, expected: str) -> None:
    files.write("more.yml", f"# a comment\n{second}\n")
    (found,) = files.refused(f"include: [more.yml]\n{first}\n")
    assert found.startswith("more.yml:2:")
    assert expected in found
    assert f"it is already at {files.folder}/kadds.yml:2:" in found


def test_one_name_in_two_spellings_in_one_file_is_given_twice(files: Files) -> None:
    text = "sinks:\n  a: {connector: put, path: x}\n  default/a: {connector: put, path: y}\n"
    assert "`sinks.default/a` is given twice" in files.refused(text)[0]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("more.yml", "`include` must be a list of paths"),
        ("[5]", "`include` must be a list of paths"),
        ("[no.yml]", "1:11: there is no file no.yml"),
    ],
)
def test_an_include_that_includes_nothing_is_refused(files: Files, include: str, expected: str) -> None:
    assert expected in files.refused(f"include: {include}\n")[0]


def test_a_pattern_may_match_no_file_and_a_circle_ends(files: Files) -> None:
    files.write("again.yml", "include: [kadds.yml, again.yml]\nmemory_limit: 1GB\n")
    loaded = files.load('include: ["none/*.yml", again.yml]\n')
    assert loaded.configuration.memory_limit == 1_000_000_000


def test_include_stands_at_top_level_only(files: Files) -> None:
    assert "`sinks.include` must be a map" in files.refused("sinks: {include: [a.yml]}\n")[0]


# -------------------------------------------------------------------------------------------------- registered sinks


def test_a_subscription_may_name_a_sink_that_the_log_keeps(files: Files) -> None:
    text = SMALL.replace("      warehouse: {connector: put, path: w}\n", "      other: {connector: put, path: w}\n")
    asked = []

    def registered(log: object) -> dict[str, str]:
        asked.append(log)
        return {"default/warehouse": "put"}

    loaded = files.load(text, registered_sinks=registered)
    assert loaded.configuration.subscriptions["default/s"].sink == "default/warehouse"
    found = files.refused(text.replace("mode: merge", "mode: transactional"), registered_sinks=registered)
    assert "is nothing that sink warehouse (connector put) can do" in found[0]
    assert len(asked) == 2
    files.load(SMALL, registered_sinks=registered)
    assert len(asked) == 2, "the log is asked only where the file lacks a sink"
    assert "there is no sink 'warehouse'" in files.refused(text, registered_sinks=lambda log: {})[0]
