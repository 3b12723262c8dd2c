"""Answer images on a Ray cluster, with early exit: `python examples/ray_predict.py FOLDER MODEL OUTPUT`.

Ray Data reads the files, its actors hold the model and answer, and the rows go to Parquet files in the folder OUTPUT.
They are those of `srnn-zoo predict FOLDER --output answers.parquet --exit RULE`, in any order. Ray starts on this
machine; `RAY_ADDRESS=auto` joins a cluster, whose machines must all see FOLDER, MODEL and OUTPUT.

Needs `pip install "srnn-zoo[ray]"`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from srnn_zoo import SRNN
from srnn_zoo.datasets.images import find_images
from srnn_zoo.datasets.inputs import BytesItem
from srnn_zoo.inference.exits import exit_rule
from srnn_zoo.inference.predict import predict
from srnn_zoo.inference.rows import arrow_table, table_cells, table_columns


class Answer:
    """An actor: it loads the model once, and answers batch after batch."""

    def __init__(self, model: str, exit: str, device: str, folder: str, root: str) -> None:
        self.model = SRNN.from_pretrained(model).eval().to(device)
        self.exit = exit_rule(exit)
        self.columns = table_columns(self.model, exit=True)
        self.folder, self.root = Path(folder), root

    def __call__(self, files: Any) -> Any:
        """The rows of files, a `pyarrow.Table` with the columns `path` and `bytes`."""
        images = [BytesItem(self.name(file["path"]), file["bytes"]) for file in files.to_pylist()]
        answers = predict(self.model, images, batch_size=len(images), exit=self.exit)
        return arrow_table([table_cells(answer, self.columns) for answer in answers], self.columns)

    def name(self, path: str) -> str:
        """The path as `srnn-zoo predict` writes it: with the folder as it was given."""
        return str(self.folder / os.path.relpath(path, self.root))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of images, at any depth")
    parser.add_argument("model", help="folder of a saved model, or a Hub id")
    parser.add_argument("output", help="folder for the Parquet files")
    parser.add_argument("--exit", default="confidence:0.9", metavar="RULE", help="when an image stops")
    parser.add_argument("--actors", type=int, default=2, help="each with a CPU or a GPU of its own")
    parser.add_argument("--batch-size", type=int, default=8, help="images that an actor answers at a time")
    parser.add_argument("--gpu", action="store_true", help="give every actor a GPU")
    args = parser.parse_args()

    try:
        exit_rule(args.exit)
    except ValueError as error:
        parser.error(f"--exit: {error}")

    import ray  # pyright: ignore[reportMissingImports]

    output = Path(args.output).resolve()
    if output.exists():
        parser.error(f"{output} exists: Ray would add its rows to those that are there")
    model = Path(args.model).resolve()
    waits = {"num_cpus": 0.1}  # what reads and writes waits for disks, and leaves two CPUs to two actors
    paths = [str(path.absolute()) for path in find_images([args.folder])]
    files = ray.data.read_binary_files(paths, include_paths=True, ray_remote_args=waits)
    answers = files.map_batches(
        Answer,
        fn_constructor_args=(
            str(model) if model.is_dir() else args.model,
            args.exit,
            "cuda" if args.gpu else "cpu",
            args.folder,
            str(Path(args.folder).absolute()),  # an actor works in a folder of its own
        ),
        batch_size=args.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_cpus=0.8,
        num_gpus=1 if args.gpu else 0,
    )
    answers.write_parquet(str(output), ray_remote_args=waits)
    print(f"saved: {output}")


if __name__ == "__main__":
    main()
