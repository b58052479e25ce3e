"""The documentation that the bundled model is trained on, and the documentation that it must never see."""

from gpt2opt.sources.docstrings import Document, language_reference, package_documents, unique_documents

HELD_OUT = ("networkx", "matplotlib")
"""The notebook fine-tunes, calibrates and scores on these; the bundled model was not trained on them."""

TRAINING = (
    "transformers", "torch", "scipy", "sympy", "sklearn", "pandas", "numpy", "huggingface_hub", "nncf", "datasets",
    "peft", "IPython", "fontTools", "narwhals", "setuptools", "mpmath", "pydantic", "tornado", "accelerate",
    "prompt_toolkit", "openvino", "werkzeug", "absl", "jinja2", "joblib", "fsspec",
)  # fmt: skip


def held_out_documents() -> list[Document]:
    """Return the documents of the held-out packages; no two share a long paragraph."""
    return _unique(HELD_OUT, set())


def training_documents() -> list[Document]:
    """Return the training documents; none shares a long paragraph with another or with a held-out one."""
    seen: set[bytes] = set()
    _unique(HELD_OUT, seen)
    return [*unique_documents(language_reference(), seen), *_unique(TRAINING, seen)]


def _unique(packages: tuple[str, ...], seen: set[bytes]) -> list[Document]:
    return [document for package in packages for document in unique_documents(package_documents(package), seen)]
