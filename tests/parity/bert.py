#!/usr/bin/env python3
"""Makes the BERT fixtures: tiny random models saved by transformers, and what transformers computes with them.

For each variant bert_<name>/ is a folder in Hugging Face layout, and bert_<name>.safetensors holds inputs (ids, mask,
type_ids, targets), every hidden state, attentions, logits, the MLM loss and its gradient for every parameter.
Run once, by hand:  python3 tests/parity/bert.py     (torch, transformers, safetensors; versions go into the metadata)
"""
import json
import os
import shutil

import safetensors.torch as st
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, BertModel

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
META = {"torch": torch.__version__, "transformers": transformers.__version__, "made_by": "tests/parity/bert.py"}
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] the a captain sold red boat blue old small house cat dog sees saw saw2 likes
big man woman and or not in on under over never always two three four five ##s ##ed ##ing . , ! ? he she it they was
were is are bird tree river stone king queen""".split()


def config(**changes):
    values = dict(vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                  max_position_embeddings=16, type_vocab_size=2, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0)
    values.update(changes)
    return BertConfig(**values)


def randomise(model, seed):
    """Weights far from the initialisation: biases and norms away from 0 and 1, so that every term counts."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() == 2 else 0.2
            p.copy_(torch.randn(p.shape, generator=g) * scale)
            if "LayerNorm.weight" in name:
                p.add_(1.0)


def inputs(vocab):
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(5, vocab, (3, 7), generator=g)
    mask = torch.ones(3, 7, dtype=torch.uint8)
    mask[1, 5:] = 0
    mask[2, 3:] = 0
    ids[mask == 0] = 0
    types = torch.zeros(3, 7, dtype=torch.long)
    types[0, 4:] = 1
    types[2, 1:3] = 1
    targets = torch.full((3, 7), -100)
    targets[0, 2], targets[0, 6], targets[1, 1], targets[2, 0] = 9, 31, 12, 50
    return ids, mask, types, targets


def run(model, has_head, want_gradients):
    ids, mask, types, targets = inputs(len(WORDS))
    model.eval()
    out = model(input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True,
                output_attentions=True, **({"labels": targets} if has_head else {}))
    data = {"ids": ids.to(torch.int32), "mask": mask, "type_ids": types.to(torch.int32),
            "targets": targets.clamp(min=-1).to(torch.int32)}
    for i, h in enumerate(out.hidden_states):
        data[f"hidden.{i}"] = h.detach().float().contiguous()
    for i, a in enumerate(out.attentions):
        data[f"pattern.{i}"] = a.detach().float().contiguous()
    if has_head:
        data["logits"] = out.logits.detach().float().contiguous()
        data["loss"] = out.loss.detach().float().reshape(1)
    if want_gradients:
        out.loss.backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                data["grad." + name] = p.grad.detach().float().contiguous()
    return data


def internals(model, data):
    """What saelua's other hook points see, taken by hooks on the modules."""
    ids, mask, types, _ = inputs(len(WORDS))
    base = getattr(model, "bert", model)
    taken = {}

    def keep(name):
        def hook(module, args, output):
            taken[name] = (output[0] if isinstance(output, tuple) else output).detach().float().contiguous()
        return hook
    paths = {"attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
             "attn_z": "attention.self", "attn_out": "attention.output.dense", "resid_mid": "attention.output",
             "mlp_pre": "intermediate.dense", "mlp_post": "intermediate", "mlp_out": "output.dense"}
    handles = []
    for i, layer in enumerate(base.encoder.layer):
        for point, path in paths.items():
            handles.append(layer.get_submodule(path).register_forward_hook(keep(f"layers.{i}.{point}")))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, token_type_ids=types)
    for handle in handles:
        handle.remove()
    data.update(taken)


def save(name, model, has_head, gradients=False, rewrite=None, **save_options):
    folder = os.path.join(HERE, "bert_" + name)
    shutil.rmtree(folder, ignore_errors=True)
    data = run(model.float(), has_head, gradients)
    internals(model, data)
    if "dtype" in save_options:
        model.to(save_options.pop("dtype"))
    model.save_pretrained(folder, **save_options)
    with open(os.path.join(folder, "vocab.txt"), "w") as f:
        f.write("".join(w + "\n" for w in WORDS))
    if rewrite:
        rewrite(folder)
    st.save_file(data, folder + ".safetensors", metadata=META)


def old_names(folder):
    """A checkpoint of 2018: LayerNorm.gamma and .beta, position_ids buffer, pooler, no model_type."""
    path = os.path.join(folder, "model.safetensors")
    tensors = {}
    for name, t in st.load_file(path).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = t
    tensors["bert.embeddings.position_ids"] = torch.arange(16).reshape(1, 16)
    st.save_file(tensors, path, metadata={"format": "pt"})
    path = os.path.join(folder, "config.json")
    values = json.load(open(path))
    del values["model_type"]
    json.dump(values, open(path, "w"), indent=2)


def make(cls, seed, **changes):
    torch.manual_seed(0)
    model = cls(config(**changes))
    model.config._attn_implementation = "eager"
    model.set_attn_implementation("eager")
    randomise(model, seed)
    return model


def round_to(model, dtype):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype).float())
    return model


def main():
    os.makedirs(HERE, exist_ok=True)
    save("mlm_tied", make(BertForMaskedLM, 1), True, gradients=True)
    save("mlm_untied", make(BertForMaskedLM, 2, tie_word_embeddings=False), True, gradients=True)
    save("plain", make(BertModel, 3), False)
    save("f16", round_to(make(BertForMaskedLM, 4, hidden_act="gelu_new"), torch.float16), True, dtype=torch.float16)
    save("bf16", round_to(make(BertForMaskedLM, 5, hidden_act="relu"), torch.bfloat16), True, dtype=torch.bfloat16)
    save("sharded", make(BertForMaskedLM, 6), True, max_shard_size="12KB")
    save("old_names", make(BertForMaskedLM, 7), True, rewrite=old_names)


if __name__ == "__main__":
    main()
