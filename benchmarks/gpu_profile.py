"""Where a training step of each family spends its time: the kernels that take most of it.

python benchmarks/gpu_profile.py [--device cuda]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from foveal.bench.machine import synchronize
from foveal.models import (
    DALLE,
    HourglassTransformerLM,
    HTransformer1D,
    TransformerLM,
    create_model,
)
from foveal.patterns import SlidingWindow

LM = {"num_tokens": 256, "dim": 512, "heads": 8, "dim_head": 64, "max_seq_len": 4096}
DRAWING = {
    "dim": 512,
    "depth": 4,
    "heads": 8,
    "dim_head": 64,
    "num_text_tokens": 10_000,
    "text_seq_len": 256,
    "num_image_tokens": 8192,
    "image_grid": (32, 32),
    "attn_types": ("full", "axial_row", "axial_col", "conv_like"),
}
ROWS = 12


def tokens(device: str, *shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, device=device)


FAMILIES = {
    "transformer": (
        lambda: TransformerLM(**LM, depth=4, pattern=SlidingWindow(256)),
        lambda device: (tokens(device, 4, 4096),),
    ),
    "h-transformer": (
        lambda: HTransformer1D(**LM, depth=4, causal=True),
        lambda device: (tokens(device, 4, 4096),),
    ),
    "hourglass": (
        lambda: HourglassTransformerLM(**LM, depth=(1, 2, 1), shorten_factor=4),
        lambda device: (tokens(device, 4, 4096),),
    ),
    "dalle": (
        lambda: DALLE(**DRAWING),
        lambda device: (tokens(device, 4, 256), tokens(device, 4, 1024)),
    ),
    "halonet": (
        lambda: create_model("halonet_h0"),
        lambda device: (torch.randn(8, 3, 256, 256, device=device),),
    ),
    "sepvit": (
        lambda: create_model("sepvit_lite"),
        lambda device: (torch.randn(8, 3, 224, 224, device=device),),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    device, cuda = options.device, options.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for name, (build, make_inputs) in FAMILIES.items():
        torch.manual_seed(0)
        model, inputs = build().to(device).train(), make_inputs(device)

        def step(model=model, inputs=inputs) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=cuda):
                out = model(*inputs)
            out.float().square().mean().backward()
            model.zero_grad()

        for _ in range(2 if cuda else 1):
            step()
        synchronize(device)
        started = time.perf_counter()
        for _ in range(options.steps):
            step()
        synchronize(device)
        taken = (time.perf_counter() - started) / options.steps
        with profile(activities=activities) as found:
            step()
            synchronize(device)
        order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        print(f"\n{name}: {taken * 1e3:.1f} ms a step")
        print(found.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60))


if __name__ == "__main__":
    main()
