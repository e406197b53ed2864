#!/usr/bin/env python3
"""One TopK training step by the real packages and by saelua, beside the bare encode product of the same process.

    python3 tests/bench/peers.py [--k 32 192] [--threads 2] [--repeats 3] [--only NAME...] [--json FILE]

Shape: 4096 tokens, d 768, 24,576 latents (--tokens, --d, --latents), float32. Every package runs in a process of its
own on the same input, with its own training code:
  sparsify             SparseCoder and torch's Adam, in the order of its Trainer: unit decoder rows, forward, backward,
                       projection, Adam, what fired
  sae_lens             SAETrainer._train_step with a TopKTrainingSAE (global clip, Adam, what fired)
  dictionary_learning  TopKTrainer.update with AutoEncoderTopK (projection, global clip, Adam, unit rows)
  saelua               sae:loss, backward, optim:step of recipes/topk_bert.lua with clip_norm 1; also with a bf16 product
No latent is dead, so no package spends time on AuxK. Times are minima over --repeats after two warm-up steps, and
alternate with the product x W_enc' into a [tokens, latents] matrix that is there already (torch: MKL; saelua: oneDNN).
`ratio` is over the product of the same process; `/saelua` over the fastest of saelua's products, one unit for all.
`peak` is the peak memory before the first product in times (weights + Adam moments); `import s` is the imports' wall time.
On a busy machine, --threads 1 --clock cpu takes CPU seconds of the process instead.

Needs torch, sae-lens, eai-sparsify, dictionary-learning. Run with torch 2.15.0, sae_lens 6.54.12, eai-sparsify 1.3.3,
dictionary_learning 0.1.0.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

import saelua_program as saelua

SAELUA = """
local sl, host = require "saelua", require "saelua.host"
local input, d_sae, k, repeats = arg[1], tonumber(arg[2]), tonumber(arg[3]), tonumber(arg[4])
local dtype, clock, product = arg[5], arg[6] == "cpu" and os.clock or host.now, arg[7]
local x = assert(sl.load_tensors(input)).x
local sae = sl.sae.topk { d_in = x:size(2), d_sae = d_sae, k = k, seed = 1 }
local optim = sl.sae_optim(sae, { clip_norm = 1 })
sae:init_b_dec("mean", x)
local function step()
  local loss = sae:loss(x, { kind = "mse", dtype = dtype })
  loss:backward(1)
  optim:step(1e-4)
  loss:free()
end
local function timed(fn)
  local start = clock()
  sl.scope(fn)
  return clock() - start
end
local step_s, product_s = 1 / 0, 1 / 0
for i = 1, repeats + 2 do
  local s = timed(step)
  if i > 2 then step_s = math.min(step_s, s) end
end
if product == "product" then
  local W = sae:parameter("W_enc"):transpose()
  sl.scope(function() sl.matmul(x, W) end)
  for i = 1, repeats do
    product_s = math.min(product_s, timed(function() sl.matmul(x, W) end))
    step_s = math.min(step_s, timed(step))
  end
