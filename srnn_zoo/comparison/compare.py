"""An SRNN against its rivals on a data set of one's own, in one run that can be interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from srnn_zoo.evaluation.table import check_folder
from srnn_zoo.inference.exits import score_rule
from srnn_zoo.models.create import create_model
from srnn_zoo.models.recurrence import check_every_exit
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.training.features import check_reads_features
from srnn_zoo.training.recipe import Recipe, recipe
from srnn_zoo.transforms.scale_pyramid import ScalePyramid
from srnn_zoo.transforms.views import check_zooms

from .data import StrPath, open_images
from .fits import Fits
from .result import Comparison, advice, lines_of
from .views import FrozenViews, View
from .ways import Way, Ways

RATES = (0.005, 0.01, 0.02)
ZOOMS = (1.25, 1.6, 2.0)
VARIANTS = ("vanilla_scalar", "half_gru_diag")
DEFAULT = "srnn_tf_efficientnet_lite0"


def compare(
    model: str,
    data: StrPath,
    output: StrPath,
    *,
    sizes: Sequence[int] | None = None,
    zooms: Sequence[float] = ZOOMS,
    variants: Sequence[str] = VARIANTS,
    seeds: int = 3,
    rates: Sequence[float] = RATES,
    settings: Recipe | None = None,
    rule: str = "confidence",
    test: StrPath | None = None,
    data_dir: StrPath | None = None,
    val_fraction: float | None = None,
    workers: int = 0,
    pretrained: bool = True,
    device: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Fit an SRNN and its rivals to the features of a frozen backbone, and compare them at equal cost.

    The rivals: the single scale at each size, as a tight crop, with batch norm of that size (FixRes), and with
    generalised means in place of the mean (GeM); test-time augmentation; and for whole images at all sizes, and for the
    whole image and its zoom, the ensemble of single scales, the cascade, and the trained mean. Each is fitted by the
    same recipe at several rates with several seeds. Whatever has to be chosen is chosen on the validation split, and
    the test split is read once. Without a test split, every second image of the validation split, class by class,
    measures, and the others choose.

    Features and accuracies are kept in the output folder, so that the same call goes on after an interruption. What
    they were made of is part of their names: a later call with more sizes, zooms, variants or seeds, or with other
    images, computes what is new.

    Args:
        model: a name of `create_model`, whose pretrained backbone every way starts from. A trained SRNN is none: its
            backbone was fitted to its own pyramid.
        data: a folder with `train`, `val` and `test`, as `srnn_zoo.training.open_data` opens it.
        output: the folder, for the features, `table.csv`, `table.md` and `curves.csv`.
        sizes: of the levels in pixels, smallest first; by default the backbone's own and 1.5 times that.
        zooms: to try for tight crops and second levels, each more than 1; none for whole images alone.
        variants: of the SRNNs.
        seeds: how many.
        rates: learning rates to try for every way.
        settings: the recipe; by default `probe` with 40 epochs and a loss at every level.
        rule: of early exit, one of `srnn_zoo.list_exits(scored=True)`.
        test: where the test split is, if elsewhere.
        data_dir: timm's `root` of a named data set.
        val_fraction: for a folder without a validation split, as for `srnn_zoo.training.open_data`.
        workers: processes that read images.
        pretrained: whether the backbone has its pretrained weights; if not, random ones.
        device: where the backbone runs; by default a GPU if there is one.
        progress: whether to show progress bars on a terminal.

    Raises:
        ValueError: for sizes that do not grow, a zoom of 1 or less, one size without a zoom, an unknown variant, rule
            or model, and a saved model; and as `open_data`.
        FileNotFoundError: as `open_data`.

    Examples:
        >>> found = compare("srnn_tf_efficientnet_lite0", "photos", "runs/compare", sizes=(224, 336))
        >>> print(found.sentence)
    """
    score_rule(rule)
    if model.startswith(("local-dir:", "hf-hub:")) or Path(model).is_dir():
        raise ValueError(
            f"a comparison starts every way from one backbone, such as {DEFAULT!r}; {model} is a saved model, whose "
            "backbone was fitted to its own pyramid"
        )
    if zooms and min(check_zooms(zooms)) <= 1:
        raise ValueError(f"zooms to try must be more than 1; got {list(zooms)}")
    if seeds < 1 or not rates or not variants:
        raise ValueError(
            f"a comparison needs a variant, a seed and a rate; got {len(variants)}, {seeds} and {len(rates)}"
        )
    settings = settings or recipe("probe", loss="anytime", epochs=40)
    images = open_images(data, test, data_dir, val_fraction)
    create = Creator(model, len(images.classes), pretrained, device)
    for variant in variants:
        create.check(variant)
    chosen = tuple(sizes) if sizes else create.default_sizes
    ScalePyramid(chosen)  # refuses sizes that do not grow
    if len(chosen) == 1 and not zooms:
        raise ValueError("an SRNN needs two levels: give another size, or a zoom to try")
    folder = check_folder(output)
    (folder / "features").mkdir(exist_ok=True)
    features = folder / "features"
    views = FrozenViews(create.of_views, images.splits, features, chosen[0], images.versions(), workers, progress)
    fits = Fits(views, create.of_levels, settings, rates, range(seeds), folder / "fits.jsonl")
    found: list[Way] = []
    bar = tqdm(Ways(fits, chosen, zooms, variants, rule).plan(), unit="way", disable=None if progress else True)
    for title, make in bar:
        bar.set_description(title)
        found.append(make())
    skipped = [reason for split in images.splits for reason in views.skipped.get(split, ())]
    tried = f"{seeds} seed{'s' if seeds > 1 else ''}, rates {', '.join(f'{lr:g}' for lr in rates)}"
    caption = images.caption(f"{model}, frozen; {tried}.", len(found[0].answers[0].test.targets))
    total = sum(map(len, images.splits.values()))
    comparison = Comparison(tuple(found), tuple(lines_of(found)), advice(found), caption, tuple(skipped), total)
    comparison.save(folder)
    return comparison


