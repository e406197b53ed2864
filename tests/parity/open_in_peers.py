#!/usr/bin/env python3
"""Dictionaries in both directions between saelua and the packages whose layouts it writes.

    python3 tests/parity/open_in_peers.py [DIR...] [--model DIR --text FILE --layer N] [--fixtures]

1. Each DIR, a folder that saelua saved (`final/`; SAELens layout, or sparsify's with --format sparsify), is opened by the
   real package. Package and saelua reconstruct the same inputs: random ones, and with --model the real activations of that
   layer on lines of the text. The largest absolute difference must be <= 1e-5.
2. The packages save dictionaries of their own in every variant that saelua reads; saelua opens them and must reconstruct
   the same, to 1e-5.

A token whose k-th and (k+1)-th pre-activations are closer than rounding (1e-5 of their size, in float64) may choose either
latent: such tokens are counted, and left out when they differ.

--fixtures writes the dictionaries of 2 with the packages' reconstructions into tests/parity/fixtures/peers_* for
tests/spec/sae_files_spec.lua.

Needs torch, transformers, safetensors and the packages. Run with torch 2.15.0, transformers 5.23.0, sae_lens 6.54.12,
eai-sparsify 1.3.3.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

import torch
from safetensors.torch import save_file

import saelua_program as saelua

TOLERANCE = 1e-5
FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")


class Opened:
    """A dictionary as its own package sees it: reconstruct(x), and what decides ties."""

    def __init__(self, folder):
        if os.path.exists(f"{folder}/sae.safetensors"):
            from sparsify import SparseCoder
            sae = SparseCoder.load_from_disk(folder)
            self.package, self.rule, self.k, self.d_in = "sparsify", sae.cfg.activation, sae.cfg.k, sae.d_in
            self.W_enc, self.b_enc, self.W_dec = sae.encoder.weight, sae.encoder.bias, sae.W_dec
            self.shift, self.norms = sae.b_dec, 1.0
            self.reconstruct = lambda x: sae(x.to(sae.dtype)).sae_out.float()
        else:
            sae = open_saelens(folder)
            self.package, self.rule, self.d_in = "sae_lens", sae.cfg.architecture(), sae.cfg.d_in
            self.k = getattr(sae.cfg, "k", None)
            self.W_enc, self.b_enc, self.W_dec = sae.W_enc.T, sae.b_enc, sae.W_dec
            self.shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros_like(sae.b_dec)
            rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
            self.norms = sae.W_dec.norm(dim=-1).double() if rescaled else 1.0
            self.reconstruct = lambda x: sae(x.to(sae.dtype)).float()
        self.sae = sae

    def near_ties(self, x):
        p = ((x.double() - self.shift.double()) @ self.W_enc.double().T + self.b_enc.double()).relu() * self.norms
        if self.rule in ("jumprelu", "batchtopk"):  # near the threshold
            threshold = self.threshold()
            return ((p - threshold).abs() <= 1e-5 * threshold.clamp_min(1e-3)).any(1)
        if self.rule == "groupmax":
            top = p.reshape(len(p), self.k, -1).topk(2, dim=2).values
            return ((top[..., 0] - top[..., 1] <= 1e-5 * top[..., 0].clamp_min(1e-3)) & (top[..., 0] > 0)).any(1)
        if self.k >= p.shape[1]:
            return torch.zeros(len(x), dtype=torch.bool)
        top = p.topk(self.k + 1, dim=1).values
        return (top[:, -2] - top[:, -1] <= 1e-5 * top[:, -2].clamp_min(1e-3)) & (top[:, -2] > 0)


    def threshold(self):
        return (self.sae.threshold if self.rule == "jumprelu" else self.sae.topk_threshold.expand(1)).double()


def open_saelens(folder):
    """SAE.load_from_disk; a checkpoint of a BatchTopK SAE opens with the training class alone, which selects over the
    batch, so it is exported as the package does it."""
    import sae_lens
    with open(f"{folder}/cfg.json") as file:
        architecture = json.load(file)["architecture"]
    if architecture != "batchtopk":
        return sae_lens.SAE.load_from_disk(folder)
    with tempfile.TemporaryDirectory() as exported:
        sae_lens.BatchTopKTrainingSAE.load_from_disk(folder).save_inference_model(exported)
        return sae_lens.SAE.load_from_disk(exported)


@torch.no_grad()
def compare(folder, name, inputs, tolerance=TOLERANCE):
    """True when package and saelua agree on every input."""
    opened, good = Opened(folder), True
    for kind, x in inputs(opened).items():
        wanted, got = opened.reconstruct(x), saelua.reconstruct(folder, x)
        difference = (wanted - got).abs().amax(1)
        ties = opened.near_ties(x) & (difference > tolerance)
        worst = difference[~ties].max().item()
        good = good and worst <= tolerance and bool(torch.isfinite(wanted).all())
        print(f"{'ok  ' if worst <= tolerance else 'FAIL'} {name}: {opened.package}, {kind} x {list(x.shape)}: largest "
              f"difference {worst:.2e} of values to {wanted.abs().max():.3g}"
              + (f", {int(ties.sum())} tokens at a tie" if ties.any() else ""))
    return good


def random_inputs(opened, tokens=512):
    """Around b_dec, of the size that makes pre-activations of about one."""
    g = torch.Generator().manual_seed(7)
    scale = 1.0 / opened.W_enc.float().norm(dim=1).mean()
    return {"random": opened.shift.float() + scale * torch.randn(tokens, opened.d_in, generator=g)}


def real_inputs(model, text, layer):
    from transformers import AutoModel, AutoTokenizer
    tokenizer, bert = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    lines = [line.strip() for line in open(text, encoding="utf-8") if len(line.split()) > 8][:16]
    batch = tokenizer(lines, return_tensors="pt", padding=True, truncation=True, max_length=128)
    with torch.no_grad():
        hidden = bert(**batch, output_hidden_states=True).hidden_states[layer + 1]
    return hidden[batch["attention_mask"].bool()]


# What the packages save ---------------------------------------------------------------------------------------------

def randomise(tensors, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tensors:
            p.copy_(torch.randn(p.shape, generator=g) * (0.4 if p.dim() == 2 else 0.2))


def save_saelens(folder, dtype="float32", apply_b_dec_to_input=True, training=None, k=4):
    """training: None (an inference SAE), "inference" or "checkpoint" (of a training SAE, whose rows are not unit)."""
    from sae_lens import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    options = dict(d_in=8, d_sae=24, k=k, dtype=dtype, apply_b_dec_to_input=apply_b_dec_to_input)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**options)) if training else TopKSAE(TopKSAEConfig(**options))
    randomise([sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec], 3)
    (sae.save_inference_model if training == "inference" else sae.save_model)(folder)


def save_jumprelu(folder, **options):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=8, d_sae=24, **options))
    randomise([sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec], 5)
    sae.threshold.data = torch.rand(24, generator=torch.Generator().manual_seed(6))
    sae.save_model(folder)


def save_batchtopk(folder, inference):
    """After a few batches, so that the threshold has been somewhere; rows of the decoder are not unit."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=8, d_sae=24, k=4, topk_threshold_lr=0.1))
    randomise([sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec], 7)
    g = torch.Generator().manual_seed(8)
    for _ in range(5):
        sae.training_forward_pass(TrainStepInput(sae_in=torch.randn(64, 8, generator=g), coefficients={},
                                                 dead_neuron_mask=None, n_training_steps=0, is_logging_step=False))
    assert sae.topk_threshold > 0
    (sae.save_inference_model if inference else sae.save_model)(folder)


