#!/usr/bin/env python3
"""saelua against the real packages: a training step, a model's forward pass, the two together; a tokenizer.

    python3 tests/bench/peers.py [--device cpu|cuda] [--k 32 192] [--threads 2] [--repeats 3] [--quick] [--json FILE]
                                 [--parts step model job text] [--only PACKAGE...] [--settings all]

The step is one of a TopK dictionary at (4096 tokens, d 768, 24,576 latents; on a GPU 8192 tokens); what each package runs
is said in peer_worker.py, which measures it in a process of its own. saelua is measured by sae_step_bench and
model_bench, which run what a recipe runs. Both get the same input, the same threads and the same mathematics: float32
results on the CPU (saelua may take them from a bf16 first pass where it has one; they are the same numbers), bf16
products on a GPU. No latent is dead, so no package spends time on AuxK.

A package and saelua take turns, step by step, while both are loaded; the ratio is that of the least times of that
stretch, so a machine that gets busy slows both. speedup_<package>_k<k> is against the fastest float32 setting of
the package on the CPU, and its fastest setting of all on a GPU; autocast on the CPU is reported beside it, against
saelua with a bf16 product. Memory is the process's peak over (weights + Adam moments) in float32.

Needs the packages of requirements.txt (those that are missing are named and left out) and the programs built by
`./dev bench` or, on a machine without LuaJIT, `./dev gpu-check` ($SAELUA_BENCH_DIR says where).
"""
import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACKAGES = {"sparsify": "eai-sparsify", "sae_lens": "sae-lens", "dictionary_learning": "dictionary-learning"}
# Settings on each kind of device: those that helped or are asked about. sparsify's forward is autocast on any GPU.
SETTINGS = {"cpu": {"sparsify": ["eager", "bf16"], "sae_lens": ["eager", "compile", "bf16"],
                    "dictionary_learning": ["eager", "bf16"]},
            "cuda": {"sparsify": ["eager", "compile"], "sae_lens": ["bf16", "bf16_compile"],
                     "dictionary_learning": ["bf16", "bf16_compile"]}}
ALL_SETTINGS = ["eager", "compile", "bf16", "bf16_compile"]


class Server:
    """A measuring process: ready after its first line, then one answer for each line."""

    def __init__(self, command, o, ready=True):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, env={**os.environ, "OMP_NUM_THREADS": str(o.threads)})
        self.facts = json.loads(self.line()) if ready else {}

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            words = [w for w in self.log.read().splitlines() if w.strip()]
            raise RuntimeError(f"status {self.process.returncode}: {words[-1][:200] if words else 'no message'}")
        return line

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def bench_dir():
    for folder in [os.environ.get("SAELUA_BENCH_DIR"), *(f"{ROOT}/build/{b}" for b in ("release", "gpu-check"))]:
        if folder and os.path.exists(f"{folder}/sae_step_bench"):
            return folder
    found = sorted(glob.glob(f"{ROOT}/build/*/sae_step_bench"), key=os.path.getmtime)
    if not found:
        raise SystemExit("no sae_step_bench: run ./dev bench, ./dev gpu-check, or set SAELUA_BENCH_DIR")
    return os.path.dirname(found[-1])


def exact(o, k):
    """saelua's precision for a float32 result: screened where this processor and shape gain from it."""
    command = [f"{o.programs}/sae_step_bench", "--dtype", "screened", "--tokens", "64", "--d", o.d, "--latents", o.latents,
               "--k", k, "--repeats", "1", "--no-product"]
    done = subprocess.run([str(word) for word in command], capture_output=True)
    return "screened" if done.returncode == 0 else "f32"


def host_facts(o):
    with open("/proc/cpuinfo") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    device = ""
    if o.device != "cpu":
        import torch
        device = f"{torch.cuda.get_device_name()}; "
    return f"{device}{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def versions():
    found = {}
    for name in ("torch", "transformers", "triton", *PACKAGES.values()):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


# -- The processes ----------------------------------------------------------------------------------------------------

def worker(o, what, package, setting, k=32):
    shape = {"tokens": o.tokens, "d": o.d, "latents": o.latents, "k": k, "threads": o.threads, "batch": o.batch,
             "length": o.length, "mlp": o.mlp, "layers": o.layers if what == "model" else o.job_layers}
    command = [sys.executable, f"{HERE}/peer_worker.py", "--what", what, "--package", package, "--setting", setting,
               "--device", o.device, *[word for key, value in shape.items() for word in (f"--{key}", value)]]
    if what in ("step", "text"):
        command += ["--input", o.input if what == "step" else o.text]
    return Server(command, o)


def own_step(o, k, dtype):
    return Server([f"{o.programs}/sae_step_bench", "--serve", "--device", o.device, "--tokens", o.tokens, "--d", o.d,
                   "--latents", o.latents, "--k", k, "--dtype", dtype, "--input", o.input], o, ready=False)


