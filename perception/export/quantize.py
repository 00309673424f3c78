"""One graph in 8 bits: calibrated with its inputs on some frames, for any choice of layers."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from .recorder import Feeds
from .storage import store_weights_in_8_bits, weights_of

# What hands on 8-bit numbers between the layers that multiply.
BETWEEN = ("Relu", "Concat", "MaxPool", "AveragePool", "Resize", "Add")


class QuantizableGraph:
    """A float graph and the ranges of its tensors.

    Activations are unsigned and have one scale per tensor, weights are signed and have one per
    output channel (QuantizeLinear and DequantizeLinear around float operators, "QDQ", which
    runtimes turn into integer kernels).

    Args:
        path: the float graph.
        feeds: its inputs on the frames to calibrate with.
    """

    def __init__(self, path: Path, feeds: Sequence[Feeds]):
        import onnx
        from onnxruntime.quantization import create_calibrator

        self.model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
        weights = weights_of(self.model)
        multiplying = [n for n in self.model.graph.node if len(n.input) > 1]
        multiplying = [n for n in multiplying if n.input[1] in weights]
        self.layers = tuple(node.name for node in multiplying)
        self._kinds = sorted({node.op_type for node in multiplying} | set(BETWEEN))
        with tempfile.TemporaryDirectory() as folder:
            augmented = Path(folder) / "augmented.onnx"
            calibrator = create_calibrator(path, self._kinds, augmented.as_posix())
            calibrator.collect_data(_Reader(feeds))  # pyright: ignore[reportArgumentType]
            self._ranges = calibrator.compute_data()

    def quantized(self, layers: Collection[str]) -> Any:
        """An ``onnx.ModelProto`` in which these layers compute in 8 bits.

        The others compute in float, with weights that are stored in 8 bits.
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType

        model = copy.deepcopy(self.model)
        if layers:
            logger = logging.getLogger()
            level = logger.level
            logger.setLevel(logging.ERROR)  # it recommends what has been done
            try:
                quantizer = QDQQuantizer(
                    *(model, True, False, QuantType.QInt8, QuantType.QUInt8, self._ranges),
                    *(self._with_what_is_between(layers), [], self._kinds, {}),
                )
                quantizer.quantize_model()
            finally:
                logger.setLevel(level)
            quantizer.model.topological_sort()
            model = quantizer.model.model
        store_weights_in_8_bits(model)
        del model.graph.value_info[:], model.metadata_props[:]
        return model

    def _with_what_is_between(self, layers: Collection[str]) -> list[str]:
        """The layers, and the operators whose inputs all come from layers."""
        chosen, made = [], set()
        for node in self.model.graph.node:
            if node.name in layers or (
                node.op_type in BETWEEN and made.issuperset(filter(None, node.input))
            ):
                chosen.append(node.name)
                made.update(node.output)
        return chosen


class _Reader:
    """Hands a graph's inputs to onnxruntime's calibration."""

    def __init__(self, feeds: Sequence[Feeds]):
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        """The next frame's, None after the last."""
        return next(self._feeds, None)
