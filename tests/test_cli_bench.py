"""`vimrt bench`, and the measurements behind it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Vimrt

from vimrt import Engine
from vimrt.bench.timing import Timing, interleave
from vimrt.bench.work import Work, work_of
from vimrt.export import VimConfig, export_checkpoint


def exported(config: VimConfig, folder: Path, **options: Any) -> Path:
    import torch

    from vimrt.export.reference import random_state_dict

    torch.save(random_state_dict(config, seed=1), folder / "model.pth")
    export_checkpoint(folder / "model.pth", folder / "model.vimrt", stride=config.stride, **options)
    return folder / "model.vimrt"


def test_functions_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: (order.append(name), time.sleep(0.21)) for name in ("first", "second")}
    timings = interleave(functions, rounds=3)
    assert order == ["first", "second"] * 4
    for timing in timings.values():
        assert len(timing.calls) == 3
        assert 0.2 < timing.median < 0.4


def test_the_budget_ends_the_rounds_but_not_before_three() -> None:
    assert len(interleave({"one": lambda: None}, rounds=1000, budget_seconds=0)["one"].calls) == 3


def test_medians_and_quartiles() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))


def test_work_of_vim_ti_is_the_published_count(tmp_path: Path) -> None:
    """Per token and block: 2 E N state updates; in_proj, x_proj, dt_proj and out_proj by their shapes. In the last
    block the directions walk to the class token in the middle, of which alone out_proj is computed."""
    depth = 2
    model = exported(VimConfig.of_width(192, depth=depth), tmp_path)
    work = work_of(Engine(model).info, 3, (224, 224))
    tokens, half = 3 * 197, 3 * 99
    directions = 2 * 384 * (12 + 32) + 2 * 12 * 384
    assert work.exponentials == (tokens + half) * 2 * 384 * 16
    blocks = tokens * depth * 192 * 768 + (tokens + half) * directions + (tokens + 3) * 384 * 192
    assert work.matrix_flops == 2 * (blocks + 3 * 196 * 192 * 768 + 3 * 192 * 1000)


@pytest.mark.parametrize(("mixer", "updates", "projections"), [("v1", 2, 1), ("none", 1, 1), ("v2", 2, 2)])
def test_work_of_other_mixers(mixer: str, updates: int, projections: int, tmp_path: Path) -> None:
    merge = "sum" if mixer == "v1" else "mean"
    config = replace(TINY, mixer=mixer, merge=merge, class_token="ends")  # type: ignore[arg-type]
    work = work_of(Engine(exported(config, tmp_path)).info, 1, (28, 28))
    tokens, inner, rank, states = 49 + 2, 64, 2, 16
    assert work.exponentials == tokens * config.depth * updates * inner * states
    per_block = 32 * 128 + 64 * 32 + projections * (inner * (rank + 2 * states) + rank * inner)
    assert work.matrix_flops == 2 * (tokens * config.depth * per_block + 49 * 32 * 48 + 32 * 10)


def test_work_of_values_that_the_head_reads_whole(tmp_path: Path) -> None:
    """Where tokens are pooled, or the last one is selected, which comes last on the forward direction's walk."""
    works = {}
    for pool in ("mean", "last"):
        config = replace(TINY, class_token="none", pool=pool)  # type: ignore[arg-type]
        works[pool] = work_of(Engine(exported(config, tmp_path, pool=pool)).info, 2, (28, 28))
    tokens, inner, rank, states = 49, 64, 2, 16
    assert works["mean"].exponentials == 2 * tokens * TINY.depth * 2 * inner * states
    assert works["mean"].exponentials - works["last"].exponentials == 2 * (tokens - 1) * inner * states
    backward = inner * (rank + 2 * states) + rank * inner
    saved = 2 * (tokens - 1) * (backward + inner * 32)
    assert works["mean"].matrix_flops - works["last"].matrix_flops == 2 * saved


def test_the_floor_adds_both_kinds_of_work() -> None:
    work = Work(exponentials=6, matrix_flops=20)
    assert work.floor_seconds(exp_per_second=2, matrix_flops_per_second=10) == 5


def test_an_unknown_operator_has_no_known_work(tiny_model: Path) -> None:
    info = dict(Engine(tiny_model).info)
    graph = json.loads(info["metadata"]["graph"])
    graph["nodes"][0]["op"] = "teleport"
    info["metadata"] = {"graph": json.dumps(graph)}
    with pytest.raises(ValueError, match="teleport"):
        work_of(info, 1, (28, 28))


