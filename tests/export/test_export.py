"""Exported models: every graph answers as the model does, and the folder is all that is needed."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import Anytime, open_exported
from srnn_zoo.export import check, export, formats, run
from srnn_zoo.export.graphs import _same_padding
from srnn_zoo.inference.predict import predict
from srnn_zoo.transforms.presets import create_transform
from tests.cli.command import python
from tests.conftest import SKIMAGE
from tests.models.harness import POOLED, trained

PHOTOGRAPHS = [SKIMAGE / name for name in ("chelsea.png", "coffee.png", "astronaut.png")]


def photographs():
    return [Image.open(path).convert("RGB") for path in PHOTOGRAPHS]


def calibrated_model(**options):
    model = trained(img_size=128, **options)
    torch.nn.init.normal_(model.fc.weight, std=2.0)
    model.pretrained_cfg["label_names"] = tuple("abcde")
    if model.cell.anytime:
        model.metadata["temperatures"] = [1.5, 0.8]
        rule = {"rule": "margin", "module": "srnn_zoo.inference.exits", "thresholds": [0.3], "temperatures": [2.0, 1.0]}
        model.metadata["exit"] = {**rule, "sizes": [[64, 64], [128, 128]], "curve": []}
    return model


def agrees(model, opened, size=(135, 150)):
    """Whether both say the same of images in every way that an SRNN has."""
    images = torch.randn(3, model.in_chans, *size)
    torch.testing.assert_close(opened(images), model(images), atol=1e-4, rtol=1e-4)
    pairs = list(zip(model.steps(images), opened.steps(images), strict=True))
    for ours, theirs in pairs:
        torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-4, rtol=1e-4)
        assert (theirs.size, theirs.gmacs) == (ours.size, pytest.approx(ours.gmacs))
    if model.cell.anytime:
        assert len(pairs) == 2
        answers = zip(Anytime(model)(images), Anytime(opened)(images), strict=True)
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in answers)


@pytest.mark.slow
def test_an_onnx_folder_answers_as_the_model_in_every_way(tmp_path):
    """One test, as the export takes most of its time."""
    model, folder = calibrated_model(), tmp_path / "onnx"
    done = model.export(folder, images=photographs())
    assert done.any_size
    assert set(done.differences) == {"step.onnx", "classifier.onnx", "encoder.onnx", "whole.onnx"}
    assert max(done.differences.values()) < 1e-4
    with torch.no_grad():
        open_and_compare(model, folder)
        compare_the_whole_graph(model, folder)
    for options in ([], ["--threshold", "0"], ["--threshold", "2"]):
        compare_run_py(model, folder, tmp_path, options)
    all_levels = run_py(folder, PHOTOGRAPHS, ["--threshold", "2"]).stdout
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    about["metadata"]["exit"]["rule"] = "learned"  # which run.py does not know
    (folder / "export.json").write_text(json.dumps(about), encoding="utf-8")
    assert run_py(folder, PHOTOGRAPHS, []).stdout == all_levels


def open_and_compare(model, folder):
    opened = open_exported(folder, threads=1)
    agrees(model, opened)
    assert (opened.label_names, opened.temperature(1)) == (model.label_names, model.temperature(1))
    for ours, theirs in zip(predict(model, PHOTOGRAPHS), predict(opened, PHOTOGRAPHS), strict=True):
        for one, other in zip(ours.answers, theirs.answers, strict=True):
            assert [name for name, _ in one.top] == [name for name, _ in other.top]
            assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-4)


def compare_the_whole_graph(model, folder):
    graph = run.open_graph(folder / "whole.onnx")
    for shape in ((1, 3, 128, 128), (3, 3, 129, 97), (2, 3, 130, 166)):
        images = torch.randn(shape)
        np.testing.assert_allclose(graph(images.numpy())[0], model(images), atol=1e-4)


def compare_run_py(model, folder, tmp_path, options):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    done = run_py(folder, [*PHOTOGRAPHS, tmp_path / "broken.jpg"], options)
    assert "broken.jpg: skipped, cannot identify" in done.stderr
    threshold = float(options[1]) if options else None
    rule = srnn_zoo.inference.exits.stored_rule(model, None if threshold is None else [threshold])
    expected = [
        f"{p.path}  (stopped at {(size := p.answers[-1].size)[0]} x {size[1]})\n"
        + "\n".join(f"  {100 * share:5.1f} %  {name}" for name, share in p.answers[-1].top)
        for p in predict(model, PHOTOGRAPHS, exit=rule)
    ]
    shares = re.compile(r"(?<=  ) *[\d.]+(?= %)")
    assert shares.sub("", done.stdout.strip()) == shares.sub("", "\n".join(expected))
    found = [float(share) for share in shares.findall(done.stdout)]
    assert found == pytest.approx([float(share) for share in shares.findall("\n".join(expected))], abs=0.11)


def run_py(folder, images, options):
    """In a process without torch, timm and srnn_zoo."""
    command = [sys.executable, "-S", "-c", _WITHOUT_TORCH, folder / "run.py", *images, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


_WITHOUT_TORCH = f"""
import runpy, sys
sys.path[:0] = {[path for path in sys.path if path]!r}
sys.modules["torch"] = sys.modules["srnn_zoo"] = sys.modules["torchvision"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("crop_mode", "interpolation"),
    [("center", "bicubic"), ("squash", "bilinear"), ("border", "gaussian"), ("center", "gaussian")],
)
def test_run_py_reads_the_levels_that_the_models_transform_makes(tmp_path, crop_mode, interpolation):
    for size, zooms in (((64, 64), None), ((48, 80), None), ((66, 66), (1.0, 1.6))):
        model = trained(interpolation=interpolation, img_size=size, zooms=zooms)
        model.pretrained_cfg |= {"crop_mode": crop_mode, "crop_pct": 0.93}
        how = export._preprocessing(model)
        export.write_run(tmp_path / "run.py", "onnx", how, "")
        written = {"__name__": "run"}
        exec((tmp_path / "run.py").read_text(encoding="utf-8"), written)
        for path in PHOTOGRAPHS:
            wanted = create_transform(model, exact=True)(Image.open(path))
            about = {"level_sizes": model.level_sizes(), "image_size": size, "zooms": zooms or (1, 1)}
            given = written["read_levels"](path, {"preprocessing": how, **about})
            for one, other in zip(wanted, given, strict=True):
                assert np.abs(one.numpy() - other[0]).max() < 1 / 255 / 0.2  # one grey level, by rounding
                assert np.abs(one.numpy() - other[0]).mean() < 1e-3


