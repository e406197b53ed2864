-- ./dev bench: what training and the forward pass cost over what they cannot avoid, and over other packages.
--
-- Everything is a ratio of two times taken in one process, in turns, the least of each over the repeats; bare times
-- depend on the machine and say little. `--json FILE` writes the figures; the keys under "ratios":
--   topk_step_k32_f32, topk_step_k192_f32   training step (loss with metrics, gradients, Adam, unit rows) at 4096
--                        tokens, d 768, 24,576 latents, float32 throughout, over the float32 encode product alone
--                        (oneDNN's or the encoder's own, whichever is faster)
--   topk_step_k32_screened, topk_step_k192_screened   the same numbers, found by a bf16 product first (core's default
--                        where the processor gains from it); over the float32 product
--   topk_step_k32_bf16   with a bf16 encode product, over the float32 product
--   topk_step_k32_avx2, topk_step_k192_avx2   float32, kernels and oneDNN held to AVX2
--   batchtopk_step_*, groupmax_step_*   the other activations
--   topk_peak_memory     peak resident memory of such a training process over (weights + Adam moments); _low: with
--                        gradients made in blocks; _8bit: with 8-bit moments (over the same float32 sum)
--   bert_base_forward    12 layers, d 768, 32 x 128 tokens: forward over its matrix products alone
--   thread_scaling_*     time with one thread over time with all
--   tokenizer_vs_5_mb_s  megabytes of text a second on one core, over 5; tokenizer_vs_transformers (--peers): over that
--                        of its fast tokenizer
--   model_load_peak_*    peak memory of loading a 400 MB model, over the size of the file (load_memory.lua): used as it
--                        is (forward), converted to bf16, every tensor copied out
--   with --peers         speedup_<package>_k<k>, peak_<package>, model_forward_vs_transformers,
--                        whole_job_speedup_<package>; see tests/bench/peers.py
--   with --device cuda   cuda_<activation>_step_*: over the floor (product at the same precision, and Adam's bytes at
--                        the measured copy bandwidth), 8192 tokens; cuda_forward_bf16; cuda_whole_job_bf16 is tokens/s
-- "start_up_ms": wall time of `saelua -e ''`, the least of 20. "grid": steps over a grid of shapes.
local sl = require "saelua"
local host = require "saelua.host"

local cfg = sl.config {
  json    = { nil, "write the figures to this file", type = "string" },
  repeats = { 5, "times each measurement is taken", min = 1 },
  device  = { "cpu", "what is measured: cpu, cuda, cuda:1" },
  quick   = { false, "small shapes: does everything work? The figures mean nothing" },
  grid    = { "default", "grid of shapes: none, quick, default (one axis at a time), full" },
  limit   = { 240, "seconds that the grid may take; what does not fit is named", min = 1 },
  peers   = { false, "measure the Python packages too (SAELUA_PYTHON says which Python)" },
  bench_dir = { nil, "folder of the compiled benchmarks; null = beside the program", type = "string" },
}

local folder = cfg.bench_dir or host.exe_path:match "^(.*)/"
local bench_root = debug.getinfo(1, "S").source:match "^@(.*)/"
local on_gpu = cfg.device ~= "cpu"
local repeats = cfg.quick and math.min(cfg.repeats, 2) or cfg.repeats
local grid_name = cfg.quick and cfg.grid ~= "none" and "quick" or cfg.grid

local ratios, details = {}, {}
local function report(key, value, target, text)
  ratios[key] = value
  print(("%-28s %7.3f   target %-8s %s"):format(key, value, target or "-", text))
  io.flush()
end

local function quoted(text) return "'" .. text:gsub("'", [['\'']]) .. "'" end

-- Output and exit status of a command; its messages go where ours do.
local function run(command)
  local pipe = assert(io.popen(command .. "; echo; echo $?"))
  local text = pipe:read "*a"
  pipe:close()
  local output, status = text:match "^(.*)\n(%d+)\n$"
  return output, tonumber(status)
end

-- -- The step ----------------------------------------------------------------------------------------------------

local UNSUPPORTED = 4 -- the exit status of a program asked for what this machine or build does not have

-- The figures of one cell, or nil where this machine has no such thing.
local function program(name, arguments, environment)
  local command = ("%s %s/%s --device %s --json --repeats %d %s"):format(environment or "", folder, name, cfg.device,
    repeats, arguments)
  local text, status = run(command)
  if status == UNSUPPORTED then return nil end
  local result = status == 0 and sl.json.decode(text)
  if type(result) ~= "table" then error(("no result from: %s\n%s"):format(command, text), 0) end
  return result
end

local SHAPE = cfg.quick and "--tokens 512 --d 256 --latents 6144 " or on_gpu and "--tokens 8192 " or ""

local function step(key, arguments, over, target, text)
  local r = program("sae_step_bench", SHAPE .. arguments)
  details[key] = r
  if r then
    report(key, r[over], target, text)
  else
    print(("%-28s not on this machine"):format(key))
  end
  return r
end

