"""One image size and batch on the CPU: vimrt and its peers by turns, by the wall clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Engine
from .report import Case, ImageSize, Measured, Progress, Settings
from .resident import measure_resident
from .timing import interleave
from .work import work_of

if TYPE_CHECKING:
    from .peers import Peer


def measure(
    settings: Settings,
    load: Callable[[], Engine],
    image_size: ImageSize,
    batch: int,
    rates: Mapping[str, float],
    progress: Progress,
) -> Case:
    """Measures `batch` images of rows and columns `image_size`; `load` makes a new engine, for this case's arena."""
    place = f"{image_size[0]}x{image_size[1]}, batch {batch}"
    resident = None
    if settings.resident:
        progress(f"{place}: measuring resident memory")
        resident = measure_resident(str(settings.model), batch, image_size, settings.device, settings.threads)
    engine = load()
    program = engine.program(batch, image_size)
    pixels = np.random.default_rng(0).standard_normal((batch, 3, *image_size), dtype=np.float32)
    logits = engine.run(pixels)
    functions: dict[str, Callable[[], object]] = {"vimrt": lambda: engine.run(pixels, out=logits)}
    peers: dict[str, Peer] = {}
    for name in settings.peers:
        progress(f"{place}: preparing {name}")
        peers[name] = _prepare(name, engine, batch, image_size, settings.compiled)
        functions[name] = peers[name].run
    progress(f"{place}: timing {', '.join(functions)}")
    timings = interleave(functions, settings.rounds, settings.budget_seconds)
    runtimes = {"vimrt": Measured(timings["vimrt"], engine.memory["activations"], engine.backend)}
    for name, peer in peers.items():
        runtimes[name] = Measured(timings[name], peer.activation_bytes, peer.variant)
    work = work_of(engine.info, batch, image_size)
    floor = work.floor_seconds(rates["exp_per_second"], rates["fma_flops_per_second"])
    return Case(image_size, batch, work, floor, runtimes, program["peak"], program["lower_bound"], resident)


def _prepare(name: str, engine: Engine, batch: int, image_size: ImageSize, compiled: bool) -> Peer:
    from . import peers  # PyTorch, only where it is compared with

    if name == "deit":
        return peers.prepare_deit(engine.info, batch, image_size, engine.threads, compiled=compiled)
    return peers.prepare_vim(engine.info, batch, image_size, engine.threads)