KINDS = [*({"variant": cell} for cell in POOLED), {"zooms": (1.0, 1.6)}, {"exits": "separate"}, {"norm": "per_level"}]


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(map(str, options.values())))
@torch.no_grad()
def test_every_kind_of_model_in_the_torch_format(options, tmp_path):
    model = calibrated_model(**options)
    model.export(tmp_path / "it", format="torch", kind="steps")
    agrees(model, open_exported(tmp_path / "it"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "format"),
    [
        *((options, "onnx") for options in ({"variant": "lstm"}, {"variant": "mean_prob"}, {"variant": "concat"})),
        *((options, format) for options in KINDS[-2:] for format in ("onnx", "openvino")),
    ],
    ids=lambda it: it if isinstance(it, str) else "-".join(it.values()),
)
@torch.no_grad()
def test_every_kind_of_model_in_other_runtimes(options, format, tmp_path):
    model = calibrated_model(**options)
    done = model.export(tmp_path / "it", format=format, input="levels", images=photographs())
    agrees(model, open_exported(tmp_path / "it"))
    assert max(done.differences.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["srnn_test_vit", "srnn_test_efficientnet", "srnn_tf_efficientnet_lite0", "srnn_mixer_s32_224"]
)
@torch.no_grad()
def test_backbones_of_other_kinds(name, tmp_path):
    options = {} if "mixer" in name else {"img_size": 128}
    model = srnn_zoo.create_model(name, num_classes=5, **options).eval()
    done = model.export(tmp_path / "it", images=photographs(), format="openvino" if "vit" in name else "onnx")
    assert done.any_size == ("mixer" not in name)
    size = model.img_size
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(open_exported(tmp_path / "it")(images), model(images), atol=1e-4, rtol=1e-4)
    if name.startswith("srnn_tf_"):  # the padding of these is no copy of the image, at any size
        import onnx

        assert "Pad" not in {node.op_type for node in onnx.load(tmp_path / "it" / "encoder.onnx").graph.node}
        images = torch.randn(3, 3, 149, 203)
        torch.testing.assert_close(open_exported(tmp_path / "it")(images), model(images), atol=1e-4, rtol=1e-4)
    if "mixer" in name:
        with pytest.raises(ValueError, match=r"exported for levels of 224 x 224 and 448 x 448 alone; got 150 x 150"):
            open_exported(tmp_path / "it")(torch.randn(1, 3, 300, 300))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_views_that_follow_from_the_level_before_are_part_of_one_graph(format, tmp_path):
    model = trained(zooms=(1.0, 1.6), views="attention", img_size=96)
    with pytest.raises(ValueError, match=r"views 'attention' follow from the level before.*give kind=\"whole\""):
        model.export(tmp_path / "steps")
    done = model.export(tmp_path / "whole", kind="whole", format=format, images=photographs())
    assert done.any_size
    assert max(done.differences.values()) < 1e-4