local function cpu_steps()
  local float32 = "step over the float32 product"
  local cells = {
    { "topk_step_k32_f32", "--k 32", "<= 1.10", float32 }, { "topk_step_k192_f32", "--k 192", "<= 1.20", float32 },
    { "topk_step_k32_screened", "--k 32 --dtype screened", "<= 0.65", "the same result, screened" },
    { "topk_step_k192_screened", "--k 192 --dtype screened", "<= 0.78", "the same result, screened" },
    { "topk_step_k32_bf16", "--k 32 --dtype bf16 --unit f32", nil, "bf16 product" },
    { "topk_step_k32_avx2", "--k 32 --isa avx2", "<= 1.20", "float32, AVX2 on both sides" },
    { "topk_step_k192_avx2", "--k 192 --isa avx2", "<= 1.35", "float32, AVX2 on both sides" },
    { "batchtopk_step_k32_f32", "--activation batchtopk --k 32", nil, float32 },
    { "batchtopk_step_k32_screened", "--activation batchtopk --k 32 --dtype screened", nil, "the same, screened" },
    { "groupmax_step_k32_f32", "--activation groupmax --k 32", nil, float32 },
  }
  for _, cell in ipairs(cells) do step(cell[1], cell[2], "ratio", cell[3], cell[4]) end
  report("topk_peak_memory", details.topk_step_k32_f32.peak, "<= 1.6", "peak memory over weights + Adam moments")
  step("topk_peak_memory_low", "--k 32 --no-product --low-memory", "peak", "<= 1.3", "gradients in blocks of latents")
  step("topk_peak_memory_8bit", "--k 32 --no-product --states 8bit", "peak", nil, "8-bit moments")
end

local function gpu_steps()
  for _, activation in ipairs { "topk", "batchtopk", "groupmax" } do
    for _, dtype in ipairs { "bf16", "tf32", "f32" } do
      for _, k in ipairs { 32, 192 } do
        local target = activation == "topk" and dtype == "bf16" and k == 32 and "<= 1.5" or nil
        step(("cuda_%s_step_k%d_%s"):format(activation, k, dtype),
          ("--activation %s --dtype %s --k %d"):format(activation, dtype, k), "ratio_floor", target,
          "step over its floor")
      end
    end
  end
  if cfg.quick then return end
  local large = "--d 4096 --latents 131072 --k 64 --dtype bf16 "
  step("cuda_topk_step_large_bf16", large, "ratio_floor", "<= 1.5", "d 4096, 131,072 latents, k 64")
  local r = step("cuda_topk_step_large_8bit", large .. "--states 8bit --low-memory --no-product", "peak", nil,
    "8-bit moments: memory over weights + float32 moments")
  if r then report("cuda_large_8bit_gib", r.peak_mib / 1024, "<= 12", "GiB of the device, activations included") end
end

-- -- The model, threads, start-up --------------------------------------------------------------------------------

local MODEL = cfg.quick and "--layers 2 --d 256 --mlp 1024 --batch 4 " or on_gpu and "--batch 64 --dtype bf16 " or ""

local function model()
  local r = program("model_bench", MODEL)
  details[on_gpu and "cuda_forward" or "bert_base_forward"] = r
  report(on_gpu and "cuda_forward_bf16" or "bert_base_forward", r.ratio, "<= 1.2", "forward over its matrix products")
  if not on_gpu then return r end
  local job = program("model_bench", MODEL .. "--layers 6 --job --sae-dtype bf16")
  details.cuda_whole_job = job
  report("cuda_whole_job_bf16", job.tokens_per_s, nil, "tokens/s: six layers, then a TopK step")
  return r
end

local function thread_scaling(forward)
  if details.topk_step_k32_f32.threads < 2 then return end
  local one = "OMP_NUM_THREADS=1"
  for _, dtype in ipairs { "f32", "screened" } do
    local all = details["topk_step_k32_" .. dtype]
    local alone = all and program("sae_step_bench", SHAPE .. "--k 32 --no-product --dtype " .. dtype, one)
    if alone then
      report("thread_scaling_step_" .. dtype, alone.step_ms / all.step_ms, nil,
        ("one thread over %d"):format(all.threads))
    end
  end
  local alone = program("model_bench", MODEL, one)
  report("thread_scaling_forward", alone.forward_ms / forward.forward_ms, nil,
    ("one thread over %d"):format(forward.threads))
end

local function io_bench(arguments)
  -- A line of input for each repeat.
  local text, status = run(("yes '' | head -n %d | OMP_NUM_THREADS=1 %s %s/io_bench.lua %s"):format(repeats,
    host.exe_path, bench_root, arguments))
  if status ~= 0 then error("io_bench.lua " .. arguments .. " failed", 0) end
  return text
end

