"""Files and functions of the package that a reader can take in, and a checkout that is soon there: none is
longer or larger than this allows."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 500  # Lines.
LONGEST_FUNCTION = 100  # Lines of its body, docstring aside.
LARGEST_CHECKOUT = 40 * 2**20  # Bytes; more than half are the weights of the small model.
# What is longer, and why.
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS = {
    "vggt_jax/trunk/alternation.py: run_trunk": (
        "one scan over the layers, whose steps close over all of its arguments"
    ),
}
FILES = sorted((ROOT / "vggt_jax").rglob("*.py"))


def long_functions(text, longest):
    """The names of functions, methods as `Class.method`, whose bodies have more lines than this."""
    found = []

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{child.name}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                has_docstring = ast.get_docstring(child) is not None
                body = child.body[1:] if has_docstring else child.body
                if body and body[-1].end_lineno - body[0].lineno + 1 > longest:
                    found.append(name)
            visit(child, name if name == prefix else f"{name}.")

    visit(ast.parse(text), "")
    return found


def test_lengths_are_found():
    code = 'class A:\n    def f(self):\n        """1\n\n        2"""\n        x = 1\n        return x\n'
    assert long_functions(code, 1) == ["A.f"] and long_functions(code, 2) == []
    assert len(FILES) > 100
    code = (ROOT / "vggt_jax" / "pipeline" / "reconstruct.py").read_text(encoding="utf-8")
    assert "reconstruct" in long_functions(code, 5)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    if name not in LONGER_FILES:
        assert len(text.splitlines()) <= LONGEST_FILE
    found = {f"{name}: {function}" for function in long_functions(text, LONGEST_FUNCTION)}
    assert found <= set(LONGER_FUNCTIONS)


def test_exceptions_are_still_needed():
    for name in LONGER_FILES:
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) > LONGEST_FILE, name
    for exception in LONGER_FUNCTIONS:
        name, function = exception.split(": ")
        text = (ROOT / name).read_text(encoding="utf-8")
        assert function in long_functions(text, LONGEST_FUNCTION), exception


def test_a_checkout_is_small():
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
    assert sum(sizes.values()) < LARGEST_CHECKOUT, f"the largest are {largest}"
