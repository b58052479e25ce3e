"""Files of a repository on the model hub, from the local cache or from the hub. Being offline costs seconds, not minutes."""

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

TIMEOUT_S = 3.0
RENAMED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "distilbert-base-uncased-finetuned-sst-2-english": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    "wikitext": "Salesforce/wikitext",
    "imdb": "stanfordnlp/imdb",
    "sst2": "stanfordnlp/sst2",
}
"""The first name of a repository -> its name since 2024. The hub answers to both, while the local cache keeps each by itself."""


def names_of(repo_id: str) -> tuple[str, ...]:
    """Return all names of a repository, the given one first."""
    return (repo_id, *(name for pair in RENAMED.items() if repo_id in pair for name in pair if name != repo_id))


def find_snapshot(
    repo_id: str, patterns: list[str], is_complete: Callable[[Path], bool], repo_type: str = "model"
) -> tuple[Path, str] | None:
    """Return the local folder of a repository and where it came from: the cache, else the hub; None if neither has it complete."""
    for origin, fetch in (("local cache", cached_snapshot), ("hub", download_snapshot)):
        path = fetch(repo_id, patterns, repo_type)
        if path and is_complete(path):
            return path, origin + other_name(path, repo_id)
    return None


def cached_snapshot(repo_id: str, patterns: list[str], repo_type: str = "model") -> Path | None:
    """Return the local folder of a repository that was downloaded before, under any of its names, or None.

    Of several the one with the most files of these patterns is returned: a download that was killed has fewer.
    """
    from huggingface_hub import snapshot_download

    found = []
    for name in names_of(repo_id):
        with contextlib.suppress(OSError, ValueError):  # it is not there, or no repository can have this name
            found.append(Path(snapshot_download(name, repo_type=repo_type, allow_patterns=patterns, local_files_only=True)))
    return max(found, key=lambda path: sum(1 for pattern in patterns for _ in path.glob(pattern)), default=None)


def other_name(path: Path, repo_id: str) -> str:
    """Return `, as NAME` if a folder of the cache is kept under another name of a repository than the one that was asked for, else ``."""
    name = path.parent.parent.name.partition("--")[2].replace("--", "/")  # models--openai-community--gpt2/snapshots/COMMIT
    return f", as {name}" if name in names_of(repo_id)[1:] else ""


def download_snapshot(repo_id: str, patterns: list[str], repo_type: str = "model") -> Path | None:
    """Return the folder of a repository downloaded now, or None if the hub does not answer within seconds or does not have it."""
    from huggingface_hub import HfApi, snapshot_download

    if not hub_answers():
        return None
    try:
        HfApi().repo_info(repo_id, repo_type=repo_type, timeout=TIMEOUT_S)
        return Path(snapshot_download(repo_id, repo_type=repo_type, allow_patterns=patterns, etag_timeout=TIMEOUT_S))
    except (OSError, RuntimeError, ValueError):  # connection, transfer and naming errors of the hub's client
        return None


def hub_answers() -> bool | None:
    """Return whether the hub answers within seconds; None if it must not be asked, because HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return None if constants.HF_HUB_OFFLINE else _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """Return whether the hub answers one request, without the retries that its download client adds."""
    import requests

    try:
        requests.head(endpoint, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.RequestException:
        return False
    return True
