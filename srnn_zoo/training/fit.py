"""`fit`: a model, two splits and a recipe to a trained model, on any device and any number of processes."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from torch import nn

from srnn_zoo._errors import missing_extra
from srnn_zoo.datasets.splits import ImageSplit, open_split
from srnn_zoo.transforms.presets import image_transform

from .probe import probe
from .recipe import Recipe
from .run_folder import FitResult, RunFolder
from .state import Run, StopSignals
from .tasks import Loss, TrainingTask, training_task
from .trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import Dataset

    from srnn_zoo.models.srnn import SRNN
    from srnn_zoo.models.tasks import Task

    Images: TypeAlias = Dataset[Any] | str | os.PathLike[str]

_logger = logging.getLogger(__name__)


def fit(
    model: SRNN,
    train: Images,
    val: Images,
    recipe: Recipe,
    output: str | os.PathLike[str] | None = None,
    *,
    task: Task | None = None,
    loss: Loss | None = None,
    resume: bool = False,
    corrupt: Literal["skip", "fatal"] = "skip",
    workers: int | None = None,
    tensorboard: bool = False,
    dataset: str = "",
    state_seconds: float = 600.0,
    cpu: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a model. Afterwards it has the weights of the last epoch, in eval mode; `output` holds the best ones too.

    Its metadata then has its task, and for classes a temperature of each level, fitted to the validation split
    (`SRNN.temperature`).

    Every random number follows from the recipe's seed and the place in the run. With the same number of processes, a
    run that was interrupted and resumed ends with the same weights as one that was not, bit by bit on a CPU. Under
    `accelerate launch` or `torchrun` the processes share every update, and every image of the validation split.

    With `freeze_backbone` (the recipe `probe`) both splits are read once, with the evaluation transform, and cell and
    classifiers are fitted to their features, in one process. The features of a folder of images are kept in
    `output/features`; to resume a probe is to run it again with them.

    Args:
        model: has as many classes as the training split.
        train: a folder of class folders, or a dataset that gives `(tensor, target)`, the tensor `(C, H, W)` being the
            largest level, normalised; its `classes`, where it has them, name the classes and stay with the model.
        val: the same for validation.
        recipe: how.
        output: the run's folder: `recipe.toml`, `log.csv`, `curves.png`, `best/` and `last/` (saved models),
            `skipped.txt` and `state/`, from which a run is resumed. None to write nothing.
        task: what the targets are; by default the model's own task, which is `"classification"` for a new one.
            `"classification"`: the index of a class; cross-entropy, accuracy.
            `"multi_label"`: 0 or 1 for each of K labels, `(K,)`; binary cross-entropy, mean average precision and
            micro-F1 at 0.5. `label_smoothing` ε makes them ε / 2 and 1 - ε / 2.
            `"regression"`: K numbers `(K,)`; squared error, mean absolute error and the root of the squared one.
            For the last two, `train` and `val` are datasets, and what only classes have (mixup, cutmix, distillation,
            the variant `mean_prob`; for numbers label smoothing) is refused.
        loss: what is minimised in place of the task's loss: a function of logits `(B, K)`, float32, and targets (as the
            data set gives them, in a batch; probabilities `(B, K)` with mixup or cutmix) that gives one number. With
            the recipe's `loss="anytime"` it is taken of every level. The recipe's `label_smoothing`, which is part of
            the task's loss, counts with mixup alone. `val_loss` stays the task's.
        resume: go on with the run in `output`; the recipe may have more epochs, whose schedule it then follows.
        corrupt: whether images that cannot be read are skipped and listed, or end the run.
        workers: processes that read images; by default up to four, 0 for none.
        tensorboard: write TensorBoard's file, one for the run, to `output/tensorboard`.
        dataset: name of the data set, for the saved model.
        state_seconds: how often the state is written within an epoch; it is always written after one.
        cpu: do not use a GPU.
        progress: show progress bars on a terminal.

    Raises:
        ValueError: if the data do not fit the model or the recipe, a run is resumed with another recipe (the
            differences are listed), or `loss` gives something else than one number.
        FileExistsError: if `output` holds another run.
        FileNotFoundError: if there is none to resume, or no such folder of images.
        FloatingPointError: if the loss is not finite; the last good state is kept.
        ImageError: for an image that cannot be read, with `corrupt="fatal"`.
        OSError: if the state cannot be written; the one before it is kept.
        Interrupted: after SIGINT or SIGTERM; the state is written.
        ImportError: if accelerate, or TensorBoard where it is asked for, is not installed.

    Examples:
        >>> model = srnn_zoo.create_model("srnn_resnet18", pretrained_backbone=True, num_classes=37)
        >>> result = fit(model, "pets/train", "pets/val", recipe("finetune"), "runs/pets")
        >>> result.best["val_top1"]
    """
    if corrupt not in ("skip", "fatal"):
        raise ValueError(f'corrupt must be "skip" or "fatal"; got {corrupt!r}')
    if resume and output is None:
        raise ValueError("resume needs the output folder of the run to go on with")
    folder = RunFolder(Path(output), tensorboard) if output is not None else None
    task_of_run = training_task(model.task if task is None else task)
    task_of_run.check(recipe, model.variant)
    recipe = _with_own_loss(recipe, loss)
    train, val = _datasets(model, train, val, recipe, task_of_run)
    accelerator = _create_accelerator(recipe, cpu)
    recipe = _fitting_batches(recipe, len(cast(Any, train)), accelerator.num_processes)
    run = Run(
        model=model,
        train=train,
        val=val,
        recipe=recipe,
        task=task_of_run,
        loss=loss.to(accelerator.device) if isinstance(loss, nn.Module) else loss,  # it may have weights of classes
        accelerator=accelerator,
        folder=folder,
        fatal=corrupt == "fatal",
        workers=workers,
        dataset=dataset or getattr(train, "name", "") or "images",
        state_seconds=state_seconds,
        bars=progress and sys.stderr.isatty() and accelerator.is_local_main_process,
    )
    try:
        if recipe.freeze_backbone:
            return probe(run, resume)
        with StopSignals() as signals:
            return Trainer(run, signals).train(resume)
    finally:
        run.close()


