"""Graphs of a model: exported for any size, run by other runtimes, and compiled."""

import copy
import io
import shutil

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from srnn_zoo import SRNN, Anytime, Pyramid
from srnn_zoo.export.parts import openvino_core
from srnn_zoo.transforms.resizing import DECOMPOSITIONS, INTERPOLATIONS
from tests.models.harness import ANY_SIZE, trained

SIZES = [(1, 160, 192), (3, 131, 201)]


def exported(model, batch=2):
    return torch.export.export(model, (torch.randn(batch, 3, 161, 194),), dynamic_shapes=(ANY_SIZE,))


def tiny(**options):
    """An SRNN over two convolutions, which inductor compiles in seconds."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    model = SRNN.wrap(net, num_classes=5, img_size=64, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options",
    [
        *({"interpolation": name} for name in INTERPOLATIONS),
        *(
            pytest.param({"name": f"srnn_{name}"}, marks=pytest.mark.slow)
            for name in ("resnet18", "test_vit", "test_convnext")
        ),
    ],
    ids=lambda options: "-".join(options.values()),
)
@torch.no_grad()
def test_export_takes_a_plain_range_of_sizes(options):
    """As wide a range as timm's own models take: where the smaller level's last map is larger than 1 x 1."""
    model = trained(**options, std=0.05) if "name" in options else tiny(**options)
    least = 130 if options.get("name") == "srnn_test_convnext" else 66  # its strides round down
    dims = {0: Dim("batch"), 2: Dim("h", min=least), 3: Dim("w", min=least)}
    program = torch.export.export(model, (torch.randn(2, 3, 160, 192),), dynamic_shapes=(dims,)).module()
    for shape in ((1, 3, least, 131), (3, 3, 193, 160)):
        images = torch.randn(shape)
        assert torch.allclose(program(images), model(images), atol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param(list, marks=pytest.mark.slow), Pyramid])
@torch.no_grad()
def test_levels_and_pyramids_are_exported_saved_and_compiled(kind):
    model = tiny()
    first, *others = (kind(model.levels(torch.randn(b, 3, h, w))) for b, h, w in [(2, 161, 194), *SIZES, (4, 300, 250)])
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (first,), dynamic_shapes=([ANY_SIZE] * 2,)), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for levels in (first, *others):
        assert torch.allclose(program(levels), model(levels), atol=1e-5)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert all(torch.equal(compiled(levels), model(levels)) for levels in (first, *others[1:]))


def test_functions_of_pytrees_take_a_pyramid():
    pyramid = Pyramid([torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)])
    doubled = pytree.tree_map(lambda level: 2 * level, pyramid)
    assert isinstance(doubled, Pyramid)
    assert torch.equal(doubled[1], 2 * pyramid[1])
    assert [path[0].idx for path, _ in pytree.tree_flatten_with_path(pyramid)[0]] == [0, 1]
    assert torch.func.vmap(lambda of_one: of_one[0].sum())(pyramid).shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@torch.no_grad()
def test_onnxruntime_and_openvino_agree_at_any_size(interpolation, tmp_path):
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    model = trained(interpolation=interpolation, std=0.05)
    program = exported(model)
    torch.onnx.export(program, dynamo=True).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    network = openvino_core().compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in SIZES:
        images = torch.randn(shape[0], 3, *shape[1:])
        (by_onnx,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        for logits in (by_onnx, network(images.numpy())[0]):
            assert torch.allclose(torch.from_numpy(logits), model(images), atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_a_vits_own_resize_is_decomposed_for_openvino():
    openvino = pytest.importorskip("openvino")
    model = trained("srnn_test_vit", std=0.05)
    program = exported(model).run_decompositions(DECOMPOSITIONS)
    network = openvino_core().compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in SIZES:
        images = torch.randn(shape[0], 3, *shape[1:])
        assert torch.allclose(torch.from_numpy(network(images.numpy())[0]), model(images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
@torch.no_grad()
def test_executorch_agrees(backend, tmp_path):
    exir = pytest.importorskip("executorch.exir", reason="pip install executorch")
    runtime = pytest.importorskip("executorch.runtime")
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model, images = trained(std=0.05), torch.randn(1, 3, 97, 130)
    program = torch.export.export(model, (images,))
    partitioner = [xnnpack.XnnpackPartitioner()] if backend == "xnnpack" else None
    edge = exir.to_edge_transform_and_lower(program, partitioner=partitioner)
    (tmp_path / "model.pte").write_bytes(edge.to_executorch().buffer)
    method = runtime.Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    other = torch.randn_like(images)
    assert torch.allclose(method.execute([other])[0], model(other), atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "options",
    [
        *({"variant": cell} for cell in ("half_gru", "concat")),  # harness.py traces them all
        {"exits": "separate", "norm": "per_level"},
        {"interpolation": "gaussian"},
    ],
    ids=lambda options: "-".join(options.values()),
)
@torch.no_grad()
def test_inductor_compiles_once_for_all_sizes(options):
    model = tiny(**options)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 64, 80), (2, 51, 97), (3, 128, 128), (4, 100, 77), (2, 96, 120)):
            images = torch.randn(shape[0], 3, *shape[1:])
            assert torch.allclose(compiled(images), model(images), atol=1e-4)


@torch.no_grad()
def test_a_model_compiled_in_place_reads_levels_one_by_one_with_the_compiled_backbone():
    model, counter = tiny(), torch._dynamo.testing.CompileCounter()
    plain = copy.deepcopy(model)
    model.compile(backend=counter, fullgraph=True, dynamic=True)
    for size in (64, 50, 96):
        images = torch.randn(8, 3, size, size)
        assert torch.equal(model(images), plain(images))
        assert counter.frame_count == 1 if size == 64 else 2
        *_, last = model.steps(images)
        assert torch.equal(last.logits, plain(images))
        confidence = next(plain.steps(images)).logits.softmax(dim=1).amax(dim=1)
        rule = f"confidence:{confidence.median().item():.4f}"
        ours, expected = Anytime(model, rule)(images), Anytime(plain, rule)(images)
        assert torch.equal(ours.logits, expected.logits)
        assert 0 < ours.stopped_at.sum() < 8
        assert torch.equal(ours.stopped_at, expected.stopped_at)
    assert counter.frame_count == 2  # forward, and the backbone for any size and batch
    with pytest.raises(TypeError, match=r"computes all levels at once: call model.compile\(dynamic=True\)"):
        Anytime(torch.compile(model), "level:0")
