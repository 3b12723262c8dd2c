"""SRNN: a pyramid, one backbone that reads every level, a cell that runs over scale, one classifier."""

# annotations are evaluated here, as torch.fx copies forward's into the code it writes
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from srnn_zoo._errors import unknown_name
from srnn_zoo.export.export import ExportMixin
from srnn_zoo.transforms.levels import Levels, default_scales, pair, scale_ratios
from srnn_zoo.transforms.packed import PackedPyramid
from srnn_zoo.transforms.resizing import Interpolation, check_interpolation
from srnn_zoo.transforms.views import check_zooms, shares
from srnn_zoo.weights.hub import HubMixin

from .backbone import (
    forget_patch_size_check,
    has_nonnegative_features,
    prefix_feature_info,
    replace_removed_classifier,
    srnn_config,
)
from .cells import create_cell
from .maps import LevelMaps
from .norms import Norm, convert_norms, level_parameters
from .protocol import TimmProtocol
from .reading import Images
from .recurrence import Step, scan, steps
from .sizes import reads
from .tasks import Task
from .temperatures import temperature
from .views import CENTER, View, find_view
from .wrap import WrapMixin


class SRNN(WrapMixin, HubMixin, ExportMixin, TimmProtocol, LevelMaps, nn.Module):
    """Scale-recurrent network (D.-Q. Zhang, 2018, section 3) over any timm backbone, with timm's model protocol.

    `model(x)` takes the largest level `(B, C, H, W)` and builds the smaller ones on x's device; `model([x_1, …, x_n])`
    and `model(Pyramid(…))` take any number of levels, smallest first; `model(Pyramid.pack(…))` images of mixed
    heights. It returns logits `(B, num_classes)`.

    Args:
        backbone: a timm model made with `num_classes=0`: the base CNN C.
        variant: the cell's registered name (`list_cells()`).
        scales: sizes of the levels built from one tensor, relative to the largest; they grow and end with 1.0. By
            default `(0.5, 1.0)`, with zooms all 1.0.
        activation: φ; `"auto"` is the rectifier where the backbone's features are non-negative, else the identity.
        interpolation: how levels are made from one tensor: `"bicubic"`, `"bilinear"` or `"gaussian"`.
        exits: `"shared"`, one classifier for all levels, as in the paper; or `"separate"`, one for each level
            (`exit_classifiers`, and `fc` for the last).
        norm: batch norm of the backbone: `"shared"` by the levels, as in the paper; `"per_level"`, statistics and
            affine parameters for each level (`models.norms.LevelNorm`); or `"frozen"`, constant in training too.
        num_classes: width of the classifier; 0 for none.
        drop_rate: dropout before the classifier, in [0, 1).
        global_pool: `"avg"`, or `""` with `num_classes=0` to get the state as a map.
        img_size: the size `(H, W)` of the largest level that this model is for, with zooms of the image that the levels
            are parts of; by default, the smallest level then has the backbone's own size.
        zooms: one for each level, 1.0 or more: it shows `1 / zoom` of the image's height and width. By default every
            level shows all of it. With zooms the scales need not grow, and the largest is 1.0.
        views: where a level with a zoom looks: `"center"`, the middle; `"attention"`, around the centre of mass of the
            class activation map of the level before; another name of `register_view`, or a function of a
            `models.views.Glance`.

    Attributes:
        pretrained_cfg: timm's: the preprocessing and what the weights are.
        metadata: what else belongs to the weights, in JSON's types, all optional: `base_model` (a Hub id, or timm's
            name of the base CNN's weights), `dataset`, `metrics` (`{"imagenet-1k": {"top1": 71.5}}`, in per cent),
            `recipe`, `license` and `task`. It is saved with the model and comes back.
        zero_shot: whether this is the paper's initialisation of a pretrained classifier. Set where such weights are
            made or loaded; `train()`, `load_state_dict`, `reset_classifier` and any change of the cell or a classifier
            that autograd can see clear it.

        reads: which sizes of levels the backbone reads (`models.sizes.Reads`); others are rounded, or cut into tiles.

    Raises:
        ValueError: for an unknown variant, interpolation, kind of exits or norm, scales that do not grow to 1.0, a
            `norm` for a backbone without batch norm, and separate exits of a variant that has one exit; for zooms that
            are less than 1 or not as many as levels, and unknown views.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        variant: str = "half_gru",
        scales: Sequence[float] | None = None,
        activation: Literal["auto", "relu", "identity"] = "auto",
        interpolation: Interpolation = "bicubic",
        exits: Literal["shared", "separate"] = "shared",
        norm: Norm = "shared",
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] | None = None,
        zooms: Sequence[float] | None = None,
        views: str | View = CENTER,
    ) -> None:
        super().__init__()
        if getattr(backbone, "num_classes", 0):
            raise ValueError(f"make the backbone with num_classes=0; this one has {backbone.num_classes} classes")
        scales = default_scales(zooms) if scales is None else scales
        self.zooms = None if zooms is None else check_zooms(zooms, len(scales))
        self._ratios, self._shown = scale_ratios(scales, self.zooms), shares(self.zooms)
        self.scales = tuple(float(s) for s in scales)
        self.views, self._view = views, find_view(views)
        if self._view is not None and not (self.zooms and any(zoom > 1 for zoom in self.zooms[1:])):
            raise ValueError('views are of levels with a zoom: give zooms such as (1.0, 1.6), or leave views="center"')
        self.interpolation = check_interpolation(interpolation)
        self.variant = variant
        self.in_chans = int(getattr(backbone, "in_chans", 3))
        self.head_hidden_size = self.num_features = cast(int, backbone.head_hidden_size)
        self.feature_info = prefix_feature_info(backbone)
        self.reads = reads(backbone)
        self.pretrained_cfg = self.default_cfg = srnn_config(
            cast("dict[str, Any]", backbone.pretrained_cfg), self._ratios
        )
        if img_size is not None:
            self.pretrained_cfg["input_size"] = (self.pretrained_cfg["input_size"][0], *pair(img_size))
        self.metadata = cast("dict[str, Any]", {})
        self._stored_args = {}
        if activation == "auto":
            activation = "relu" if has_nonnegative_features(backbone) else "identity"

        replace_removed_classifier(backbone)
        convert_norms(backbone, norm, len(self.scales))
        self.norm = norm
        self.checkpoints_levels = False
        self.backbone = backbone
        like = next(backbone.parameters())
        cell = create_cell(variant, self.num_features, activation=activation, height=len(self.scales))
        self.cell = cell.to(like.device, like.dtype)
        if exits not in ("shared", "separate"):
            raise ValueError(unknown_name("kind of exits", exits, ("shared", "separate")))
        if exits == "separate" and not self.cell.anytime:
            raise ValueError(f'{type(self.cell).__name__} answers after the last level only: leave exits="shared"')
        self.exits = exits
        self.head_drop = nn.Dropout(drop_rate)
        self.exit_classifiers = nn.ModuleList()
        self.fc: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Images) -> Tensor:
        """Logits `(B, num_classes)` of the last state: F(h_n)."""
        if isinstance(x, PackedPyramid):
            if self.global_pool == "":
                return self.forward_features(x)
            return self._with_all_gradients(
                x.restore([self.forward_head(last, level=level) for level, last in self._last_maps(x)])
            )
        features = self.pyramid_features(x)
        return self._with_all_gradients(self.forward_head(self.fuse(features), level=len(features) - 1))

    def _with_all_gradients(self, logits: Tensor) -> Tensor:
        """The same logits; in training, parts of levels that gave no answer get a gradient of zero.

        DistributedDataParallel waits for the gradient of every parameter.
        """
        own = self.norm == "per_level" or len(self.exit_classifiers) > 0
        if not (own and self.training and torch.is_grad_enabled()):
            return logits
        parts = [*self.exit_classifiers.parameters(), *self.fc.parameters(), *level_parameters(self.backbone)]
        return logits + 0.0 * torch.stack([parameter.sum() for parameter in parts]).sum()

    def forward_features(self, x: Images) -> Tensor:
        """The last state h_n as a map `(B, D, 1, 1)`; of `mean_prob`, which takes the mean later, `(B, D, n, 1)`.

        In a batch of mixed heights that n is their least common multiple, and every level fills an equal share of it.
        """
        if not isinstance(x, PackedPyramid):
            return self.fuse(self.pyramid_features(x))
        maps = [last for _, last in self._last_maps(x)]
        width = math.lcm(*(last.shape[2] for last in maps))  # a mean over n stays what it is
        return x.restore([last.repeat_interleave(width // last.shape[2], dim=2) for last in maps])

    def _last_maps(self, x: PackedPyramid) -> list[tuple[int, Tensor]]:
        """The last states of mixed heights as maps `(b, D, n, 1)`, packed, each with the index of their last level."""
        ends = [*x.batch_sizes[1:], 0]  # of the images that go on
        states = scan(self.cell, (self.read_level(x, level) for level in range(x.height)))
        last = ((level, state[end:]) for level, (state, end) in enumerate(zip(states, ends, strict=True)))
        return [(level, self.cell.feature_map(state)) for level, state in last if len(state)][::-1]

    def fuse(self, features: list[Tensor]) -> Tensor:
        """Run the cell over the features of the levels; returns the last state as `forward_features` does."""
        *_, state = scan(self.cell, features)
        return self.cell.feature_map(state)

    def forward_head(self, x: Tensor, pre_logits: bool = False, level: int | None = None) -> Tensor:
        """Logits `(B, num_classes)` of a map from `forward_features`, or its `(B, D)` features with `pre_logits`.

        Args:
            x: the map.
            pre_logits: whether to leave out the classifier.
            level: index of the level that this is the state after, by default the last; for `exits="separate"` only.
        """
        if self.global_pool == "":
            return x
        if pre_logits or self.num_classes == 0:
            return x.mean(dim=(2, 3))
        positions = x.flatten(2).transpose(1, 2).flatten(0, 1)  # (B * positions, D)
        return self.cell.merge_logits(self.level_logits(positions, level), x)

    def level_logits(self, features: Tensor, level: int | None = None) -> Tensor:
        """F(C(x_s)): what the base CNN alone says, `(B, num_classes)`, of the features of a level."""
        return self.classifier(level)(self.head_drop(self.cell.pooled(features)))

    def state_logits(self, state: Tensor, level: int | None = None) -> Tensor:
        """F(h_s): logits `(B, num_classes)` of the state `(B, S)` after a level, by default the last."""
        return self.forward_head(self.cell.feature_map(state), level=level)

    def exit_logits(self, features: Iterable[Tensor]) -> Iterator[Tensor]:
        """F(h_s) after every level, `(B, num_classes)`, from the features of the levels, smallest first.

        A cell that answers after the last level only (`concat`) gives that answer alone.
        """
        states = enumerate(scan(self.cell, features))
        for level, state in states if self.cell.anytime else [*states][-1:]:
            yield self.state_logits(state, level)

    def classifier(self, level: int | None = None) -> nn.Module:
        """F of the state after a level, by default the last; beyond the levels of `scales`, the last one's too."""
        return self.fc if level is None or level >= len(self.exit_classifiers) else self.exit_classifiers[level]

    def temperature(self, level: int) -> float:
        """What the logits after a level are divided by where probabilities are made; the logits stay the paper's.

        A model that was trained by `fit` has one for each level, fitted to its validation split. A zero-shot model has
        those of the paper's initialisation, at which early states are quieter than the base CNN's features (half-GRU)
        or late ones louder (vanilla). Any other has 1.

        Args:
            level: index of the level, 0 for the smallest; beyond the levels of `scales` a stored last one serves.
        """
        return temperature(self, level)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place: `forward` as one graph, and the backbone, by which `steps` and `Anytime` read each level.

        Args:
            *args, **kwargs: as for `torch.compile`; `dynamic=True` where sizes of images or batches differ.
        """
        self.backbone.compile(*args, **kwargs)
        super().compile(*args, **kwargs)

    def steps(self, x: Images | Levels, state: Tensor | Step | None = None) -> Iterator[Step]:
        """The answers level by level, smallest first; a level is built and read only when its step is asked for.

        Args:
            x: images as for the model; after a `state`, the larger levels alone, or a copy that arrived later.
            state: an earlier step, or its state `(B, S)` alone, to go on from. Where levels have classifiers or batch
                norms of their own, it must be the step, which knows its level.

        Examples:
            >>> for step in model.steps(images):
            ...     print(step.size, step.gmacs, step.logits.argmax(1))
            >>> *_, last = model.steps([thumbnails])
            >>> *_, last = model.steps([larger], state=last)  # when they have arrived

        Cells that fuse a fixed number of levels (`concat`) have one step, the last.
        """
        yield from steps(self, self.lazy_levels(x), state)

    @property
    def set_input_size(self) -> Any:
        """timm's `set_input_size(img_size)`, for the largest level; only where the backbone has it."""
        inner = cast(Any, self.backbone).set_input_size

        def set_input_size(img_size: int | tuple[int, int], **kwargs: Any) -> None:
            size = pair(img_size)
            smallest = self.level_sizes(size)[0]
            inner(img_size=smallest, **kwargs)
            forget_patch_size_check(self.backbone)
            self._stored_args = {**self._stored_args, "backbone_img_size": smallest}
            self.pretrained_cfg["input_size"] = (self.pretrained_cfg["input_size"][0], *size)

        return set_input_size

    @property
    def task(self) -> Task:
        """What the outputs are: `"classification"`, `"multi_label"` or `"regression"`; `fit` sets it."""
        return self.metadata.get("task", "classification")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes that were saved with the model, in their order; empty where there are none."""
        return tuple(self.pretrained_cfg.get("label_names") or ())

    @property
    def zero_shot(self) -> bool:
        """See the attributes of the class."""
        since = self.__dict__.get("_zero_shot_since")
        return since is not None and all(map(operator.le, self._versions(), since))

    @zero_shot.setter
    def zero_shot(self, value: bool) -> None:
        self._zero_shot_since = self._versions() if value else None

    def _versions(self) -> list[int]:
        """How often each parameter of the cell and the classifiers was changed in place; 0 for those of a copy."""
        parts = (self.cell, self.exit_classifiers, self.fc)
        parameters = (parameter for part in parts for parameter in part.parameters())
        return [0 if parameter.is_inference() else parameter._version for parameter in parameters]

    def train(self, mode: bool = True) -> "SRNN":
        """As `nn.Module.train`; in training mode a model is no longer zero-shot."""
        self.zero_shot = self.zero_shot and not mode
        return super().train(mode)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module.load_state_dict`; the model is not zero-shot afterwards, as nobody knows what was loaded."""
        self.zero_shot = False
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def _model_args(self) -> dict[str, Any]:
        """The factory arguments that make this model again, as timm saves them: read off the model as it is."""
        own = {name: getattr(self, name) for name in ("variant", "scales", "interpolation", "exits", "norm")}
        classes = {"num_classes": self.num_classes} if "num_classes" in self._stored_args else {}
        wrapped = getattr(self.backbone, "arguments", {})  # of a network that is not timm's (`wrap`)
        zoomed = {} if self.zooms is None else {"zooms": self.zooms, "views": self.views}
        return {**self._stored_args, **wrapped, **classes, **own, **zoomed, "activation": self.cell.activation}

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        # a saved model must not download other weights when it is loaded
        weights = ("weights", "pretrained_backbone", "pretrained_model_args")
        self._stored_args = {k: v for k, v in args.items() if k not in weights}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier F for `num_classes` (0: none), on the same device and in the same dtype."""
        global_pool = self.global_pool if global_pool is None else global_pool
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes must be a whole number of 0 or more; got {num_classes!r}")
        if global_pool not in ("avg", ""):
            raise ValueError(f'global_pool must be "avg" or ""; got {global_pool!r}')
        if global_pool == "" and num_classes > 0:
            raise ValueError('global_pool="" returns a map and needs num_classes=0')
        self.num_classes = num_classes
        self.global_pool = global_pool
        separate = len(self.scales) - 1 if self.exits == "separate" and num_classes > 0 else 0
        like = next(self.backbone.parameters())
        new = partial(nn.Linear, self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.exit_classifiers = nn.ModuleList(new() for _ in range(separate))
        self.fc = new() if num_classes > 0 else nn.Identity()
        self._forget_classifier()

    def __setattr__(self, name: str, value: Any) -> None:
        """A linear layer may be put in the place of `fc`: `num_classes` follows it, as in torchvision's models."""
        super().__setattr__(name, value)
        if name == "fc" and isinstance(value, nn.Linear) and "num_classes" in self.__dict__:
            self.zero_shot = False
            if value.out_features != self.num_classes:
                self.num_classes = value.out_features
                self._forget_classifier()

    def _forget_classifier(self) -> None:
        """Forget what is true of the old classifier only."""
        self.zero_shot = False
        for name in ("label_names", "label_descriptions"):
            self.pretrained_cfg.pop(name, None)
        for name in ("dataset", "metrics", "recipe", "exit", "temperatures", "task"):
            self.metadata.pop(name, None)