def _datasets(model: SRNN, train: Images, val: Images, recipe: Recipe, task: TrainingTask) -> tuple[Any, Any]:
    """Both splits with their transforms; the classes' names go to the model."""
    if task.name != "classification" and any(isinstance(split, str | os.PathLike) for split in (train, val)):
        raise ValueError(f"folders give one class an image: for {task.name}, give datasets of (tensor, target)")
    train_set: Any = open_split(train) if isinstance(train, str | os.PathLike) else train
    classes: Sequence[str] | None = getattr(train_set, "classes", None)
    val_set: Any = open_split(val, classes=classes) if isinstance(val, str | os.PathLike) else val
    for name, split in {"training": train_set, "validation": val_set}.items():
        if len(split) == 0:
            raise ValueError(f"the {name} split has no images")
    if classes is not None:
        _check_classes(model, classes, getattr(val_set, "classes", None))
    plain = image_transform(model)
    augmented = plain if recipe.freeze_backbone else image_transform(model, train=True, **recipe.augmentation())
    return _with_transform(train_set, augmented), _with_transform(val_set, plain)


def _with_own_loss(recipe: Recipe, loss: Loss | None) -> Recipe:
    """The recipe without what belongs to the loss that the user's own takes the place of."""
    if loss is None:
        return recipe
    if not callable(loss):
        raise TypeError(
            f'loss must be a function of (logits, targets); got {loss!r}: "last" and "anytime" go to recipe'
        )
    if not recipe.label_smoothing or recipe.mixup or recipe.cutmix:
        return recipe
    _logger.info("label_smoothing %g is not used: the loss is your own", recipe.label_smoothing)
    return dataclasses.replace(recipe, label_smoothing=0.0)


def _fitting_batches(recipe: Recipe, num_images: int, processes: int) -> Recipe:
    """The recipe with smaller batches where there are fewer images than one needs."""
    shares = processes * recipe.grad_accum_steps * (2 if recipe.mixup or recipe.cutmix else 1)
    if recipe.freeze_backbone or recipe.batch_size <= num_images or num_images < shares:
        return recipe
    batch_size = num_images // shares * shares
    text = "there are only %d training images: batches of %d instead of %d"
    _logger.warning(text, num_images, batch_size, recipe.batch_size)
    return dataclasses.replace(recipe, batch_size=batch_size)


def _with_transform(split: Any, transform: Any) -> Any:
    """A split that has no transform yet with one; a copy, as the caller may train another model on it."""
    if not isinstance(split, ImageSplit) or split.transform is not None:
        return split
    split = copy.copy(split)
    split.transform = transform
    return split


def _check_classes(model: SRNN, classes: Sequence[str], val_classes: Sequence[str] | None) -> None:
    if len(classes) != model.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, the training split {len(classes)}: "
            f"create it with num_classes={len(classes)}"
        )
    if val_classes is not None and list(val_classes) != list(classes):
        raise ValueError(
            "the validation split numbers its classes in another way than the training split, as folders with other "
            "classes do when each is opened by itself: srnn_zoo.training.open_data opens both"
        )


def _create_accelerator(recipe: Recipe, cpu: bool) -> Accelerator:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState
    except ImportError as error:
        raise missing_extra("accelerate", "train", "training") from error
    AcceleratorState._reset_state()  # what an earlier run in this process has chosen; the process group stays
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        gradient_accumulation_steps=recipe.grad_accum_steps,
        cpu=cpu,
        step_scheduler_with_optimizer=False,
        # where no image of an update has a certain level, the parameters of only that level get no gradient
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=recipe.random_heights)],
    )
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError('precision "fp16" needs a GPU; choose "bf16" or "no" on a CPU')
    return accelerator
