"""Every example configuration loads, with an editor's help switched on; an example that does not load teaches lies."""

import re
from pathlib import Path

import pytest

from tests.house.source_tree import ROOT, repository_files

FOLDER = ROOT / "configs"
EXAMPLES = [path for path in repository_files() if path.is_relative_to(FOLDER) and path.suffix in (".yml", ".yaml")]
WHOLE = [path for path in EXAMPLES if path.parent == FOLDER]  # files in folders below are included by these


def _dummy(variable: str) -> str:
    if variable.endswith(("URL", "DSN")):
        return "postgresql://person:secret@127.0.0.1/example"
    if variable.endswith("PORT"):
        return "1024"
    if variable.endswith("KEY"):
        return "0123456789abcdef" * 4
    return "example"


def _environment(paths: list[Path]) -> dict[str, str]:
    """A value for each variable that the files ask for, those with a default included."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return {name: _dummy(name) for name in re.findall(r"\$\{([A-Za-z_]\w*)(?=\}|:-|:\?)", text)}


@pytest.mark.parametrize("path", WHOLE or [FOLDER / "one-at-least.yml"], ids=lambda path: path.name)
def test_an_example_loads(path: Path) -> None:
    from kadds import config

    assert config.load(path, environment=_environment(EXAMPLES)) is not None


@pytest.mark.parametrize(
    "path", EXAMPLES or [FOLDER / "one-at-least.yml"], ids=lambda path: str(path.relative_to(FOLDER))
)
def test_an_example_tells_editors_its_schema(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert any(re.match(r"# yaml-language-server: \$schema=\S+", line) for line in lines)


def test_variables_are_found_whatever_follows_the_name(tmp_path: Path) -> None:
    path = tmp_path / "example.yml"
    path.write_text('a: ${SHOP_URL}\nb: "${PORT:-1}"\nc: ${NAME:?is needed}\nd: ${file:/run/secrets/x}\n')
    assert set(_environment([path])) == {"SHOP_URL", "PORT", "NAME"}
