"""Small .vimrt files of a few nodes, so that an operator can be run by itself on any tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

import vimrt

Array = npt.NDArray[Any]


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], weights: Mapping[str, str] = {}, **attributes: Any
) -> Any:
    """A node named after its first output; `weights` maps roles to tensors."""
    return {
        "op": op,
        "name": outputs[0] + ".node",
        "inputs": list(inputs),
        "outputs": list(outputs),
        "weights": dict(weights),
        "attributes": attributes,
    }


def write_graph(
    path: Path,
    nodes: Sequence[Any],
    tensors: Mapping[str, Array],
    outputs: Sequence[str],
    image_size: tuple[int, int] = (64, 64),
) -> Path:
    """A .vimrt file of these nodes, whose input is "pixels"."""
    graph = {
        "inputs": [{"name": "pixels", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}],
        "nodes": list(nodes),
        "outputs": {name: name for name in outputs},
    }
    preprocessing = {
        "image_size": list(image_size),
        "crop": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    metadata = {
        "format": "vimrt",
        "format_version": "1",
        "graph": json.dumps(graph),
        "preprocessing": json.dumps(preprocessing),
    }
    dense = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
    save_file(dense, path, metadata=metadata)
    return path


def tokens_engine(
    path: Path,
    channels: int,
    nodes: Sequence[Any],
    tensors: Mapping[str, Array],
    outputs: Sequence[str],
    threads: int | None = None,
) -> vimrt.Engine:
    """An engine whose nodes read the value "x", tokens (B, T, channels) that run_tokens() hands in as they are."""
    columns = -(-channels // 3)
    # A patch is one row of the image; the weight picks its first `channels` values.
    pick = np.eye(channels, 3 * columns).reshape(channels, 3, 1, columns)
    embed = node("patch_embed", ["pixels"], ["x"], {"weight": "pick"}, stride=1)
    write_graph(path, [embed, *nodes], {"pick": pick, **tensors}, outputs, image_size=(1, columns))
    return vimrt.Engine(path, device="cpu", threads=threads)


def run_tokens(engine: vimrt.Engine, x: Array, outputs: Sequence[str]) -> dict[str, Array]:
    """Runs an engine of tokens_engine() on x (B, T, channels)."""
    batch, tokens, channels = x.shape
    columns = -(-channels // 3)
    padded = np.zeros((batch, tokens, 3 * columns), np.float32)
    padded[:, :, :channels] = x
    pixels = padded.reshape(batch, tokens, 3, columns).transpose(0, 2, 1, 3)
    return engine.run(np.ascontiguousarray(pixels), outputs=outputs)


def relative_error(found: Array, expected: Array) -> float:
    """Relative L2 error; NaN anywhere makes it NaN."""
    reference = np.asarray(expected, dtype=np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - reference) / np.linalg.norm(reference))
