"""A model as a folder or a Hub repository: saved, loaded and pushed whole, in the files that timm reads too."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import timm
from timm.models._hub import save_config_for_hf

from ._version import __version__
from .card import is_generated, model_card
from .checkpoint import write_weights
from .download import explain_hub_error, split_hub_id, why_unreachable
from .saved import CARD_FILE, CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILES, check_architecture, download_model

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from .model import SRNN

__all__ = ["HubMixin"]

StrPath = str | os.PathLike[str]
ModelT = TypeVar("ModelT", bound="HubMixin")


class HubMixin:
    """What saves, loads and pushes an SRNN."""

    def save_pretrained(
        self,
        save_directory: StrPath,
        *,
        label_names: Sequence[str] | None = None,
        **metadata: Any,
    ) -> None:
        """Write `config.json`, `model.safetensors` and a model card, which `from_pretrained` and timm read.

        Every file is written beside and then put in place: a save that is killed leaves the old model.

        Args:
            save_directory: a folder, made where it is missing.
            label_names: names of the classes, in their order; by default those in `pretrained_cfg`.
            **metadata: added to the model's `metadata` in what is saved: `dataset`, `metrics`, `recipe`, `license`,
                `base_model`, ….

        Raises:
            ValueError: if there are not as many names as classes, or something is given that JSON cannot hold.
            OSError: if the folder cannot be written.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as name:
            beside = Path(name)
            _write_files(cast("SRNN", self), beside, label_names, metadata, folder.resolve().name)
            if not is_generated(folder / CARD_FILE):
                (beside / CARD_FILE).unlink()  # the card there is somebody's own
            for file in sorted(beside.iterdir()):
                file.replace(folder / file.name)

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        source: StrPath,
        *,
        cache_dir: StrPath | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> ModelT:
        """A saved model, in training mode, on the CPU.

        Without a network, what is in the cache is used. Nothing but the model's own two files is ever downloaded, and
        nothing twice.

        Args:
            source: a folder, or a Hub id, `"owner/name"` or `"owner/name@revision"` (a branch, tag or commit).
            cache_dir: where downloads go, instead of the Hugging Face cache.
            token: for private models; by default the one `hf auth login` stored.
            local_files_only: never ask the network.
            force_download: fetch again what is in the cache.
            num_classes: another width of the classifier, which is new then; the rest is loaded.
            **kwargs: other arguments of the factory (`srnn_zoo.create_model`) in place of the saved ones.

        Raises:
            FileNotFoundError: if there is no such folder, or it lacks a file.
            ValueError: if weights do not fit, with all missing, unexpected and wrongly shaped keys; if the config is
                damaged or of a newer srnn-zoo; if the model saved is no SRNN.
            WeightsUnavailableError: if a file cannot be had, is damaged or would run code.

        Examples:
            >>> model = SRNN.from_pretrained("owner/name").eval()
        """
        folder = Path(source)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: give its folder, or use srnn_zoo.create_model(name, weights=FILE)")
        if not folder.is_dir():
            folder = download_model(
                os.fspath(source),
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        check_architecture(folder)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=num_classes, **kwargs)
        if not isinstance(model, cls):
            raise ValueError(
                f"from_pretrained makes a {cls.__name__}; use timm.create_model for {type(model).__name__}"
            )
        if folder != Path(source):
            cast(Any, model).pretrained_cfg |= {"file": None, "source": "hf-hub", "hf_hub_id": os.fspath(source)}
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Add model",
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        label_names: Sequence[str] | None = None,
        **metadata: Any,
    ) -> CommitInfo:
        """Save to a repository on the Hub, which is made where it is missing.

        A model card that somebody wrote there stays.

        Args:
            repo_id: `"owner/name"`.
            commit_message: of the one commit that holds all files.
            token: with the right to write; by default the one `hf auth login` stored.
            private: whether a new repository is private; by default as the owner's account has it.
            revision: a branch, made where it is missing, instead of `main`.
            create_pr: propose the files in a pull request.
            label_names: as for `save_pretrained`.
            **metadata: as for `save_pretrained`.

        Raises:
            ValueError: as `save_pretrained`, and for an impossible name.
            PermissionError: where the Hub refuses the token.
            ConnectionError: where the Hub does not answer or fails.
        """
        from huggingface_hub import HfApi, constants

        repo_id, _ = split_hub_id(repo_id)
        if reason := why_unreachable(constants.ENDPOINT):
            raise ConnectionError(
                f"cannot push to {repo_id}: {reason}; save_pretrained writes the same files to a folder"
            )
        api = HfApi(token=token, library_name="srnn-zoo", library_version=__version__)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_files(cast("SRNN", self), folder, label_names, metadata, repo_id)
            try:
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if revision is not None and not create_pr:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                if not is_generated(_card_on_hub(api, repo_id, revision, folder)):
                    (folder / CARD_FILE).unlink()
                return api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    allow_patterns=[CONFIG_FILE, CARD_FILE, *WEIGHTS_FILES],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
            except Exception as error:  # the client's own, its HTTP library's
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status in (401, 403, 404):
                    advice = "run `hf auth login`, or give a token= with the right to write"
                    raise PermissionError(f"cannot push to {repo_id}: the Hub refuses ({status}); {advice}") from error
                raise ConnectionError(f"cannot push to {repo_id}: {explain_hub_error(error, repo_id)}") from error


