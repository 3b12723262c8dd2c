"""Files from the Hugging Face Hub: from the cache where there is no network, every failure told in one sentence."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from srnn_zoo._errors import WeightsUnavailableError

__all__ = [
    "cached_hub_file",
    "download_files",
    "explain_hub_error",
    "split_hub_id",
    "why_unreachable",
]

_logger = logging.getLogger(__name__)

NETWORK_TIMEOUT = 1.5  # seconds after which a host counts as out of reach
_TIMEOUT_VARIABLE = "HF_HUB_ETAG_TIMEOUT"  # the client's own, whose default is 10

StrPath = str | os.PathLike[str]


def why_unreachable(url: str) -> str:
    """Why the Hub or another host cannot be asked now, within `NETWORK_TIMEOUT` seconds; an empty string if it can."""
    from huggingface_hub import constants

    if url.startswith(constants.ENDPOINT) and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if _answers(url, seconds := _timeout()):
        return ""
    return f"{urlparse(url).hostname} does not answer within {seconds:g} s ({_TIMEOUT_VARIABLE} sets the seconds)"


def _timeout() -> float:
    try:
        return float(os.environ.get(_TIMEOUT_VARIABLE, NETWORK_TIMEOUT))
    except ValueError:
        return NETWORK_TIMEOUT


def _answers(url: str, seconds: float) -> bool:
    """Whether a host answers at all, whatever it says; name look-up included."""
    from huggingface_hub import get_session

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(url, timeout=seconds)
        except Exception as error:  # whatever kept the host from answering, the caller says what to do
            _logger.debug("%s: %s", url, error)
        else:
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def split_hub_id(model_id: str) -> tuple[str, str | None]:
    """`"owner/name@revision"` as `("owner/name", "revision")`.

    Raises:
        ValueError: if this can be no name on the Hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, _, revision = model_id.partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(
            f"{model_id!r} is neither a folder nor a Hub id (owner/name or owner/name@revision)"
        ) from error
    return repo, revision or None


def cached_hub_file(
    repo: str, filename: str, revision: str | None = None, cache_dir: StrPath | None = None
) -> Path | None:
    """A file in the Hugging Face cache, if it is there; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, filename, cache_dir=cast(Any, cache_dir), revision=revision)
    return Path(path) if isinstance(path, str) else None


def download_files(
    model_id: str,
    *filenames: str | tuple[str, ...],
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> list[Path]:
    """Files of one commit of a model on the Hub, from the cache where they are there already.

    The Hub is asked what is new, but where a full commit hash is given or no network is there. A connection that breaks
    is taken up where it broke, a few times; what was never completed does not count as cached.

    Args:
        model_id: `"owner/name"` or `"owner/name@revision"`.
        *filenames: what to get; of a tuple of names, the first that exists.
        cache_dir: instead of the usual cache.
        token: for private models; by default the one `hf auth login` stored.
        local_files_only: never ask the network.
        force_download: fetch again what is in the cache.

    Raises:
        ValueError: if `model_id` can be no name on the Hub.
        WeightsUnavailableError: where a file cannot be had; without a network within two seconds.
    """
    from huggingface_hub import hf_hub_url

    repo, revision = split_hub_id(model_id)
    choices = [(names,) if isinstance(names, str) else names for names in filenames]
    cached = [_first_cached(repo, names, revision, cache_dir) for names in choices]
    if re.fullmatch("[0-9a-f]{40}", revision or "") and all(cached) and not force_download:
        return cast("list[Path]", cached)
    address = hf_hub_url(repo, choices[0][0], revision=revision)  # of a file, as a hub may hang on these alone
    unreachable = "local_files_only is set" if local_files_only else why_unreachable(address)
    if unreachable:
        if force_download and all(cached):
            raise WeightsUnavailableError(f"{repo} cannot be fetched again: {unreachable}")
        if not all(cached):
            raise WeightsUnavailableError(_advice_offline(repo, unreachable))
        _logger.info("%s from the cache, as %s", model_id, unreachable)
        return cast("list[Path]", cached)
    paths: list[Path] = []
    for names in choices:
        options = {"cache_dir": cache_dir, "token": token, "force_download": force_download}
        paths.append(_first_on_hub(repo, names, revision, **options))
        revision = paths[0].parent.name  # the rest from the same commit, whatever is pushed meanwhile
    return paths


def _first_cached(repo: str, names: tuple[str, ...], revision: str | None, cache_dir: StrPath | None) -> Path | None:
    found = (cached_hub_file(repo, name, revision, cache_dir) for name in names)
    return next((path for path in found if path is not None), None)


def _first_on_hub(repo: str, names: tuple[str, ...], revision: str | None, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision, **options))
        except EntryNotFoundError as error:
            if name == names[-1] or isinstance(error, LocalEntryNotFoundError):
                raise WeightsUnavailableError(explain_hub_error(error, repo, name, revision)) from error
        except Exception as error:  # the client's own, its HTTP library's, the file system's
            raise WeightsUnavailableError(explain_hub_error(error, repo, name, revision)) from error
    raise AssertionError("unreachable: the last name either returns or raises")


def explain_hub_error(error: BaseException, repo: str, filename: str = "", revision: str | None = None) -> str:
    """One sentence for what the Hub's client raised: what was wrong, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    hint = "run `hf auth login`, or give token="
    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, hub.GatedRepoError):
        return f"{repo} is gated: ask for access at {constants.ENDPOINT}/{repo}, then {hint}"
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"{repo} is no folder here, and the Hub has no such model, or it is private; for a private one {hint}"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}"
    if isinstance(error, hub.EntryNotFoundError) and not isinstance(error, hub.LocalEntryNotFoundError):
        return f"{repo} has no file {filename}: it is no model that srnn_zoo or timm saved"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refuses {repo} ({status}): {hint}"
    if status is not None:
        return f"the Hub answers {status} for {repo}: try again later"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.filename):
        return f"cannot write {filename} of {repo} to the cache ({error}); cache_dir= or HF_HOME sets another place"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"the download of {filename} of {repo} stopped ({reason}): try again"


def _advice_offline(repo: str, reason: str) -> str:
    return (
        f"{repo} is no folder here, is not in the Hugging Face cache, and {reason}: on a machine with network run "
        f"`hf download {repo}` and copy its cache here (HF_HOME)"
    )
