#!/usr/bin/env python3
"""One package in one setting, in a process of its own; tests/bench/peers.py starts it and talks to it.

It prints a line of JSON when it is ready (after a warm-up step), then answers each line of its input: "step" with the
seconds of one step, "facts" with JSON (peak memory). What a step is:
  --what step   one TopK training step by the package's own training code, on the rows of --input (raw float32):
    sparsify             SparseCoder and torch's Adam, in the order of its Trainer: unit decoder rows, forward, backward,
                         projection, Adam, what fired
    sae_lens             SAETrainer._train_step with a TopKTrainingSAE (global clip, Adam, what fired)
    dictionary_learning  TopKTrainer.update with AutoEncoderTopK (projection, global clip, Adam, unit rows)
  --what model  the forward pass of a BERT by transformers, attention by sdpa (--package transformers)
  --what text   BertTokenizerFast on the lines of --input, ids only, one core (--package transformers)
  --what job    the forward pass up to a layer by transformers (only the layers below are built), then the package's step
Settings: eager; compile (torch.compile where the package offers it, or around its module); bf16 (autocast, and a bf16
model in a job); sparse (SAELens' sparse activations). Triton kernels are used on a GPU wherever the package has them.
"""
import argparse
import contextlib
import json
import os
import resource
import sys
import time


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--what", choices=["step", "model", "text", "job"], default="step")
    p.add_argument("--package", required=True)
    p.add_argument("--setting", choices=["eager", "compile", "bf16", "bf16_compile", "sparse"], default="eager")
    p.add_argument("--device", default="cpu")
    p.add_argument("--input")
    for name, value in {"tokens": 4096, "d": 768, "latents": 24576, "k": 32, "threads": 2, "layers": 12, "mlp": 3072,
                        "batch": 32, "length": 128}.items():
        p.add_argument("--" + name, type=int, default=value)
    return p.parse_args()


o = parse()
if o.device == "cpu":
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
BF16, COMPILE = o.setting.startswith("bf16"), o.setting.endswith("compile")
# Packages print while they are imported; the protocol needs the real output for itself.
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def autocast():
    import torch
    return torch.autocast(o.device.split(":")[0], dtype=torch.bfloat16) if BF16 else contextlib.nullcontext()


def sparsify_step(x):
    import torch
    from sparsify import SparseCoder, SparseCoderConfig
    sae = SparseCoder(o.d, SparseCoderConfig(k=o.k, num_latents=o.latents), device=o.device)
    sae.b_dec.data = x.mean(0)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    fired = torch.zeros(o.latents, dtype=torch.bool, device=o.device)
    silent = torch.zeros(o.latents, dtype=torch.long, device=o.device)
    forward = torch.compile(sae) if COMPILE else sae

    def step(x):
        nonlocal silent
        sae.set_decoder_norm_to_unit_norm()
        with autocast():
            out = forward(x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        silent += len(x)
        silent[fired] = 0
        fired.zero_()
    return step


def sae_lens_step(x):
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=o.d, d_sae=o.latents, k=o.k, device=o.device,
                                                use_sparse_activations=o.setting == "sparse"))
    config = SAETrainerConfig(total_training_samples=o.tokens * 10**6, train_batch_size_samples=o.tokens, lr=1e-4,
                              lr_end=1e-5, device=o.device, autocast=BF16)
    if COMPILE:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    trainer = SAETrainer(config, sae, iter([]))
    return lambda x: trainer._train_step(sae, x)


def dictionary_learning_step(x):
    import torch
    from dictionary_learning.trainers.top_k import TopKTrainer
    trainer = TopKTrainer(steps=10**6, activation_dim=o.d, dict_size=o.latents, k=o.k, layer=0, lm_name="none", lr=1e-4,
                          warmup_steps=0, device=o.device, seed=0)
    # The median that its first update computes is no part of a step.
    trainer.ae.b_dec.data = x.mean(0)
    if COMPILE:
        trainer.ae.encode, trainer.ae.decode = torch.compile(trainer.ae.encode), torch.compile(trainer.ae.decode)
    count = iter(range(1, 10**6))

    def step(x):
        with autocast():
            trainer.update(next(count), x)
    return step


STEPS = {"sparsify": sparsify_step, "sae_lens": sae_lens_step, "dictionary_learning": dictionary_learning_step}


def bert():
    """x = bert() makes the rows [tokens, d] of a batch."""
    import torch
    from transformers import BertConfig, BertModel
    torch.manual_seed(0)
    config = BertConfig(vocab_size=1000, hidden_size=o.d, num_hidden_layers=o.layers, num_attention_heads=o.d // 64,
                        intermediate_size=o.mlp, max_position_embeddings=o.length)
    config._attn_implementation = "sdpa"
    model = BertModel(config, add_pooling_layer=False).eval().to(o.device)
    if BF16:
        model = model.to(torch.bfloat16)
    call = torch.compile(model) if COMPILE and o.what == "model" else model
    ids = torch.randint(1000, (o.batch, o.length), device=o.device)

    def forward():
        with torch.inference_mode() if o.what == "model" else torch.no_grad():
            return call(ids).last_hidden_state.reshape(-1, o.d)
    return forward


def tokenize():
    """The batch call of the Rust tokenizer under transformers' fast one, with nothing but ids asked for."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import BertTokenizerFast
    tokenizer = BertTokenizerFast(f"{os.path.dirname(os.path.abspath(__file__))}/../../lua/saelua/models/bert-mini/vocab.txt")
    with open(o.input) as file:
        lines = file.read().splitlines()
    inner = tokenizer.backend_tokenizer
    encode = getattr(inner, "encode_batch_fast", inner.encode_batch)
    return lambda: encode(lines)


def synchronize():
    if o.device != "cpu":
        import torch
        torch.cuda.synchronize()


def make_step():
    import numpy
    import torch
    torch.set_num_threads(o.threads)
    if o.device != "cpu":
        torch.set_float32_matmul_precision("high")
    if o.what == "model":
        return bert()
    if o.what == "text":
        return tokenize()
    if o.what == "job":
        forward = bert()
        step = STEPS[o.package](forward().float())
        return lambda: step(forward().float())
    x = torch.from_numpy(numpy.fromfile(o.input, dtype=numpy.float32).reshape(o.tokens, o.d)).to(o.device)
    step = STEPS[o.package](x)
    return lambda: step(x)


def peak_bytes():
    if o.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch
    return torch.cuda.max_memory_allocated()


def main():
    started = time.time()
    __import__(o.package)
    import torch
    import_s = time.time() - started
    step = make_step()
    step()
    if o.device != "cpu" or o.setting != "eager":
        step()  # compiled twice where shapes or flags differ from the first; tuned kernels settle
    synchronize()
    inner = 1 if o.device == "cpu" else 10
    print(json.dumps({"import_s": round(import_s, 2), "torch": torch.__version__,
                      "version": sys.modules[o.package].__dict__.get("__version__")}), file=OUT, flush=True)
    for line in sys.stdin:
        if line.startswith("step"):
            synchronize()
            start = time.perf_counter()
            for _ in range(inner):
                step()
            synchronize()
            print((time.perf_counter() - start) / inner, file=OUT, flush=True)
        else:
            print(json.dumps({"peak_bytes": peak_bytes()}), file=OUT, flush=True)


main()
