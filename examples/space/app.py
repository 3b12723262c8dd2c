"""A Hugging Face Space that shows what each level of an SRNN says, and where it stops; the same as `srnn-zoo app`.

Set the variable MODEL of the Space to the Hub id of a model of your own.
"""

import os

from srnn_zoo import SRNN, create_model
from srnn_zoo.evaluation.app import launch

name = os.environ.get("MODEL", "")
model = SRNN.from_pretrained(name) if name else create_model("srnn_tf_efficientnet_lite0", pretrained=True)

if __name__ == "__main__":
    launch(model.eval(), title=name or "A multi-scale EfficientNet-Lite0")
