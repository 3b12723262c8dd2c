"""SRNN as a module: what it computes, what it accepts, and timm's model protocol, for every variant."""

import copy

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch.nn import functional as F

from srnn_zoo import SRNN, create_model
from srnn_zoo.models.cells import create_cell
from tests.models.harness import CELLS, SRNNTests, trained

TINY = "srnn_test_resnet"  # 0.5 M parameters, 160 x 160


class TestVariants(SRNNTests):
    """Every variant, and what is special to variants."""

    @pytest.fixture(params=CELLS)
    def model(self, request):
        return trained(variant=request.param, std=0.05)

    @torch.no_grad()
    def test_the_levels_of_an_image_are_resized_bicubically_and_a_batch_may_be_empty(self, model, images):
        small = F.interpolate(images, (32, 32), mode="bicubic", antialias=True, align_corners=False)
        assert torch.allclose(model(images), model([small, images]), atol=1e-5)
        assert model(images[:0]).shape == (0, 5)

    def test_autocast_channels_last_and_other_dtypes(self, model, images):
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(model(images).float(), expected, atol=0.1)
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert torch.allclose(channels_last(images.to(memory_format=torch.channels_last)), expected, atol=1e-5)
        assert torch.allclose(copy.deepcopy(model).double()(images.double()).float(), expected, atol=1e-4)
        assert copy.deepcopy(model).bfloat16()(images.bfloat16()).dtype == torch.bfloat16


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 64)


@pytest.fixture
def tiny():
    return create_model(TINY).eval()


@pytest.fixture
def vit():
    return create_model("srnn_test_vit").eval()


def test_dropout_acts_before_the_classifier_in_training_only(images):
    model = create_model(TINY, drop_rate=0.5).eval()
    assert torch.equal(model(images), model(images))
    model.head_drop.train()
    assert not torch.equal(model(images), model(images))


def test_the_module_has_the_names_that_tools_rely_on(tiny):
    names = list(tiny.state_dict())
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert {"cell.recurrent.weight", "cell.gate_input.weight", "cell.gate_recurrent.weight"} <= set(names)
    assert all(name.split(".")[0] in ("backbone", "cell", "fc") for name in names)
    assert not hasattr(tiny, "module")
    assert list(torch.fx.symbolic_trace(tiny).graph.nodes)[-2].op == "call_module"  # the logits come last


def test_the_classifier_is_reset_in_place_on_its_device_and_in_its_dtype(tiny):
    model, images = tiny.double(), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    shapes = {(12,): (12,), (0,): (model.head_hidden_size,), (0, ""): (model.num_features, 1, 1), (5, "avg"): (5,)}
    for arguments, shape in shapes.items():
        model.reset_classifier(*arguments)
        assert model(images).shape == (1, *shape)
        assert model.get_classifier() is model.fc is list(model.children())[-1]
    for arguments, message in [((-1,), "0 or more"), ((3, ""), "needs num_classes=0"), ((3, "max"), 'be "avg" or ""')]:
        with pytest.raises(ValueError, match=message):
            model.reset_classifier(*arguments)
    assert create_model(TINY, num_classes=0, global_pool="").eval()(images.float()).dim() == 4


@pytest.mark.parametrize("name", [TINY, "srnn_test_vit", "srnn_test_convnext", "srnn_densenet121"])
@pytest.mark.parametrize("coarse", [True, False])
def test_parameter_groups_run_from_stem_to_head_as_the_backbones_do(name, coarse):
    model = create_model(name, num_classes=7)
    layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    inner = group_parameters(model.backbone, model.backbone.group_matcher(coarse=coarse), reverse=True)
    backbone = {k.removeprefix("backbone."): v for k, v in layers.items() if k.startswith("backbone.")}
    order = sorted(backbone, key=lambda key: inner[key])
    assert [backbone[key] for key in order] == sorted(backbone.values())
    assert len(set(backbone.values())) == len(set(inner.values()))
    assert {v for k, v in layers.items() if not k.startswith("backbone.")} == {max(layers.values())}
    groups = param_groups_layer_decay(model, layer_decay=0.7)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_timms_layer_decay_gives_rates_that_fall_from_the_head_to_the_stem(vit):
    optimizer = create_optimizer_v2(vit, opt="adamw", lr=1e-3, layer_decay=0.75)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: scales[id(p)] for name, p in vit.named_parameters()}
    blocks = [rates[f"backbone.blocks.{index}.attn.qkv.weight"] for index in range(6)]
    falling = [rates["fc.weight"], *blocks[::-1], rates["backbone.patch_embed.proj.weight"]]
    assert falling == pytest.approx([0.75**depth for depth in range(8)])
    assert rates["cell.recurrent.weight"] == 1.0


def test_no_weight_decay_names_parameters_of_the_model(tiny, vit):
    parameters = dict(vit.named_parameters())
    named = vit.no_weight_decay() & parameters.keys()
    assert {"backbone.pos_embed", "backbone.cls_token"} <= named
    groups = create_optimizer_v2(vit, opt="adamw", weight_decay=0.05).param_groups
    without = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert {id(parameters[name]) for name in named} <= without
    assert tiny.no_weight_decay() == set()


def test_reentrant_gradient_checkpointing_is_refused(tiny, monkeypatch):
    monkeypatch.setattr("srnn_zoo.models.protocol.use_reentrant_ckpt", lambda: True)
    with pytest.raises(ValueError, match="non-reentrant"):
        tiny.set_grad_checkpointing()


