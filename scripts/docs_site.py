"""Hooks of MkDocs that make one site of the files of the repository; see mkdocs.yml.

    mkdocs build --strict

- Files outside `docs` become pages (`PAGES`), so that no text is there twice.
- Links between files work on the site as they do in the repository: those to files that are pages
  lead to the page, others to the file on GitHub. A link to a file that does not exist is a warning.
- Docstrings are read as they are written here (`OwnDocstrings`).
- Every public name of the packages (`DOCUMENTED`) must stand on its page of the reference, or there
  is a warning.
"""

import ast
import logging
import os
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import ConfigurationError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "tests/golden/README.md": "golden.md",
    "vggt_jax/weights/MODEL_CARD.md": "model_card.md",
}
"""Pages from files elsewhere in the repository: the page by the file."""

DOCUMENTED = {
    "vggt_jax": "reference/vggt_jax.md",
    "vggt_jax.evaluation": "reference/evaluation.md",
    "vggt_jax.evaluation.datasets": "reference/datasets.md",
    "vggt_jax.evaluation.protocols": "reference/protocols.md",
    "vggt_jax.analysis": "reference/analysis.md",
    "vggt_jax.export": "reference/export.md",
    "vggt_jax.models": "reference/models.md",
    "vggt_jax.checkpoints": "reference/checkpoints.md",
    "vggt_jax.training": "reference/training.md",
    "vggt_jax.synthetic": "reference/synthetic.md",
    "pallas_kernels": "reference/pallas_kernels.md",
}
"""Packages whose public names the reference has, and on which page."""

_SOURCES = {page: source for source, page in PAGES.items()}
_CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# [text](target) and ![text](target), with one level of brackets in the text, as around a picture.
_LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
_IDENTIFIER = re.compile(r"^::: (\S+)", re.MULTILINE)

_log = logging.getLogger("mkdocs.hooks.docs_site")


def on_config(config: MkDocsConfig) -> None:
    # MkDocs counts the warnings that are shown.
    if config.strict and not _log.isEnabledFor(logging.WARNING):
        raise ConfigurationError("--strict sees no warnings under --quiet; leave --quiet out")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for package, page in DOCUMENTED.items():
        _check_reference(package, page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def replace(match: re.Match) -> str:
        before, target, after = match.groups()
        return before + _target(target, source, here, config, files) + after

    # Code stays as it is.
    parts, end = [], 0
    for block in _CODE_BLOCK.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, _LINK.sub(replace, markdown[end:])])


def _target(target: str, source: str, here: str, config: MkDocsConfig, files: Files) -> str:
    """What a link in `source`, the file of page `here`, becomes."""
    path, hash_sign, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return target
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / file).exists():
        _log.warning(f"{source}: links to {target}, but there is no {file}")
        return target
    page = PAGES.get(file, file.removeprefix("docs/"))
    if file in PAGES or (file.startswith("docs/") and files.get_file_from_path(page)):
        return os.path.relpath(page, posixpath.dirname(here) or ".") + hash_sign + anchor
    kind = "tree" if (ROOT / file).is_dir() else "blob"
    return f"{config.repo_url.rstrip('/')}/{kind}/main/{file}{hash_sign}{anchor}"


def _check_reference(package: str, page: str) -> None:
    """Warns of public names that are missing on a page, and of names on it that are not public."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    # A function in a module of its own name stands there as `module.function`.
    found = [re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in _IDENTIFIER.findall(text)]
    expected = {f"{package}.{name}" for name in _public_names(package)}
    for name in sorted(expected - set(found)):
        _log.warning(f"docs/{page}: lacks {name}; add the line `::: {name}`")
    for name in sorted(set(found) - expected):
        # A public module of the package may be documented, too.
        module, _, own = name.removeprefix(f"{package}.").partition(".")
        path = ROOT / package.replace(".", "/") / f"{module}.py"
        if own and path.is_file() and own in _names_in(path):
            continue
        _log.warning(f"docs/{page}: {name} is no public name of {package}")
    for name in sorted({name for name in found if found.count(name) > 1}):
        _log.warning(f"docs/{page}: has {name} twice")


def _public_names(package: str) -> list[str]:
    return _names_in(ROOT / package.replace(".", "/") / "__init__.py")


def _names_in(path: Path) -> list[str]:
    """The names that a package or module imports, as `a as a`, or lists in `__all__`.

    Also those that it imports for types alone, because it imports them when they are used.
    """
    names = []
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes = [*nodes, *node.body]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names += ast.literal_eval(node.value)
    return [name for name in names if not name.startswith("_")]


class OwnDocstrings(griffe.Extension):
    """Reads docstrings as they are written here, where Griffe expects something else.

    - `fps, frames: ...` describes two arguments or fields together. Griffe takes that for an
      argument which does not exist, or for a field `fps` of the type `frames`.
    - What a function returns is a sentence, in which a colon may stand. Griffe takes what is before
      it for a type.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        self._visit(pkg)

    def _visit(self, where: griffe.Object) -> None:
        for section in where.docstring.parsed if where.docstring else ():
            if isinstance(section, griffe.DocstringSectionParameters):
                _join_names(section.value, _parameters(where))
            elif isinstance(section, griffe.DocstringSectionAttributes):
                _join_names(section.value, where.members)
            elif isinstance(section, griffe.DocstringSectionReturns):
                _join_sentences(section.value, where)
        for member in where.members.values():
            if not member.is_alias:
                self._visit(member)


def _parameters(where: griffe.Object) -> dict[str, griffe.Parameter]:
    function = where.members.get("__init__", where) if where.is_class else where
    return {parameter.name: parameter for parameter in getattr(function, "parameters", ())}


def _join_names(items: list, known: dict) -> None:
    """Corrects name and annotation of the items that describe several of those known."""
    for item in items:
        # Of attributes, `fps, frames` was split into a name and its type.
        rest = str(item.annotation).strip("()") if item.name.endswith(",") else ""
        text = f"{item.name} {rest}".strip()
        names = text.split(", ")
        if len(names) > 1 and all(name in known for name in names):
            annotations = {str(known[name].annotation): known[name].annotation for name in names}
            item.name = text
            item.annotation = next(iter(annotations.values())) if len(annotations) == 1 else None


def _join_sentences(items: list, where: griffe.Object) -> None:
    returned = where.annotation if where.is_attribute else getattr(where, "returns", None)
    for item in items:
        if item.annotation is not None and str(item.annotation) != str(returned):
            item.description = f"{item.annotation}: {item.description}"
            item.annotation = returned
