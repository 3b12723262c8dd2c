"""What `torch.compile` costs in seconds, and what it saves per image: a compiled model against the same model in eager.

Both are timed in turn. The seconds until the first answer are those of an empty cache.
"""

from __future__ import annotations

import copy

import torch
from _common import Row, alternate, parser, report, seconds
from torch._inductor.utils import fresh_cache

import srnn_zoo


def main() -> None:
    options = parser(__doc__, "compiled.csv", rounds=30)
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images in a batch (default: 1 8)")
    options.add_argument("--models", nargs="+", default=["srnn_efficientnet_lite0"], help="names of models")
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.models:
        for batch_size in args.batch_sizes:
            for dynamic in (True, False):
                model = srnn_zoo.create_model(name).eval()
                rows.append({"model": name, **compare(model, batch_size, dynamic, args.rounds)})
                report(rows, args.csv)  # after each, as compiling takes minutes


@torch.inference_mode()
def compare(model: srnn_zoo.SRNN, batch_size: int, dynamic: bool, rounds: int) -> Row:
    """Seconds until the first compiled answer, for any size or for this one, then paired times of a batch."""
    images = torch.randn(batch_size, model.in_chans, *model.img_size)
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    with fresh_cache():
        compiled.compile(fullgraph=True, dynamic=dynamic)
        first = seconds(lambda: compiled(images))
        turns = alternate({"eager": lambda: model(images), "compiled": lambda: compiled(images)}, rounds, warm_up=2)
        difference = (compiled(images) - model(images)).abs().max().item()
    saved = (turns.median("eager") - turns.median("compiled")) / batch_size
    return {
        "levels": "+".join(str(height) for height, _ in model.level_sizes()),
        "batch_size": batch_size,
        "sizes": "any" if dynamic else "one",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "compile_s": f"{first:.1f}",
        "eager_ms_per_image": f"{1000 * turns.median('eager') / batch_size:.1f}",
        "compiled_ms_per_image": f"{1000 * turns.median('compiled') / batch_size:.1f}",
        **turns.ratio("eager", "compiled").columns(digits=2),
        "pays_after_images": f"{first / saved:.0f}" if saved > 0 else "never",
        "max_difference": f"{difference:.1e}",
    }


if __name__ == "__main__":
    main()