_UNFINISHED = ".saving-"


def _write_files(
    model: SRNN, folder: Path, label_names: Sequence[str] | None, metadata: Mapping[str, Any], name: str
) -> None:
    """All files of a saved model."""
    names = _checked_label_names(model, label_names)
    about = {**model.metadata, **metadata}
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILES[0]
    _write_config(model, config, names, about)
    write_weights(model.state_dict(), weights)
    weights.chmod(config.stat().st_mode)  # safetensors lets nobody else read it
    (folder / CARD_FILE).write_text(str(model_card(model, about, name)), encoding="utf-8")


def _write_config(model: SRNN, path: Path, label_names: Sequence[str] | None, metadata: Mapping[str, Any]) -> None:
    extra: dict[str, Any] = {"label_names": list(label_names)} if label_names else {}
    extra["srnn"] = {
        "format_version": FORMAT_VERSION,
        "srnn_zoo_version": __version__,
        "zero_shot": model.zero_shot,
        "level_sizes": model.level_sizes(),
        **metadata,
    }
    try:
        save_config_for_hf(model, str(path), model_config=extra)
    except TypeError as error:
        raise ValueError(f"the config cannot be written as JSON: {error}") from error
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes", None)  # transformers gives it too, and timm has it in two other places
    config["pretrained_cfg"].pop("label_names", None)  # they are at the top, where transformers looks for them
    if "zero_shot" in config["pretrained_cfg"].get("tag", "") and not model.zero_shot:
        del config["pretrained_cfg"]["tag"]  # it has been trained since
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _checked_label_names(model: SRNN, label_names: Sequence[str] | None) -> Sequence[str] | None:
    if label_names is None:
        names = model.pretrained_cfg.get("label_names")
        return names if names and len(names) == model.num_classes else None
    if len(label_names) != model.num_classes or len(set(label_names)) != len(label_names):
        raise ValueError(
            f"label_names must name each of the {model.num_classes} classes, all different; got {len(label_names)} "
            f"names, {len(set(label_names))} of them different"
        )
    return label_names


def _card_on_hub(api: Any, repo_id: str, revision: str | None, folder: Path) -> Path:
    """The model card that is there now; a path without a file where there is none."""
    card = folder / "current" / CARD_FILE
    if api.file_exists(repo_id, CARD_FILE, revision=revision):
        api.hf_hub_download(repo_id, CARD_FILE, revision=revision, local_dir=card.parent)
    return card


def _remove_leftovers(folder: Path) -> None:
    """What saves that were killed have left; that of a save going on is younger."""
    for leftover in folder.glob(f"{_UNFINISHED}*"):
        if time.time() - leftover.stat().st_mtime > 3600:
            shutil.rmtree(leftover, ignore_errors=True)
