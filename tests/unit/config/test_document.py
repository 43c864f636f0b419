"""Reading YAML: places, references, and files made to do harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kadds.config.document import MAX_ALIASES, MAX_BYTES, MAX_DEPTH, Node, Reader
from kadds.config.problems import Problems

ENVIRONMENT = {"NAME": "shop", "EMPTY": "", "NUMBER": "7", "STRUCTURE": "{a: [1, 2]}\nb: 3", "NESTED": "${NAME}"}


def _read(tmp_path: Path, text: str | bytes) -> tuple[Node | None, list[str]]:
    path = tmp_path / "a.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = Problems()
    root = Reader(ENVIRONMENT, problems).read(path)
    return root, [f"{one.line}:{one.column}: {one.message} | {one.hint}" for one in problems.listed()]


def _value(tmp_path: Path, text: str) -> object:
    root, problems = _read(tmp_path, text)
    assert problems == []
    assert root is not None
    return root.plain()


def _problem(tmp_path: Path, text: str | bytes) -> str:
    _, problems = _read(tmp_path, text)
    assert len(problems) == 1, problems
    return problems[0]


def test_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "a: yes\nb: true\nc: 0o17\nd: 017\ne: 1_000\nf: 1.5\ng: ~\nh: 2026-01-01\ni: '1'\nj: 0x1F\nk: .inf\nl: on\n"
    assert _value(tmp_path, text) == {
        "a": "yes", "b": True, "c": 15, "d": 17, "e": 1000, "f": 1.5, "g": None, "h": "2026-01-01", "i": "1", "j": 31,
        "k": float("inf"), "l": "on",
    }  # fmt: skip


def test_each_node_knows_where_it_and_its_key_stand(tmp_path: Path) -> None:
    root, _ = _read(tmp_path, "a:\n  b: [1,\n    two]\n  c: {d: e}\n")
    assert root is not None
    second = root.at(["a", "b", 1])
    assert (second.value, second.place.line, second.place.column) == ("two", 3, 5)
    last = root.at(["a", "c", "d"])
    assert (last.key_place.column, last.place.column) == (7, 10)
    assert root.at(["a", "x", "y"]).value is root.at(["a"]).value


def test_keys_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    assert _value(tmp_path, "1: a\ntrue: b\nnull: c\n") == {"1": "a", "true": "b", "null": "c"}


# -------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${NAME}", "shop"),
        ("a-${NAME}-b", "a-shop-b"),
        ("${NAME}${NUMBER}", "shop7"),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${MISSING:-other}", "other"),
        ("${MISSING:-}", ""),
        ("${MISSING:-a:b-c}", "a:b-c"),
        ("${NAME:?needed}", "shop"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("a$b", "a$b"),
        ("v$session", "v$session"),
        ("100$", "100$"),
        ("${NESTED}", "${NAME}"),
    ],
)
def test_references_are_replaced_once_in_values(tmp_path: Path, written: str, value: str) -> None:
    assert _value(tmp_path, f"a: '{written}'\n") == {"a": value}


def test_what_a_variable_holds_never_becomes_structure(tmp_path: Path) -> None:
    assert _value(tmp_path, "a: ${STRUCTURE}\nb: ${NUMBER}\n") == {"a": ENVIRONMENT["STRUCTURE"], "b": "7"}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${MISSING}", "the environment variable MISSING is not set | set MISSING, or give a default"),
        ("${MISSING:?ask the owner}", "the environment variable MISSING is not set: ask the owner"),
        ("${EMPTY:?ask the owner}", "the environment variable EMPTY is not set: ask the owner"),
        ("${MISSING", "does not end"),
        ("${A:-${NAME}}", "inside another"),
        ("${}", "not a reference"),
        ("${1A}", "not a reference"),
        ("${NAME-x}", "not a reference"),
        ("${env:NAME}", "not a reference"),
        ("${file:/no/such/file}", "the file /no/such/file cannot be read: No such file"),
        ("${file:}", "cannot be read"),
    ],
)
def test_a_reference_without_a_value_is_named_at_its_place(tmp_path: Path, written: str, message: str) -> None:
    problem = _problem(tmp_path, f"a: 1\nb: '{written}'\n")
    assert problem.startswith("2:4: ")
    assert message in problem


def test_a_reference_in_a_key_is_refused(tmp_path: Path) -> None:
    assert "1:1: a reference ${…} stands in a key" in _problem(tmp_path, "'${NAME}': 1\n")


def test_a_file_gives_its_text_without_the_last_line_end_and_is_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("two\nlines\n")
    for written in ("${file:secret}", f"${{file:{tmp_path}/secret}}"):
        root, problems = _read(tmp_path, f"a: {written}\n")
        assert problems == []
        assert root is not None
        node = root.at(["a"])
        assert (node.value, node.secret, node.written()) == ("two\nlines", True, written)


@pytest.mark.parametrize(("data", "message"), [(b"\xff\xfe", "not UTF-8"), (b"x" * 70_000, "over 65536 bytes")])
def test_a_file_that_is_no_secret_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "secret").write_bytes(data)
    assert message in _problem(tmp_path, "a: ${file:secret}\n")


def test_a_value_is_written_again_as_it_stood(tmp_path: Path) -> None:
    root, _ = _read(tmp_path, "a: 'x${NAME}$$y'\nb: ${MISSING:-d}\nc: 'a$$b'\nd: [1, {e: '${NAME}'}]\n")
    assert root is not None
    assert root.written() == {"a": "x${NAME}$$y", "b": "${MISSING:-d}", "c": "a$$b", "d": [1, {"e": "${NAME}"}]}


# --------------------------------------------------------------------------------------------------- what is no YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {url: ${X}}\n", "1:10: inside braces or brackets an unquoted ${…} is not YAML | quote it"),
        ("b: 1\na: {url: ${X}, c: ${Y}}\n", "2:10: inside braces"),
        ("a: [${X}]\n", "1:5: inside braces"),
        ("a: {b: {c: ${X:-d}}}\n", "1:12: inside braces"),
        ('a: {x: "${NAME}", y: [1}\n', "this is not YAML: expected ',' or ']'"),
        ("a: ${X:?needs this: now}\n", "mapping values are not allowed here | quote a value that holds a colon"),
        ("a: b: c\n", "1:5: this is not YAML: mapping values"),
        ("a: [*.orders]\n", "quote a pattern"),
        ("a:\n- *\n", "quote a pattern"),
        ("a: [!public.x]\n", "an unquoted ! is a YAML tag | quote a pattern"),
        ("a: {!public.x: {}}\n", "a key is plain text | quote a key"),
        ("a: !!python/object:os.system x\n", "YAML tags are not allowed"),
        ("a: !!binary aGk=\n", "YAML tags are not allowed"),
        ("a: !!python/object/apply:os.system [x]\n", "YAML tags are not allowed"),
        ("a: 1\n\tb: 2\n", "2:1:"),
        ("a: 'x\n", "1:4: found unexpected end of stream | a quote or bracket is not closed"),
        ("a: 1\n---\nb: 2\n", "found another document"),
        ("a: 1\na: 2\n", "2:1: `a` is given twice | it is already at "),
        ("a: {b: 1, b: 2}\n", "1:11: `b` is given twice"),
        ("? [a]\n: 1\n", "a key is plain text"),
        ("- a\n", "not a map of settings"),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("a: \x07\n", "U+0007 is not allowed"),
        (b"a: 1\nb: \xff\n", "2:1: the file is not UTF-8"),
        ("a: &x [*x]\n", "an alias stands inside its own anchor"),
        ("a: !!int x\n", "not of the kind int"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_at_its_place(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in _problem(tmp_path, text)


def test_a_missing_file_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    problems = Problems()
    assert Reader({}, problems).read(tmp_path / "no.yml") is None
    assert "cannot be read: No such file" in problems.listed()[0].message


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000 + "]" * 5000,
        "a: " + "{b: " * 5000 + "1" + "}" * 5000,
        "\n".join(" " * depth + "a:" for depth in range(MAX_DEPTH + 5)) + " 1\n",
    ],
    ids=["brackets", "braces", "indents"],
)
def test_a_deep_file_is_refused_before_the_stack_ends(tmp_path: Path, text: str) -> None:
    assert f"more than {MAX_DEPTH} levels" in _problem(tmp_path, text)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    assert f"over {MAX_BYTES} bytes" in _problem(tmp_path, b"#" * (MAX_BYTES + 1))


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    _, problems = _read(tmp_path, "\n".join(lines))
    assert any(f"more than {MAX_ALIASES}" in problem for problem in problems)


def test_anchors_and_merges_of_a_person_work(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd:\n  <<: [*a, {z: 4}]\n"
    assert _value(tmp_path, text) == {
        "a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}, "d": {"x": 1, "y": 2, "z": 4},
    }  # fmt: skip


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "folder.yml"
    os.mkdir(path)
    problems = Problems()
    assert Reader({}, problems).read(path) is None
    assert "cannot be read" in problems.listed()[0].message


def test_no_message_quotes_a_line_of_the_file(tmp_path: Path) -> None:
    for text in (
        "a: 'canary\n",
        "a: {b: canary: x}\n",
        "a: canary: b\n",
        "key: @canary\n",
        "a: [canary\n",
        'a: "\\canary"\n',
    ):
        assert "canary" not in _problem(tmp_path, text)
