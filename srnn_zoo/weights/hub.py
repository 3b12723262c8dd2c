"""Saving, loading and pushing a model: a folder or a Hub repository, in the files that timm reads too."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from .card import check_label_names, check_metadata, is_generated, metrics_of, plain, write_card
from .download import split_hub_id, why_unreachable
from .eval_results import EVAL_FOLDER, write_eval_results
from .files import write_weights
from .saved import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    UNFINISHED,
    WEIGHTS_FILES,
    open_saved,
    package_version,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_STRUCTURE = (
    "variant",
    "scales",
    "zooms",
    "views",
    "activation",
    "exits",
    "norm",
)  # what a weights file alone must say of its model

StrPath = str | os.PathLike[str]
ModelT = TypeVar("ModelT", bound="HubMixin")


class _Saveable(Protocol):
    """What saving reads of a model."""

    pretrained_cfg: dict[str, Any]
    metadata: dict[str, Any]
    num_classes: int

    @property
    def backbone(self) -> nn.Module: ...
    @property
    def cell(self) -> nn.Module: ...
    @property
    def zero_shot(self) -> bool: ...
    @property
    def _model_args(self) -> dict[str, Any]: ...
    def level_sizes(self) -> list[tuple[int, int]]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...


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
        """Write `config.json`, `model.safetensors` and a model card, for `from_pretrained` and timm to read.

        A save that is killed leaves the old model or the new one. A model card that somebody wrote stays.

        Args:
            save_directory: a folder, made if it is missing.
            label_names: names of the classes, in their order; by default those in `pretrained_cfg`.
            dataset: name of the training data. This and what follows override the model's own `metadata`.
            metrics: figures in per cent by data set, `{"imagenet-1k": {"top1": 71.5}}`. Those on data sets with a Hub
                id (`"owner/name"`) also stand in `.eval_results/`, from which the Hub reads them.
            recipe: how it was trained: text, or a mapping.
            base_model: Hub id of the model it started from, or timm's name of the base CNN's weights.
            license: SPDX identifier in lower case.

        Raises:
            ValueError: for too few or too many names, a value of another form, or one that JSON cannot hold.
            OSError: if the folder cannot be written.
        """
        facts = {"dataset": dataset, "metrics": metrics, "recipe": recipe, "base_model": base_model, "license": license}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as name:
            beside = Path(name)
            _write_model(cast(_Saveable, self), beside, label_names, facts)
            if is_generated(folder / CARD_FILE):
                write_card(self, beside, folder)
            for file in sorted(beside.iterdir()):  # the config before the weights (`saved`)
                file.replace(folder / file.name)
        write_eval_results(folder, metrics_of(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))))

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

        Downloads the model's two files, once; without a network it reads them from the cache.

        Args:
            source: a folder, or a Hub id, `"owner/name"` or `"owner/name@revision"` (a branch, tag or commit).
            cache_dir: where downloads go, instead of the Hugging Face cache.
            token: for private models; by default the one that `hf auth login` stored.
            local_files_only: never ask the network.
            force_download: fetch again what is in the cache.
            num_classes: another width of the classifier, which is then new; the rest is loaded.
            **kwargs: options of the factory (`srnn_zoo.create_model`) in place of the saved ones: `img_size`,
                `drop_rate`, `in_chans`, …; and `net=`, the network of a model that was made by `SRNN.wrap`: its
                weights become the saved ones.

        Raises:
            FileNotFoundError: if there is no such folder, or it lacks a file.
            ValueError: if weights do not fit, with the missing, unexpected and wrongly shaped keys; if the config is
                damaged or of a newer srnn-zoo; if the saved model is no SRNN.
            TypeError: for an unknown option.
            WeightsUnavailableError: if a file is not available, is damaged or would run code.

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
        saved = open_saved(source, local_files_only=local_files_only, force_download=force_download, **options)
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
        **facts: Any,
    ) -> CommitInfo:
        """Save to a repository on the Hub, which is made if it is missing. A model card that somebody wrote stays.

        Args:
            repo_id: `"owner/name"`.
            commit_message: of the one commit that holds all files.
            token: with the right to write; by default the one that `hf auth login` stored.
            private: whether a new repository is private; by default as the owner's account has it.
            revision: a branch, made if it is missing, instead of `main`.
            create_pr: propose the files in a pull request to `main`.
            **facts: `label_names`, `dataset`, `metrics`, `recipe`, `base_model`, `license`, as for `save_pretrained`.

        Raises:
            ValueError: as `save_pretrained`, for an impossible name, and for a pull request with a branch.
            PermissionError: if the Hub refuses the token.
            ConnectionError: if the Hub does not answer or fails.
        """
        from huggingface_hub import HfApi, constants

        repo_id, after_at = split_hub_id(repo_id)
        if after_at:
            raise ValueError(f"give the branch as revision={after_at!r}, not after an @")
        if create_pr and revision is not None:
            raise ValueError("a pull request goes to main: give create_pr or revision, not both")
        if reason := why_unreachable(constants.ENDPOINT):
            raise _push_error(repo_id, reason)
        api = HfApi(token=token, library_name="srnn-zoo", library_version=package_version())
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.save_pretrained(folder, **facts)
            try:
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # with the owner's name
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                if is_generated(_card_on_hub(api, repo_id, revision, folder)):
                    write_card(self, folder, repo_id)
                else:
                    (folder / CARD_FILE).unlink()
                return api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    allow_patterns=[CONFIG_FILE, CARD_FILE, *WEIGHTS_FILES, f"{EVAL_FOLDER}/*.yaml"],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
            except Exception as error:  # the client's own, its HTTP library's
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status in (401, 403, 404):
                    advice = "run `hf auth login`, or give a token= with the right to write"
                    text = f"cannot push to {repo_id}: the Hub refuses ({status}); {advice}"
                    raise PermissionError(text) from error
                text = f"the Hub answers {status}" if status else f"{type(error).__name__}: {error}"
                raise _push_error(repo_id, text) from error


def _write_model(model: _Saveable, folder: Path, label_names: Iterable[str] | None, facts: Mapping[str, Any]) -> None:
    """The weights and `config.json`."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("a model on the meta device has no weights to save")
    if callable(model._model_args.get("views")):
        raise ValueError("the model's views cannot be saved, as they are a function without a name (register_view)")
    _check_comes_back(model)
    names = model.pretrained_cfg.get("label_names") or ()
    if label_names is not None:
        names = check_label_names(label_names, model.num_classes)
    given = {key: value for key, value in facts.items() if value is not None}
    metadata = check_metadata({**model.metadata, **given})
    weights, path = folder / WEIGHTS_FILES[0], folder / CONFIG_FILE
    args = {key: value for key, value in model._model_args.items() if key in _STRUCTURE}
    checksum = write_weights(model.state_dict(), weights, {"model_args": json.dumps(args)})
    extra: dict[str, Any] = {"label_names": list(names)} if len(names) == model.num_classes else {}
    extra["srnn"] = {
        "format_version": FORMAT_VERSION,
        "srnn_zoo_version": package_version(),
        "cell": f"{type(model.cell).__module__}.{type(model.cell).__qualname__}",
        "zero_shot": model.zero_shot,
        "level_sizes": model.level_sizes(),
        "weights_sha256": checksum,
        "metadata": metadata,
    }
    model_args = plain(model._model_args, "the model's")
    save_config_for_hf(cast(Any, model), str(path), model_config=extra, model_args=model_args)
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes", None)  # transformers gives it too, and timm has it in two other places
    pretrained_cfg = config["pretrained_cfg"]
    pretrained_cfg.pop("label_names", None)  # they are at the top, where transformers looks for them
    if not model.zero_shot:
        pretrained_cfg.pop("tag", None)  # these are no longer the weights of that name
    if "base_model" not in metadata:
        pretrained_cfg.pop("license", None)  # it was of weights that this model never had
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights.chmod(path.stat().st_mode)  # safetensors lets nobody else read it


