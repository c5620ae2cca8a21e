"""Measuring vimrt, alone and beside DeiT and Vim in PyTorch. `vimrt bench` is the command.

    from vimrt.bench.report import Settings
    from vimrt.bench.runner import run_benchmark
    report = run_benchmark(Settings(Path("vim_s.vimrt"), image_sizes=[(224, 224)], peers=["deit"]))

docs/benchmarking.md says how figures are made and what they mean.
"""
