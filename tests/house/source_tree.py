"""The files of the repository and what they import, read without importing anything."""

import ast
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NOT_OURS = {".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "data"}


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is tracked, or would be with the next `git add`; without git, every file that is not derived."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [path for path in ROOT.rglob("*") if not _NOT_OURS & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in files if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    """The repository's Python files below `folders`."""
    return [path for path in repository_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@dataclass(frozen=True)
class Import:
    """One import: the module's full name, and where it stands."""

    module: str
    path: Path
    line: int

    @property
    def where(self) -> str:
        """FILE:LINE, for messages."""
        return f"{self.path}:{self.line}"


def module_name(path: Path, source_root: Path) -> str:
    """The dotted name under which `path` is imported when `source_root` is on the path."""
    parts = path.relative_to(source_root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source_root: Path) -> Iterator[Import]:
    """All that `path` imports, inside functions and under TYPE_CHECKING too, relative imports made absolute.

    `from a import b` yields `a.b`: whether `b` is a module or a name in `a`, its first parts are what matters.
    Names given to `import_module` or `__import__` as a constant count as well.
    """
    package = module_name(path, source_root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                found = [".".join([*base, *([module] if module else []), alias.name]) for alias in names]
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found = [name]
            case _:
                continue
        for name in found:
            yield Import(name, path, node.lineno)