end
print(sl.json.encode { step_s = step_s, product_s = product_s < 1 / 0 and product_s or nil })
"""


def make_input(tokens, d):
    """Mixtures of a few of 256 directions, and noise: all latents take part, none is dead."""
    import torch
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(256, d, generator=g) / d**0.5
    weights = torch.zeros(tokens, 256)
    chosen = torch.randint(256, (tokens, 12), generator=g)
    weights.scatter_(1, chosen, 12 * (2 * torch.rand(tokens, 12, generator=g) - 1))
    return weights @ directions + 0.3 * torch.randn(tokens, d, generator=g)


# Each makes a step(x) function and says where its encoder is, [latents, d] -------------------------------------------

def sparsify_step(o, k, x):
    import torch
    from sparsify import SparseCoder, SparseCoderConfig
    sae = SparseCoder(o.d, SparseCoderConfig(k=k, num_latents=o.latents))
    sae.b_dec.data = x.mean(0)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    fired = torch.zeros(o.latents, dtype=torch.bool)
    silent = torch.zeros(o.latents, dtype=torch.long)

    def step():
        nonlocal silent
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        silent += len(x)
        silent[fired] = 0
        fired.zero_()
    return step, lambda: sae.encoder.weight


def sae_lens_step(o, k, x):
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=o.d, d_sae=o.latents, k=k))
    config = SAETrainerConfig(total_training_samples=o.tokens * 10**6, train_batch_size_samples=o.tokens, lr=1e-4,
                              lr_end=1e-5)
    trainer = SAETrainer(config, sae, iter([]))
    return lambda: trainer._train_step(sae, x), lambda: sae.W_enc.T


def dictionary_learning_step(o, k, x):
    from dictionary_learning.trainers.top_k import TopKTrainer
    trainer = TopKTrainer(steps=10**6, activation_dim=o.d, dict_size=o.latents, k=k, layer=0, lm_name="none", lr=1e-4,
                          warmup_steps=0, device="cpu", seed=0)
    count = iter(range(10**6))
    return lambda: trainer.update(next(count), x), lambda: trainer.ae.encoder.weight


STEPS = {"sparsify": sparsify_step, "sae_lens": sae_lens_step, "dictionary_learning": dictionary_learning_step}


def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stage_package(o):
    """In a process of its own: measures one package at one k and prints the figures as JSON."""
    from safetensors.torch import load_file
    started = time.time()
    if o.stage == "sparsify":
        import sparsify  # noqa: F401
    elif o.stage == "sae_lens":
        import sae_lens  # noqa: F401
    else:
        import dictionary_learning  # noqa: F401
    import torch
    import_s = time.time() - started
    torch.set_num_threads(o.threads)
    x = load_file(o.input)["x"]
    base, clock = rss(), time.process_time if o.clock == "cpu" else time.perf_counter
    step, encoder = STEPS[o.stage](o, o.k[0], x)

    def timed(fn):
        start = clock()
        fn()
        return clock() - start

    def product():
        with torch.no_grad():
            torch.mm(x, encoder().T, out=matrix)

    for _ in range(2):
        step()
    peak = rss()
    steps, products = [], []
    matrix = torch.zeros(o.tokens, o.latents)
    for _ in range(o.repeats):
        products.append(timed(product))
        steps.append(timed(step))
    print(json.dumps({"step_s": min(steps), "product_s": min(products), "peak_bytes": peak, "base_bytes": base,
                      "import_s": import_s}))


# malloc keeps what is freed: the product's matrix is then written to memory that is there already, as torch.mm(out=) does.
WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def child(command, o, env=None):
    """The JSON that a process prints last."""
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": str(o.threads), **(env or {})})
    out, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command[:3]))}: status {process.returncode}\n{err}")
    return json.loads(out.strip().splitlines()[-1])


def run_saelua(o, k, dtype):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SAELUA)
        script.flush()
        command = [saelua.program(), script.name, o.input, o.latents, k, o.repeats, dtype, o.clock]
        result = child([*command, "product"], o, WARM)
        # The product's own result would hide the step's peak: that is taken in a process without it.
        peak = child([sys.executable, os.path.abspath(__file__), "--stage", "peak", "--", *command, "without"], o)
        return {**result, **peak}


def stage_peak(command):
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}))


def parse():
    p = argparse.ArgumentParser()
    for name, value in {"tokens": 4096, "d": 768, "latents": 24576, "threads": 2, "repeats": 3}.items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--k", type=int, nargs="+", default=[32, 192])
    p.add_argument("--only", nargs="+", choices=["saelua", "saelua_bf16", *STEPS])
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--json")
    p.add_argument("--input", help=argparse.SUPPRESS)
    p.add_argument("--stage", help=argparse.SUPPRESS)
    p.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    return p.parse_args()


def measure(o, name, k):
    if name.startswith("saelua"):
        return run_saelua(o, k, "bf16" if name == "saelua_bf16" else "f32")
    options = ("tokens", "d", "latents", "threads", "repeats", "clock")
    shape = [word for key in options for word in (f"--{key}", getattr(o, key))]
    return child([sys.executable, os.path.abspath(__file__), *shape, "--k", k, "--input", o.input, "--stage", name], o)


def main():
    o = parse()
    if o.stage == "peak":
        return stage_peak(o.command)
    if o.stage:
        return stage_package(o)
    from safetensors.torch import save_file
    needed = 3 * 2 * o.d * o.latents * 4
    facts = (f"{saelua.host_facts()}; {o.threads} threads, {o.clock} clock; ({o.tokens}, {o.d}, {o.latents}); "
             f"weights + Adam {needed >> 20} MiB")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        o.input = f"{temporary}/x.safetensors"
        save_file({"x": make_input(o.tokens, o.d)}, o.input)
        for k in o.k:
            for name in o.only or ["saelua", "saelua_bf16", *STEPS]:
                print(f"measuring {name}, k {k}", file=sys.stderr, flush=True)
                results.append({"name": name, "k": k, **measure(o, name, k)})
    # The product is the same one at every k.
    unit = min((r["product_s"] for r in results if r["name"].startswith("saelua")), default=None)
    print(facts)
    print(f"{'':20} {'k':>4} {'step ms':>9} {'product':>9} {'ratio':>7} {'/saelua':>8} {'peak':>6} {'MiB':>7} import s")
    for r in results:
        r["ratio"], r["peak"] = r["step_s"] / r["product_s"], r["peak_bytes"] / needed
        r["vs_saelua_unit"] = r["step_s"] / unit if unit else None
        print(f"{r['name']:20} {r['k']:4} {1e3 * r['step_s']:9.0f} {1e3 * r['product_s']:9.0f} {r['ratio']:7.2f} "
              f"{r['vs_saelua_unit'] or float('nan'):8.2f} {r['peak']:6.2f} {r['peak_bytes'] >> 20:7} "
              f"{r.get('import_s', 0):8.1f}")
    if o.json:
        with open(o.json, "w") as file:
            json.dump({"host": facts, "clock": o.clock, "shape": [o.tokens, o.d, o.latents], "threads": o.threads,
                       "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
