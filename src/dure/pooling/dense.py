"""A dense layer after pooling, as sentence-transformers' `Dense`: activation(W x + b)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import FLOATS
from dure.formats.jsonfile import read_object
from dure.formats.safetensors import read_safetensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Floats = NDArray[np.float32]

MAX_WIDTH = 65_536
_ACTIVATIONS = ("Identity", "Tanh")


@dataclass(frozen=True)
class Dense:
    """The layer: a matrix (outputs, inputs) of float32, and what comes after it."""

    weight: kernels.Matrix
    bias: Floats | None
    activation: str  # one of _ACTIVATIONS

    @property
    def outputs(self) -> int:
        """Numbers of what it gives."""
        return self.weight.rows

    def check_inputs(self, width: int) -> None:
        """Raise ModelFileError unless it takes vectors of so many numbers."""
        if self.weight.cols != width:
            raise ModelFileError(
                f"A dense layer of the checkpoint takes {self.weight.cols:,} numbers, but what "
                f"comes before it gives {width:,}."
            )

    def __call__(self, vector: Floats) -> Floats:
        """Return the layer of one vector (inputs,): (outputs,)."""
        product: Floats = kernels.matmul(vector[None], self.weight, bias=self.bias)[0]
        if self.activation == "Identity":
            return product
        return np.array([math.tanh(each) for each in product.tolist()], np.float32)


def read_dense(folder: Path) -> Dense:
    """Read the layer of a folder: config.json and model.safetensors.

    Raises ModelFileError or UnsupportedModelError.
    """
    settings = read_object(module_file(folder, "config.json"))
    sizes = (settings.get("out_features"), settings.get("in_features"))
    if not all(type(each) is int and 1 <= each <= MAX_WIDTH for each in sizes):
        raise ModelFileError(
            f"{folder}/config.json says no in_features and out_features from 1 to {MAX_WIDTH:,}."
        )
    activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{folder}/config.json has the activation {activation[:60]!r}, which dure does not "
            f"compute; it computes {' and '.join(_ACTIVATIONS)}."
        )
    path = module_file(folder, "model.safetensors")
    if not path.exists():
        raise ModelFileError(
            f"{folder} has no model.safetensors, which holds the dense layer's weights.",
            hint="pickles (pytorch_model.bin) are never read: save the model again",
        )
    tensors = read_safetensors(path)
    outputs, inputs = (int(each) for each in sizes if each is not None)
    weight = _matrix(tensors.get("linear.weight"), (outputs, inputs), folder)
    bias = None
    if settings.get("bias", True):
        bias = _matrix(tensors.get("linear.bias"), (outputs,), folder).row_values(
            np.zeros(1, np.int32)
        )[0]
    return Dense(weight, bias, activation)


def module_file(folder: Path, name: str) -> Path:
    """Return the path of a file of a module's folder, or of what it is called without folders."""
    flat = {"config.json": ".config.json", "model.safetensors": ".weights"}.get(name, "")
    beside = folder.with_name(folder.name + flat)
    return beside if flat and not (folder / name).exists() and beside.exists() else folder / name


def _matrix(tensor: TensorInfo | None, shape: tuple[int, ...], folder: Path) -> kernels.Matrix:
    if tensor is None or tensor.shape != shape or tensor.dtype not in FLOATS:
        raise ModelFileError(f"{folder}/model.safetensors has no floats of the shape {shape}.")
    rows, cols = shape if len(shape) == 2 else (1, shape[0])
    matrix = kernels.Matrix(tensor.dtype, rows, cols)
    matrix.fill(0, tensor.read().reshape(rows, -1))
    return matrix
