"""What scripts/run_docs.py knows of the pages is true of them; the pages themselves it runs in minutes."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import run_docs

    return run_docs


@pytest.fixture
def blocks(script):
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [block for page in pages for block in script.blocks_of(page)]


def test_blocks_are_commands_one_by_one_and_python_as_a_whole(script, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```bash\n# said\nvggt-jax infer a \\\n  --out b\n\nvggt-jax view b  # pip install c\n```\n\n"
        "```python\nx = 1\ny = x\n```\n\n```toml\na = 1\n```\n"
    )
    monkeypatch.setattr(script, "ROOT", tmp_path)
    blocks = script.blocks_of(page)
    found = [(block.line, block.language, " ".join(block.code.split())) for block in blocks]
    assert found == [
        (5, "bash", "vggt-jax infer a --out b"),
        (8, "bash", "vggt-jax view b"),
        (12, "python", "x = 1 y = x"),
    ]
    assert [block.serves for block in blocks] == [False, True, False]


@pytest.mark.parametrize("name", ["NOT_RUN", "NEEDS", "SMALLER", "BEFORE_BLOCK"])
def test_every_exception_is_of_a_block_that_is_there(script, blocks, name):
    unused = [
        part for part in getattr(script, name) if not any(part in block.code for block in blocks)
    ]
    assert unused == []


def test_most_of_what_is_not_a_measurement_or_an_installation_runs(script, blocks):
    """Of commands of this package, those that are not run have a test that runs them, or need data."""
    own = [x for x in blocks if x.language == "bash" and x.code.startswith("vggt-jax")]
    left_out = [x for x in own if any(part in x.code for part in script.NOT_RUN)]
    assert len(own) >= 40 and len(left_out) < len(own) / 3
    for block in left_out:
        assert "tests/" in block.why_not or "that are chosen" in block.why_not, block