def save_sparsify(folder, dtype=torch.float32, k=4, **options):
    from sparsify import SparseCoder, SparseCoderConfig
    sae = SparseCoder(8, SparseCoderConfig(k=k, **options), dtype=dtype)
    randomise([sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec], 4)
    sae.save_to_disk(folder)


VARIANTS = {
    "saelens_topk": lambda f: save_saelens(f),
    "saelens_no_shift": lambda f: save_saelens(f, apply_b_dec_to_input=False),
    "saelens_f16": lambda f: save_saelens(f, dtype="float16"),
    "saelens_training_inference": lambda f: save_saelens(f, training="inference"),
    "saelens_training_checkpoint": lambda f: save_saelens(f, training="checkpoint"),
    "saelens_all_latents": lambda f: save_saelens(f, k=24),
    "saelens_jumprelu": lambda f: save_jumprelu(f),
    "saelens_jumprelu_no_shift": lambda f: save_jumprelu(f, apply_b_dec_to_input=False),
    "saelens_batchtopk_inference": lambda f: save_batchtopk(f, True),
    "saelens_batchtopk_checkpoint": lambda f: save_batchtopk(f, False),
    "sparsify_groupmax": lambda f: save_sparsify(f, num_latents=24, activation="groupmax"),
    "sparsify_topk": lambda f: save_sparsify(f, expansion_factor=3),
    "sparsify_num_latents": lambda f: save_sparsify(f, num_latents=24, normalize_decoder=False),
    "sparsify_bf16": lambda f: save_sparsify(f, dtype=torch.bfloat16, num_latents=24),
}


