"""Real English text that every machine with our dependencies has: the documentation of installed packages.

Documents are read with `ast`, so that no package is imported. None of this text is committed; it is read where it was installed.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = ("networkx", "matplotlib")
"""The notebook fine-tunes, calibrates and scores on these; the bundled model was not trained on them."""
PARAGRAPHS_APART = re.compile(r"\n\s*\n")
DOC_CALL = re.compile(r"doc", re.IGNORECASE)
"""Documentation that a package attaches by a call instead of writing it under a `def`: torch's add_docstr, NumPy's add_newdoc."""
LONG_PARAGRAPH = 100
"""Paragraphs of at least this many characters appear once in a corpus; shorter ones ("Parameters", "Returns") may repeat."""
MIN_DOCUMENT = 400


@dataclass(frozen=True)
class Document:
    """A text with a name; here, all documentation of one module in source order."""

    name: str
    text: str


def unique_package_documents(packages: Iterable[str], seen: set[bytes]) -> list[Document]:
    """Return the documents of installed packages; no two share a long paragraph, see `unique_documents`."""
    return [document for package in packages for document in unique_documents(package_documents(package), seen)]


def package_documents(package: str) -> Iterator[Document]:
    """Yield one document per module of an installed package, sorted by path."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"package {package!r} is not installed; pip install -r requirements.txt brings it")
    root = Path(next(iter(spec.submodule_search_locations or ())))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if "tests" not in relative.parts:
            yield Document(f"{package}/{relative.as_posix()}", "\n\n".join(_docs_of(path)))


def unique_documents(documents: Iterable[Document], seen: set[bytes]) -> Iterator[Document]:
    """Drop every long paragraph that occurred before, then every document that has become too short.

    seen: digests of the paragraphs so far. It is extended in place, so that a second call yields nothing that the first one yielded.
    """
    for document in documents:
        kept = []
        for paragraph in PARAGRAPHS_APART.split(document.text):
            if len(paragraph) >= LONG_PARAGRAPH:
                digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=8).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            if paragraph.strip():
                kept.append(paragraph.rstrip())
        text = "\n\n".join(kept)
        if len(text) >= MIN_DOCUMENT:
            yield Document(document.name, text)


def _docs_of(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences in other people's strings
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    return [inspect.cleandoc(doc) for doc in _doc_strings(tree)]


def _doc_strings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if doc := ast.get_docstring(node, clean=False):
            yield doc
    elif isinstance(node, ast.Call) and DOC_CALL.search(ast.unparse(node.func)):
        texts = (argument.value for argument in node.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str))
        yield from (text for text in texts if "\n" in text)
    for child in ast.iter_child_nodes(node):
        yield from _doc_strings(child)
