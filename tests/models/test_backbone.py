"""Backbones: what every one must do, one of every timm family, the signed-feature rule, and what adapters rewrite."""

import csv

import pytest
import timm
import torch
from torch import nn

from srnn_zoo import create_model, init_from_base_cnn
from srnn_zoo.models.backbone import create_backbone, create_timm_model, has_nonnegative_features, prefix_group_matcher
from srnn_zoo.models.signs import Signs
from tests.conftest import ROOT
from tests.models.harness import SRNNTests, trained

# the smallest architecture of every timm module that reads two sizes, and more where their activations differ
FAMILIES = (
    "mobileone_s1 convmixer_768_32 test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s "
    "cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientnet_b0 "
    "efficientnet_lite0 efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 "
    "fastvit_t8 focalnet_tiny_srf gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 sam2_hiera_tiny "
    "hrnet_w18_small iformer_t inception_next_atto lcnetv2_small lowformer_b0 test_mambaout poolformerv2_s12 "
    "mobilenetv3_small_100 lcnet_035 mobilenetv5_base mobilevit_xxs naflexvit_base_patch16_parfac_gap nasnetalarge "
    "nextvit_small test_nfnet pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 "
    "res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 sequencer2d_s legacy_seresnet18 shvit_s1 "
    "skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224 "
    "tiny_vit_5m_224 tresnet_m twins_svt_small vgg11 test_vit vit_tiny_r_s16_p8_224 samvit_base_patch16_224 "
    "vitamin_small_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224"
).split()

# those that want larger or other sizes than 64 and 128
SIZES = {
    "deepseek_vit_412m": (56, 112),  # multiples of 14
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "inception_v4"), (96, 192)),
    **dict.fromkeys(("halonet26t", "maxvit_pico_rw_256"), (256, 512)),  # halo blocks or windows of 8 at stride 32
}

# what the documentation says of every architecture
with (ROOT / "results" / "backbones.csv").open(encoding="utf-8") as file:
    ARCHITECTURES = {row["architecture"]: row for row in csv.DictReader(file)}

# those whose base CNN has classifiers of several features, or takes a maximum: there is no F to take over
NOT_ZERO_SHOT = ("crossvit_tiny_240", "efficientvim_m1", "volo_d1_224")

# the small ones that every test run tries; `make slow` tries all families
SAMPLE = (
    "test_convnext dla46x_c efficientnet_lite0 lcnet_035 mobilenetv3_small_100 test_mambaout "
    "mobilevit_xxs test_nfnet pvt_v2_b0 regnetx_002 resnet10t test_vit xcit_nano_12_p8_224 levit_128s pit_ti_224"
).split()

# the smallest architecture of every module none of whose architectures reads two sizes, and of parts of two more
ONE_SIZE = (
    "cait_xxs24_224 coat_tiny hiera_tiny_224 pit_ti_224 tnt_s_legacy_patch16_224 visformer_tiny volo_d1_224 "
    "beit_base_patch16_224 test_vit_relpos efficientformer_l1 efficientformerv2_s0 levit_128s convit_tiny nest_tiny "
    "gcvit_xxtiny gmlp_ti16_224 mvitv2_tiny botnet26t_256 coatnet_pico_rw_224"
).split()


def check_is_as_documented(model, architecture):
    row = ARCHITECTURES[architecture]
    assert (str(model.reads), str(model.num_features)) == (row["reads"], row["width"])
    assert model.cell.activation == model._model_args["activation"] == row["activation"]


def take_over_classifier(model, base_cnn, architecture):
    if architecture in NOT_ZERO_SHOT:
        with pytest.raises(ValueError, match="has no zero-shot form"):
            init_from_base_cnn(model, base_cnn)
    else:
        init_from_base_cnn(model, base_cnn)
        assert model.zero_shot


def check_forward_and_backward(model, levels):
    """In training mode, finite logits of two images, and finite gradients of all parameters."""
    logits = model.train()(levels)
    assert logits.shape == (2, 10)
    logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} <= {"backbone.weights"}  # EfficientViM's
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


def sampled(names):
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names]


class TestBackbones(SRNNTests):
    """A convolutional net with signed features, a ViT that insists on its stride, and a net without norm."""

    @pytest.fixture(params=["test_convnext", "test_vit", "test_nfnet"])
    def model(self, request):
        return trained(f"srnn_{request.param}", variant="vanilla", std=0.05)

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["export", "compile"])
    def test_other_representations_compute_the_same_at_other_sizes_too(self, model, how):
        super().test_other_representations_compute_the_same_at_other_sizes_too(
            model, how
        )  # timm's ViT has no symbolic trace


def test_every_timm_family_is_accounted_for():
    builders = map(timm.models.model_entrypoint, (*FAMILIES, *SIZES, *ONE_SIZE))
    assert {builder.__module__.rpartition(".")[2] for builder in builders} == set(timm.list_modules()) - {"create"}


