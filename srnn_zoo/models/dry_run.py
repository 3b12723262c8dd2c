"""What a network that is not timm's gives and reads, found out by running it on an image of zeros."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backbone import in_mode
from .sizes import Reads

Output = str | int | Callable[[Any], Tensor] | None
Path = tuple[str | int, ...]
Size = tuple[int, int]

_ENTRIES = ("pooler_output", "last_hidden_state", "feature_maps", "logits")  # of transformers; the first that is there
_MULTIPLES = (1, 2, 4, 7, 8, 14, 16, 28, 32, 48, 64)  # strides, patches and windows, in pixels
_KINDS = {2: "features", 3: "tokens", 4: "maps"}  # by the number of dimensions


class Found(NamedTuple):
    """What a network gives for one image.

    Attributes:
        path: the keys or indices that lead from its output to its features.
        kind: `"features"` `(B, D)`, `"tokens"` `(B, L, D)` or `"maps"` `(B, D, H, W)`.
        width: D.
        shape: of the features.
    """

    path: Path
    kind: str
    width: int
    shape: tuple[int, ...]


class DryRun:
    """Runs a network on one image of zeros, in evaluation mode and on its device; nothing of the network changes.

    Args:
        net: the network.
        in_chans: channels of its images.
        output: as of `SRNN.wrap`.
    """

    def __init__(self, net: nn.Module, in_chans: int, output: Output = None) -> None:
        self.net, self.in_chans, self.output = net, in_chans, output
        self.name = type(net).__name__

    @torch.no_grad()
    def __call__(self, size: Size) -> Found:
        """What the network gives for an image `(H, W)`.

        Raises:
            ValueError: where it cannot read the image, or gives no features.
        """
        like = next(self.net.parameters())
        images = torch.zeros(1, self.in_chans, *size, device=like.device, dtype=like.dtype)
        try:
            with in_mode(self.net, training=False), torch.random.fork_rng([like.device] if like.is_cuda else []):
                out = self.net(images, **call_options(self.net))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the user's own code raises
            shape = " x ".join(map(str, images.shape[1:]))
            raise ValueError(
                f"{self.name} cannot read an image of {shape}: give in_chans=, img_size= (of the largest level), "
                f"multiple= (of its patches) or tile= (the one size that it reads). It says: {error}"
            ) from error
        return self._find(out)

    def reads(self, native: Size, levels: Sequence[Size]) -> Reads:
        """Which sizes the network reads: multiples of the smallest number that fits, or tiles of its own size.

        Args:
            native: a size that it reads.
            levels: sizes that it will be given, once they are rounded to the multiple.

        Raises:
            ValueError: if its maps have their channels last.
        """
        own = self(native)
        patch = getattr(getattr(self.net, "config", None), "patch_size", 1)
        patch = patch if isinstance(patch, int) else 1
        for multiple in (patch, *(m for m in _MULTIPLES if m > patch)):
            if native[0] % multiple or native[1] % multiple:
                continue
            sizes = [(native[0] + multiple, native[1] + multiple)]
            sizes += [(_round(height, multiple), _round(width, multiple)) for height, width in levels]
            if all(self._reads(size, own) for size in sizes):
                return Reads(multiple)
        return Reads(tile=native)

    def _reads(self, size: Size, own: Found) -> bool:
        """Whether the network gives features of its own width for an image of another size."""
        try:
            other = self(size)
        except ValueError:
            return False
        if own.kind == "maps" and own.width != other.width and own.shape[3] == other.shape[3]:
            raise ValueError(
                f"{self.name} gives maps {own.shape} and {other.shape} at two sizes, as if channels came last: "
                "give output=lambda out: out.permute(0, 3, 1, 2)"
            )
        return (own.kind, own.width) == (other.kind, other.width)

    def _find(self, out: Any) -> Found:
        """The features in what the network gave."""
        path: Path = ()
        if callable(self.output):
            features = self.output(out)
        else:
            try:
                path = () if self.output is None else (self.output,)
                path += _path(take(out, path))
                features = take(out, path)
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"{self.name} gives {_describe(out)}, without an entry {self.output!r}") from None
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{self.name} gives {_describe(features)}: say which of it are the features, with output= (a key, an "
                "index, or a function such as lambda out: out.features)"
            )
        shape = tuple(features.shape)
        if len(shape) not in _KINDS or shape[0] != 1 or not features.is_floating_point():
            raise ValueError(
                f"{self.name} gives {_describe(features)} for one image, neither features (B, D), tokens (B, L, D) nor "
                "maps (B, C, H, W): make one of them of it, with output=lambda out: …"
            )
        return Found(path, _KINDS[len(shape)], shape[2 if len(shape) == 3 else 1], shape)


def take(out: Any, path: Path) -> Any:
    """What keys and indices lead to."""
    for key in path:
        out = out[key]
    return out


def _path(out: Any) -> Path:
    """The keys that lead to the features, as far as they are known."""
    key: Any = None
    if isinstance(out, Mapping):
        key = next(iter(out)) if len(out) == 1 else next((key for key in _ENTRIES if out.get(key) is not None), None)
    elif isinstance(out, list | tuple):
        fields = getattr(out, "_fields", ())  # torchvision's nets with an auxiliary classifier name them
        key = 0 if len(out) == 1 else fields.index("logits") if "logits" in fields else None
    if key == "feature_maps":
        return key, -1  # from large to small
    return () if key is None else (key, *_path(out[key]))


def _describe(out: Any) -> str:
    """What a network gave, in words."""
    if isinstance(out, Tensor):
        return f"a tensor {tuple(out.shape)} of {out.dtype}"
    if isinstance(out, Mapping):
        return f"a dictionary of {', '.join(map(repr, out))}"
    if isinstance(out, list | tuple):
        return f"a {type(out).__name__} of {len(out)}: {', '.join(map(_describe, out))}"
    return f"a {type(out).__name__}"


def call_options(net: nn.Module) -> dict[str, Any]:
    """What a network must be told to read several sizes: transformers' ViTs interpolate their positions if asked."""
    known = inspect.signature(net.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}


def own_size(net: nn.Module) -> Size | None:
    """The size `(H, W)` that a network says that it is for."""
    config = getattr(net, "pretrained_cfg", None)  # of a timm model
    if isinstance(config, dict) and "input_size" in config:
        return tuple(config["input_size"][-2:])
    for owner in (net, getattr(net, "config", None)):
        size = getattr(owner, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def first_conv(net: nn.Module) -> tuple[str | None, int]:
    """The name of the first convolution, and the channels that it or transformers' config says images have; or 3."""
    name, module = next(((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    channels = getattr(getattr(net, "config", None), "num_channels", None)
    if isinstance(channels, int):
        return name, channels
    return name, (module.in_channels if module else 0) or 3  # a lazy one has 0 so far


def _round(length: int, multiple: int) -> int:
    """The nearest multiple, of which there is at least one."""
    return max(1, round(length / multiple)) * multiple