def own_model(o, dtype, sae_dtype, k, layers):
    return Server([f"{o.programs}/model_bench", "--serve", "--device", o.device, "--dtype", dtype, "--sae-dtype",
                   sae_dtype, "--layers", layers, "--d", o.d, "--mlp", o.mlp, "--batch", o.batch, "--length", o.length,
                   "--latents", o.latents, "--k", k], o, ready=False)


def take_turns(o, own, word, peer):
    """Least seconds of both, step by step in turns, and how often."""
    mine, theirs, began = [], [], time.time()
    while len(theirs) < o.repeats and (len(theirs) < 2 or time.time() - began < o.patience):
        mine.append(own.ask(word))
        theirs.append(peer.ask("step"))
        mine.append(own.ask(word))
    return min(mine), min(theirs), len(theirs)


def compare(o, results, label, own, word, start):
    """Starts a peer, measures it against `own`, and notes the outcome; a peer that fails is noted, no more."""
    print(f"measuring {label['part']}, {label['package']} {label['setting']}" +
          (f", k {label['k']}" if "k" in label else ""), file=sys.stderr, flush=True)
    try:
        peer = start()
        try:
            mine, theirs, rounds = take_turns(o, own, word, peer)
            row = {**label, "seconds": theirs, "own_seconds": mine, "speedup": theirs / mine, "rounds": rounds,
                   "peak_bytes": peer.ask("facts")["peak_bytes"], "import_s": peer.facts["import_s"]}
            if label["part"] == "step":
                row["peak"] = row["peak_bytes"] / o.needed
        finally:
            peer.close()
    except (RuntimeError, OSError) as error:
        row = {**label, "error": str(error)}
    results.append(row)


# -- The parts --------------------------------------------------------------------------------------------------------

def settings_of(o, package, k):
    known = SETTINGS["cpu" if o.device == "cpu" else "cuda"][package]
    if o.settings == "all":
        return ALL_SETTINGS + (["sparse"] if package == "sae_lens" else [])
    # On the CPU the settings beside the plain one are measured once.
    return known if k == o.k[0] or o.device != "cpu" else known[:1]


def own_dtype(o, setting, k):
    if o.device != "cpu":
        return "bf16"
    return "bf16" if setting.startswith("bf16") else o.exact[k]


def measure_steps(o, results):
    for k in o.k:
        servers = {}
        for package in o.packages:
            for setting in settings_of(o, package, k):
                dtype = own_dtype(o, setting, k)
                if dtype not in servers:
                    servers[dtype] = own_step(o, k, dtype)
                    facts = servers[dtype].ask("facts")
                    results.append({"part": "step", "package": "saelua", "setting": dtype, "k": k,
                                    "peak": facts["peak"], "peak_bytes": facts["peak_mib"] * 2**20, "loss": facts["loss"]})
                label = {"part": "step", "package": package, "setting": setting, "k": k, "own": dtype}
                compare(o, results, label, servers[dtype], "step", lambda: worker(o, "step", package, setting, k))
        for server in servers.values():
            server.close()


def measure_model(o, results):
    for setting in (["eager", "compile", "bf16"] if o.device == "cpu" else ["bf16", "bf16_compile"]):
        dtype = "bf16" if setting.startswith("bf16") else "f32"
        own = own_model(o, dtype, "f32", o.k[0], o.layers)
        label = {"part": "model", "package": "transformers", "setting": setting, "own": dtype}
        compare(o, results, label, own, "forward", lambda: worker(o, "model", "transformers", setting))
        own.close()


def measure_jobs(o, results):
    k = o.k[0]
    setting, model = ("eager", "f32") if o.device == "cpu" else ("bf16", "bf16")
    for package in o.packages:
        own = own_model(o, model, own_dtype(o, setting, k), k, o.job_layers)
        label = {"part": "job", "package": package, "setting": setting, "k": k, "own": own_dtype(o, setting, k)}
        compare(o, results, label, own, "job", lambda: worker(o, "job", package, setting, k))
        own.close()


def measure_text(o, results):
    """Both on one core, on the CPU whatever the device; needs the saelua program, which a bare machine lacks."""
    program = f"{o.programs}/saelua"
    if not os.path.exists(program):
        return
    o.text = f"{o.input}.txt"
    script = f"{HERE}/io_bench.lua"
    subprocess.run([program, script, "text", o.text, "200000" if o.quick else "4000000"], check=True)
    own = Server([program, script, "tokenize", o.text], o, ready=False)
    compare(o, results, {"part": "text", "package": "transformers", "setting": "eager", "own": "ids"}, own, "again",
            lambda: worker(o, "text", "transformers", "eager"))
    own.close()


