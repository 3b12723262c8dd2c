"""Maps of levels: what features are pooled from, what layers give at any level, and who has none."""

import pytest
import timm
import torch
from torch import nn

from srnn_zoo import Pyramid, create_model
from tests.models.harness import trained
from tests.models.test_backbone import FAMILIES, sampled

IMAGES = torch.randn(2, 3, 96, 64)


def equal(maps, expected):
    return all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"norm": "per_level", "exits": "separate"}),
        ("test_efficientnet", {"variant": "concat"}),
        ("test_nfnet", {}),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("densenet121", "swin_tiny_patch4_window7_224")),
    ],
)
@torch.no_grad()
def test_the_mean_of_a_levels_map_is_its_features_and_so_that_of_a_class_is_its_logit(name, options):
    model = trained(f"srnn_{name}", **options)
    levels, maps = model.levels(IMAGES), model.level_maps(IMAGES)
    assert maps[0].shape[-1] < maps[1].shape[-1] < maps[1].shape[-2]
    for given in (levels, tuple(levels), Pyramid(levels)):
        assert equal(model.level_maps(given), maps)
    for index, (level, found) in enumerate(zip(levels, maps, strict=True)):
        features = model.level_features(level, index)
        torch.testing.assert_close(found.mean(dim=(2, 3)), features)
        if options.get("variant") != "concat":  # whose classifier reads all levels at once
            classifier = model.classifier(index)
            of_classes = torch.einsum("bchw,kc->bkhw", found, classifier.weight).mean(dim=(2, 3)) + classifier.bias
            torch.testing.assert_close(of_classes, model.level_logits(features, index), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_map_of_tokens_is_that_of_the_patches_without_the_class_token():
    model = create_model("srnn_test_vit").eval()
    for level, found in zip(model.levels(IMAGES), model.level_maps(IMAGES), strict=True):
        assert found.shape[-2:] == (level.shape[-2] // 16, level.shape[-1] // 16)
        assert torch.equal(found.flatten(2).transpose(1, 2), model.backbone.forward_features(level)[:, 1:])


@pytest.mark.parametrize("architecture", sampled(FAMILIES))
@torch.no_grad()
def test_every_family_has_maps_of_its_levels_or_says_that_it_has_none(architecture):
    model = create_model(f"srnn_{architecture}", num_classes=0).eval()
    levels = [torch.randn(1, model.in_chans, size, 2 * size) for size in (64, 128)]
    if architecture in ("crossvit_tiny_240", "efficientvim_m1"):
        with pytest.raises(
            ValueError, match=f"^srnn_{architecture} has no map of a level that its features are pooled"
        ):
            model.level_maps(levels)
        return
    small, large = model.level_maps(levels)
    for found in (small, large):
        assert found.shape[2] <= found.shape[3] <= 2 * found.shape[2] + 1
    assert small.shape[:2] == large.shape[:2]


def test_a_level_in_tiles_has_no_map_and_a_map_alone_has_a_gradient_for_grad_cam():
    model = create_model("srnn_test_vit_relpos").eval()
    (found,) = model.level_maps([torch.randn(1, 3, 160, 160, requires_grad=True)])
    assert found.shape == (1, 96, 10, 10)
    assert found.requires_grad
    with pytest.raises(ValueError, match=r"reads a level of 320 x 320 in tiles of 160 x 160, and has no map of it"):
        model.level_maps(torch.randn(1, 3, 320, 320))
    with pytest.raises(ValueError, match="cannot read a level of 8 x 8; it was made for 160 x 160"):
        create_model("srnn_test_vit", dynamic_img_size=False).level_maps([torch.rand(1, 3, 8, 8)])


@pytest.mark.parametrize("norm", ["shared", "per_level"])
@torch.no_grad()
def test_intermediate_maps_are_the_backbones_at_any_level(norm):
    model = trained(norm=norm, scales=(0.25, 0.5, 1.0))
    levels, maps = model.levels(IMAGES), model.level_maps(IMAGES)
    for index, level in enumerate(levels):
        final, given = model.forward_intermediates(IMAGES, indices=[0, 4], level=index)
        assert torch.allclose(final, model.forward_features(IMAGES), atol=1e-5)
        for x in (IMAGES, levels):
            alone = model.forward_intermediates(x, indices=[0, 4], intermediates_only=True, level=index)
            assert equal(alone, given)
        assert given[0].shape[-2:] == (level.shape[-2] // 2, level.shape[-1] // 2)
        assert torch.equal(given[1], maps[index])
    assert equal(model.forward_intermediates(IMAGES, indices=[0, 4])[1], given)
    for call in (model.levels(IMAGES), IMAGES):
        with pytest.raises(ValueError, match="level must be 0, the smallest, to 2; got -1"):
            model.forward_intermediates(call, level=-1)


@torch.no_grad()
def test_without_classifier_a_model_of_timms_names_gives_the_state_or_maps_alone():
    model = timm.create_model("srnn_test_resnet", num_classes=0).eval()
    assert isinstance(model.fc, nn.Identity)
    assert torch.equal(model(IMAGES), model.forward_features(IMAGES).flatten(1))
    assert model(IMAGES).shape == (2, model.num_features)
    maps = timm.create_model("srnn_test_resnet", features_only=True).eval()(IMAGES)
    assert [x.shape[1:] for x in maps][-1] == (96, 3, 2)
