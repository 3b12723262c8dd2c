"""Files from the Hugging Face Hub: from the cache where there is no network, and one sentence for every failure."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from srnn_zoo._errors import WeightsUnavailableError

_logger = logging.getLogger(__name__)

NETWORK_TIMEOUT = 1.5  # seconds after which a host counts as out of reach
_TIMEOUT_VARIABLE = "HF_HUB_ETAG_TIMEOUT"  # the client's own, whose default is 10

StrPath = str | os.PathLike[str]


def why_unreachable(url: str) -> str:
    """Why a host does not answer within `NETWORK_TIMEOUT` seconds, name look-up included; empty if it answers."""
    from huggingface_hub import constants, get_session

    if url.startswith(constants.ENDPOINT) and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    seconds = float(os.environ.get(_TIMEOUT_VARIABLE, NETWORK_TIMEOUT))
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(url, timeout=seconds)
        except Exception as error:  # whatever the reason, the caller says what to do
            _logger.debug("%s: %s", url, error)
        else:
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # a look-up of a name takes no time limit
    thread.start()
    thread.join(seconds)
    if answered.is_set():
        return ""
    return f"{urlparse(url).hostname} does not answer within {seconds:g} s ({_TIMEOUT_VARIABLE} sets the seconds)"


def split_hub_id(model_id: str) -> tuple[str, str | None]:
    """`"owner/name@revision"` as `("owner/name", "revision")`; a ValueError if this cannot be a name on the Hub."""
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
    repo: str, filename: str | tuple[str, ...], revision: str | None = None, cache_dir: StrPath | None = None
) -> Path | None:
    """A file in the Hugging Face cache (from a tuple of names, the first that is there); never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    for name in (filename,) if isinstance(filename, str) else filename:
        path = try_to_load_from_cache(repo, name, cache_dir=cast(Any, cache_dir), revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def download_files(
    model_id: str,
    *filenames: str | tuple[str, ...],
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> list[Path]:
    """Files of one commit of a model on the Hub (from a tuple of names, the first that exists).

    Files in the cache are used as they are where no network is there or `model_id` ends with a full commit hash; else
    the Hub is asked for news. The client resumes a broken download; an incomplete file does not count as cached.

    Raises:
        ValueError: if `model_id` cannot be a name on the Hub.
        WeightsUnavailableError: if a file is not available; without a network within two seconds.
    """
    from huggingface_hub import hf_hub_url

    repo, revision = split_hub_id(model_id)
    choices = [(names,) if isinstance(names, str) else names for names in filenames]
    cached = [cached_hub_file(repo, names, revision, cache_dir) for names in choices]
    if re.fullmatch("[0-9a-f]{40}", revision or "") and all(cached) and not force_download:
        return cast("list[Path]", cached)
    address = hf_hub_url(repo, choices[0][0], revision=revision)  # a file's, as a Hub may hang on these alone
    unreachable = "local_files_only is set" if local_files_only else why_unreachable(address)
    if unreachable:
        if not all(cached):
            raise WeightsUnavailableError(
                f"{repo} is no folder here, is not in the Hugging Face cache, and {unreachable}: on a machine with "
                f"network run `hf download {repo}` and copy its cache here (HF_HOME)"
            )
        if force_download:
            raise WeightsUnavailableError(f"{repo} cannot be fetched again: {unreachable}")
        _logger.info("%s from the cache, as %s", model_id, unreachable)
        return cast("list[Path]", cached)
    paths: list[Path] = []
    options = {"cache_dir": cache_dir, "token": token, "force_download": force_download}
    for names in choices:
        paths.append(_first_on_hub(repo, names, revision, **options))
        revision = paths[0].parent.name  # the rest from the same commit, whatever is pushed meanwhile
    return paths


def _first_on_hub(repo: str, names: tuple[str, ...], revision: str | None, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    name, *others = names
    try:
        return Path(hf_hub_download(repo, name, revision=revision, **options))
    except Exception as error:  # the client's own, its HTTP library's, the file system's
        if others and _is_missing_file(error):
            return _first_on_hub(repo, tuple(others), revision, **options)
        raise WeightsUnavailableError(explain_hub_error(error, repo, name, revision)) from error


def _is_missing_file(error: BaseException) -> bool:
    """Whether the Hub says that a repository lacks a file; `LocalEntryNotFoundError` says that it was not reached."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


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
    if _is_missing_file(error):
        return f"{repo} has no file {filename}: it is no model that srnn_zoo or timm saved"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refuses {repo} ({status}): {hint}"
    if status is not None:
        return f"the Hub answers {status} for {repo}: try again later"
    if isinstance(error, OSError) and (error.filename or error.errno in (errno.EACCES, errno.ENOSPC)):
        return f"cannot write {filename} of {repo} to the cache ({error}); cache_dir= or HF_HOME sets another place"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"the download of {filename} of {repo} stopped ({reason}): try again"
