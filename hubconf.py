"""torch.hub's entry points: `torch.hub.load("owner/srnn-zoo", "srnn_resnet18", variant="half_gru", pretrained=True)`.

One for every popular backbone, and `srnn` for any other. torch.hub lists every public callable in here.
"""

from srnn_zoo import create_model as _create_model
from srnn_zoo.models.factories import *  # noqa: F403

dependencies = "torch torchvision timm safetensors huggingface_hub numpy PIL lazy_loader".split()


def srnn(backbone, pretrained=False, **kwargs):
    """SRNN over any timm backbone.

    Args:
        backbone: a name from `timm.list_models()`, with or without one of timm's tags: `"convnext_tiny.fb_in1k"`.
        pretrained: take the best weights available; without a trained SRNN, make a zero-shot model.
        **kwargs: as of `srnn_zoo.create_model`: `variant`, `scales`, `num_classes`, ….

    Examples:
        >>> model = torch.hub.load("owner/srnn-zoo", "srnn", "convnext_tiny", variant="vanilla", num_classes=37)
    """
    return _create_model(f"srnn_{backbone.removeprefix('srnn_')}", pretrained=pretrained, **kwargs)
