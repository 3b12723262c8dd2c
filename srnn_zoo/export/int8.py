"""Quantisation of encoders to 8 bits, by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def quantize(folder: Path, encoders: Sequence[str], images: Sequence[Sequence[Tensor]]) -> None:
    """Quantise encoders in place: weights for each channel, activations by the range they have on some images.

    Args:
        folder: where they are.
        encoders: their files, one for each level; levels may share one.
        images: the levels of each image, `(C, H_s, W_s)`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for name in dict.fromkeys(encoders):
        own = [level for level, encoder in enumerate(encoders) if encoder == name]
        given = ({"level": levels[level][None].numpy()} for levels in images for level in own)
        prepared, quantized = folder / f"prepared_{name}", folder / f"quantized_{name}"
        quant_pre_process(str(folder / name), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantized),
            _reader(given),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # 7 bits of weights: where a CPU lacks VNNI, sums of 8-bit products saturate
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )
        for file in (prepared, *folder.glob(f"{name}.data")):
            file.unlink(missing_ok=True)
        quantized.replace(folder / name)


def _reader(inputs: Iterator[dict[str, Any]]) -> Any:
    """What onnxruntime asks for inputs, one at a time, until it gets None."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(inputs, None)

    return Reader()