def test_peak_tensor_bytes_sees_what_is_alive_together() -> None:
    import torch

    from vimrt.bench.torch_memory import peak_tensor_bytes

    def three_tensors_two_at_a_time() -> torch.Tensor:
        first = torch.zeros(1 << 20)
        second = first + 1
        del first
        return second + 1

    assert peak_tensor_bytes(three_tensors_two_at_a_time) == pytest.approx(2 * 4 * 2**20, rel=1e-4)


def test_a_table_of_sizes_and_batches(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("bench", tiny_model, "--image-size", "28", "56x28", "--batch", "1", "2", "--runs", "3")
    assert process.returncode == 0
    rows = [line.split() for line in process.stdout.splitlines() if line.startswith(("28x28", "56x28"))]
    assert [row[:3] for row in rows] == [[size, batch, "vimrt"] for size in ("28x28", "56x28") for batch in ("1", "2")]
    assert all(float(row[3]) > 0 for row in rows)
    assert "timing vimrt" in process.stderr


def test_json_and_output_say_the_same(vimrt: Vimrt, tiny_model: Path, tmp_path: Path) -> None:
    process = vimrt("bench", tiny_model, "--runs", "5", "--threads", "1", "--json", "--output", tmp_path / "bench.json")
    document = json.loads(process.stdout)
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert document["threads"] == 1
    assert {"processor", "cores", "versions", "commit", "date"} <= set(document["machine"])
    (result,) = document["results"]
    own = result["runtimes"]["vimrt"]
    assert own["calls"] == 5
    assert own["quartiles"][0] <= own["seconds"] <= own["quartiles"][1]
    assert own["images_per_second"] == pytest.approx(1 / own["seconds"])
    assert result["planned_peak"] == Engine(tiny_model, threads=1).program()["peak"]


def test_the_floor_is_the_work_at_the_measured_rates(vimrt: Vimrt, tiny_model: Path) -> None:
    document = json.loads(vimrt("bench", tiny_model, "--runs", "3", "--json").stdout)
    (result,), rates = document["results"], document["rates"]
    floor = result["exponentials"] / rates["exp_per_second"] + result["matrix_flops"] / rates["fma_flops_per_second"]
    assert result["floor_seconds"] == pytest.approx(floor)
    assert result["over_floor"] == pytest.approx(result["runtimes"]["vimrt"]["seconds"] / floor)
    assert result["over_floor"] > 1


def test_comparison_with_vim_in_pytorch(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("bench", tiny_model, "--compare", "vim", "--runs", "3", "--json")
    (result,) = json.loads(process.stdout)["results"]
    seconds = {name: entry["seconds"] for name, entry in result["runtimes"].items()}
    assert list(seconds) == ["vimrt", "vim"]
    assert result["speedup"]["vim"] == pytest.approx(seconds["vim"] / seconds["vimrt"])


def test_comparison_with_deit_and_its_plot(vimrt: Vimrt, tmp_path: Path) -> None:
    model = exported(VimConfig.of_width(192, depth=1), tmp_path)
    plot = tmp_path / "bench.svg"
    options = ["--compare", "deit", "--no-compile", "--runs", "3", "--image-size", "32", "64", "--plot", plot, "--json"]
    process = vimrt("bench", model, *options)
    assert process.returncode == 0, process.stderr
    for result in json.loads(process.stdout)["results"]:
        assert result["runtimes"]["deit"]["variant"].startswith("eager")
        assert result["runtimes"]["deit"]["activation_bytes"] > 0
    drawing = plot.read_text()
    for text in ("images per second", "activation memory, MiB", "image side, pixels", "DeiT, PyTorch", "vimrt"):
        assert f">{text}<" in drawing


def test_deit_of_another_width_is_refused(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("bench", tiny_model, "--compare", "deit")
    assert process.returncode == 1
    assert "vimrt: error: there is no DeiT of the model's width 32" in process.stderr


def test_resident_memory_is_measured(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("bench", tiny_model, "--image-size", "448", "--runs", "3", "--resident", "--json")
    (result,) = json.loads(process.stdout)["results"]
    resident = result["resident"]
    assert resident["planned"] == result["runtimes"]["vimrt"]["activation_bytes"]
    # Pages, stacks and what else a small model's engine takes once are some tens of KiB.
    counted = resident["planned"] + resident["program"]
    assert 0.9 * counted < resident["growth"] < 1.1 * counted
