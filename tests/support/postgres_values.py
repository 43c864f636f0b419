"""What a column of PostgreSQL can hold: every built-in type, and the values at its edges.

Values are the text that a type's input function reads; NULL belongs to every type and is added by whoever uses this.
`beyond` are values that the type's Arrow form has no place for: they travel as text, so that a sink with a typed column
may refuse them. `built_in` lists the catalog, so that a type that PostgreSQL gains and this file lacks is noticed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psycopg

SCHEMA = "fidelity"


@dataclass(frozen=True)
class Kind:
    """A type as declared and its values: the usual, those `beyond` as above, and what an ALTER TYPE brings `later`."""

    declared: str
    values: tuple[str, ...]
    beyond: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    delimiter: str = ","


def noise(length: int) -> str:
    """Letters that do not compress, the same each time, so that PostgreSQL stores them out of line."""
    parts = (hashlib.sha256(str(number).encode()).hexdigest() for number in range(length // 64 + 1))
    return "".join(parts)[:length]


_EVERY_BYTE = "\\x" + bytes(range(256)).hex()
_TEXTS = (
    "a",
    "",
    " ",
    "  both sides  ",
    "it's",
    'say "so"',
    "\\",
    "\\N",
    "\\.",
    "ends with \\",
    "\\n is no newline",
    "two\nlines",
    "carriage\rreturn",
    "windows\r\n",
    "a\ttab",
    "\x01\x02\x08\x0b\x0c\x1f\x7f",
    "NULL",
    "null",
    ",;{}()[]|",
    "äßÉ€",
    "漢字",
    "🙂\U0010ffff",
    "e\u0301\u200d\ufeff\u00a0\u2028\uffff",
    "x" * 9_000,
    noise(20_000),
    "🙂" * 3_000,
)
_DATES = ("2026-11-22", "0001-01-01", "9999-12-31", "1970-01-01", "1969-12-31", "2000-02-29", "1582-10-10")
_FAR_DATES = (
    "infinity",
    "-infinity",
    "4713-01-01 BC",
    "0044-03-15 BC",
    "0001-12-31 BC",
    "10000-01-01",
    "5874897-12-31",
)
_TIMES = ("13:45:01", "00:00:00", "00:00:00.000001", "23:59:59.999999", "12:00:00.1")
_MOMENTS = (
    "2026-11-22 13:45:01.123456",
    "0001-01-01 00:00:00",
    "9999-12-31 23:59:59.999999",
    "1970-01-01 00:00:00",
    "1969-12-31 23:59:59.999999",
    "2026-11-22 00:00:00.1",
    "1900-01-01 12:00:00",
)
_FAR_MOMENTS = (
    "infinity",
    "-infinity",
    "4713-01-01 00:00:00 BC",
    "0001-12-31 23:59:59.999999 BC",
    "10000-01-01 00:00:00",
    "294276-12-31 23:59:59.999999",
)
_FLOATS = ("1", "0", "-0", "NaN", "Infinity", "-Infinity", "0.1", "-1.5", "1e10", "1e15", "123456.789")
_LONG_VECTOR = " ".join(f"'word{number}':{number}" for number in range(1, 1_000))
_INTERVALS = (
    "1 day",
    "0",
    "1 year 2 mons 3 days 04:05:06.789012",
    "-1 year -2 mons -3 days -04:05:06.789012",
    "1 year -2 mons 3 days -04:05:06",
    "-1 day +00:00:01",
    "00:00:00.000001",
    "-00:00:00.000001",
    "178000000 years",
    "-178000000 years",
    "2147483647 days",
    "-2147483648 days",
    "2562047788:00:54.775807",
    "25:00:00",
    "14 mons",
)
_JSON = (
    '{"b": 1, "a": 2}',
    "{}",
    "[]",
    "null",
    '""',
    "0",
    "-0.0",
    "1e5",
    "12345678901234567890.12345678901234567890",
    '"\\u00e4 \\ud83d\\ude42 \\" \\\\ \\/ \\n"',
    '{"ä漢🙂": ["it\'s", null, true, {"deep": {"er": []}}]}',
    f'{{"long": "{noise(9_000)}"}}',
)

BASE = (
    Kind('"char"', ("a", "", " ", "'", '"', "\\", "\n", "~", "é")),
    Kind("aclitem", ("postgres=arwdDxt/postgres", "=r/postgres", "postgres=a*r*/postgres")),
    Kind("bigint", ("1", "0", "-1", "9223372036854775807", "-9223372036854775808", "9007199254740993")),
    Kind("bit", ("0", "1")),
    Kind("bit(9)", ("000000000", "111111111", "010101010")),
    Kind("bit varying", ("1", "", "0", "0001", "10" * 500)),
    Kind("bit varying(5)", ("1", "", "00001")),
    Kind("boolean", ("true", "false")),
    Kind("box", ("(1,2),(3,4)", "(0,0),(0,0)", "(Infinity,1),(-Infinity,-0)", "(0.1,1e300),(5e-324,2)"), delimiter=";"),
    Kind("bytea", ("\\x00", "\\x", _EVERY_BYTE, "\\x5c", "\\x2e0a5c2e0a", "\\x" + noise(20_000))),
    Kind("bpchar", ("abc", "", " ", "ends with spaces   ")),
    Kind("character(10)", ("abc", "", "0123456789", "it's", "  x", 'äß漢🙂\u0301 \\"\n')),
    Kind("character varying(20)", ("abc", "", "   ", "it's \\\"\n\t", "äß漢🙂\u0301")),
    Kind("character varying", _TEXTS),
    Kind("cid", ("1", "0", "4294967295")),
    Kind("cidr", ("10.0.0.0/8", "0.0.0.0/0", "192.168.1.1/32", "::/0", "2001:db8::/32", "::ffff:1.2.3.0/120")),
    Kind("circle", ("<(1,2),3>", "<(0,0),0>", "<(Infinity,-Infinity),NaN>", "<(0.1,-0),1e-300>")),
    Kind("date", _DATES, beyond=_FAR_DATES),
    Kind(
        "double precision", (*_FLOATS, "5e-324", "-1.7976931348623157e308", "0.30000000000000004", "9007199254740993")
    ),
    Kind("gtsvector", ()),
    Kind("inet", ("10.0.0.1", "10.0.0.1/8", "0.0.0.0/0", "255.255.255.255", "::1", "fe80::1/64", "::ffff:1.2.3.4")),
    Kind("integer", ("1", "0", "-1", "2147483647", "-2147483648")),
    Kind("int2vector", ("1 2 3", "", "-32768 32767")),
    Kind("interval", _INTERVALS),
    Kind("interval(3)", ("1 year 00:00:01.2345", "-1 mon -00:00:00.001")),
    Kind("interval year to month", ("14 mons", "-1 year -1 mons", "0")),
    Kind("interval day to second", ("3 days 04:05:06.7", "-1 day")),
    Kind("json", (*_JSON, '{"a":1,  "a" : 2}', " [1 ,\n\t2] ", '"\\u0000"')),
    Kind("jsonb", _JSON),
    Kind("jsonpath", ('$."a"[*]?(@ > 1)', "strict $", '$."ä\\"\\\\"', "$.a.type()")),
    Kind("line", ("{1,2,3}", "{-1,0,0}", "{0.1,-1,Infinity}")),
    Kind("lseg", ("[(1,2),(3,4)]", "[(0,0),(0,0)]", "[(NaN,Infinity),(-Infinity,-0)]")),
    Kind("macaddr", ("08:00:2b:01:02:03", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff")),
    Kind("macaddr8", ("08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff")),
    Kind("money", ("1.00", "0", "-0.01", "92233720368547758.07", "-92233720368547758.08", "1234567.89")),
    Kind("name", ("a", "", " ", "it's", 'Say "so"', "\\", "ä漢🙂", "n" * 63)),
    Kind(
        "numeric",
        (
            "1",
            "0",
            "-0",
            "0.000",
            "1.10",
            "-1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e-100",
            "1e100",
            "9" * 1_000,
            "-" + "1234567890" * 50 + "." + "0123456789" * 50,
            "9" * 131_072,
            "0." + "0" * 16_382 + "1",
        ),
    ),
    Kind("numeric(12,2)", ("1", "0", "-0", "0.01", "-0.01", "9999999999.99", "-9999999999.99"), beyond=("NaN",)),
    Kind("numeric(38,10)", ("1", "0", "-0.0000000001", "9" * 28 + "." + "9" * 10, "-" + "9" * 28), beyond=("NaN",)),
    Kind("numeric(38,0)", ("1", "0", "9" * 38, "-" + "9" * 38), beyond=("NaN",)),
    Kind("numeric(38,38)", ("0", "0." + "9" * 38, "-0." + "0" * 37 + "1"), beyond=("NaN",)),
    Kind("numeric(76,30)", ("1", "0", "9" * 46 + "." + "9" * 30, "-0." + "0" * 29 + "1"), beyond=("NaN",)),
    Kind("numeric(77,1)", ("1", "0", "9" * 76 + ".9", "-0.1", "NaN")),
    Kind("numeric(1000,500)", ("1", "0", "9" * 500 + "." + "9" * 500, "-0." + "0" * 499 + "1", "NaN")),
    Kind("numeric(5,-2)", ("12345", "0", "9999900", "-100", "NaN")),
    Kind("numeric(3,5)", ("0.00123", "0", "-0.00999", "NaN")),
    Kind("oid", ("1", "0", "4294967295")),
    Kind("oidvector", ("1 2 3", "", "0 4294967295")),
    Kind("path", ("[(1,2),(3,4)]", "((1,2),(3,4))", "((0,0))", "[(NaN,Infinity),(-0,1e300)]")),
    Kind("pg_brin_bloom_summary", ()),
    Kind("pg_brin_minmax_multi_summary", ()),
    Kind("pg_dependencies", ()),
    Kind("pg_lsn", ("16/B374D848", "0/0", "FFFFFFFF/FFFFFFFF")),
    Kind("pg_mcv_list", ()),
    Kind("pg_ndistinct", ()),
    Kind("pg_node_tree", ()),
    Kind("pg_snapshot", ("10:20:10,14,15", "1:1:", "9223372036854775806:9223372036854775807:")),
    Kind("point", ("(1,2)", "(0,-0)", "(Infinity,-Infinity)", "(NaN,NaN)", "(0.1,5e-324)")),
    Kind("polygon", ("((1,2),(3,4),(5,6))", "((0,0))", "((Infinity,-Infinity),(1e300,-0))")),
    Kind("real", (*_FLOATS, "1e-45", "3.4028235e38", "-3.4028235e38", "16777217", "0.33333334")),
    Kind("refcursor", ("a", "", 'it\'s \\ "so"')),
    Kind(
        "regclass",
        ("pg_catalog.pg_class", "-", "4294967295", "information_schema.tables", f"{SCHEMA}.here_only"),
    ),
    Kind("regcollation", ('pg_catalog."C"', "-", "4294967295", 'pg_catalog."POSIX"')),
    Kind("regconfig", ("pg_catalog.english", "4294967295")),
    Kind("regdictionary", ("pg_catalog.simple", "4294967295")),
    Kind("regnamespace", ("pg_catalog", "-", "4294967295")),
    Kind("regoper", ("pg_catalog.||/", "0", "4294967295")),
    Kind("regoperator", ("pg_catalog.+(integer,integer)", "pg_catalog.-(NONE,integer)", "0")),
    Kind("regproc", ("pg_catalog.now", "-", "4294967295")),
    Kind("regprocedure", ("pg_catalog.abs(integer)", "-", "pg_catalog.now()")),
    Kind("regrole", ("postgres", "-", "4294967295")),
    Kind(
        "regtype",
        ("integer", "-", "pg_catalog.int8[]", '"char"', "4294967295", "information_schema.yes_or_no", f"{SCHEMA}.mood"),
    ),
    Kind("smallint", ("1", "0", "-1", "32767", "-32768")),
    Kind("text", _TEXTS),
    Kind("tid", ("(0,1)", "(0,0)", "(4294967295,65535)")),
    Kind("time without time zone", _TIMES, beyond=("24:00:00",)),
    Kind("time(0) without time zone", ("13:45:01.4", "00:00:00", "23:59:59"), beyond=("24:00:00",)),
    Kind("time with time zone", ("13:45:01+02", "00:00:00+15:59", "24:00:00-15:59:59", "23:59:59.999999-00:30")),
    Kind("time(3) with time zone", ("13:45:01.1234+02", "24:00:00+00")),
    Kind("timestamp without time zone", _MOMENTS, beyond=_FAR_MOMENTS),
    Kind("timestamp(0) without time zone", ("2026-11-22 13:45:01.6", "9999-12-31 23:59:59"), beyond=("infinity",)),
    Kind(
        "timestamp(3) with time zone", ("2026-11-22 13:45:01.1236+02", "0001-01-01 00:00:00+00"), beyond=("infinity",)
    ),
    Kind(
        "timestamp with time zone",
        (*_MOMENTS, "2026-10-25 02:30:00+02", "2026-10-25 02:30:00+01", "2026-11-22 13:45:01-12:30"),
        beyond=_FAR_MOMENTS,
    ),
    Kind("tsquery", ("'a' & 'b'", "", "!'it''s' | 'b':*AB", "'a' <3> 'b'", "'\\\\ ä漢🙂'")),
    Kind("tsvector", ("'a':1 'b':2A,3B", "", "'it''s' '\\\\' 'ä漢🙂'", _LONG_VECTOR)),
    Kind("txid_snapshot", ("10:20:10,14,15", "1:1:")),
    Kind(
        "uuid",
        (
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        ),
    ),
    Kind("xid", ("1", "0", "4294967295")),
    Kind("xid8", ("1", "0", "18446744073709551615")),
    Kind(
        "xml",
        (
            "<a/>",
            "",
            "just text",
            "<a b='1'>it's &lt;ä漢🙂&gt;\n\t</a>",
            '<?xml version="1.0" encoding="UTF-8"?><a>ä</a>',
            "<a/><b/>",
            "<!DOCTYPE a><a/>",
            "<![CDATA[]]>",
            f"<long>{noise(9_000)}</long>",
        ),
    ),
)


def _ranges(name: str, multi: str, *ranges: str) -> Iterator[Kind]:
    yield Kind(name, ("empty", "(,)", *ranges))
    yield Kind(multi, ("{}", "{(,)}", f"{{{ranges[0]}}}", f"{{{ranges[1]},{ranges[2]}}}"))


RANGES = (
    *_ranges("int4range", "int4multirange", "[1,5)", "(,0)", "[10,)", "[-2147483648,2147483647)"),
    *_ranges("int8range", "int8multirange", "[1,5]", "(,0)", "[10,)", "[-9223372036854775808,9223372036854775807)"),
    *_ranges("numrange", "nummultirange", "[1.10,5.0]", "(,0)", "[10,)", "[-Infinity,Infinity]", "(0.1,NaN)"),
    *_ranges("daterange", "datemultirange", "[2026-01-01,2026-12-31]", "(,0044-03-15 BC)", "[10000-01-01,infinity]"),
    *_ranges(
        "tsrange",
        "tsmultirange",
        '["2026-01-01 00:00:00.1",infinity]',
        '(,"0044-03-15 00:00 BC")',
        '("2026-01-01 00:00","2026-01-01 00:00:00.000001"]',
    ),
    *_ranges(
        "tstzrange",
        "tstzmultirange",
        '["2026-01-01 00:00+02",infinity)',
        '(,"0044-03-15 00:00+00 BC")',
        '("2026-01-01 00:00+00",)',
    ),
)

#: Types that PostgreSQL's standard has as domains of its own.
STANDARD = (
    Kind("information_schema.cardinal_number", ("1", "0", "2147483647")),
    Kind("information_schema.character_data", ("a", "", "it's \\ 🙂")),
    Kind("information_schema.sql_identifier", ("a", "", "n" * 63)),
    Kind(
        "information_schema.time_stamp", ("2026-11-22 13:45:01.12+00", "0001-01-01 00:00:00+00"), beyond=("infinity",)
    ),
    Kind("information_schema.yes_or_no", ("YES", "NO")),
)

#: What a database makes for itself. The statements make the types; `MADE_LATER` changes them while Kadds streams.
MAKE = (
    f"CREATE SCHEMA {SCHEMA}",
    f"CREATE TABLE {SCHEMA}.here_only ()",
    f"CREATE TYPE {SCHEMA}.mood AS ENUM ('sad', 'ok', 'it''s \"so\"', 'ä漢🙂', ' ')",
    f'CREATE TYPE {SCHEMA}."a Name, with ""quotes""" AS ENUM (\'a\', \'b\')',
    f"CREATE TYPE {SCHEMA}.pair AS (number integer, word text, price numeric(12,2), moods {SCHEMA}.mood[])",
    f"CREATE TYPE {SCHEMA}.nested AS (first {SCHEMA}.pair, rest {SCHEMA}.pair[])",
    f"CREATE TYPE {SCHEMA}.floatrange AS RANGE (subtype = double precision)",
    f"CREATE DOMAIN {SCHEMA}.positive AS integer CHECK (VALUE > 0)",
    f"CREATE DOMAIN {SCHEMA}.price AS numeric(12,2) CHECK (VALUE >= 0)",
    f"CREATE DOMAIN {SCHEMA}.price_in_shop AS {SCHEMA}.price CHECK (VALUE < 1000)",
    f"CREATE DOMAIN {SCHEMA}.word AS varchar(20) COLLATE \"C\" CHECK (VALUE <> 'x')",
    f"CREATE DOMAIN {SCHEMA}.code AS character(5)",
    f"CREATE DOMAIN {SCHEMA}.moment AS timestamp(3) with time zone",
    f"CREATE DOMAIN {SCHEMA}.words AS text[] CHECK (array_length(VALUE, 1) < 9)",
    f"CREATE DOMAIN {SCHEMA}.good_mood AS {SCHEMA}.mood CHECK (VALUE <> 'sad')",
    f"CREATE DOMAIN {SCHEMA}.whole_pair AS {SCHEMA}.pair CHECK ((VALUE).number <> 0)",
)
MADE_LATER = (f"ALTER TYPE {SCHEMA}.mood ADD VALUE 'later' BEFORE 'ok'",)
_MOODS = ("sad", "ok", 'it\'s "so"', "ä漢🙂", " ")
_PAIRS = (
    "(1,a,1.50,{sad})",
    "(,,,)",
    '(0,"",0,"{}")',
    '(-1,"it\'s ""so"" \\\\ \n (,)",NaN,"{""it\'s \\\\""so\\\\"""",NULL}")',
)
MADE = (
    Kind(f"{SCHEMA}.mood", _MOODS, later=("later",)),
    Kind(f'{SCHEMA}."a Name, with ""quotes"""', ("a", "b")),
    Kind(f"{SCHEMA}.pair", _PAIRS),
    Kind(f"{SCHEMA}.nested", ('("(1,a,1.50,{})","{""(2,b,,)"",NULL}")', "(,)", '("(,,,)",{})')),
    *_ranges(
        f"{SCHEMA}.floatrange", f"{SCHEMA}.floatmultirange", "[0.1,0.30000000000000004]", "(,-0)", "[1e300,Infinity)"
    ),
    Kind(f"{SCHEMA}.positive", ("1", "2147483647")),
    Kind(f"{SCHEMA}.price", ("1", "0", "9999999999.99"), beyond=("NaN",)),
    Kind(f"{SCHEMA}.price_in_shop", ("1", "999.99")),
    Kind(f"{SCHEMA}.word", ("a", "", " ", "it's \\ 🙂")),
    Kind(f"{SCHEMA}.code", ("abc", "", "12345")),
    Kind(f"{SCHEMA}.moment", ("2026-11-22 13:45:01.1236+02",), beyond=("-infinity",)),
    Kind(f"{SCHEMA}.words", ('{a,NULL,""}', "{}", "[0:1]={a,b}")),
    Kind(f"{SCHEMA}.good_mood", ("ok", "ä漢🙂"), later=("later",)),
    Kind(f"{SCHEMA}.whole_pair", ("(1,,,)", "(2,it's,3.10,{ok})")),
)

