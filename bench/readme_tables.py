"""README's tables of measurements, written from bench/results: nobody types a figure.

    python bench/readme_tables.py            rewrites the blocks between their marks
    python bench/readme_tables.py --check    fails where README says something else than the results

The GPU's block is put behind the CPU's once there is a bench/results/gpu_<card>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MIB = 2**20
_MODELS = {"tiny": "Ti", "small": "S", "base": "B"}

Document = Mapping[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def milliseconds(seconds: float) -> str:
    """Three digits, as far as they are behind the point."""
    ms = 1e3 * seconds
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def mebibytes(size: int | None) -> str:
    """One digit behind the point."""
    return "" if size is None else f"{size / MIB:.1f} MiB"


def cpu_block(document: Document) -> list[str]:
    """Vim-Ti with one image on the CPU."""
    machine, results = document["machine"], document["results"]
    torch = machine["versions"]["torch"].partition("+")[0]
    cores = {1: "one core", 2: "two cores"}.get(machine["cores"], f"{machine['cores']} cores")
    lines = [
        f"Vim-Ti, batch 1, {cores} of an {machine['processor']} ({_instruction_set(document)}), fp32, medians taken in "
        "one run side by side with",
        f"DeiT-Ti in PyTorch {torch} (scaled_dot_product_attention, the best of eager and torch.compile):",
        "",
    ]
    columns = ("image", "vimrt, ms", "over the floor", "DeiT-Ti, ms", "vimrt is", "activations, vimrt", "DeiT-Ti")
    lines += table(columns, [_cpu_row(result) for result in results])
    naive = next((one["runtimes"]["vim"]["seconds"] for one in results if "vim" in one["runtimes"]), None)
    lines += [
        "",
        "The floor is the scan's exponentials and the matrix products' operations at this processor's measured rates.",
    ]
    if naive is not None:
        side = results[0]["image_size"][0]
        lines.append(f"A straightforward Vim in PyTorch takes {1e3 * naive:.0f} ms at {side}².")
    return [*lines, "`python bench/cpu.py` prints the table; this one is `bench/results/cpu_tiny.json`."]


def _instruction_set(document: Document) -> str:
    return str(document["backend"]).partition("(")[2].partition(",")[0]


def _cpu_row(result: Document) -> list[str]:
    own, deit = result["runtimes"]["vimrt"], result["runtimes"].get("deit")
    cells = [f"{result['image_size'][0]}²", milliseconds(own["seconds"]), f"{result['over_floor']:.2f}×"]
    cells += [milliseconds(deit["seconds"]), f"{result['speedup']['deit']:.2f}× as fast"] if deit else ["", ""]
    return [*cells, mebibytes(own["activation_bytes"]), mebibytes(deit["activation_bytes"]) if deit else ""]


def gpu_block(document: Document, authors: Document, path: str) -> list[str]:
    """Every row on a GPU, with the authors' figure where there is one."""
    gpu, versions = document["machine"]["gpu"], document["machine"]["versions"]
    earlier = {(row["size"], row["side"], row["batch"]): row for row in authors["rows"]}
    results = [result for result in document["results"] if "error" not in result]
    lines = [
        f"{gpu['name']}, fp16, input and output on the card, medians of CUDA graph replays taken side by side",
        f"in one run with DeiT in PyTorch {versions['torch'].partition('+')[0]} ({_deit_forms(results)};",
        "the fastest counts).",
        '"authors" is the authors\' code, as measured earlier on an H100 (`bench/results/authors_h100.json`).',
        "",
    ]
    columns = ["model, image, batch", "vimrt, ms", "images/s", "over the floor", "DeiT, ms", "vimrt is", "authors, ms"]
    columns += ["activations, vimrt", "DeiT"]
    lines += table(columns, [_gpu_row(result, earlier) for result in results])
    clocks = [result["clocks"] for result in results if result.get("clocks")]
    at = f", at {min(one['sm_mhz'] for one in clocks):.0f} MHz or more" if clocks else ""
    return [
        *lines,
        "",
        "The floor is the scan's exponentials and the matrix products' operations at this card's measured rates"
        f"{at}. Memory is",
        "the peak above weights and input, by the plan and by PyTorch's allocator; the driver's count is in the file.",
        f"`python bench/gpu.py` prints the table; this one is `{path}`, which has each row's commit and date.",
    ]


def _deit_forms(results: Sequence[Document]) -> str:
    compiled = any("torch.compile" in form for result in results for form in result["runtimes"]["deit"]["forms"])
    return "CUDA graphs with cuDNN's and flash attention" + (", and torch.compile" if compiled else "")


def _gpu_row(result: Document, earlier: Mapping[tuple[str, int, int], Document]) -> list[str]:
    own, deit = result["runtimes"]["vimrt"], result["runtimes"]["deit"]
    side, batch = result["image_size"][0], result["batch"]
    authors = earlier.get((result["size"], side, batch))
    return [
        f"{_MODELS[result['size']]}, {side}², {batch}",
        milliseconds(own["seconds"]),
        f"{own['images_per_second']:,.0f}",
        f"{result['over_floor']:.2f}×",
        milliseconds(deit["seconds"]),
        f"{result['speedup']['deit']:.2f}× as fast",
        "" if authors is None else f"{authors['authors_ms']:g}",
        mebibytes(own["activation_bytes"]),
        mebibytes(deit["activation_bytes"]),
    ]


def marked(name: str, lines: Sequence[str]) -> str:
    """Lines between the marks of the block `name`."""
    return "\n".join([f"<!-- {name}:begin -->", *lines, f"<!-- {name}:end -->"])


def replaced(text: str, name: str, lines: Sequence[str], behind: str = "") -> str:
    """`text` with the block `name` rewritten, or put behind the block `behind` where it is not there yet."""
    block = marked(name, lines)
    pattern = re.compile(rf"<!-- {name}:begin -->.*?<!-- {name}:end -->", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    mark = f"<!-- {behind}:end -->"
    if mark not in text:
        raise ValueError(f"README has neither the block {name} nor {behind}")
    return text.replace(mark, f"{mark}\n\n{block}")


def rewritten(text: str, results: Path) -> str:
    """README's text with the tables of the folder `results`."""
    text = replaced(text, "bench", cpu_block(json.loads((results / "cpu_tiny.json").read_text())))
    authors = json.loads((results / "authors_h100.json").read_text())
    behind = "bench"
    for path in sorted(results.glob("gpu_*.json")):
        name = "gpu-table" if path.stem == "gpu_h100" else f"{path.stem.replace('_', '-')}-table"
        text = replaced(
            text, name, gpu_block(json.loads(path.read_text()), authors, f"bench/results/{path.name}"), behind
        )
        behind = name
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where README is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    text = options.readme.read_text()
    wanted = rewritten(text, options.results)
    if options.check and wanted != text:
        print(f"{options.readme}: the tables are not those of {options.results}; run bench/readme_tables.py")
        return 1
    if wanted != text:
        options.readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