-- Text to ids, and what loading a model takes.
local function files()
  local folder_name = os.tmpname()
  os.remove(folder_name)
  assert(os.execute("mkdir " .. folder_name) == 0)
  local text = folder_name .. "/text"
  local bytes = cfg.quick and 2e5 or 4e6
  io_bench(("text %s %d"):format(text, bytes))
  local least = math.huge
  for line in io_bench("tokenize " .. text):gmatch "[^\n]+" do
    least = math.min(least, tonumber(line))
  end
  details.tokenizer = { mb_s = bytes / least / 1e6 }
  report("tokenizer_vs_5_mb_s", bytes / least / 5e6, ">= 1", ("%.1f MB/s on one core"):format(bytes / least / 1e6))
  local loading, status = run(("SAELUA_BIN=%s %s %s/load_memory.lua --json --megabytes %d"):format(host.exe_path,
    host.exe_path, bench_root, cfg.quick and 40 or 400))
  if status ~= 0 then error("load_memory.lua failed", 0) end
  details.model_load = sl.json.decode(loading)
  os.execute("rm -r " .. folder_name)
  for _, way in ipairs { "forward", "bf16", "copied" } do
    report("model_load_peak_" .. way, details.model_load.ratios["load_peak_" .. way], "<= 1.1",
      "peak memory of loading over the file's size")
  end
end

local function start_up()
  local best = math.huge
  for _ = 1, 20 do
    local start = host.now()
    assert(os.execute(("%s -e ''"):format(host.exe_path)) == 0)
    best = math.min(best, host.now() - start)
  end
  print(("%-28s %7.1f   target <= 20    milliseconds for saelua -e ''"):format("start_up_ms", 1000 * best))
  return 1000 * best
end

-- -- The grid ----------------------------------------------------------------------------------------------------

local function read_json(path)
  local file = io.open(path)
  local text = file and file:read "*a"
  if file then file:close() end
  return text and text ~= "" and sl.json.decode(text) or nil
end

local function grid()
  print(("\nsteps over shapes (--grid %s, at most %d s); memory over weights + Adam"):format(grid_name, cfg.limit))
  io.flush()
  local path = os.tmpname()
  local status = os.execute(("%s/sae_step_bench --device %s --repeats %d --grid %s --limit %d --json %s 2>&1"):format(
    folder, cfg.device, math.min(repeats, on_gpu and 5 or 2), grid_name, cfg.limit, path))
  local cells = read_json(path)
  os.remove(path)
  if status ~= 0 then error("the grid: a cell failed, see above", 0) end
  return cells
end

-- -- Python packages ---------------------------------------------------------------------------------------------

local PROBE = [[
import importlib.util as u, sys
lacking = [m for m in ('torch', 'transformers', 'sparsify', 'sae_lens', 'dictionary_learning') if not u.find_spec(m)]
print(', '.join(lacking)); sys.exit(len(lacking) > 0)]]

-- A Python with every package: SAELUA_PYTHON, the environment that requirements.txt describes, or the system's.
local function find_python()
  local root = bench_root .. "/../.."
  local tried = {}
  local named = os.getenv "SAELUA_PYTHON"
  for _, python in ipairs(named and { named } or { root .. "/build/peers/bin/python", "python3" }) do
    local lacking, status = run(("%s -c %s 2>&1"):format(quoted(python), quoted(PROBE)))
    if status == 0 then return python end
    tried[#tried + 1] = ("  %s: %s"):format(python, status == 1 and "lacks " .. lacking:gsub("%s+$", "") or "not there")
  end
  error(("--peers: no Python with the packages was found\n%s\nMake one, or name it in SAELUA_PYTHON:\n" ..
    "  python3 -m venv build/peers && build/peers/bin/pip install -r tests/bench/requirements.txt"):format(
    table.concat(tried, "\n")), 0)
end

local function peers(python)
  print "\nthe Python packages (tests/bench/peers.py)"
  io.flush()
  local path = os.tmpname()
  local status = os.execute(("SAELUA_BENCH_DIR=%s %s %s/peers.py --device %s --json %s %s"):format(quoted(folder),
    quoted(python), quoted(bench_root), cfg.device, path, cfg.quick and "--quick --k 16 32" or ""))
  local result = read_json(path)
  os.remove(path)
  if not result then error(("peers.py failed with status %d"):format(status), 0) end
  for key, value in pairs(result.ratios) do ratios[(on_gpu and "cuda_" or "") .. key] = value end
  return result
end

-- -- All of it ---------------------------------------------------------------------------------------------------

local function main()
  local python = cfg.peers and find_python() -- first: nobody waits for minutes to read that it is missing
  print(("saelua %s on %s, device %s%s"):format(sl.version, sl.run.machine(), cfg.device,
    cfg.quick and "; --quick: small shapes, the figures mean nothing" or ""))
  local results = { ratios = ratios, details = details, quick = cfg.quick, device = cfg.device,
    machine = sl.run.machine(), version = sl.version, date = os.date "%Y-%m-%d" }
  if on_gpu then
    gpu_steps()
    model()
  else
    cpu_steps()
    thread_scaling(model())
    files()
    results.start_up_ms = start_up()
  end
  results.grid = grid_name ~= "none" and grid() or nil
  results.peers = python and peers(python) or nil
  if cfg.json then assert(sl.json.write(cfg.json, results)) end
end

main()
