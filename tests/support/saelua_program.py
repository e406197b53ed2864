"""Runs the saelua program for the Python scripts in tests/parity and tests/bench, and exchanges tensors with it.

Those scripts hold saelua against the real packages; they need pip and are no part of the test suite. Tensors travel as
safetensors files, code as a Lua script with arguments. The program is $SAELUA_BIN, or the newest of build/*/saelua.
"""
import glob
import os
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def program():
    path = os.environ.get("SAELUA_BIN")
    if path:
        return path
    for preset in ("release", "dev"):
        if os.path.exists(f"{ROOT}/build/{preset}/saelua"):
            return f"{ROOT}/build/{preset}/saelua"
    found = sorted(glob.glob(f"{ROOT}/build/*/saelua"), key=os.path.getmtime)
    if not found:
        raise SystemExit("no saelua program: run ./dev build, or set SAELUA_BIN")
    return found[-1]


def run(*arguments, env=None):
    """Runs the program; its standard output, or an exception that carries its error output."""
    done = subprocess.run([program(), *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, **(env or {})})
    if done.returncode != 0:
        raise RuntimeError(f"saelua {' '.join(map(str, arguments))}: status {done.returncode}\n{done.stderr}")
    return done.stdout


def run_lua(code, *arguments, env=None):
    """Runs Lua code as a script with `arg`."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(code)
        file.flush()
        return run(file.name, *arguments, env=env)


RECONSTRUCT = """
local sl = require "saelua"
local folder, input, output = arg[1], arg[2], arg[3]
local x = assert(sl.load_tensors(input)).x
assert(sl.save_tensors(output, { { "x_hat", sl.sae.load(folder):reconstruct(x) } }))
"""


def reconstruct(folder, x):
    """What saelua makes of x [tokens, d_in] with the dictionary in `folder`."""
    from safetensors.torch import load_file, save_file
    with tempfile.TemporaryDirectory() as temporary:
        save_file({"x": x.float().contiguous()}, f"{temporary}/in")
        run_lua(RECONSTRUCT, folder, f"{temporary}/in", f"{temporary}/out")
        return load_file(f"{temporary}/out")["x_hat"]


def host_facts():
    """Processor and load, for reports."""
    with open("/proc/cpuinfo") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
