"""Writes tests/parity/fixtures/sae_activations.safetensors: training steps of the real packages' other activations.

  SPARSIFY_DISABLE_TRITON=1 python tests/parity/sae_activations.py
Made with sae_lens 6.54.12, eai-sparsify 1.3.3, torch 2.15.0, safetensors 0.8.0 on CPU in float32. Order as in the
packages' trainers; torch Adam; no clipping. tests/unit/test_sae_parity.c repeats them, from x [steps, tokens, d].

batchtopk/*: sae_lens' BatchTopKTrainingSAE, decoder rows not rescaled, no dead latents: mean over rows of the squared
error. loss [steps], threshold [steps] (its running mean after each step), entries of the first batch's code as a dense
matrix, and start/* and end/* (W_enc, b_enc, W_dec, b_dec, encoder rows as here).
groupmax/*: sparsify's SparseCoder, order as in sae_sparsify.py; fvu [steps].
jumprelu/*: sae_lens' JumpReLUSAE with thresholds of its own: the code of the first batch as a dense matrix.
"""
import os
import pathlib

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
import torch
from safetensors.torch import save_file
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sparsify import SparseCoder, SparseCoderConfig

STEPS, TOKENS, D, LATENTS, K, LR = 6, 64, 24, 96, 6, 3e-3
OUT = pathlib.Path(__file__).parent / "fixtures" / "sae_activations.safetensors"

torch.manual_seed(3)
x = torch.randn(STEPS, TOKENS, 8) @ torch.randn(8, D) + 0.2 * torch.randn(STEPS, TOKENS, D) + torch.randn(D)
x *= torch.exp(0.7 * torch.randn(STEPS, TOKENS, 1))  # tokens of different sizes: rows of different lengths
tensors = {"x": x}


def copies(prefix, sae, transposed):
    W_enc = sae.W_enc.T if transposed else sae.encoder.weight
    b_enc = sae.b_enc if transposed else sae.encoder.bias
    parameters = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors.update({f"{prefix}/{name}": p.detach().clone().contiguous() for name, p in parameters.items()})


def batchtopk():
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=LATENTS, k=K, rescale_acts_by_decoder_norm=False,
                                                          decoder_init_norm=1.0, topk_threshold_lr=0.05))
    sae.b_dec.data = x[0].mean(0)
    copies("batchtopk/start", sae, True)
    adam = torch.optim.Adam(sae.parameters(), lr=LR)
    losses, thresholds = [], []
    for step, batch in enumerate(x):
        out = sae.training_forward_pass(TrainStepInput(
            sae_in=batch, coefficients={}, dead_neuron_mask=torch.zeros(LATENTS, dtype=torch.bool), n_training_steps=step,
            is_logging_step=False))
        if step == 0:
            tensors["batchtopk/code"] = out.feature_acts.detach().clone()
        losses.append(out.loss.item())
        thresholds.append(sae.topk_threshold.item())
        adam.zero_grad()
        out.loss.backward()
        adam.step()
    copies("batchtopk/end", sae, True)
    tensors["batchtopk/loss"], tensors["batchtopk/threshold"] = torch.tensor(losses), torch.tensor(thresholds)
    print("batchtopk", losses, thresholds, (tensors["batchtopk/code"] > 0).sum(1).unique())


def groupmax():
    torch.manual_seed(4)
    sae = SparseCoder(D, SparseCoderConfig(num_latents=LATENTS, k=K, activation="groupmax"))
    sae.b_dec.data = x[0].mean(0)
    copies("groupmax/start", sae, False)
    adam = torch.optim.Adam(sae.parameters(), lr=LR)
    fvu = []
    for batch in x:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(batch)
        assert (out.latent_acts > 0).all(), "a group without a positive value: there sparsify's gradient differs on purpose"
        fvu.append(out.fvu.item())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
    sae.set_decoder_norm_to_unit_norm()
    copies("groupmax/end", sae, False)
    tensors["groupmax/fvu"] = torch.tensor(fvu)
    print("groupmax", fvu)


@torch.no_grad()
def jumprelu():
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=LATENTS))
    for name, p in (("W_enc", sae.W_enc), ("b_enc", sae.b_enc), ("W_dec", sae.W_dec), ("b_dec", sae.b_dec)):
        start = tensors[f"batchtopk/start/{name}"]
        p.copy_(start.T if name == "W_enc" else start)
    sae.threshold.copy_(torch.rand(LATENTS))
    tensors["jumprelu/threshold"], tensors["jumprelu/code"] = sae.threshold.clone(), sae.encode(x[0])
    tensors["jumprelu/x_hat"] = sae(x[0])
    print("jumprelu", (tensors["jumprelu/code"] > 0).sum(1).unique())


batchtopk()
groupmax()
jumprelu()
save_file({k: v.contiguous() for k, v in tensors.items()}, OUT,
          metadata={"made_by": "sae_lens 6.54.12, sparsify 1.3.3, torch 2.15.0"})