#: Extension → its types; used where the server has it. Both sides have it.
EXTENSIONS = {
    "citext": (Kind("public.citext", ("Straße", "", "it's \\ 🙂", " A ")),),
    "hstore": (
        Kind("public.hstore", ('"a"=>"1", "b"=>NULL', "", '"it\'s"=>"say \\"so\\" \\\\", ""=>"", "ä漢🙂"=>"\n"')),
    ),
    "ltree": (
        Kind("public.ltree", ("top.science", "", "a")),
        Kind("public.lquery", ("*.a|b.*{1,2}", "!a")),
        Kind("public.ltxtquery", ("a & !b*@",)),
    ),
    "cube": (Kind("public.cube", ("(1, 2),(3, 4)", "()", "(0.1)", "(NaN, Infinity)")),),
    "isn": (
        Kind("public.isbn13", ("978-0-393-04002-9",)),
        Kind("public.ean13", ("012-345-678905-0", "9780393040029!")),
    ),
    "seg": (Kind("public.seg", ("1 .. 2", "<1.50", "~0.1 .. 3.00")),),
}


_WITHOUT_ARRAY = (
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
)
_ARRAYS_FIRST = (
    "box",
    "bytea",
    "numeric(12,2)",
    "text",
    "timestamp with time zone",
    f"{SCHEMA}.mood",
    f"{SCHEMA}.pair",
)


