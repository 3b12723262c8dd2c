"""Which tensors a network computes cannot be negative, told from its operations: no values are needed, nor weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# ATen's operations: those whose result is never negative, whatever they get …
_NEVER_NEGATIVE = frozenset("relu sigmoid hardsigmoid _softmax softplus abs".split())
_CLIPPED = {"hardtanh": "min_val", "clamp": "min", "clamp_min": "min"}  # … those for which a bound says it …
# … and those that give no negative number unless they get one. Views of a tensor do as well.
_KEEP_THE_SIGN = frozenset(
    "add mul div mean sum amax avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices adaptive_max_pool2d cat stack "
    "clone copy _to_copy constant_pad_nd _unsafe_view silu gelu hardswish leaky_relu".split()
)


class Signs(TorchDispatchMode):
    """Inside this context, notes for every tensor that is computed whether it can be negative, whatever the weights.

    It works on any device, meta too. In doubt a tensor counts as one that can be negative: parameters, images, and the
    results of operations that are not listed here.

    Examples:
        >>> with torch.no_grad(), Signs() as signs:
        ...     features = backbone(images)
        >>> signs.never_negative(features)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._never_negative = WeakTensorKeyDictionary()

    def never_negative(self, value: Any) -> bool:
        """Whether a tensor, a number or all in a list of them cannot be negative."""
        if isinstance(value, list | tuple):
            return all(map(self.never_negative, value))
        if isinstance(value, Tensor):
            return value in self._never_negative
        return value is None or (not isinstance(value, complex) and value >= 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        names = [argument.name for argument in func._schema.arguments]
        values = {argument.name: argument.default_value for argument in func._schema.arguments}
        never = self._result_is_never_negative(
            func, {**values, **dict(zip(names, args, strict=False)), **(kwargs or {})}
        )
        if func._schema.is_mutable and not never:  # other views of the same memory change too
            self._never_negative.clear()
        for result in tree_leaves(results):
            if never and isinstance(result, Tensor):
                self._never_negative[result] = True
        return results

    def _result_is_never_negative(self, func: Any, values: dict[str, Any]) -> bool:
        name, schema = func.overloadpacket.__name__, func._schema
        name = name.removesuffix("_") if schema.is_mutable else name
        if name in _CLIPPED and (bound := values[_CLIPPED[name]]) is not None:
            return self.never_negative(bound)
        is_view = any(result.alias_info and not result.alias_info.is_write for result in schema.returns)
        operands = [a.name for a in schema.arguments if "Tensor" in str(a.type) or str(a.type) == "number"]
        keeps = is_view or name in _KEEP_THE_SIGN
        return name in _NEVER_NEGATIVE or (keeps and all(self.never_negative(values[operand]) for operand in operands))
