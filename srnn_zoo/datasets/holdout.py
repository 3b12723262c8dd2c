"""One folder of classes in two parts, for training and for validation, and the file that records which is which."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SPLIT_FILE = "split.json"  # in the folder of a run


@dataclass(frozen=True)
class Holdout:
    """Which images of a folder train, and which are held out for validation.

    Attributes:
        folder: its absolute path.
        val_fraction: the share of each class's images that is held out, in (0, 1).
        seed: of the choice.
        train: paths of the training images in the folder, `CLASS/image.jpg`, ordered by class.
        val: the same of the validation images.
    """

    folder: str
    val_fraction: float
    seed: int
    train: list[str]
    val: list[str]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in order; every one has training images."""
        return list(dict.fromkeys(map(_class_of, self.train)))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Holdout:
        """What `save` wrote; a ValueError for any other file."""
        try:
            holdout = cls(**json.loads(Path(file).read_text(encoding="utf-8")))
            if holdout.classes and set(map(_class_of, holdout.val)) <= set(holdout.classes):
                return holdout
        except (ValueError, TypeError, AttributeError):
            pass
        raise ValueError(f"{os.fspath(file)} is no split of a folder such as training with --val-fraction writes")

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        Path(file).write_text(json.dumps(asdict(self), indent=0), encoding="utf-8")

    def check_same(self, new: Holdout, file: str | os.PathLike[str]) -> None:
        """Raise a ValueError that says how a split differs from this one, which the file records."""
        mine, other = {*self.train, *self.val}, {*new.train, *new.val}
        changes = [f"{_listed(other - mine)} new"] if other - mine else []
        changes += [f"{_listed(mine - other)} gone"] if mine - other else []
        if changes:
            raise ValueError(
                f"{new.folder} is not the folder that {os.fspath(file)} splits: {', '.join(changes)}; "
                "put it back as it was, or begin a new run"
            )
        if (self.train, self.val) != (new.train, new.val):
            raise ValueError(
                f"{os.fspath(file)} holds out {self.val_fraction:g} of the images with seed {self.seed}; "
                f"got {new.val_fraction:g} with seed {new.seed}: give the same, or begin a new run"
            )


def hold_out(folder: str | os.PathLike[str], paths: Sequence[str], val_fraction: float, seed: int) -> Holdout:
    """Hold out a share of the images of each class, chosen by a hash of the seed and their paths.

    A class with two images or more has at least one in either part; a single image trains.

    Args:
        folder: that the paths are in.
        paths: `CLASS/image.jpg`, ordered by class.
        val_fraction: in (0, 1).
        seed: of the choice, which is the same on every machine.

    Raises:
        ValueError: for another share, and where no class has two images.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be a share between 0 and 1, such as 0.2; got {val_fraction:g}")
    classes: dict[str, list[str]] = {}
    for path in paths:
        classes.setdefault(_class_of(path), []).append(path)
    held: set[str] = set()
    for own in classes.values():
        count = min(max(1, math.floor(val_fraction * len(own) + 0.5)), len(own) - 1)
        held.update(sorted(own, key=lambda path: _rank(seed, path))[:count])
    if not held:
        raise ValueError(f"{os.fspath(folder)}: no class has two images, so none can be held out for validation")
    train, val = ([path for path in paths if (path in held) == is_val] for is_val in (False, True))
    return Holdout(str(Path(folder).resolve()), val_fraction, seed, train, val)


def _class_of(path: str) -> str:
    return path.partition("/")[0]


def _rank(seed: int, path: str) -> str:
    return hashlib.sha256(f"{seed}/{path}".encode(errors="surrogateescape")).hexdigest()


def _listed(paths: set[str]) -> str:
    """How many images, with the first of them: `3 images (cat/7.jpg, …) are`."""
    first = min(paths)
    return f"image {first} is" if len(paths) == 1 else f"{len(paths)} images ({first}, …) are"
