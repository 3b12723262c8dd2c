"""Sizes of levels: what each architecture reads, and tiles where that is one size."""

import pytest
import torch
from torch import nn

from srnn_zoo import create_model
from srnn_zoo.models.backbone import create_backbone
from srnn_zoo.models.sizes import Reads, read, reads


class Mean(nn.Module):
    """Features that say where an image lies: the mean of its pixels."""

    def forward(self, x):
        assert x.shape[-2:] == (4, 6)
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("architecture", "expected", "named"),
    [
        ("test_resnet", Reads(), "any size"),
        ("resnetaa50", Reads(32), "multiples of 32"),
        ("test_vit", Reads(16), "multiples of 16"),
        ("swin_tiny_patch4_window7_224", Reads(4), "multiples of 4"),
        ("tresnet_m", Reads(4), "multiples of 4"),
        ("test_coatnet", Reads(tile=(160, 160)), "tiles of 160 x 160"),
        pytest.param("gemma4_vit_167m_enc", Reads(48), "multiples of 48", marks=pytest.mark.slow),
        pytest.param("maxvit_tiny_tf_384", Reads(384), "multiples of 384", marks=pytest.mark.slow),
        pytest.param("halo2botnet50ts_256", Reads(tile=(256, 256)), "tiles of 256 x 256", marks=pytest.mark.slow),
    ],
)
def test_levels_are_what_the_architecture_reads(architecture, expected, named):
    with torch.device("meta"):
        backbone = create_backbone(architecture).eval()
        assert reads(backbone) == expected
        assert str(expected) == named
        size = [2 * expected.multiple * (1 + 400 // expected.multiple) // 2] * 2
        features = read(backbone, torch.empty(2, 3, *size), expected.tile)
        assert features.shape == (2, backbone.head_hidden_size)


def test_tiles_cover_larger_images_evenly_and_smaller_images_are_enlarged():
    columns = torch.arange(12.0).expand(1, 1, 4, 12)
    assert torch.equal(read(Mean(), columns, (4, 6)), torch.tensor([[5.5]]))
    assert torch.equal(read(Mean(), columns[..., :8], (4, 6)), torch.tensor([[3.5]]))  # 0 to 5, and 2 to 7
    assert torch.equal(read(Mean(), columns[..., :1, :8].expand(3, 1, 9, 8), (4, 6)), torch.full((3, 1), 3.5))
    small = torch.stack([torch.full((2, 3, 4), 7.0), torch.full((2, 3, 4), 8.0)])  # to 5 x 6, and then 2 x 1 tiles
    assert torch.allclose(read(Mean(), small, (4, 6)), torch.tensor([[7.0, 7.0], [8.0, 8.0]]))


def test_tokens_and_maps_are_pooled():
    images = torch.randn(2, 3, 4, 6)
    assert torch.equal(read(nn.Identity(), images), images.mean(dim=(2, 3)))
    assert torch.equal(read(nn.Flatten(2), images.transpose(1, 2)), images.transpose(1, 2).flatten(2).mean(dim=1))


@pytest.mark.filterwarnings("ignore")
def test_tiles_cost_what_they_are_are_traced_and_give_no_map():
    model = create_model("srnn_test_vit_relpos", num_classes=3).eval()
    images = torch.randn(1, 3, 230, 180)
    assert torch.allclose(torch.jit.trace(model, images, check_trace=False)(images), model(images), atol=1e-6)
    with pytest.raises(ValueError, match=r"reads a level of 320 x 320 in tiles of 160 x 160, and has no map of it"):
        model.forward_intermediates(torch.randn(1, 3, 320, 320))
    model = create_model("srnn_pit_ti_224", activation="identity", num_classes=3)
    assert model.level_gmacs((448, 300)) == pytest.approx(4 * model.level_gmacs((224, 224)))
