"""Data loading for images of mixed heights: how their levels become a batch, and which images share one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, default_collate

from .pyramid import Pyramid


def pyramid_collate(batch: Sequence[Any], zooms: Sequence[float] | None = None) -> Any:
    """`collate_fn` of a `DataLoader` whose images have levels of any height: a `Pyramid` or `PackedPyramid`.

    Args:
        batch: for every image its levels `(C, H_s, W_s)`, smallest first, or a tuple `(levels, target, …)`.
        zooms: of the levels, where they have some: `partial(pyramid_collate, zooms=model.zooms)`.

    Returns:
        `Pyramid.pack` of the levels; with targets a tuple `(pyramid, targets, …)`, the targets collated as by default.

    Raises:
        ValueError: if the batch is empty, and as `Pyramid.pack` does.

    Examples:
        >>> dataset = ImageFolder(root, create_transform(model, sizes=ScalePyramid.variable(224)))
        >>> for pyramid, targets in DataLoader(dataset, batch_size=32, collate_fn=pyramid_collate):
        ...     loss = F.cross_entropy(model(pyramid), targets)
    """
    if len(batch) == 0:
        raise ValueError("a batch needs at least one image; got none")
    if not isinstance(batch[0], tuple) or isinstance(batch[0][0], Tensor):
        return Pyramid.pack(batch, zooms)
    levels, *targets = zip(*batch, strict=True)
    return (Pyramid.pack(levels, zooms), *(default_collate(list(values)) for values in targets))


class HeightBatchSampler(Sampler[list[int]]):
    """`batch_sampler` of a `DataLoader` that puts images of similar height, and of similar shape, into one batch.

    Images are shuffled, then sorted by height and shape, cut into batches, and the batches shuffled: every image comes
    once an epoch, and a batch mixes heights only where one ends and the next begins.

    Args:
        heights: the height of every image, or the sizes of its levels (`VariablePyramid.level_sizes`), which tell apart
            the shapes of one height as well.
        batch_size: images in a batch.
        shuffle: another order in every epoch (`set_epoch`); else always the images' own, and small images first.
        drop_last: leave out as many images, chosen by chance, as would not fill a batch.
        seed: of the order; the same in all processes.
        num_replicas: how many processes share the batches.
        rank: which of them this is. All get equally many batches: some twice, or with `drop_last` some left out.

    Raises:
        ValueError: if there is no image, `batch_size` or `num_replicas` is less than 1, or `rank` is none of them.

    Examples:
        >>> transform = ScalePyramid.variable(224)
        >>> sizes = [transform.level_sizes(height, width) for height, width in ((224, 224), (900, 1200), (250, 300))]
        >>> list(HeightBatchSampler(sizes, batch_size=2, shuffle=False))
        [[0, 2], [1]]
    """

    def __init__(
        self,
        heights: Sequence[int] | Sequence[Sequence[tuple[int, int]]],
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if len(heights) == 0:
            raise ValueError("a sampler needs the height of at least one image; got none")
        for name, value in {"batch_size": batch_size, "num_replicas": num_replicas}.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more; got {value}")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be 0 to {num_replicas - 1}; got {rank}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self._keys = [(h,) if isinstance(h, int) else (len(h), *map(tuple, h)) for h in heights]

    def set_epoch(self, epoch: int) -> None:
        """Shuffle by this epoch's number from the next iteration on, in every process."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches of this process."""
        if self.drop_last:
            return len(self._keys) // self.batch_size // self.num_replicas
        return -(-len(self._keys) // self.batch_size // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)

        def order(count: int) -> list[int]:
            return torch.randperm(count, generator=generator).tolist() if self.shuffle else list(range(count))

        images = order(len(self._keys))
        if self.drop_last:
            images = images[: len(images) // self.batch_size * self.batch_size]
        images.sort(key=self._keys.__getitem__)
        batches = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        batches = [batches[index] for index in order(len(batches))]
        shared = itertools.islice(itertools.cycle(batches), len(self) * self.num_replicas)
        return itertools.islice(shared, self.rank, None, self.num_replicas)
