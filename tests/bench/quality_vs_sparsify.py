#!/usr/bin/env python3
"""One training job by the real sparsify and by saelua: held-out FVU, wall time and memory of both.

    python3 tests/bench/quality_vs_sparsify.py --model DIR --text FILE.txt [--seeds 0 1 2] [--work DIR] [--json FILE]

Same BERT, layer, k, latents, number of steps, tokens per step, loss (FVU), Adam, sparsify's learning-rate rule and
warm-up-linear schedule, no AuxK; b_dec from the mean of the first batch. The token ids are saelua's (its packing, its
training order over as many repetitions as needed); special tokens train neither. sparsify's own Trainer runs on them,
saelua runs recipes/topk_bert.lua, one after the other, each in a process of its own with --threads threads. The time is
of the whole process: imports, loading, model forward; for saelua also tokenising, evaluation and report. FVU is
sum |x - x_hat|^2 / sum |x - mean|^2 in float64 over the held-out tokens, activations by transformers and both
reconstructions by sparsify's SparseCoder; saelua's own figure stands beside it. Several seeds share the model's forward.

One difference remains and is the subject: saelua mixes tokens across sequences in a buffer; --buffer_batches 1 nearly
stops that. Two do not matter: the first warm-up step has lr 0 in sparsify and peak / warm-up in saelua, and the random
generators differ.

Results lie in --work; what is there is not computed again. Needs torch, transformers, safetensors, eai-sparsify.
Run with torch 2.15.0, transformers 5.23.0, eai-sparsify 1.3.3.
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
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

import saelua_program as saelua

# Training contexts in saelua's order, its held-out contexts, and the ids that train nothing.
EXPORT = """
local sl = require "saelua"
local model, text, ctx_len, sequences, output = arg[1], arg[2], tonumber(arg[3]), tonumber(arg[4]), arg[5]
local tokenizer = sl.model.load(model).tokenizer
local tokens = sl.data.tokens(text, tokenizer, { ctx_len = ctx_len, seed = 42 })
local list, n = {}, 0
while n < sequences do
  local ids = tokens:next(math.min(32, sequences - n))
  list[#list + 1] = { ("train.%06d"):format(#list), ids }
  n = n + ids:size(1)
end
local held = tokens:heldout()
list[#list + 1] = { "heldout", held.ids }
list[#list + 1] = { "heldout_mask", held.mask }
list[#list + 1] = { "special", sl.tensor(tokens.special_ids):to "i32" }
assert(sl.save_tensors(output, list))
"""


class Contexts:
    """Sequences as sparsify's Trainer takes them."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i]}


def load_tokens(work):
    import torch
    from safetensors.torch import load_file
    tensors = load_file(f"{work}/tokens.safetensors")
    train = torch.cat([tensors[name] for name in sorted(tensors) if name.startswith("train.")]).long()
    return train, tensors["heldout"].long(), tensors["heldout_mask"].bool(), tensors["special"].long()


def stage_sparsify(o):
    """Runs in a process of its own: sparsify's Trainer on the exported tokens."""
    started = time.time()
    import torch
    from sparsify import SparseCoderConfig, TrainConfig, Trainer
    from transformers import AutoModel
    torch.set_num_threads(o.threads)
    train, _, _, special = load_tokens(o.work)
    model = AutoModel.from_pretrained(o.model, dtype=torch.float32)
    config = TrainConfig(SparseCoderConfig(k=o.k, expansion_factor=o.expansion), batch_size=o.batch_size,
                         optimizer="adam", lr_warmup_steps=o.warmup, exclude_tokens=special.tolist(), layers=[o.layer],
                         init_seeds=o.seeds, save_every=10**9, log_to_wandb=False, save_dir=o.work, run_name="sparsify")
    trainer = Trainer(config, Contexts(train), model)
    loaded = time.time()
    trainer.fit()
    with open(f"{o.work}/sparsify/fit.json", "w") as file:
        json.dump({"load_s": loaded - started, "fit_s": time.time() - loaded}, file)


def timed(command, log, threads):
    """Wall and CPU seconds and peak memory of one process."""
    before, start, load = resource.getrusage(resource.RUSAGE_CHILDREN), time.time(), os.getloadavg()[0]
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} ... failed, see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": time.time() - start, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "peak_mib": after.ru_maxrss / 1024, "load_before": load, "load_after": os.getloadavg()[0]}


def once(path, make):
    """The JSON value in `path`, made and written if it is not there."""
    if not os.path.exists(path):
        value = make()
        with open(path, "w") as file:
            json.dump(value, file, indent=1)
    with open(path) as file:
        return json.load(file)


def run_saelua(o, tokens_per_step, name, buffer_batches):
    command = [saelua.program(), f"{saelua.ROOT}/recipes/topk_bert.lua", "--model", o.model, "--dataset", o.text,
               "--layers", o.layer, "--k", o.k, "--expansion_factor", o.expansion, "--ctx_len", o.ctx_len,
               "--batch_size", o.batch_size, "--batch_tokens", tokens_per_step, "--max_tokens",
               tokens_per_step * o.steps, "--buffer_batches", buffer_batches, "--auxk_alpha", 0, "--lr_warmup_steps",
               o.warmup, "--init_seeds", ",".join(map(str, o.seeds)), "--format", "sparsify", "--save_dir", o.work,
               "--run_name", name, "--save_every", 10**6]
    return timed([str(word) for word in command], f"{o.work}/{name}.log", o.threads)


def heldout_rows(o):
    """Activations of the held-out tokens that count, by transformers."""
    import torch
    from transformers import AutoModel
    _, ids, mask, special = load_tokens(o.work)
    model = AutoModel.from_pretrained(o.model, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for i in range(0, len(ids), 16):
            x, m = ids[i:i + 16], mask[i:i + 16]
            hidden = model(x, attention_mask=m.long(), output_hidden_states=True).hidden_states[o.layer + 1]
            rows.append(hidden[m & torch.isin(x, special, invert=True)])
    return torch.cat(rows)


def fvu(folder, rows):
    import torch
    from sparsify import SparseCoder
    sae = SparseCoder.load_from_disk(folder)
    with torch.no_grad():
        error = sum((x - sae(x).sae_out).double().pow(2).sum() for x in rows.split(2048))
    variance = (rows.double() - rows.double().mean(0)).pow(2).sum()
    return (error / variance).item()


def own_fvu(work, name):
    with open(f"{work}/{name}/metrics.jsonl") as file:
        return [row["eval/fvu"] for row in map(json.loads, file) if "eval/fvu" in row]


def folders_of(o, name):
    if name == "sparsify":
        root = f"{o.work}/sparsify/encoder.layer.{o.layer}"
    else:
        root = f"{o.work}/{name}/final" + (f"/layers.{o.layer}.resid_post" if len(o.seeds) > 1 else "")
    return [f"{root}/seed{seed}" if len(o.seeds) > 1 else root for seed in o.seeds]


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--text", required=True)
    for name, value in {"layer": 3, "k": 32, "expansion": 16, "steps": 300, "warmup": 15, "ctx_len": 130,
                        "batch_size": 32, "threads": 2}.items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--buffer_batches", type=int, nargs="+", default=[8], help="several = one saelua run for each")
    p.add_argument("--work", default=None)
    p.add_argument("--json")
    p.add_argument("--stage", help=argparse.SUPPRESS)
    return p.parse_args()


def measure(o):
    os.makedirs(o.work, exist_ok=True)
    if not os.path.exists(f"{o.work}/tokens.safetensors"):
        saelua.run_lua(EXPORT, o.model, o.text, o.ctx_len, o.steps * o.batch_size, f"{o.work}/tokens.safetensors")
    import torch
    train, _, _, special = load_tokens(o.work)
    tokens = int(torch.isin(train, special, invert=True).sum()) // o.steps
    print(f"{saelua.host_facts()}; {o.threads} threads; {o.steps} steps of {tokens} tokens, seeds {o.seeds}", flush=True)
    names = {("saelua" if b == 8 else f"saelua_buffer{b}"): b for b in o.buffer_batches}
    jobs = {name: once(f"{o.work}/{name}.json", lambda: run_saelua(o, tokens, name, b)) for name, b in names.items()}
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--work", o.work, "--stage", "sparsify"]
    jobs["sparsify"] = once(f"{o.work}/sparsify.json",
                            lambda: timed(command, f"{o.work}/sparsify.log", o.threads))
    rows = heldout_rows(o)
    for name, job in jobs.items():
        job["fvu"] = [fvu(folder, rows) for folder in folders_of(o, name)]
        if name != "sparsify":
            job["own_fvu"] = own_fvu(o.work, name)
    with open(f"{o.work}/sparsify/fit.json") as file:
        jobs["sparsify"].update(json.load(file))
    return jobs, len(rows), tokens


def main():
    o = parse()
    if o.stage == "sparsify":
        return stage_sparsify(o)
    o.work = os.path.abspath(o.work or tempfile.mkdtemp(prefix="quality-"))
    jobs, rows, tokens = measure(o)
    base = jobs["sparsify"]
    mean = {name: sum(job["fvu"]) / len(job["fvu"]) for name, job in jobs.items()}
    print(f"held-out FVU on {rows} tokens, and the whole job:")
    for name, job in jobs.items():
        print(f"  {name:16} {mean[name]:.4f} ({', '.join(f'{v:.4f}' for v in job['fvu'])})"
              + (f" own {', '.join(f'{v:.4f}' for v in job['own_fvu'])}" if "own_fvu" in job else "")
              + f"; {job['wall_s']:.1f} s wall, {job['cpu_s']:.1f} s CPU, {job['peak_mib']:.0f} MiB"
              + (f"; fit alone {job['fit_s']:.1f} s" if "fit_s" in job else "")
              + (f"; {mean[name] - mean['sparsify']:+.4f} FVU, {job['wall_s'] / base['wall_s']:.3f} of the time "
                 f"({job['cpu_s'] / base['cpu_s']:.3f} of the CPU time)" if job is not base else ""))
    if o.json:
        with open(o.json, "w") as file:
            json.dump({"jobs": jobs, "heldout_tokens": rows, "tokens_per_step": tokens, "options": vars(o),
                       "host": saelua.host_facts()}, file, indent=1)


if __name__ == "__main__":
    main()