@pytest.mark.parametrize("architecture", sampled((*FAMILIES, *SIZES)))
def test_an_srnn_reads_two_sizes_and_with_one_level_is_the_base_cnn(architecture):
    model = create_model(f"srnn_{architecture}", variant="vanilla", num_classes=10).eval()
    check_is_as_documented(model, architecture)
    base_cnn = create_timm_model(architecture, num_classes=10).eval()
    take_over_classifier(model, base_cnn, architecture)
    levels = [torch.randn(2, model.in_chans, size, size) for size in SIZES.get(architecture, (64, 128))]
    with torch.inference_mode():
        if model.zero_shot:
            one, expected = model(levels[:1]), base_cnn(levels[0])
        else:
            one = model.level_features(levels[0])
            expected = base_cnn.forward_head(base_cnn.forward_features(levels[0]), pre_logits=True)
            expected = torch.cat(expected, dim=1) if isinstance(expected, list) else expected
        assert torch.allclose(one, expected, rtol=1e-4, atol=1e-5 * one.abs().max().item())
        if architecture in SAMPLE and isinstance(base_cnn.get_classifier(), nn.Linear):  # taken over as it is
            assert torch.equal(one, expected)
        assert model.cell.activation == "identity" or (model.level_features(levels[0]) >= 0).all()
    del base_cnn  # of up to 412 million weights, before there are as many gradients
    check_forward_and_backward(model, levels)


@pytest.mark.parametrize("architecture", sampled(ONE_SIZE))
def test_a_backbone_of_one_size_reads_others_in_tiles_and_with_one_level_is_the_base_cnn(architecture):
    model = create_model(f"srnn_{architecture}", variant="mean_logit", num_classes=10).eval()
    check_is_as_documented(model, architecture)
    height, width = model.reads.tile
    assert model.level_sizes() == [(height, width), (2 * height, 2 * width)]
    images = torch.randn(1, 3, 2 * height, 2 * width)
    tiles = images.unflatten(3, (2, width)).unflatten(2, (2, height)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    with torch.inference_mode():
        features = model.backbone(tiles).mean(dim=0, keepdim=True)
        assert torch.allclose(model.level_features(images), features, rtol=1e-3, atol=1e-4)
        assert model(images[..., :-5, :-9]).isfinite().all()
        take_over_classifier(model, base_cnn := create_timm_model(architecture, num_classes=10).eval(), architecture)
        assert architecture in NOT_ZERO_SHOT or torch.allclose(model([tiles]), base_cnn(tiles), rtol=1e-4, atol=1e-4)
    check_forward_and_backward(model, [torch.randn(2, 3, height // 2, width // 3), torch.randn(2, 3, height, width)])


@pytest.mark.parametrize(
    ("last", "never_negative"),
    [
        ([nn.ReLU()], True),
        ([nn.ReLU(inplace=True), nn.AvgPool2d(2)], True),
        ([nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Flatten(0)], True),
        ([nn.Hardtanh()], False),
        ([nn.SiLU()], False),
        ([nn.ReLU(), nn.SiLU()], True),
        ([nn.ReLU(), nn.BatchNorm2d(4)], False),  # whose shift is trained
        ([nn.ReLU(), nn.Conv2d(4, 4, 1)], False),
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@torch.no_grad()
def test_signs_follow_from_the_operations(last, never_negative, device):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *last).to(device).eval()
    with Signs() as signs:
        features = network(torch.ones(1, 3, 8, 8, device=device))
    assert signs.never_negative(features) == never_negative


@torch.no_grad()
def test_a_sign_is_lost_when_another_view_of_the_memory_is_written():
    with Signs() as signs:
        whole = torch.randn(2, 3).relu()
        assert signs.never_negative((whole, whole[0], whole + 0.5 * whole, torch.cat([whole, whole])))
        assert not signs.never_negative(whole - 1)
        assert not signs.never_negative(-1 * whole)
        whole[0].sub_(1)
        assert not signs.never_negative(whole)


def test_what_a_backbone_can_give_is_found_out_without_a_trace_and_without_values():
    backbone = create_backbone("test_resnet").train()
    frozen = next(module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    random_state = torch.get_rng_state()
    assert has_nonnegative_features(backbone)
    with torch.inference_mode():
        assert has_nonnegative_features(backbone)
    assert (backbone.training, frozen.training) == (True, False)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    with torch.device("meta"):
        model, signed = create_model("srnn_test_resnet"), create_model("srnn_test_convnext")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert (model.cell.activation, signed.cell.activation) == ("relu", "identity")
    assert torch.equal(torch.get_rng_state(), random_state)


def test_group_patterns_are_anchored_below_the_prefix():
    rewritten = prefix_group_matcher(
        {"stem": r"^conv1|bn1|^(?:a|^b)", "blocks": [(r"^layer(\d+)", None), (r"[^x]norm", (99999,))], "none": None}
    )
    assert rewritten == {
        "stem": r"^backbone\.(?:conv1|bn1|(?:a|b))",
        "blocks": [(r"^backbone\.(?:layer(\d+))", None), (r"^backbone\.(?:[^x]norm)", (99999,))],
        "none": None,
    }


def test_arguments_reach_the_backbone_and_unknown_names_and_levels_too_small_are_refused():
    blocks = create_model("srnn_test_vit", drop_path_rate=0.2, num_classes=3).backbone.blocks
    assert blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    with pytest.raises(ValueError, match="unknown timm architecture 'resnet19'; did you mean 'resnet1"):
        create_backbone("resnet19")
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        create_timm_model("resnet18", nonsense=1)
    with pytest.raises(ValueError, match="cannot read a level of 8 x 8; it was made for 160 x 160"):
        create_model("srnn_test_vit", dynamic_img_size=False)([torch.rand(1, 3, 8, 8)])
