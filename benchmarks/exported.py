"""What an exported model saves: eager PyTorch and the step graphs, all levels and early exit, in one run on one thread.

Every image is answered by each way in turn, one at a time, so that noise of the machine meets all of them. The kept
saving is the share of early exit's saving in GMACs that is left in milliseconds. With --int8 the encoder is quantised
too; every third image of the folder that it names sets the ranges, 128 at most.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, Row, imagenet_sample, report
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.images import find_images
from srnn_zoo.datasets.loader import ImageLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="name, or folder of a saved model")
    parser.add_argument("--data", type=Path, help="DATA/CLASS/image.jpg; by default the ImageNet sample")
    parser.add_argument("--format", default="onnx", help="onnx or openvino")
    parser.add_argument("--exit", default="confidence:0.5", help="when an image stops")
    parser.add_argument("--limit", type=int, help="number of images; by default all")
    parser.add_argument("--int8", type=Path, help="measure an encoder of 8 bits, too, whose ranges these images set")
    args = parser.parse_args()
    torch.set_num_threads(1)
    saved = Path(args.model).is_dir()
    model = srnn_zoo.SRNN.from_pretrained(args.model) if saved else srnn_zoo.create_model(args.model, pretrained=True)
    model.eval()
    data = args.data or imagenet_sample()
    with tempfile.TemporaryDirectory() as name:
        models = {"eager": model, args.format: export(model, Path(name) / "float", format=args.format)}
        if args.int8:
            files = find_images([args.int8])[2::3]
            models["int8"] = export(model, Path(name) / "int8", int8=files[:: max(1, len(files) // 128)][:128])
        ways = {
            (runtime, rule): srnn_zoo.Anytime(m, rule) for runtime, m in models.items() for rule in (ALL, args.exit)
        }
        rows = measure(model, ways, ImageLoader(data, model, batch_size=1), args.limit)
        report(rows, RESULTS / f"exported_{args.format}{f'_{args.data.parent.name}' if args.data else ''}.csv")


ALL = "level:1"


def export(model: srnn_zoo.SRNN, folder: Path, **options: Any) -> srnn_zoo.SRNN:
    """The same model out of a folder, on one thread."""
    model.export(folder, **{"kind": "steps", **options})
    return srnn_zoo.open_exported(folder, threads=1)


@torch.inference_mode()
def measure(
    model: srnn_zoo.SRNN, ways: dict[tuple[str, str], srnn_zoo.Anytime], loader: ImageLoader, limit: int | None
) -> list[Row]:
    """A row for every way, from the same images."""
    found: dict[tuple[str, str], list[tuple[float, float, bool]]] = {way: [] for way in ways}
    for levels, targets in tqdm(itertools.islice(loader, limit), unit="image", total=limit or len(loader)):
        for way, anytime in ways.items():
            start = time.perf_counter()
            logits, _, gmacs = anytime(levels)
            seconds = time.perf_counter() - start
            found[way].append((seconds, gmacs.item(), (logits.argmax(1) == targets).item()))
    times = {way: statistics.median(seconds for seconds, _, _ in rows) for way, rows in found.items()}
    totals = {way: sum(seconds for seconds, _, _ in rows) for way, rows in found.items()}
    costs = {way: statistics.mean(gmacs for _, gmacs, _ in rows) for way, rows in found.items()}
    table: list[Row] = []
    for (runtime, rule), rows in found.items():
        own, everything = (runtime, rule), (runtime, ALL)
        saved, saved_gmacs = 1 - totals[own] / totals[everything], 1 - costs[own] / costs[everything]
        table.append(
            {
                "runtime": runtime,
                "exit": "all levels" if rule == ALL else rule,
                "images": len(rows),
                "top1": round(100 * statistics.mean(right for _, _, right in rows), 1),
                "GMACs": round(costs[own], 3),
                "ms (median)": round(1000 * times[own], 1),
                "ms (mean)": round(1000 * totals[own] / len(rows), 1),
                "times eager's images/s": round(totals["eager", rule] / totals[own], 2),
                "saving kept, %": "" if rule == ALL else round(100 * saved / saved_gmacs, 1),
            }
        )
    return table


if __name__ == "__main__":
    main()
