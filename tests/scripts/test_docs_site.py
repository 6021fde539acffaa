"""What `scripts/docs_site.py` does to pages and docstrings, and what it warns of."""

import logging
import types
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
griffe = pytest.importorskip("griffe")

SCRIPTS = Path(__file__).parents[2] / "scripts"
PAGES = ("export.md", "conventions.md", "images/sample.jpg", "reference/vggt_jax.md")


@pytest.fixture
def site(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import docs_site

    return docs_site


@pytest.fixture
def warnings_of(caplog):
    def messages():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    with caplog.at_level(logging.WARNING):
        yield messages


def rendered(site, page, markdown):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    config = types.SimpleNamespace(repo_url="https://host/project/")
    files = types.SimpleNamespace(get_file_from_path=lambda path: path if path in PAGES else None)
    return site.on_page_markdown(markdown, page, config, files)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "docs/export.md#gsplat", "export.md#gsplat"),
        ("index.md", "docs/images/sample.jpg", "images/sample.jpg"),
        ("index.md", "LICENSE", "https://host/project/blob/main/LICENSE"),
        ("index.md", "vggt_jax/weights/MODEL_CARD.md", "model_card.md"),
        ("index.md", "#licence", "#licence"),
        ("index.md", "https://arxiv.org/abs/2503.11651", "https://arxiv.org/abs/2503.11651"),
        ("golden.md", "../../docs/export.md", "export.md"),
        ("export.md", "../tests/golden/README.md", "golden.md"),
        ("export.md", "../vggt_jax/heads", "https://host/project/tree/main/vggt_jax/heads"),
        ("reference/vggt_jax.md", "../conventions.md", "../conventions.md"),
    ],
)
def test_links_lead_to_pages_or_to_files_on_the_host(site, warnings_of, page, link, expected):
    before = f"See [this `x[0]`]({link}), ![and [this]]({link})\n\n```\n[code]({link})\n```\n"
    after = rendered(site, page, before)
    assert after == before.replace(f"({link})", f"({expected})", 2)
    assert warnings_of() == []


def test_a_link_to_nothing_is_a_warning(site, warnings_of):
    rendered(site, "golden.md", "[here](../../docs/exprot.md)")
    (message,) = warnings_of()
    assert message == (
        "tests/golden/README.md: links to ../../docs/exprot.md, but there is no docs/exprot.md"
    )


def test_public_names_that_the_reference_lacks_are_warnings(
    site, warnings_of, monkeypatch, tmp_path
):
    (tmp_path / "docs").mkdir()
    (tmp_path / "package").mkdir()
    page, package = tmp_path / "docs" / "page.md", tmp_path / "package" / "__init__.py"
    monkeypatch.setattr(site, "ROOT", tmp_path)
    package.write_text("from package.a import a as a\nfrom package.b import b as b\nimport c\n")
    page.write_text("::: package.a.a\n::: package.b\n")
    site._check_reference("package", "page.md")
    assert warnings_of() == []
    package.write_text("from package.a import a, other\n\n__all__ = ['a', 'd']\n")
    page.write_text("::: package.a\n::: package.a\n::: package.b\n")
    site._check_reference("package", "page.md")
    assert warnings_of() == [
        "docs/page.md: lacks package.d; add the line `::: package.d`",
        "docs/page.md: package.b is no public name of package",
        "docs/page.md: has package.a twice",
    ]


def test_warnings_that_nobody_would_count_are_refused(site, monkeypatch):
    strict = types.SimpleNamespace(strict=True)
    site.on_config(strict)
    monkeypatch.setattr(logging.getLogger("mkdocs"), "level", logging.ERROR)
    monkeypatch.setattr(site._log, "_cache", {})
    with pytest.raises(site.ConfigurationError, match="leave --quiet out"):
        site.on_config(strict)


MODULE = '''
class Result:
    """What there is.

    Attributes:
        low, high: bounds.
        a, b, c: of one type.
        name: of it.
    """

    low: int
    high: float
    a: str
    b: str
    c: str
    name: bytes


def function(x: int, y: int, z: str) -> dict[str, int]:
    """Does it.

    Args:
        x, y: places.
        z: what for.

    Returns:
        By name, in order: the number.
    """
'''


def test_docstrings_may_describe_several_names_together(site, tmp_path, monkeypatch):
    (tmp_path / "described.py").write_text(MODULE)
    module = griffe.load(
        "described",
        search_paths=[tmp_path],
        docstring_parser="google",
        docstring_options={
            "warn_unknown_params": False,
            "returns_named_value": False,
            "returns_multiple_items": False,
        },
        extensions=griffe.load_extensions(site.OwnDocstrings),
    )

    def described(name, kind):
        (section,) = (s for s in module[name].docstring.parsed if s.kind.value == kind)
        return [
            (getattr(item, "name", ""), str(item.annotation), item.description)
            for item in section.value
        ]

    assert described("Result", "attributes") == [
        ("low, high", "None", "bounds."),
        ("a, b, c", "str", "of one type."),
        ("name", "bytes", "of it."),
    ]
    assert described("function", "parameters") == [
        ("x, y", "int", "places."),
        ("z", "str", "what for."),
    ]
    assert described("function", "returns") == [
        ("", "dict[str, int]", "By name, in order: the number.")
    ]
