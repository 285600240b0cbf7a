"""ONNX files with 8-bit integers in place of most floats: smaller, and faster on processors with such products."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import write_atomically


def quantise_onnx(path: str | Path, output: str | Path, batches: Iterable[dict[str, np.ndarray]]) -> None:
    """Write the graph of an ONNX file anew with weights and their products in 8 bits, by onnxruntime.

    Products of a layer with its input (MatMul, Gemm, Conv) become integer ones, with a scale for each output channel.
    What they take is scaled by its smallest and largest value in `batches`, inputs by name. Attention and norms stay
    float. Weights have 7 bits: without VNNI, processors add pairs of 8-bit products in 16 bits, which can overflow.

    Raises InputError without onnxruntime.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise InputError("an int8 file needs the package onnxruntime: pip install onnx onnxruntime") from None

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterator[dict[str, np.ndarray]]):
            self.batches = batches

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    def write(beside: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared), str(beside), Reader(iter(batches)), op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip

    write_atomically(output, write)
