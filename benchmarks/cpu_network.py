"""What `for_inference` saves on a CPU: backbones as they are, folded, in channels-last order, and both, timed in turn.

Each reads the levels of one image. Times are the process's own, which other programs disturb least; the default is one
thread. Batch norm gets random statistics, so that the largest difference of the features says something.
"""

from __future__ import annotations

import time

import torch
from _common import Row, alternate, parser, report
from torch import nn

import srnn_zoo
from srnn_zoo.inference.prepare import channels_last, folded, twin
from srnn_zoo.models.sizes import read

MODELS = ["resnet18", "resnet50", "efficientnet_lite0", "convnext_atto", "vit_small_patch16_224"]


def main() -> None:
    options = parser(__doc__, "cpu_network.csv", rounds=11)
    options.add_argument("--batch-size", type=int, default=1, help="images in a batch (default: %(default)s)")
    options.add_argument("--models", nargs="+", default=MODELS, help="timm's names (default: five kinds of network)")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.models:
        rows += table_rows(name, args.batch_size, args.rounds)
        report(rows, args.csv)


@torch.no_grad()
def table_rows(name: str, batch_size: int, rounds: int) -> list[Row]:
    """The rows of one network."""
    model = srnn_zoo.create_model(f"srnn_{name}").eval()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    sizes = model.level_sizes()
    levels = [torch.randn(batch_size, model.in_chans, *size) for size in sizes]
    backbones = {"plain": model.backbone, "folded": folded(model.backbone)}
    backbones |= {"channels last": channels_last(twin(model.backbone))}
    backbones |= {"folded, channels last": channels_last(folded(model.backbone))}

    def ready(way: str) -> list[torch.Tensor]:
        return [read(backbones[way], level, model.reads.tile) for level in levels]

    expected = ready("plain")
    turns = alternate(
        {way: lambda way=way: ready(way) for way in backbones}, rounds, clock=time.process_time, title=name
    )
    return [
        {
            "model": name,
            "levels": "+".join(str(height) for height, _ in sizes),
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "way": way,
            "median_ms": f"{1000 * turns.median(way):.1f}",
            **turns.ratio("plain", way).columns(),
            "largest_difference": f"{max(map(difference, ready(way), expected)):.1e}",
        }
        for way in list(backbones)[1:]
    ]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, over the largest feature."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    main()