SIGNALS = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
from srnn_zoo.export.parts import open_graph
faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: None)
graphs = [open_graph(Path(sys.argv[1])) for _ in range(2)]
while graphs:
    del graphs[0]
subprocess.run([sys.executable, "-c", ""])
"""


@pytest.mark.slow
def test_graphs_of_openvino_that_go_leave_signals_as_they_were(tmp_path):
    openvino = pytest.importorskip("openvino")
    graph = openvino.convert_model(torch.nn.Conv2d(3, 8, 3), example_input=torch.randn(1, 3, 32, 32))
    openvino.save_model(graph, tmp_path / "graph.xml")
    done = python("-c", SIGNALS, tmp_path / "graph.xml")
    assert done.returncode == 0, done


def test_run_py_of_a_multi_label_model_gives_each_class_its_own_probability(tmp_path):
    export.write_run(tmp_path / "run.py", "onnx", export._preprocessing(trained()), "multi_label")
    written = {"__name__": "run"}
    exec((tmp_path / "run.py").read_text(encoding="utf-8"), written)
    logits = torch.randn(5)
    np.testing.assert_allclose(written["probabilities"](logits.numpy()), logits.sigmoid(), rtol=1e-6)


def wrapped():
    """Two convolutions, which are captured soon."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2, 1))
    return srnn_zoo.SRNN.wrap(net, num_classes=5, img_size=64).eval()


@torch.no_grad()
def test_a_wrapped_network(tmp_path):
    model = wrapped()
    model.export(tmp_path / "it", format="torch", kind="steps")
    opened = open_exported(tmp_path / "it")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(Anytime(opened, "level:0")(images).logits, Anytime(model, "level:0")(images).logits)
    assert opened(torch.randn(1, 3, 96, 80)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"what a level of .* costs is not known of this model: export it for that"):
        Anytime(opened, "level:0")(torch.randn(1, 3, 96, 80))


def test_same_padding_is_that_of_timm():
    from timm.layers.padding import get_same_padding

    for length in range(1, 70):
        for kernel, stride, dilation in [(3, 2, 1), (5, 2, 1), (1, 2, 1), (2, 3, 1), (3, 1, 2), (7, 4, 1), (3, 2, 2)]:
            expected = get_same_padding(length, kernel, stride, dilation)
            assert _same_padding(length, kernel, stride, dilation) == expected


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "it"
    wrapped().export(folder, format="torch", kind="steps")
    return folder


