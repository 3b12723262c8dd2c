"""Name what is on images that the scikit-image package brings, level by level, and draw the answers: `make demo`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

IMAGES = ("chelsea.png", "coffee.png", "rocket.jpg")


def main() -> int:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        print('the demo reads images of scikit-image: pip install "srnn-zoo[demo]"', file=sys.stderr)
        return 2
    folder = Path(spec.origin).parent / "data"
    command = ["srnn-zoo", "predict", *(str(folder / name) for name in IMAGES)]
    command += ["--model", "srnn_tf_efficientnet_lite0", "--plot", "demo.png"]
    print("$", " ".join(command), flush=True)
    return subprocess.run([sys.executable, "-m", "srnn_zoo.cli", *command[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