@dataclass(frozen=True)
class Creator:
    """Makes the models of a comparison: pretrained, for the data's classes, on one device.

    Attributes:
        name: what `create_model` calls the model.
        classes: how many there are.
        pretrained: whether the backbone has its pretrained weights.
        device: where the backbone runs; None for a GPU if there is one.
    """

    name: str
    classes: int
    pretrained: bool = True
    device: str | None = None

    def of_views(self, views: Sequence[View]) -> SRNN:
        """A model that reads these views."""
        sizes, zooms = [view.size for view in views], [view.zoom for view in views]
        zoomed = zooms if max(zooms) > 1 else None
        image = ScalePyramid(sizes, zooms=zoomed).image_size
        return self._create(scales=[size / max(sizes) for size in sizes], img_size=image, zooms=zoomed)

    def of_levels(self, levels: int, variant: str) -> SRNN:
        """A model of so many levels, for their features; it stays on the CPU."""
        return self._create(scales=[1.0] * levels, zooms=[1.0] * levels, variant=variant).cpu()

    def check(self, variant: str) -> None:
        """Refuse a variant that cannot be fitted to features, or does not answer after every level."""
        model = self.of_levels(2, variant)
        check_reads_features(model)
        check_every_exit(model)

    @cached_property
    def default_sizes(self) -> tuple[int, int]:
        """The backbone's own size, and 1.5 times that."""
        own = min(self._create(scales=[1.0]).img_size)
        return own, own * 3 // 2

    def _create(self, **options: Any) -> SRNN:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same backbone each time
            model = create_model(self.name, pretrained=self.pretrained, num_classes=self.classes, **options)
        model.backbone.requires_grad_(False)
        return model.to(device)
