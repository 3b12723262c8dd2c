"""Every code block of the README and of docs/*.md runs, from the top of its page to the bottom.

A page is run in a folder of its own, with stand-ins for what a reader has: small photographs in folders of classes,
under the names that the page uses, a few names in Python (`names`), random weights of timm's networks, and a Hub on
loopback.
Python blocks share one namespace; `srnn-zoo` runs in this process, other programs as a shell would start them. So that
a page takes seconds, training has one epoch (`SMALLER`). Three HTML comments, which no reader sees, steer a page:

    <!-- not run: REASON -->       the block below is left out
    <!-- other output: REASON -->  of a console block with `$`: what it prints is not compared with the page
    <!-- run                       Python that runs here, such as what a reader has from elsewhere
    ... -->
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

import srnn_zoo
from srnn_zoo.inference import exits
from srnn_zoo.models import cells, entries, views
from tests.cli import command

from .conftest import ROOT, SKIMAGE

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
QUICK = {"docs/index.md"}  # the others take minutes together
CLASSES = {"cat": "chelsea.png", "coffee": "coffee.png", "motorcycle": "motorcycle_left.png"}
IMAGENET_IDS = {"n02124075": "chelsea.png", "n07920052": "coffee.png", "n03785016": "motorcycle_left.png"}
DATA = ("text", "json", "bibtex")  # languages of what is no code
FOLDERS = ("photos", "flowers", "groceries", "images", "holiday", "imagenet-sample")
KINDS = {"holiday": "few", "imagenet-sample": "imagenet"}  # others have classes, in splits unless a page splits them
WEIGHTS = (
    "resnet18.a1_in1k",
    "resnet50.a1_in1k",
    "test_resnet.r160_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
)
SMALLER = {
    # an epoch, and where the page names no network, a small one
    r"--epochs \d+": "--epochs 1",
    r"srnn-zoo train (?!.*(--epochs|probe)).*": r"\g<0> --epochs 1",
    r"srnn-zoo (train|compare) (?!.*(--model|-m )).*": r"\g<0> --model srnn_test_resnet",
    r"srnn-zoo compare .*": r"\g<0> --zooms 1.6 --rates 0.01 --seeds 1 --epochs 4",
    r"recipe\((\"\w+\")(, epochs=\d+)?": r"recipe(\1, epochs=1",
    r'"srnn_tf_efficientnet_lite0", pretrained=True, num_classes': '"srnn_test_resnet", pretrained=True, num_classes',
    r"srnn-zoo export srnn_tf_efficientnet_lite0": "srnn-zoo export srnn_test_resnet",
    # captured, but no code is generated
    r"(torch.compile\(model|model.compile\().*dynamic=True": r'\g<0>, backend="eager"',
}
BLOCK = re.compile(
    r"^<!-- run\n(?P<hidden>.*?)^-->$"
    r"|(?:^ *<!-- (?P<mark>not run|other output): (?P<reason>.*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A piece of a page that can run."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    reason: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"


def blocks(page):
    """All of a page's code, from top to bottom."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        hidden = found["hidden"] is not None
        line = text.count("\n", 0, found.start("hidden" if hidden else "text")) + 1
        code = found["hidden"] if hidden else re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        language = "python" if hidden else found["language"]
        yield Block(page, line, language, code, found["mark"] or "", found["reason"] or "")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Small photographs of three classes: all of them, in train, val and test, by ImageNet's names, and three alone."""
    folder = tmp_path_factory.mktemp("photographs")
    for kind, classes in (("classes", CLASSES), ("imagenet", IMAGENET_IDS)):
        for name, file in classes.items():
            with Image.open(SKIMAGE / file) as opened:
                image = opened.convert("RGB").resize((320, 240))
            for number in range(20 if kind == "classes" else 4):
                part = image.crop((number, number // 2, 320 - number // 3, 240 - number))
                path = folder / kind / name / f"{name}{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                part.resize((160, 120)).save(path, quality=90)
                copies = []
                if kind == "classes" and number < 12:
                    copies.append(folder / "splits" / ("train", "val", "test")[number % 3] / name)
                if kind == "classes" and not number:
                    copies.append(folder / "few")
                for copied in copies:
                    copied.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copied)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A Hugging Face cache with random weights of timm's networks that the pages name."""
    folder = tmp_path_factory.mktemp("hub")
    for name in WEIGHTS:
        repository = folder / f"models--timm--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
        model = timm.create_model(name.partition(".")[0])
        save_file(model.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    return folder


@pytest.fixture
def online(hub, weights, monkeypatch):
    """A Hub on loopback, and the cache."""
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(weights), raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(weights))  # of programs that a page starts
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", hub.token("owner"))


@pytest.fixture
def folder(page, photographs, monkeypatch, tmp_path):
    """What lies where the page's code runs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in FOLDERS:
        if name in text:
            without_splits = re.search(rf"srnn-zoo \w+ {name} .*--val-fraction", text)
            kind = KINDS.get(name, "classes" if without_splits else "splits")
            shutil.copytree(photographs / kind, tmp_path / name)
    for name, file in {"photo.jpg": "chelsea.png", "image.jpg": "coffee.png", "chelsea.png": "chelsea.png"}.items():
        with Image.open(SKIMAGE / file) as image:
            image.save(tmp_path / name)
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def registered():
    """Cells, exit rules, views and weights that a page adds are forgotten after it."""
    with contextlib.ExitStack() as stack:
        for registry in (cells._CELLS, exits._EXITS, views.VIEWS, entries._WEIGHTS):
            stack.enter_context(mock.patch.dict(registry))
        yield


@pytest.fixture
def names():
    """Names that a page may use without saying where they come from."""
    models = [srnn_zoo.create_model("srnn_test_resnet", num_classes=3, img_size=64).eval() for _ in range(2)]
    for model in models:
        model.pretrained_cfg["label_names"] = list(CLASSES)
    dataset = FakeData(8, (3, 64, 64), 3, ToTensor())
    dataset.classes = list(CLASSES)
    with Image.open(SKIMAGE / "chelsea.png") as opened:
        image = ImageOps.fit(opened.convert("RGB"), (1000, 700))
    batches = [(torch.rand(8, 3, 64, 64), torch.arange(8) % 3) for _ in range(5)]
    images, targets = batches[0]
    return {
        "srnn_zoo": srnn_zoo,
        "torch": torch,
        "timm": timm,
        "image": image,
        "images": images,
        "targets": targets,
        "model": models[0],
        "zero_shot": models[0],
        "trained": models[1],
        "val_loader": batches,
        "test_loader": batches,
        "dataset": dataset,
    }


def smaller(text):
    for pattern, instead in SMALLER.items():
        text = re.sub(pattern, instead, text)
    return text


def shell(text, fails=False):
    """Run commands as a shell would; what they print, and the commands that were left out."""
    said, left_out = "", []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        for words in split(smaller(line)):
            if words[:2] == ["pip", "install"]:
                left_out.append(shlex.join(words))
                known_extras(words[2:])
            elif words[0] == "srnn-zoo":
                done = command.run(*words[1:], columns=120)
                assert done.code == 0 or fails, f"{shlex.join(words)}\n{done.err}"
                said += done.out + done.err
            else:
                path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
                environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                done = subprocess.run(
                    words, check=False, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
                )
                if done.returncode and fails:
                    said += done.stderr.splitlines(keepends=True)[-1]  # below the traceback
                else:
                    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
                said += done.stdout
    return said, left_out


def split(line):
    """The commands of a line, each as its words, with the files that patterns stand for."""
    words, commands = shlex.split(line, comments=True), [[]]
    for word in words:
        if word == "&&":
            commands.append([])
        else:
            found = Path().glob(word) if "*" in word else ()  # as a shell does in the current folder
            commands[-1] += sorted(map(str, found)) or [word]
    return [words for words in commands if words]


def known_extras(requirements):
    """Fail where a page wants an extra of this package that there is none of."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    for extras in re.findall(r"^(?:srnn-zoo|\.)\[(.*)\]$", "\n".join(requirements), flags=re.MULTILINE):
        assert set(extras.split(",")) <= set(config["options.extras_require"]), extras


def session(block):
    """Run the commands after `$`, and compare what each prints with the lines below it."""
    left_out = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        said, skipped = shell(line, fails=bool(re.match(r"(\w+Error|srnn-zoo): ", expected)))
        left_out += skipped
        if block.mark != "other output":
            assert alike(said, expected), f"{block.place}: {line}\nprinted:\n{said}\nthe page has:\n{expected}"
    return left_out


def alike(said, expected):
    """Whether two texts have the same words, and numbers that differ by rounding only."""
    said, expected = (re.findall(r"\d+\.?\d*|[^\W\d]+|\S", text) for text in (said, expected))
    same = [a == b or (is_number(a) and is_number(b) and close(a, b)) for a, b in zip(said, expected, strict=False)]
    return len(said) == len(expected) and all(same)


def is_number(word):
    return word[0].isdigit()


def close(a, b):
    return abs(float(a) - float(b)) <= 0.11 + 0.01 * abs(float(b))


def run(block, namespace):
    """Run a block; the commands of it that were left out."""
    if block.language == "python":
        code = "\n" * (block.line - 1) + smaller(block.text)
        with contextlib.redirect_stdout(None):
            exec(compile(code, str(ROOT / block.page), "exec"), namespace)
        return []
    if block.language == "console" and re.search(r"^\$ ", block.text, flags=re.MULTILINE):
        return session(block)
    return shell(block.text)[1]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow) for page in PAGES]
)
def test_every_block_of_a_page_runs_from_top_to_bottom(page, folder, names, request):
    if page not in QUICK:
        request.getfixturevalue("online")
    for block in blocks(page):
        if block.language in DATA or block.mark == "not run":
            continue
        assert block.language in ("python", "bash", "sh", "console"), (
            f"{block.place}: say which language it is, or text"
        )
        for line in run(block, names):
            print(f"{block.place}: not run: {line}")


def test_every_page_is_in_the_index_and_in_the_navigation():
    for name in {Path(page).name for page in PAGES} - {"README.md", "index.md"}:
        for listing in ("docs/index.md", "mkdocs.yml"):
            assert re.search(rf"\b{name}\b", (ROOT / listing).read_text(encoding="utf-8")), f"{listing} lacks {name}"


def test_few_blocks_are_left_out_and_each_says_why():
    """`pytest -s` lists them."""
    code = [block for page in PAGES for block in blocks(page) if block.language not in DATA]
    left_out = [block for block in code if block.mark == "not run"]
    print(f"\n{len(left_out)} of {len(code)} blocks are not run:")
    print(*(f"  {block.place}: {block.reason}" for block in left_out), sep="\n")
    assert all(block.reason for block in left_out)
    assert len(left_out) <= len(code) / 4