def float32_copy(folder, target):
    """The same dictionary with its weights and cfg in float32, where every package computes in float32."""
    from safetensors.torch import load_file
    shutil.copytree(folder, target)
    for name in ("sae.safetensors", "sae_weights.safetensors"):
        if os.path.exists(f"{target}/{name}"):
            save_file({k: v.float() for k, v in load_file(f"{target}/{name}").items()}, f"{target}/{name}")
    with open(f"{target}/cfg.json") as file:
        cfg = json.load(file)
    if "dtype" in cfg:
        cfg["dtype"] = "float32"
    with open(f"{target}/cfg.json", "w") as file:
        json.dump(cfg, file)
    return target


@torch.no_grad()
def check_variant(name, folder, target):
    """saelua opens `folder` as it is; the package computes with its values in float32, as saelua does."""
    VARIANTS[name](folder)
    opened = Opened(float32_copy(folder, target))
    x = random_inputs(opened, 16)["random"]
    assert not opened.near_ties(x).any(), "choose another seed: a tie"
    wanted = opened.reconstruct(x)
    worst = (wanted - saelua.reconstruct(folder, x)).abs().max().item()
    print(f"{'ok  ' if worst <= TOLERANCE else 'FAIL'} {name}: saved by {opened.package}, opened by saelua: largest "
          f"difference {worst:.2e} of values to {wanted.abs().max():.3g}")
    return worst <= TOLERANCE, x, wanted


def versions():
    from importlib.metadata import version
    return {p: version(p) for p in ("torch", "transformers", "sae-lens", "eai-sparsify")}


def write_fixture(name, folder, x, wanted):
    target = f"{FIXTURES}/peers_{name}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    save_file({"x": x.contiguous(), "x_hat": wanted.contiguous()}, f"{target}.safetensors",
              metadata={**versions(), "made_by": "tests/parity/open_in_peers.py --fixtures"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--fixtures", action="store_true")
    options = parser.parse_args()
    print(", ".join(f"{p} {v}" for p, v in versions().items()), "-", saelua.program())
    real = real_inputs(options.model, options.text, options.layer) if options.model else None

    def inputs(opened):
        known = random_inputs(opened)
        if real is not None and real.shape[1] == opened.d_in:
            known["real"] = real
        return known

    good = all([compare(folder, folder, inputs) for folder in options.folders])
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as temporary:
            same, x, wanted = check_variant(name, f"{temporary}/sae", f"{temporary}/f32")
            good = good and same
            if options.fixtures:
                write_fixture(name, f"{temporary}/sae", x, wanted)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
