#!/usr/bin/env python3
"""Optional check of a real BERT against transformers: python3 tests/parity/check_model.py MODEL_DIR TEXT_FILE [SAELUA]

Encodes lines of a text with the model's tokenizer, runs transformers and saelua over the same padded batch, and prints
the largest absolute difference of each hidden state at unpadded positions. Not part of the tests: needs torch,
transformers, safetensors, a model and the saelua program (default build/dev/saelua).
"""
import subprocess
import sys
import tempfile

import safetensors.torch as st
import torch
from transformers import AutoModel, AutoTokenizer

LUA = """
local sl = require "saelua"
local model = sl.model.load(%(model)q)
local f = assert(sl.load_tensors(%(inputs)q))
local out = model:forward(f.ids, { mask = f.mask, capture = { "embed", "layers.*.resid_post" } })
local list = { { "hidden.0", out.hidden.embed } }
for i = 0, model.n_layers - 1 do list[i + 2] = { "hidden." .. i + 1, out.hidden["layers." .. i .. ".resid_post"] } end
local file, same = io.open(%(lines)q), 0
for line in file:lines() do
  same = same + 1
  local want = { unpack(f.ids:select(1, same):totable()) }
  local got = model.tokenizer:encode(line)
  for i = 1, math.min(#got, 127) do assert(got[i] == want[i], "token ids differ in line " .. same) end
end
assert(sl.save_tensors(%(outputs)q, list))
print("token ids of " .. same .. " lines equal")
"""


def quote(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder, text = sys.argv[1:3]
    program = sys.argv[3] if len(sys.argv) > 3 else "build/dev/saelua"
    lines = [line.strip() for line in open(text) if len(line.split()) > 8][:24]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(lines, return_tensors="pt", padding=True, truncation=True, max_length=128)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    with tempfile.TemporaryDirectory() as temporary:
        paths = {name: f"{temporary}/{name}" for name in ("inputs", "outputs", "lines")}
        st.save_file({"ids": batch["input_ids"].to(torch.int32), "mask": batch["attention_mask"].to(torch.uint8)},
                     paths["inputs"])
        with open(paths["lines"], "w") as f:
            f.write("".join(line + "\n" for line in lines))
        script = LUA
        for name, value in {**paths, "model": folder}.items():
            script = script.replace(f"%({name})q", quote(value))
        subprocess.run([program, "-e", script], check=True)
        got = st.load_file(paths["outputs"])
    keep = batch["attention_mask"].bool()
    for i, h in enumerate(wanted.hidden_states):
        difference = (got[f"hidden.{i}"] - h)[keep].abs().max().item()
        print(f"hidden.{i}: largest difference {difference:.2e}, largest value {h[keep].abs().max().item():.2f}")


if __name__ == "__main__":
    main()
