"""Writes tests/parity/fixtures/sae_sparsify.safetensors: six training steps of the real sparsify SparseCoder.

  SPARSIFY_DISABLE_TRITON=1 python tests/parity/sae_sparsify.py
Made with eai-sparsify 1.3.3, torch 2.15.0, safetensors 0.8.0 on CPU in float32. Order as in its trainer: unit decoder
rows, forward, backward of fvu, gradient projection, torch Adam. tests/unit/test_sae_parity.c repeats them:
x [steps, tokens, d], start/* and end/* (W_enc, b_enc, W_dec, b_dec; end with unit decoder rows), fvu [steps], and the
codes and reconstruction of the last batch before its step.
"""
import os
import pathlib

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

STEPS, TOKENS, D, LATENTS, K, LR = 6, 64, 24, 96, 6, 3e-3
OUT = pathlib.Path(__file__).parent / "fixtures" / "sae_sparsify.safetensors"


def parameters(sae):
    return {"W_enc": sae.encoder.weight, "b_enc": sae.encoder.bias, "W_dec": sae.W_dec, "b_dec": sae.b_dec}


def copies(prefix, sae):
    return {f"{prefix}/{name}": p.detach().clone().contiguous() for name, p in parameters(sae).items()}


torch.manual_seed(3)
x = torch.randn(STEPS, TOKENS, 8) @ torch.randn(8, D) + 0.2 * torch.randn(STEPS, TOKENS, D) + torch.randn(D)
sae = SparseCoder(D, SparseCoderConfig(num_latents=LATENTS, k=K))
sae.b_dec.data = x[0].mean(0)
tensors = {"x": x, **copies("start", sae)}
adam = torch.optim.Adam(sae.parameters(), lr=LR)
fvu = []
for batch in x:
    sae.set_decoder_norm_to_unit_norm()
    out = sae(batch)
    tensors["last/x_hat"], tensors["last/values"] = out.sae_out.detach().clone(), out.latent_acts.detach().clone()
    tensors["last/ids"] = out.latent_indices.to(torch.int32)
    fvu.append(out.fvu.item())
    out.fvu.backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    adam.step()
    adam.zero_grad()
sae.set_decoder_norm_to_unit_norm()
save_file({**tensors, **copies("end", sae), "fvu": torch.tensor(fvu)}, OUT, metadata={"made_by": "sparsify 1.3.3"})
print(OUT, fvu)