def literal(text: str | None) -> str:
    """SQL for the value; the reader's `standard_conforming_strings` is on."""
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def array_of(kind: Kind) -> Kind:
    """Arrays of the kind: empty, with NULLs, with every value, with bounds, in two dimensions."""

    def joined(*items: str | None) -> str:
        return "{" + kind.delimiter.join("NULL" if item is None else _element(item) for item in items) + "}"

    first = kind.values[0] if kind.values else None
    every = joined(*kind.values, *kind.beyond, None)
    row = joined(first, None)
    values = (
        joined(first),
        "{}",
        joined(None),
        every,
        f"[0:1]={row}",
        f"[-5:-4]={row}",
        f"{{{row}{kind.delimiter}{row}}}",
        f"[2:3][-1:0]={{{row}{kind.delimiter}{row}}}",
    )
    return replace(kind, declared=f"{kind.declared}[]", values=values, beyond=(), later=())


def _element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def kinds(connection: psycopg.Connection[tuple[object, ...]], *, arrays: bool = True) -> Iterator[Kind]:
    """Every kind that the server can have, extensions included, and their arrays; without `arrays` those of a few."""
    have = {str(name) for (name,) in connection.execute("SELECT name FROM pg_available_extensions")}
    of_extensions = [kind for name, some in EXTENSIONS.items() if name in have for kind in some]
    for kind in (*BASE, *RANGES, *STANDARD, *MADE, *of_extensions):
        yield kind
        if (arrays or kind.declared in _ARRAYS_FIRST) and kind.declared not in _WITHOUT_ARRAY:
            yield array_of(kind)


def extensions(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Makes the extensions of `EXTENSIONS` that the server has, in schema public."""
    for (name,) in connection.execute("SELECT name FROM pg_available_extensions").fetchall():
        if str(name) in EXTENSIONS:
            connection.execute(f"CREATE EXTENSION {name} SCHEMA public")


def built_in(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """`format_type` of each type that a column can have and that every database has.

    Left out by rule: pseudo-types (`typtype` p), the rows of tables and views and arrays of those (they change with the
    catalog; `MADE` has composites), and what serves TOAST.
    """
    return [
        str(name)
        for (name,) in connection.execute(
            "SELECT format_type(t.oid, NULL) FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typlen = -1 "
            "WHERE t.typnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) "
            "AND t.typtype NOT IN ('p', 'c') AND (e.typtype IS NULL OR e.typtype NOT IN ('p', 'c')) ORDER BY 1"
        )
    ]
