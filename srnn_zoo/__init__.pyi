"""What `from srnn_zoo import …` gives: `__init__.py` imports each name when it is first used."""

from . import comparison as comparison
from . import datasets as datasets
from . import evaluation as evaluation
from . import export as export
from . import inference as inference
from . import models as models
from . import training as training
from . import transforms as transforms
from . import weights as weights
from ._errors import WeightsUnavailableError as WeightsUnavailableError
from ._memory import keep_freed_memory as keep_freed_memory
from .inference.activation_maps import activation_maps as activation_maps
from .inference.answers import collect as collect
from .inference.calibrate import budget_rule as budget_rule
from .inference.calibrate import calibrate as calibrate
from .inference.cascade import cascade as cascade
from .inference.cascade import rivals as rivals
from .inference.curve import pareto as pareto
from .inference.curve import write_pareto as write_pareto
from .inference.early_exit import Anytime as Anytime
from .inference.exits import list_exits as list_exits
from .inference.exits import register_exit as register_exit
from .inference.exported import open_exported as open_exported
from .inference.prepare import for_inference as for_inference
from .models.cells import Cell as Cell
from .models.cells import list_cells as list_cells
from .models.cells import register_cell as register_cell
from .models.convert import from_base_cnn as from_base_cnn
from .models.convert import to_base_cnn as to_base_cnn
from .models.cost import count_gmacs as count_gmacs
from .models.create import ModelFactory as ModelFactory
from .models.create import create_model as create_model
from .models.create import get_factory as get_factory
from .models.create import list_models as list_models
from .models.create import register_weights as register_weights
from .models.entries import Weights as Weights
from .models.entries import get_weights as get_weights
from .models.entries import list_pretrained as list_pretrained
from .models.factories import (
    srnn_resnet18 as srnn_resnet18,
    srnn_resnet34 as srnn_resnet34,
    srnn_resnet50 as srnn_resnet50,
    srnn_resnet101 as srnn_resnet101,
    srnn_resnet18d as srnn_resnet18d,
    srnn_resnet50d as srnn_resnet50d,
    srnn_resnext50_32x4d as srnn_resnext50_32x4d,
    srnn_wide_resnet50_2 as srnn_wide_resnet50_2,
    srnn_regnetx_016 as srnn_regnetx_016,
    srnn_regnety_016 as srnn_regnety_016,
    srnn_mobilenetv3_small_100 as srnn_mobilenetv3_small_100,
    srnn_mobilenetv3_large_100 as srnn_mobilenetv3_large_100,
    srnn_mobilenetv4_conv_small as srnn_mobilenetv4_conv_small,
    srnn_mobilenetv4_conv_medium as srnn_mobilenetv4_conv_medium,
    srnn_efficientnet_b0 as srnn_efficientnet_b0,
    srnn_efficientnet_b1 as srnn_efficientnet_b1,
    srnn_efficientnet_b2 as srnn_efficientnet_b2,
    srnn_efficientnet_b3 as srnn_efficientnet_b3,
    srnn_tf_efficientnet_lite0 as srnn_tf_efficientnet_lite0,
    srnn_tf_efficientnet_lite1 as srnn_tf_efficientnet_lite1,
    srnn_tf_efficientnet_lite2 as srnn_tf_efficientnet_lite2,
    srnn_tf_efficientnetv2_b0 as srnn_tf_efficientnetv2_b0,
    srnn_tf_efficientnetv2_s as srnn_tf_efficientnetv2_s,
    srnn_convnext_atto as srnn_convnext_atto,
    srnn_convnext_tiny as srnn_convnext_tiny,
    srnn_convnext_small as srnn_convnext_small,
    srnn_densenet121 as srnn_densenet121,
    srnn_vgg16 as srnn_vgg16,
    srnn_vit_tiny_patch16_224 as srnn_vit_tiny_patch16_224,
    srnn_vit_small_patch16_224 as srnn_vit_small_patch16_224,
    srnn_vit_base_patch16_224 as srnn_vit_base_patch16_224,
    srnn_deit_tiny_patch16_224 as srnn_deit_tiny_patch16_224,
    srnn_deit_small_patch16_224 as srnn_deit_small_patch16_224,
    srnn_swin_tiny_patch4_window7_224 as srnn_swin_tiny_patch4_window7_224,
)
from .models.initial import init_from_base_cnn as init_from_base_cnn
from .models.srnn import SRNN as SRNN
from .models.srnn import Step as Step
from .models.views import Glance as Glance
from .models.views import list_views as list_views
from .models.views import register_view as register_view
from .transforms.batches import HeightBatchSampler as HeightBatchSampler
from .transforms.batches import pyramid_collate as pyramid_collate
from .transforms.packed import LazyLevels as LazyLevels
from .transforms.packed import PackedPyramid as PackedPyramid
from .transforms.presets import create_transform as create_transform
from .transforms.pyramid import Pyramid as Pyramid
from .transforms.scale_pyramid import ScalePyramid as ScalePyramid

__version__: str

def __getattr__(name: str) -> ModelFactory[...]: ...
