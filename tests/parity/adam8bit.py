#!/usr/bin/env python3
"""Writes tests/parity/fixtures/adam8bit.safetensors: steps of bitsandbytes' block-wise 8-bit Adam.

    python tests/parity/adam8bit.py

Its CPU backend, with weight decay; gradients within a range where no second moment rounds to zero (there saelua departs
from bitsandbytes on purpose, see kernels/args_sae_update.h). Made with bitsandbytes 0.50.2, torch 2.15.0.
"""
import pathlib

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

ROWS, D, STEPS = 4, 512, 5
torch.manual_seed(3)
w = torch.randn(ROWS, D) * 0.1
gradients = torch.randn(STEPS, ROWS, D).sign() * (0.02 + torch.rand(STEPS, ROWS, D) ** 3)
map_signed, map_unsigned = F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)
codes = [torch.zeros(ROWS, D, dtype=torch.uint8) for _ in range(2)]
absmax = [torch.zeros(ROWS * D // 256) for _ in range(2)]
out = {"map_signed": map_signed, "map_unsigned": map_unsigned, "w0": w.clone(), "gradients": gradients}
for step in range(1, STEPS + 1):
    F.optimizer_update_8bit_blockwise(
        "adam", gradients[step - 1].clone(), w, codes[0], codes[1], 0.9, 0.999, 0.0, 0.0, 1e-8, step, 1e-3, map_signed,
        map_unsigned, absmax[0], absmax[1], weight_decay=0.01)
    out[f"w{step}"] = w.clone()
    for i in range(2):
        out[f"codes{i + 1}_{step}"] = codes[i].clone()
path = pathlib.Path(__file__).parent / "fixtures" / "adam8bit.safetensors"
save_file(out, path)
print(path, path.stat().st_size, "bytes")