class TestRefusals:
    """Whatever is wrong is one sentence, and nothing is left behind."""

    @pytest.fixture
    def model(self):
        return wrapped()

    def test_a_folder_that_is_there_is_never_overwritten_by_half(self, model, folder, tmp_path, monkeypatch):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"other is there already, and is no exported model: choose another"):
            model.export(tmp_path / "other", format="torch", kind="steps")
        before = (folder / export.MANIFEST).read_text()
        with pytest.raises(FileExistsError, match="it holds an exported model already: choose another folder, or over"):
            model.export(folder, format="torch", kind="steps")
        monkeypatch.setattr(check, "TOLERANCE", -1.0)
        with pytest.raises(ValueError, match=r"\.pt2 does not answer as the model does: it differs by .* nothing was"):
            model.export(folder, format="torch", kind="steps", overwrite=True)
        assert (folder / export.MANIFEST).read_text() == before
        monkeypatch.undo()
        model.metadata["dataset"] = "other"
        model.export(folder, format="torch", kind="steps", overwrite=True)
        assert json.loads((folder / export.MANIFEST).read_text())["metadata"] == {"dataset": "other"}
        assert {path.name for path in tmp_path.iterdir()} == {"it", "other"}

    def test_a_diverging_graph_leaves_nothing_behind(self, model, tmp_path, monkeypatch):
        write = export.write_graph

        def broken(program, path, *names):
            for value in program.state_dict.values():
                value.data += 0.01 if value.is_floating_point() else 0
            write(program, path, *names)

        monkeypatch.setattr(export, "write_graph", broken)
        with pytest.raises(ValueError, match=r"does not answer as the model does"):
            model.export(tmp_path / "it", format="torch", kind="steps")
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"format": "onx"}, "unknown format 'onx'; did you mean 'onnx'?"),
            ({"kind": "one"}, "unknown kind 'one'; choose one of both, steps, whole"),
            ({"input": "pyramid"}, "unknown input 'pyramid'; choose one of image, levels"),
            ({"int8": []}, 'int8 quantises the encoder: give format="onnx" and kind="steps"'),
            ({"images": []}, "a comparison needs at least one image; got none"),
        ],
    )
    def test_unknown_words(self, model, tmp_path, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            model.export(tmp_path / "it", **options)
        assert not any(tmp_path.iterdir())

    def test_a_missing_package_names_the_line_that_installs_it(self, model, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(ImportError, match=r'export to openvino needs openvino: pip install "srnn-zoo\[openvino\]"'):
            model.export(tmp_path / "it", format="openvino")

    def test_a_cell_with_data_dependent_python_is_refused_before_the_work(self, model, tmp_path, monkeypatch):
        class Moody(srnn_zoo.Cell):
            def forward(self, features, state):
                return features if features.sum() > 0 else state

        model.cell = Moody(model.num_features)
        monkeypatch.setattr(export, "capture_encoder", None)  # it would fail otherwise
        with pytest.raises(
            ValueError, match="the cell Moody cannot be captured in a graph: write it with operations on"
        ):
            model.export(tmp_path / "it", format="torch")
        assert not any(tmp_path.iterdir())

    def test_a_model_without_classifier(self, tmp_path):
        with pytest.raises(ValueError, match="no classifier"):
            trained(num_classes=0).export(tmp_path / "it")

    @pytest.fixture
    def folder(self, exported, tmp_path):
        return shutil.copytree(exported, tmp_path / "it")

    def test_a_damaged_folder(self, folder):
        with (folder / "step.pt2").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ValueError, match=r"step\.pt2 is not as it was exported: copy it again"):
            open_exported(folder)
        (folder / "encoder.pt2").unlink()
        with pytest.raises(FileNotFoundError, match=r"it lacks encoder\.pt2: copy it again"):
            open_exported(folder)
        (folder / export.MANIFEST).unlink()
        with pytest.raises(FileNotFoundError, match=r"it is no exported model: it has no export\.json"):
            open_exported(folder)

    def test_a_newer_format_a_whole_graph_and_a_missing_runtime(self, folder, monkeypatch):
        manifest = json.loads((folder / export.MANIFEST).read_text())
        for change, message in [
            ({"format_version": 99}, "has format 99, written by srnn-zoo .*: pip install -U srnn-zoo"),
            (
                {"graphs": {"whole": ["step.pt2"]}},
                "no step graphs, which give the answer after a level: export with kind=",
            ),
        ]:
            (folder / export.MANIFEST).write_text(json.dumps({**manifest, **change}))
            with pytest.raises(ValueError, match=message):
                open_exported(folder)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"srnn-zoo\[export\]"):
            formats.check_format("onnx")

    def test_it_is_for_use_alone(self, folder):
        opened = open_exported(folder)
        for do, message in [
            (opened.train, "trained"),
            (opened.save_pretrained, "copy"),
            (opened.export, "exported al"),
        ]:
            with pytest.raises(ValueError, match=message):
                do()
