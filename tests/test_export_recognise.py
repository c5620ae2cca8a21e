"""What is recognised from tensors alone, and the one error on a checkpoint whose tensors do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vimrt.export import Choices, ExportError, VimConfig, export_checkpoint, recognise
from vimrt.export.config import VIM_BASE, VIM_SMALL, VIM_SMALL_STRIDE8, VIM_TINY, VIM_TINY_STRIDE8, expected_tensors
from vimrt.export.report import check_tensors
from vimrt.export.tensor import Tensor

CONFIG = VimConfig.of_width(32, depth=4, classes=10)


def tensors_of(config: VimConfig) -> dict[str, Tensor]:
    """Tensors with the right names and shapes, all that recognition looks at."""
    return {name: Tensor("F32", shape, None) for name, shape in expected_tensors(config).items()}


def recognised(config: VimConfig, **choices: Any) -> VimConfig:
    return recognise("vim.pth", tensors_of(config), Choices(**choices)).config


@pytest.mark.parametrize("config", [VIM_TINY, VIM_SMALL, VIM_BASE, VIM_TINY_STRIDE8, VIM_SMALL_STRIDE8])
def test_the_published_models_need_no_option(config: VimConfig) -> None:
    assert recognised(config) == config


def test_sizes_are_read_off_the_shapes() -> None:
    config = VimConfig(
        d_model=20, depth=1, d_inner=30, d_state=3, dt_rank=11, d_conv=2, patch_size=(8, 8), stride=8, classes=5
    )
    assert recognised(config) == config


@pytest.mark.parametrize(
    ("grid", "patch", "stride", "image_size"),
    [(14, 16, 16, 224), (27, 16, 8, 224), (24, 16, 16, 384), (78, 16, 16, 1248), (7, 4, 4, 28), (27, 8, 8, 216)],
)
def test_the_length_of_pos_embed_tells_the_stride(grid: int, patch: int, stride: int, image_size: int) -> None:
    found = recognised(replace(CONFIG, grid=(grid, grid), patch_size=(patch, patch)))
    assert (found.grid, found.stride, found.image_size) == ((grid, grid), stride, (image_size, image_size))


def test_a_stride_given_is_taken() -> None:
    found = recognised(replace(CONFIG, grid=(13, 13), patch_size=(4, 4)), stride=2)
    assert found.stride == 2
    assert found.image_size == (28, 28)


def test_patches_that_are_not_square_need_a_stride() -> None:
    config = replace(CONFIG, patch_size=(16, 8))
    with pytest.raises(ExportError, match="patches are 16x8, so the stride must be given: --stride N"):
        recognised(config)
    assert recognised(config, stride=8).stride == 8


@pytest.mark.parametrize("class_token", ["middle", "head", "tail"])
def test_the_place_of_a_single_class_token_is_a_choice(class_token: Any) -> None:
    assert recognised(CONFIG).class_token == "middle"
    assert recognised(CONFIG, class_token=class_token).class_token == class_token


def test_two_class_tokens_stand_at_the_ends() -> None:
    config = replace(CONFIG, class_token="ends")
    assert recognised(config) == config
    with pytest.raises(ExportError, match="one at each end; leave out --class-token head"):
        recognised(config, class_token="head")


def test_without_a_class_token_the_last_token_is_classified_unless_told_otherwise() -> None:
    config = replace(CONFIG, class_token="none", pool="last")
    assert recognised(config) == config
    assert recognised(config, pool="mean").pool == "mean"
    assert recognised(config, pool="max").pool == "max"
    with pytest.raises(ExportError, match="has no class token; leave out --class-token middle"):
        recognised(config, class_token="middle")
    with pytest.raises(ExportError, match="has no class token; leave out --first-entry"):
        recognised(config, first_entry=True)


@pytest.mark.parametrize(("mixer", "merge"), [("v2", "mean"), ("v1", "sum"), ("none", "sum")])
def test_the_backward_parameters_tell_the_mixer(mixer: Any, merge: Any) -> None:
    config = replace(CONFIG, mixer=mixer, merge=merge)
    assert recognised(config) == config
    assert recognised(config, merge="sum").merge == "sum"


@pytest.mark.parametrize("mixer", ["v1", "none"])
def test_what_is_never_divided_cannot_be_averaged(mixer: Any) -> None:
    with pytest.raises(ExportError, match=f"mixer {mixer} .*leave out --merge mean"):
        recognised(replace(CONFIG, mixer=mixer, merge="sum"), merge="mean")


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, norm="layer"),
        replace(CONFIG, layer_scale=True),
        replace(CONFIG, class_token="none", pool="last", rope=True),
        replace(CONFIG, class_token="none", pool="last", rope=True, position_embedding=False, grid=(9, 9)),
    ],
)
def test_norm_layer_scale_and_rope_are_told_by_their_tensors(config: VimConfig) -> None:
    assert recognised(config) == config


def test_rope_beside_a_class_token_is_refused() -> None:
    tensors = tensors_of(CONFIG) | {"rope.freqs_cos": Tensor("F32", (196, 32), None)}
    with pytest.raises(ExportError, match=r"vim\.pth: rope turns patches only"):
        recognise("vim.pth", tensors)


def test_every_row_says_where_its_value_was_read() -> None:
    rows = {row.name: row for row in recognise("vim.pth", tensors_of(CONFIG), Choices(merge="sum")).rows}
    assert rows["d_model"].value == "32"
    assert "out_proj.weight" in rows["d_model"].source
    assert "pos_embed" in rows["grid"].source
    assert rows["merge"].source == "--merge"
    assert "default" in rows["class_token"].source


def report_on(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(ExportError) as raised:
        check_tensors("vim.pth", tensors, recognise("vim.pth", tensors).config)
    return str(raised.value)


def complete_tensors(config: VimConfig = CONFIG) -> dict[str, Tensor]:
    import numpy as np

    return {name: Tensor("F32", shape, np.zeros(shape, "f4")) for name, shape in expected_tensors(config).items()}


def test_a_whole_checkpoint_passes() -> None:
    tensors = complete_tensors()
    check_tensors("vim.pth", tensors, recognise("vim.pth", tensors).config)


def test_one_error_lists_missing_unexpected_misshapen_and_mistyped_tensors() -> None:
    tensors = complete_tensors()
    for block in range(4):
        del tensors[f"layers.{block}.mixer.D_b"]
    del tensors["head.bias"]
    tensors["head_dist.weight"] = Tensor("F32", (10, 32), None)
    tensors["layers.2.mixer.x_proj.weight"] = Tensor("F32", (34, 60), tensors["head.weight"].data)
    tensors["norm_f.weight"] = Tensor("I64", (32,), None)
    assert report_on(tensors).splitlines()[1:] == [
        "  missing: layers.0..3.mixer.D_b (64)",
        "  missing: head.bias (10)",
        "  unexpected: head_dist.weight (10, 32)",
        "  misshapen: layers.2.mixer.x_proj.weight is (34, 60), expected (34, 64)",
        "  not floating-point: norm_f.weight is I64, expected F16, BF16, F32 or F64",
    ]


@pytest.mark.parametrize("name", list(expected_tensors(replace(CONFIG, depth=1))))
def test_any_missing_tensor_is_reported(name: str) -> None:
    tensors = complete_tensors()
    del tensors[name]
    if name == "cls_token":  # then 197 positions are no square
        assert "misshapen: pos_embed is (1, 197, 32), expected (1, 196, 32)" in report_on(tensors)
        return
    shape = ", ".join(str(size) for size in expected_tensors(CONFIG)[name]) if name != "head.weight" else "10, 32"
    # Three other blocks still have the tensors of block 0; patches have the published size where nothing tells it.
    assert f"  missing: {name} ({shape})" in report_on(tensors).splitlines()


@pytest.mark.parametrize("name", list(expected_tensors(replace(CONFIG, depth=1))))
def test_any_misshapen_tensor_is_reported_against_what_the_others_make(name: str) -> None:
    tensors = complete_tensors()
    shape = expected_tensors(CONFIG)[name]
    tensors[name] = replace(tensors[name], shape=(*shape, 1))
    expected = ", ".join(str(size) for size in shape)
    assert f"  misshapen: {name} is ({expected}, 1), expected ({expected})" in report_on(tensors).splitlines()


def test_positions_that_make_no_square_are_compared_with_the_nearest() -> None:
    tensors = complete_tensors()
    tensors["pos_embed"] = replace(tensors["pos_embed"], shape=(1, 196, 32))
    assert report_on(tensors).splitlines()[1:] == ["  misshapen: pos_embed is (1, 196, 32), expected (1, 197, 32)"]


def test_scattered_blocks_are_listed_as_ranges() -> None:
    tensors = complete_tensors(replace(CONFIG, depth=8))
    for block in (0, 1, 2, 4, 7):
        del tensors[f"layers.{block}.mixer.D"]
    assert report_on(tensors).splitlines()[1:] == ["  missing: layers.0..2,4,7.mixer.D (64)"]


def test_a_long_report_is_cut_and_says_so() -> None:
    tensors = complete_tensors() | {f"decoder.{i}.weight": Tensor("F32", (1,), None) for i in range(1000)}
    lines = report_on(tensors).splitlines()
    assert lines[-1] == "  unexpected: and 980 more"
    assert len(lines) == 22


def test_names_from_the_file_cannot_drive_the_terminal() -> None:
    tensors = complete_tensors() | {"\x1b[2J" + "x" * 500: Tensor("F32", (1,), None)}
    report = report_on(tensors)
    assert "\x1b" not in report
    assert len(report.splitlines()[1]) < 200


def test_a_block_number_beyond_reason_is_unexpected_not_a_deep_model() -> None:
    tensors = complete_tensors() | {"layers.4000000000.mixer.D": Tensor("F32", (64,), None)}
    assert report_on(tensors).splitlines()[1:] == ["  unexpected: layers.4000000000.mixer.D (64)"]


def test_another_architecture_is_called_by_its_tensors() -> None:
    tensors = {"cls_token": Tensor("F32", (1, 1, 192), None), "blocks.0.attn.qkv.weight": Tensor("F32", (1,), None)}
    with pytest.raises(ExportError, match=r"is not a Vision Mamba checkpoint: .*'cls_token', 'blocks.0.attn.qkv"):
        recognise("deit.pth", tensors)


def test_a_wrong_checkpoint_leaves_no_output_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.ones(shape) for name, shape in expected_tensors(CONFIG).items()}
    del state["layers.3.norm.weight"]
    torch.save({"model": state}, tmp_path / "vim.pth")
    with pytest.raises(ExportError, match=r"missing: layers.3.norm.weight \(32\)"):
        export_checkpoint(tmp_path / "vim.pth", tmp_path / "vim.vimrt")
    assert [path.name for path in tmp_path.iterdir()] == ["vim.pth"]
