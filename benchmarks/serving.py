"""What HTTP and batching add to an answer: `examples/serve.py` on loopback beside `predict` in this process.

Eight photographs of scikit-image are asked for by one client, one after the other, and by eight clients at once. The
ratio is the time of an image over that of `predict`, one image at a time; with eight clients the service batches them.
Service and `predict` have the same number of threads each.
"""

from __future__ import annotations

import io
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import skimage
import torch
from _common import ROOT, Row, alternate, parser, report
from PIL import Image

import srnn_zoo
from srnn_zoo.inference.exits import exit_rule
from srnn_zoo.inference.predict import predict

FILES = "astronaut camera chelsea coffee motorcycle_left motorcycle_right rocket retina".split()
RULES = ("level:0", "level:1", "confidence:0.5")
CLIENTS = (1, 8)
BESIDE_ITSELF = {"ratio_median": "1", "ratio_95_percent": "", "answer": ""}


def main() -> None:
    options = parser(__doc__, "serving.csv", rounds=12)
    options.add_argument("--model", default="srnn_tf_efficientnet_lite0")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    srnn_zoo.keep_freed_memory()  # as the service does
    model = srnn_zoo.for_inference(srnn_zoo.create_model(args.model, pretrained=True).eval())
    port = free_port()
    command = [sys.executable, ROOT / "examples" / "serve.py", "--model", args.model, "--port", port, "--threads"]
    service = subprocess.Popen(
        [*map(str, command), str(args.threads)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(service, port)
        rows = [row for rule in RULES for row in measured(model, rule, port, args.rounds)]
    finally:
        service.terminate()
        service.wait()
    report(rows, args.csv)


def measured(model: srnn_zoo.SRNN, rule: str, port: int, rounds: int) -> list[Row]:
    files = photographs()
    waited: dict[str, list[float]] = {}

    def ask(way: str, image: bytes) -> None:
        start = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/predict?exit={rule}", image) as answer:
            json.load(answer)
        waited.setdefault(way, []).append(time.perf_counter() - start)

    def served(clients: int) -> None:
        list(pools[clients].map(lambda image: ask(f"{clients} clients", image), files))

    def in_process() -> None:
        for image in files:
            start = time.perf_counter()
            list(predict(model, image, exit=exit_rule(rule)))
            waited.setdefault("predict", []).append(time.perf_counter() - start)

    pools = {clients: ThreadPoolExecutor(clients) for clients in CLIENTS}
    ways = {"predict": in_process, **{f"{n} clients": lambda n=n: served(n) for n in CLIENTS}}
    turns = alternate(ways, rounds, title=rule)
    return [
        {
            "exit": rule,
            "way": way.replace("1 clients", "1 client"),
            "ms_median": f"{1000 * statistics.median(waited[way]):.0f}",
            "ms_95_percent": f"{1000 * np.quantile(waited[way], 0.95):.0f}",
            "images_a_second": f"{len(files) / turns.median(way):.1f}",
            **(turns.ratio(way, over="predict").columns(digits=2) if way != "predict" else BESIDE_ITSELF),
        }
        for way in ways
    ]


def photographs() -> list[bytes]:
    """As JPEG files."""
    folder = Path(skimage.__file__).parent / "data"
    found: list[bytes] = []
    for name in FILES:
        path = next(folder.glob(f"{name}.*"))
        with Image.open(path) as image:
            image.convert("RGB").save(file := io.BytesIO(), "jpeg", quality=90)
        found.append(file.getvalue())
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(service: subprocess.Popen[bytes], port: int, seconds: float = 120) -> None:
    """Until the service answers; an error where it has ended or takes too long."""
    for _ in range(int(seconds / 0.2)):
        if service.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("examples/serve.py did not start")


if __name__ == "__main__":
    main()
