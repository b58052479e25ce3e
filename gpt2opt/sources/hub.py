"""Files of a repository on the model hub, from the local cache or from the hub. Being offline costs seconds, not minutes."""

from functools import cache
from pathlib import Path

TIMEOUT_S = 3.0


def cached_snapshot(repo_id: str, patterns: list[str], repo_type: str = "model") -> Path | None:
    """Return the local folder of a repository that was downloaded before, or None."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, repo_type=repo_type, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):  # it is not there, or no repository can have this name
        return None


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
