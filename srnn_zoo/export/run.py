"""Classify image files with the exported model in this folder, level by level, stopping where the answer is sure."""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def read_manifest(folder):
    """What is in export.json, once every file is found to be as it was written."""
    folder = Path(folder)
    if not (folder / "export.json").is_file():
        raise FileNotFoundError(f"{folder} is no exported model: it has no export.json")
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    for name, sha256 in about["files"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}: copy it again, or export the model again")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{folder / name} is not as it was exported: copy it again, or export the model again")
    return about


def open_graph(path, threads=0):
    """A graph as a function from arrays to arrays; with 0 threads the runtime chooses how many."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    names = [entry.name for entry in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def frame(image, width, height):
    """The size `(width, height)` of an image that just fills a frame, in its own shape."""
    if width == height:
        return [int(width * length / min(image.size)) for length in image.size]
    ratio = min(image.width / width, image.height / height)
    return [round(length / ratio) for length in image.size]


def crop(image, width, height, how):
    """The middle of an image, as large as what the levels are made of."""
    size = frame(image, *(math.floor(length / how["crop_pct"]) for length in (width, height)))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    method = Image.Resampling[how["crop_interpolation"].upper()]
    return image.resize(tuple(size), method).crop((left, top, left + width, top + height))


def zoomed(image, zoom):
    """The middle of an image, by that much smaller on each side."""
    width, height = (int(length / zoom + 0.5) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if zoom == 1 else image.crop((left, top, left + width, top + height))


def resize(image, width, height, how):
    """An image in another size."""
    return image.resize((width, height), Image.Resampling[how["interpolation"].upper()])


def read_levels(path, about):
    """The levels of an image file, normalised, (1, C, H, W) each, smallest first."""
    how, (height, width) = about["preprocessing"], about["image_size"]
    with Image.open(path) as file:
        image = crop(ImageOps.exif_transpose(file).convert(how["mode"]), width, height, how)
    views = zip(about["level_sizes"], about["zooms"], strict=True)
    levels = [np.asarray(resize(zoomed(image, zoom), w, h, how), np.float32) for (h, w), zoom in views]
    mean, std = (np.array(how[key], np.float32) for key in ("mean", "std"))
    normalized = [(level.reshape(*level.shape[:2], -1) / 255 - mean) / std for level in levels]
    return [np.ascontiguousarray(level.transpose(2, 0, 1)[None]) for level in normalized]


def answers(levels, graphs, about):
    """Every level with its logits (K,); a level is read when its answer is asked for."""
    state = np.zeros((1, about["state_width"]), np.float32)
    for level, pixels in enumerate(levels):
        encoder, step = (graphs[about["graphs"][kind][level]] for kind in ("encoders", "steps"))
        state, *logits = step(*encoder(pixels), state)
        if logits:  # some models answer after the last level only
            yield level, logits[0][0]


def probabilities(logits):
    """Softmax."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def score(found, rule):
    """How sure probabilities are, from 0 to 1."""
    if rule == "entropy":
        return 1 + (found * np.log(found.clip(1e-38))).sum() / math.log(max(2, len(found)))
    first, second = np.sort(np.append(found, 0))[:-3:-1]
    return first - second if rule == "margin" else first


def until_sure(answers, rule, thresholds, temperatures):
    """The answers up to the first that is sure."""
    for level, logits in answers:
        yield level, logits
        if level < len(thresholds) and score(probabilities(logits / temperatures[level]), rule) >= thresholds[level]:
            return


def main():
    """Print the best classes of each image, and the level at which it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--threshold", type=float, help="stop where the answer is that sure, such as 0.9")
    parser.add_argument("--topk", type=int, default=5, help="how many classes to name (default: 5)")
    args = parser.parse_args()
    folder = Path(__file__).parent
    about = read_manifest(folder)
    graphs = {name: open_graph(folder / name) for kind in ("encoders", "steps") for name in set(about["graphs"][kind])}
    calibrated = about["metadata"].get("exit")
    if not calibrated or calibrated["rule"] not in ("confidence", "margin", "entropy"):  # others are read to the end
        calibrated = {"rule": "confidence", "thresholds": [], "temperatures": None}
    temperatures = calibrated["temperatures"] or about["temperatures"]
    for path in args.images:
        try:
            levels = read_levels(path, about)
        except OSError as error:
            print(f"{path}: skipped, {error}", file=sys.stderr)
            continue
        thresholds = calibrated["thresholds"] if args.threshold is None else [args.threshold] * len(levels)
        found_after = answers(levels, graphs, about)
        *_, (level, logits) = until_sure(found_after, calibrated["rule"], thresholds, temperatures)
        found = probabilities(logits / about["temperatures"][level])
        height, width = about["level_sizes"][level]
        print(f"{path}  (stopped at {height} x {width})")
        for best in np.argsort(-found)[: args.topk]:
            print(f"  {100 * found[best]:5.1f} %  {about['class_names'][best]}")


if __name__ == "__main__":
    main()
