"""What a model says of a data set after every level, and what its levels say alone: all that budgets are made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srnn_zoo.datasets.images import Skipped
from srnn_zoo.models.cells import log_mean_probability
from srnn_zoo.models.recurrence import check_every_exit
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.models.tasks import check_classifies
from srnn_zoo.transforms.packed import PackedPyramid

from .prepare import for_inference
from .processes import Processes, in_order


@dataclass(frozen=True, eq=False)
class CollectedAnswers:
    """What a model says of a data set after every level.

    Of the base CNN alone only the classes are kept, -1 where its logits are not finite.

    Attributes:
        logits: `(L, N, K)`, on the CPU.
        targets: class indices `(N,)`.
        gmacs: what an image costs that is answered after each level, `(L,)`, growing.
        sizes: `(H_s, W_s)` of the levels, where they are known.
        zooms: of the levels, where they have some.
        single_scales: what the base CNN alone says of each level, F(C(x_s)), `(L, N)`.
        logit_ensemble: what the mean of these logits over all levels says, `(N,)`.
        prob_ensemble: what the mean of their probabilities says, `(N,)`.

    Raises:
        ValueError: for no image, shapes that do not belong together, costs that do not grow, and classes that the
            logits do not have.
    """

    logits: Tensor
    targets: Tensor
    gmacs: Tensor
    sizes: tuple[tuple[int, int], ...] = ()
    zooms: tuple[float, ...] | None = None
    single_scales: Tensor | None = None
    logit_ensemble: Tensor | None = None
    prob_ensemble: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or self.gmacs.shape != self.logits.shape[:1]:
            shapes = f"{tuple(self.logits.shape)} and {tuple(self.gmacs.shape)}"
            raise ValueError(f"logits must be (L, N, K) and gmacs (L,); got {shapes}")
        if self.logits.shape[1] == 0:
            raise ValueError("answers need at least one image; got none")
        if not (self.gmacs.diff() > 0).all() or not self.gmacs[0] > 0:
            raise ValueError(f"gmacs must be positive and grow from level to level; got {self.gmacs.tolist()}")
        _check_classes(self.targets, *self.logits.shape[1:])

    @property
    def right(self) -> Tensor:
        """Which images are answered rightly after each level, bool `(L, N)`; logits that are not finite are wrong."""
        return _classes(self.logits) == self.targets

    def select(self, images: slice) -> CollectedAnswers:
        """The same of some of the images."""
        alone = (self.single_scales, self.logit_ensemble, self.prob_ensemble)
        return CollectedAnswers(
            self.logits[:, images],
            self.targets[images],
            self.gmacs,
            self.sizes,
            self.zooms,
            *(classes if classes is None else classes[..., images] for classes in alone),
        )


class _Part(NamedTuple):
    """What a model says of a batch, on the CPU; see `CollectedAnswers`."""

    logits: Tensor
    alone: Tensor  # the classes of every level and of both ensembles, (L + 2, B)
    targets: Tensor
    sizes: tuple[tuple[int, int], ...]


@torch.no_grad()
def collect(
    model: SRNN,
    loader: Iterable[tuple[Any, Tensor]],
    progress: bool = True,
    processes: Processes | None = None,
) -> CollectedAnswers:
    """A model's answers after every level, for all images of a loader; all must have the same sizes.

    Every level is read once. What is kept is `4 * L * K` bytes an image, in the CPU's memory.

    Args:
        model: in eval mode.
        loader: batches of images or levels, with their class indices `(B,)`.
        progress: whether to show a progress bar.
        processes: that share an `ImageLoader`; all of them get all answers.

    Raises:
        ValueError: for no image, batches of different sizes, classes that are no indices of the model's, a model in
            training mode, without a classifier or of another task than classification, a variant that cannot stop
            early, and a stream that processes cannot share.
    """
    from tqdm import tqdm

    check_every_exit(model)
    check_classifies(model, "the answers of a data set")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    model = for_inference(model)
    shared = processes if processes is not None and processes.count > 1 else None
    parts: list[_Part] = []
    with tqdm(total=length_hint(loader) or None, unit="batch", leave=False, disable=None if progress else True) as bar:
        found = _shared(model, loader, shared) if shared else (_part(model, *batch) for batch in loader)
        for part in found:
            if parts and part.sizes != parts[0].sizes:
                theirs = f"{list(parts[0].sizes)}, then {list(part.sizes)}"
                raise ValueError(f"all images must have levels of the same sizes; got {theirs}")
            parts.append(part)
            bar.update()
    if not parts:
        raise ValueError("the loader gave no image")
    logits, alone, targets, sizes = zip(*parts, strict=True)
    *single_scales, logit_ensemble, prob_ensemble = torch.cat(alone, dim=1)
    return CollectedAnswers(
        logits=torch.cat(logits, dim=1),
        targets=torch.cat(targets).long(),
        gmacs=torch.tensor([model.level_gmacs(size) for size in sizes[0]], dtype=torch.float64).cumsum(0),
        sizes=sizes[0],
        zooms=model.zooms,
        single_scales=torch.stack(single_scales),
        logit_ensemble=logit_ensemble,
        prob_ensemble=prob_ensemble,
    )


def _part(model: SRNN, images: Any, classes: Any) -> _Part:
    levels = model.lazy_levels(model.as_input(images))
    if isinstance(levels, PackedPyramid):
        raise ValueError("all images must have levels of the same sizes; got a batch of mixed heights")
    targets = torch.as_tensor(classes).cpu()
    _check_classes(targets, levels.batch_size, model.num_classes)
    features = [model.read_level(levels, level) for level in range(levels.height)]
    logits = torch.stack(list(model.exit_logits(features))).float().cpu()
    every = torch.stack([model.level_logits(x, level).float() for level, x in enumerate(features)])  # F(C(x_s))
    alone = torch.stack([_classes(answer) for answer in (*every, *ensembles(every))]).cpu()
    return _Part(logits, alone, targets, tuple(levels.sizes))


def _shared(model: SRNN, loader: Any, processes: Processes) -> Iterator[_Part]:
    """The parts of all processes, in all of them."""

    def answer(own: list[range]) -> Iterator[tuple[_Part | None, int, list[Skipped]]]:
        for images, targets, skipped in loader.read(own):
            yield _part(model, images, targets) if len(targets) else None, len(targets), skipped

    loader.skipped.clear()
    loader.seen = 0
    for found in in_order(loader.batches, answer, 1, processes, everywhere=True):
        for part, count, skipped in found:
            loader.count(count, skipped)
            if part is not None:
                yield part


def ensembles(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The ensembles of the paper's section 4.1, from the logits of the base CNN on every level `(L, B, K)`.

    They are the mean of the logits, and the logarithm of the mean of the probabilities, `(B, K)` each.
    """
    return logits.mean(dim=0), log_mean_probability(logits.float(), dim=0)


def _check_classes(targets: Tensor, count: int, num_classes: int) -> None:
    """Raise the error that says why these are no class indices of so many images."""
    if targets.shape != (count,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"classes must be whole numbers, one for each of {count} images; got {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    outside = targets[(targets < 0) | (targets >= num_classes)]
    if len(outside):
        raise ValueError(
            f"class indices must be 0 to {num_classes - 1}, the model's; got {outside[0].item()}. Indices come from "
            "the model's label names, never from the folder being read (srnn_zoo.datasets.loader.ImageLoader)"
        )


def _classes(logits: Tensor) -> Tensor:
    """The answers, -1 where logits `(…, K)` are not finite."""
    return logits.argmax(dim=-1).where(logits.isfinite().all(dim=-1), -1)
