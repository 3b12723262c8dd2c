"""Saving, loading and pushing a model: a folder or a Hub repository, in the files that timm reads too."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import timm
from timm.models._hub import save_config_for_hf

from srnn_zoo._version import __version__

from .card import is_generated, model_card
from .download import split_hub_id, why_unreachable
from .files import write_weights
from .metadata import check_label_names, check_metadata, plain
from .saved import CARD_FILE, CONFIG_FILE, FORMAT_VERSION, UNFINISHED, WEIGHTS_FILES, open_saved

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from srnn_zoo.models.srnn import SRNN

__all__ = ["HubMixin"]

_STRUCTURE = ("variant", "scales", "activation", "exits", "norm")  # what a weights file alone must say of its model

StrPath = str | os.PathLike[str]
ModelT = TypeVar("ModelT", bound="HubMixin")


class HubMixin:
    """What saves, loads and pushes an SRNN."""

    def save_pretrained(
        self,
        save_directory: StrPath,
        *,
        label_names: Iterable[str] | None = None,
        dataset: str | list[str] | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        recipe: Any = None,
        base_model: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write `config.json`, `model.safetensors` and a model card, which `from_pretrained` and timm read.

        Every file is written beside and then put in place: after a save that was killed, the folder holds the old model
        or the new one.

        Args:
            save_directory: a folder, made where it is missing.
            label_names: names of the classes, in their order; by default those in `pretrained_cfg`.
            dataset: name of what it was trained on. This and what follows goes before the model's own `metadata`.
            metrics: figures in per cent by data set, `{"imagenet-1k": {"top1": 71.5}}`.
            recipe: how it was trained: text, or a mapping.
            base_model: Hub id of what it started from, or timm's name of the base CNN's weights.
            license: SPDX identifier in lower case.

        Raises:
            ValueError: if there are not as many names as classes, or for something of another form or that JSON cannot
                hold.
            OSError: if the folder cannot be written.
        """
        given = {"dataset": dataset, "metrics": metrics, "recipe": recipe, "base_model": base_model, "license": license}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as name:
            beside = Path(name)
            _write_files(cast("SRNN", self), beside, label_names, given, folder.resolve().name)
            if not is_generated(folder / CARD_FILE):
                (beside / CARD_FILE).unlink()  # the card there is somebody's own
            for file in sorted(beside.iterdir()):  # the config before the weights (`saved`)
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
        """A saved model, in training mode, on the CPU, in the precision it was saved in.

        Without a network, what is in the cache is used. Nothing but the model's own two files is ever downloaded, and
        nothing twice.

        Args:
            source: a folder, or a Hub id, `"owner/name"` or `"owner/name@revision"` (a branch, tag or commit).
            cache_dir: where downloads go, instead of the Hugging Face cache.
            token: for private models; by default the one `hf auth login` stored.
            local_files_only: never ask the network.
            force_download: fetch again what is in the cache.
            num_classes: another width of the classifier, which is new then; the rest is loaded.
            **kwargs: other options of the factory (`srnn_zoo.create_model`) in place of the saved ones: `img_size`,
                `drop_rate`, `in_chans`, ….

        Raises:
            FileNotFoundError: if there is no such folder, or it lacks a file.
            ValueError: if weights do not fit, with the missing, unexpected and wrongly shaped keys; if the config is
                damaged or of a newer srnn-zoo; if the model saved is no SRNN.
            TypeError: for an unknown option.
            WeightsUnavailableError: if a file cannot be had, is damaged or would run code.

        Examples:
            >>> model = SRNN.from_pretrained("owner/name").eval()
        """
        if "revision" in kwargs:
            raise TypeError(f"give the revision after an @: {os.fspath(source)}@{kwargs['revision']}")
        if taken := sorted({"pretrained", "weights", "pretrained_backbone", "pretrained_cfg"} & kwargs.keys()):
            raise TypeError(f"from_pretrained loads what was saved, without {', '.join(taken)}")
        if Path(source).is_file():
            raise ValueError(f"{source} is a file: give its folder, or use srnn_zoo.create_model(name, weights=FILE)")
        options = {"cache_dir": cache_dir, "token": token}
        options |= {"local_files_only": local_files_only, "force_download": force_download}
        saved = open_saved(source, **options)
        model = timm.create_model(saved.architecture, weights=saved, num_classes=num_classes, **kwargs)
        if not isinstance(model, cls):
            raise ValueError(
                f"from_pretrained makes a {cls.__name__}; use timm.create_model for {type(model).__name__}"
            )
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
        label_names: Iterable[str] | None = None,
        dataset: str | list[str] | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        recipe: Any = None,
        base_model: str | None = None,
        license: str | None = None,
    ) -> CommitInfo:
        """Save to a repository on the Hub, which is made where it is missing.

        A model card that somebody wrote there stays.

        Args:
            repo_id: `"owner/name"`.
            commit_message: of the one commit that holds all files.
            token: with the right to write; by default the one `hf auth login` stored.
            private: whether a new repository is private; by default as the owner's account has it.
            revision: a branch, made where it is missing, instead of `main`.
            create_pr: propose the files in a pull request to `main`.
            label_names: this and what follows as for `save_pretrained`.
            dataset: as for `save_pretrained`.
            metrics: as for `save_pretrained`.
            recipe: as for `save_pretrained`.
            base_model: as for `save_pretrained`.
            license: as for `save_pretrained`.

        Raises:
            ValueError: as `save_pretrained`, for an impossible name, and for a pull request with a branch.
            PermissionError: where the Hub refuses the token.
            ConnectionError: where the Hub does not answer or fails.
        """
        from huggingface_hub import HfApi, constants

        given = {"dataset": dataset, "metrics": metrics, "recipe": recipe, "base_model": base_model, "license": license}
        repo_id, after_at = split_hub_id(repo_id)
        if after_at:
            raise ValueError(f"give the branch as revision={after_at!r}, not after an @")
        if create_pr and revision is not None:
            raise ValueError("a pull request goes to main: give create_pr or revision, not both")
        if reason := why_unreachable(constants.ENDPOINT):
            raise ConnectionError(
                f"cannot push to {repo_id}: {reason}; save_pretrained writes the same files to a folder"
            )
        api = HfApi(token=token, library_name="srnn-zoo", library_version=__version__)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_files(cast("SRNN", self), folder, label_names, given, repo_id)
            try:
                full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if full_id != repo_id:  # the owner was left out
                    _write_files(cast("SRNN", self), folder, label_names, given, full_id)
                if revision is not None:
                    api.create_branch(full_id, branch=revision, exist_ok=True)
                if not is_generated(_card_on_hub(api, full_id, revision, folder)):
                    (folder / CARD_FILE).unlink()
                return api.upload_folder(
                    repo_id=full_id,
                    folder_path=folder,
                    allow_patterns=[CONFIG_FILE, CARD_FILE, *WEIGHTS_FILES],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
            except Exception as error:  # the client's own, its HTTP library's
                raise _push_error(error, repo_id) from error


def _write_files(
    model: SRNN, folder: Path, label_names: Iterable[str] | None, given: Mapping[str, Any], name: str
) -> None:
    """All files of a saved model."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("a model on the meta device has no weights to save")
    names = _label_names(model, label_names)
    given = {key: value for key, value in given.items() if value is not None}
    metadata = check_metadata({**model.metadata, **given})
    weights = folder / WEIGHTS_FILES[0]
    args = {key: value for key, value in model._model_args.items() if key in _STRUCTURE}
    checksum = write_weights(model.state_dict(), weights, {"model_args": json.dumps(args)})
    _write_config(model, folder / CONFIG_FILE, names, metadata, checksum)
    weights.chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors lets nobody else read it
    (folder / CARD_FILE).write_text(str(model_card(model, metadata, name)), encoding="utf-8")


def _write_config(
    model: SRNN, path: Path, label_names: list[str] | None, metadata: dict[str, Any], checksum: str
) -> None:
    extra: dict[str, Any] = {"label_names": label_names} if label_names else {}
    extra["srnn"] = {
        "format_version": FORMAT_VERSION,
        "srnn_zoo_version": __version__,
        "zero_shot": model.zero_shot,
        "level_sizes": model.level_sizes(),
        "weights_sha256": checksum,
        "metadata": metadata,
    }
    save_config_for_hf(model, str(path), model_config=extra, model_args=plain(model._model_args, "the model's"))
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes", None)  # transformers gives it too, and timm has it in two other places
    pretrained_cfg = config["pretrained_cfg"]
    pretrained_cfg.pop("label_names", None)  # they are at the top, where transformers looks for them
    if not model.zero_shot:
        pretrained_cfg.pop("tag", None)  # these are not the weights of that name any more
    if "base_model" not in metadata:
        pretrained_cfg.pop("license", None)  # it was of weights that this model never had
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _label_names(model: SRNN, label_names: Iterable[str] | None) -> list[str] | None:
    if label_names is not None:
        return check_label_names(label_names, model.num_classes)
    names = model.pretrained_cfg.get("label_names")
    return list(names) if names and len(names) == model.num_classes else None


def _push_error(error: Exception, repo_id: str) -> OSError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        advice = "run `hf auth login`, or give a token= with the right to write"
        return PermissionError(f"cannot push to {repo_id}: the Hub refuses ({status}); {advice}")
    reason = f"the Hub answers {status}" if status else " ".join(f"{type(error).__name__}: {error}".split())
    return ConnectionError(f"cannot push to {repo_id}: {reason}; save_pretrained writes the same files to a folder")


def _card_on_hub(api: Any, repo_id: str, revision: str | None, folder: Path) -> Path:
    """The model card that is there now; a path without a file where there is none."""
    card = folder / "current" / CARD_FILE
    if api.file_exists(repo_id, CARD_FILE, revision=revision):
        api.hf_hub_download(repo_id, CARD_FILE, revision=revision, local_dir=card.parent)
    return card


def _remove_leftovers(folder: Path) -> None:
    """What saves that were killed have left; that of a save going on is younger."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        try:
            is_old = time.time() - leftover.stat().st_mtime > 3600
        except FileNotFoundError:  # another process has just done it
            continue
        if is_old:
            shutil.rmtree(leftover, ignore_errors=True)