def test_intermediate_maps_are_the_backbones_on_the_largest_level_where_it_gives_any(tiny, images, monkeypatch):
    expected = tiny.backbone.forward_intermediates(images, intermediates_only=True)
    read = []
    tiny.backbone.register_forward_hook(lambda module, args, output: read.append(args[0].shape[-1]))
    maps = tiny.forward_intermediates(images, intermediates_only=True)
    assert read == []
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    final, maps = tiny.forward_intermediates(images, indices=[1, 3])
    assert torch.allclose(final, tiny.forward_features(images), atol=1e-5)
    assert [x.shape for x in maps] == [expected[i].shape for i in (1, 3)]
    for method in ("forward_intermediates", "prune_intermediate_layers"):
        monkeypatch.delattr(type(tiny.backbone), method)
        with pytest.raises(RuntimeError, match=f"'{TINY}' has no {method} in timm"):
            getattr(tiny, method)(images)


def test_features_only_gives_maps_with_their_info(images):
    assert timm.create_model("srnn_test_convnext", features_only=True).feature_info.reduction() == [4, 8, 16, 32]
    model = timm.create_model(TINY, features_only=True, out_indices=(1, 3)).eval()
    maps = model(images)
    assert [x.shape[1] for x in maps] == model.feature_info.channels()
    assert [96 // x.shape[2] for x in maps] == model.feature_info.reduction()
    assert all(name.startswith("backbone.") for name in model.feature_info.module_name())
    model = timm.create_model("srnn_test_vit", features_only=True).eval()
    assert [x.shape[-1] for x in model(torch.rand(1, 3, 16, 16))] == [1] * 6  # maps alone need no smaller level


def test_level_sizes_are_what_the_backbone_reads_and_the_input_size_is_set_where_it_has_one(tiny, vit):
    assert vit.level_sizes((300, 200)) == [(144, 96), (304, 208)]
    assert [x.shape[-2:] for x in vit.levels(torch.rand(1, 3, 300, 200))] == vit.level_sizes((300, 200))
    assert vit(torch.rand(1, 3, 300, 200)).shape == (1, 1000)
    assert tiny.level_sizes((301, 201)) == [(151, 101), (301, 201)]
    assert not hasattr(tiny, "set_input_size")
    assert vit.img_size == (320, 320)
    vit.set_input_size(img_size=256)
    assert (vit.img_size, vit.backbone.patch_embed.grid_size) == ((256, 256), (8, 8))
    assert vit(torch.rand(1, 3, 256, 256)).shape == (1, 1000)


@pytest.mark.parametrize("part", [SRNN.__call__, SRNN.level_maps, SRNN.forward_intermediates])
def test_a_level_of_which_the_patches_would_leave_a_part_out_is_refused(part, vit):
    with pytest.raises(ValueError, match="multiples of its patches, 16 x 16 pixels; got 96 x 100"):
        part(vit, [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 96, 100)])


def test_what_is_no_pyramid_or_too_small_is_refused_in_one_sentence_and_nan_gives_no_confident_answer(tiny, vit):
    inception = create_model("srnn_inception_v3").eval()
    for model, value, error, message in (
        (tiny, torch.zeros(3, 64, 64), ValueError, r"\(B, C, H, W\); got shape \(3, 64, 64\)"),
        (tiny, torch.zeros(1, 1, 64, 64), ValueError, "reads 3 channels; got 1"),
        (tiny, [torch.zeros(1, 4, n, n) for n in (32, 64)], ValueError, "reads 3 channels; got 4"),
        (tiny, [torch.zeros(1, 3, n, n) for n in (64, 32)], ValueError, "must grow, smallest first"),
        (tiny, [], ValueError, "at least one level"),
        (tiny, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "must be float and normalised"),
        (tiny, "photo.jpg", TypeError, "must be tensors; got str"),
        (tiny, None, TypeError, "a tensor, a list of levels or a Pyramid; got NoneType"),
        (tiny, torch.zeros(1, 3, 1, 1), ValueError, "too small for scales"),
        (vit, torch.zeros(1, 3, 1, 1), ValueError, "an image of 1 x 1 is too small for scales"),
        (vit, torch.zeros(1, 3, 16, 16), ValueError, "an image of 16 x 16 is too small for scales"),
        (inception, torch.zeros(1, 3, 80, 80), ValueError, "'srnn_inception_v3' .* a level of 40 x 40; .* 299 x 299"),
    ):
        with pytest.raises(error, match=message):
            model(value)
    assert tiny(torch.full((1, 3, 64, 64), float("nan"))).isnan().all()


def test_the_constructor_composes_any_timm_model_without_classifier_in_its_dtype_and_on_its_device():
    backbone = timm.create_model("test_convnext", num_classes=0, dtype=torch.bfloat16)
    model = SRNN(backbone, variant="vanilla", scales=(0.25, 0.5, 1.0), num_classes=3, img_size=128).eval()
    assert (model.img_size, model.cell.activation) == ((128, 128), "identity")
    assert model.pretrained_cfg["architecture"] == "srnn_test_convnext"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    logits = model(torch.rand(1, 3, 128, 128).bfloat16())
    assert logits.shape == (1, 3)
    assert logits.isfinite().all()
    assert {p.device.type for p in create_model(TINY, device="meta").parameters()} == {"meta"}
    assert "activation=identity" in repr(create_cell("vanilla", 3, activation="identity"))
    with pytest.raises(ValueError, match="num_classes=0; this one has 1000"):
        SRNN(timm.create_model("test_resnet"))