def ratios_of(o, results):
    """The keys that ./dev bench adds to its own; see docs/benchmarks."""
    ratios = {}

    def least(key, value):
        ratios[key] = min(value, ratios.get(key, value))

    for r in results:
        if "speedup" not in r:
            continue
        lower = o.device == "cpu" and r["setting"].startswith("bf16")
        tail = "_bf16" if lower else ""
        if r["part"] == "step":
            least(f"speedup_{r['package']}_k{r['k']}{tail}", r["speedup"])
            if not lower:
                least(f"peak_{r['package']}_k{r['k']}", r["peak"])
        elif r["part"] == "text":
            ratios["tokenizer_vs_transformers"] = r["speedup"]
        elif r["part"] == "model":
            least(f"model_forward_vs_transformers{tail}", r["speedup"])
        else:
            least(f"whole_job_speedup_{r['package']}", r["speedup"])
    for package in PACKAGES:
        if f"peak_{package}_k{o.k[0]}" in ratios:
            ratios[f"peak_{package}"] = ratios[f"peak_{package}_k{o.k[0]}"]
    return ratios


def report(o, facts, found, results, ratios):
    print(f"{facts}; {o.device}, {o.threads} threads; step ({o.tokens}, {o.d}, {o.latents}), weights + Adam "
          f"{o.needed >> 20} MiB; model {o.layers} layers, {o.batch} x {o.length} tokens; job {o.job_layers} layers")
    print("  " + ", ".join(f"{name} {version}" for name, version in found.items() if version))
    for name in o.missing:
        print(f"  {name}: not installed here, left out (tests/bench/requirements.txt)")
    print(f"{'part':6} {'package':20} {'setting':13} {'k':>4} {'ms':>10} {'saelua ms':>10} {'as':>9} {'speed-up':>9} "
          f"{'memory':>7} import s")
    for r in results:
        head = f"{r['part']:6} {r['package']:20} {r['setting']:13} {r.get('k', ''):>4}"
        if "error" in r:
            print(f"{head} failed: {r['error']}")
        elif "speedup" in r:
            print(f"{head} {1e3 * r['seconds']:10.2f} {1e3 * r['own_seconds']:10.2f} {r['own']:>9} {r['speedup']:9.2f} "
                  f"{r.get('peak', float('nan')):7.2f} {r['import_s']:8.1f}")
        else:
            print(f"{head} {'':10} {'':10} {'':9} {'':9} {r['peak']:7.2f}")
    for key, value in ratios.items():
        print(f"  {key:40} {value:7.2f}")


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cpu")
    for name, value in {"tokens": 0, "d": 768, "latents": 24576, "threads": len(os.sched_getaffinity(0)), "repeats": 3,
                        "layers": 12, "job-layers": 6, "mlp": 3072, "batch": 0, "length": 128}.items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--k", type=int, nargs="+", default=[32, 192])
    p.add_argument("--patience", type=float, default=12, help="seconds after which two rounds are enough")
    p.add_argument("--parts", nargs="+", choices=["step", "model", "job", "text"],
                   default=["step", "model", "job", "text"])
    p.add_argument("--only", nargs="+", choices=list(PACKAGES))
    p.add_argument("--settings", choices=["usual", "all"], default="usual")
    p.add_argument("--quick", action="store_true", help="small shapes: does everything work?")
    p.add_argument("--json")
    o = p.parse_args()
    if o.quick:
        o.d, o.latents, o.layers, o.job_layers, o.mlp, o.repeats, o.tokens = 128, 2048, 2, 1, 512, 2, 512
        o.batch, o.length = 4, 128
    o.tokens = o.tokens or (4096 if o.device == "cpu" else 8192)
    o.batch = o.batch or o.tokens // o.length
    return o


def main():
    o = parse()
    o.programs = bench_dir()
    o.needed = 3 * 2 * o.d * o.latents * 4
    wanted = o.only or list(PACKAGES)
    o.packages = [name for name in wanted if importlib.util.find_spec(name)]
    o.missing = [PACKAGES[name] for name in wanted if name not in o.packages]
    o.exact = {k: exact(o, k) for k in o.k} if o.device == "cpu" else {}
    facts, found, results = host_facts(o), versions(), []
    with tempfile.TemporaryDirectory() as temporary:
        o.input = f"{temporary}/x.f32"
        subprocess.run([f"{o.programs}/sae_step_bench", "--write-input", o.input, "--tokens", str(o.tokens), "--d",
                        str(o.d)], check=True)
        for part, measure in {"step": measure_steps, "model": measure_model, "job": measure_jobs,
                              "text": measure_text}.items():
            if part in o.parts:
                measure(o, results)
    ratios = ratios_of(o, results)
    report(o, facts, found, results, ratios)
    if o.json:
        with open(o.json, "w") as file:
            json.dump({"host": facts, "device": o.device, "threads": o.threads, "shape": [o.tokens, o.d, o.latents],
                       "versions": found, "missing": o.missing, "results": results, "ratios": ratios}, file, indent=1)
    measured = {(r["part"], r["package"]) for r in results if "speedup" in r}
    failed = {(r["part"], r["package"]) for r in results if "error" in r} - measured
    if failed:
        raise SystemExit("no setting worked: " + ", ".join(f"{package} ({part})" for part, package in sorted(failed)))


if __name__ == "__main__":
    main()
