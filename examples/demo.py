"""Name what is on images that the scikit-image package brings, level by level, and draw the answers: `make demo`.

The second level zooms in. On the last image, the right part of a photograph of a rocket, it mends the answer of the
first one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

IMAGES = ("chelsea.png", "coffee.png")


def main() -> int:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        print('the demo reads images of scikit-image: pip install "srnn-zoo[demo]"', file=sys.stderr)
        return 2
    folder = Path(spec.origin).parent / "data"
    with tempfile.TemporaryDirectory() as cut:
        rocket = Path(cut) / "rocket.png"
        with Image.open(folder / "rocket.jpg") as image:
            image.crop((image.width - image.height, 0, image.width, image.height)).save(rocket)
        command = ["srnn-zoo", "predict", *(str(folder / name) for name in IMAGES), str(rocket)]
        command += ["--model", "srnn_tf_efficientnet_lite0", "--zooms", "1,1.6", "--plot", "demo.png"]
        print("$", " ".join(command), flush=True)
        return subprocess.run([sys.executable, "-m", "srnn_zoo.cli", *command[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