def _check_comes_back(model: _Saveable) -> None:
    """Refuse a model whose weights do not fit the model that its config makes."""
    name = model.pretrained_cfg["architecture"]
    arguments = {**model._model_args, "num_classes": model.num_classes}
    stand_in = getattr(model.backbone, "stand_in", None)  # of a network that only the user can make
    with torch.device("meta"):
        if stand_in is not None:
            arguments |= {"net": stand_in(), "output": None}
        wanted = {key: value.shape for key, value in timm.create_model(name, **arguments).state_dict().items()}
    state = {key: value.shape for key, value in model.state_dict().items()}
    wrong = [key for key in {**state, **wanted} if state.get(key) != wanted.get(key)]
    if stand_in is not None:
        wrong = [key for key in wrong if not key.startswith("backbone.")]
    if not wrong:
        return
    listed = ", ".join(wrong[:_KEYS_LISTED])
    if len(wrong) > _KEYS_LISTED:
        listed += f" and {len(wrong) - _KEYS_LISTED} more"
    remedy = next((advice for sign, advice in _REMEDIES.items() if re.search(sign, " ".join(wrong))), "")
    remedy = remedy or f"make it by name and arguments, srnn_zoo.create_model({name!r}, …), which are saved with it"
    raise ValueError(f"what would be saved could not be loaded as {name}: {listed}; {remedy}")


_KEYS_LISTED = 4
_REMEDIES = {  # by what is found in the names of weights
    r"lora_|base_layer|modules_to_save": "merge the adapter first (PEFT: model = peft_model.merge_and_unload())",
    r"parametrizations\.": "remove the parametrisation first (torch.nn.utils.parametrize.remove_parametrizations)",
    r"_orig\b|_mask\b": "make the pruning permanent first (torch.nn.utils.prune.remove)",
    r"(^| )(exit_classifiers\.\d+|fc)\.": (
        "a classifier is one linear layer for each exit: use model.reset_classifier(num_classes)"
    ),
}


def _push_error(repo_id: str, reason: str) -> ConnectionError:
    reason = " ".join(reason.split())
    return ConnectionError(f"cannot push to {repo_id}: {reason}; save_pretrained writes the same files to a folder")


def _card_on_hub(api: Any, repo_id: str, revision: str | None, folder: Path) -> Path:
    """The model card that is there now; a path without a file if there is none."""
    card = folder / "current" / CARD_FILE
    if api.file_exists(repo_id, CARD_FILE, revision=revision):
        api.hf_hub_download(repo_id, CARD_FILE, revision=revision, local_dir=card.parent)
    return card


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed saves have left; a save that is going on is younger."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        try:
            is_old = time.time() - leftover.stat().st_mtime > 3600
        except FileNotFoundError:  # another process has just done it
            continue
        if is_old:
            shutil.rmtree(leftover, ignore_errors=True)
