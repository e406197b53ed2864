"""Writes tests/parity/fixtures/transformer.safetensors: what transformers' own modules and PyTorch compute, forward and
backward, for the operations of decoder-only models.

  python tests/parity/transformer.py
Made with transformers 5.23.0, torch 2.15.0 and safetensors 0.8.0 on CPU, in float64 where the modules allow it (their
norms and angles are float32) and rounded once. tests/unit/test_transformer_parity.c demands agreement within 1e-5. For
each case: CASE/in0.., CASE/ids and CASE/table (positions and frequencies, where there are any), CASE/seed
(d loss / d out), CASE/out, CASE/grad0...
"""
import pathlib
import types

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.masking_utils import sliding_window_overlay
from transformers.models.gemma import modeling_gemma as gemma
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gpt_neox import modeling_gpt_neox as neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama

torch.manual_seed(11)
OUT = pathlib.Path(__file__).parent / "fixtures" / "transformer.safetensors"
BATCH, TOKENS = 2, 11
POSITIONS = torch.tensor([range(11), [0, 0, 1, 2, 3, 40, 41, 42, 100, 101, 102]], dtype=torch.int32)
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def norm(module):
    """A function of (x, weight) of one of transformers' norms."""
    return lambda x, w: torch.func.functional_call(module, {"weight": w}, (x,))


def heads_of(x, heads):
    return x.view(BATCH, TOKENS, heads, -1).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).reshape(BATCH, TOKENS, -1)


def llama_config(**rope):
    rope = {"rope_type": "default", "rope_theta": 10000.0, **rope}
    return LlamaConfig(hidden_size=48, num_attention_heads=4, head_dim=12, max_position_embeddings=256, rope_parameters=rope)


def halves(module, embedding, positions, heads):
    """A function of x of the apply_rotary_pos_emb of Llama or GPT-NeoX."""
    def turn(x):
        x = heads_of(x, heads)
        cos, sin = embedding(x, positions.long())
        return merged(module.apply_rotary_pos_emb(x, x, cos, sin)[0])
    return turn


def neighbours(positions, heads, width):
    """A function of x of what GPTJAttention does with its rotary_dim."""
    def turn(x):
        x = x.view(BATCH, TOKENS, heads, -1)
        table = gptj.create_sinusoidal_positions(256, width)[positions.long()]
        sin, cos = torch.split(table, table.shape[-1] // 2, dim=-1)
        turned = gptj.apply_rotary_pos_emb(x[..., :width], sin, cos)
        return torch.cat([turned, x[..., width:]], dim=-1).reshape(BATCH, TOKENS, -1)
    return turn


def grouped(q, k, v, heads, kv_heads, mask):
    out = F.scaled_dot_product_attention(heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads), attn_mask=mask,
                                         enable_gqa=True)
    return merged(out)


def capped(q, k, v):
    """Gemma 2's own attention: shared keys, a soft cap, here with its sliding window as well."""
    module = types.SimpleNamespace(head_dim=5, num_key_value_groups=2, training=False)
    window = sliding_window_overlay(4)
    rows, columns = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)[None, :]
    mask = torch.zeros(TOKENS, TOKENS).double().masked_fill(~(CAUSAL & window(0, 0, rows, columns)), float("-inf"))
    out, _ = gemma2.eager_attention_forward(module, heads_of(q, 4), heads_of(k, 2), heads_of(v, 2), mask, softcap=1.5)
    return out.reshape(BATCH, TOKENS, -1)


def cases():
    """name: (function of the inputs, their shapes, positions, frequencies)"""
    plain = llama.LlamaRotaryEmbedding(llama_config())
    scaled = llama.LlamaRotaryEmbedding(llama_config(
        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64))
    partial = neox.GPTNeoXRotaryEmbedding(GPTNeoXConfig(
        hidden_size=48, num_attention_heads=3, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}))
    in_order = torch.arange(TOKENS)[None].expand(BATCH, TOKENS)
    return {
        "llama_rms_norm": (norm(llama.LlamaRMSNorm(21, eps=1e-6)), [(6, 21), (21,)], None, None),
        "gemma_rms_norm": (norm(gemma.GemmaRMSNorm(21, eps=1e-6)), [(6, 21), (21,)], None, None),
        "llama_rotary": (halves(llama, plain, in_order, 4), [(BATCH, TOKENS, 48)], None, None),
        "llama_rotary_positions": (halves(llama, plain, POSITIONS, 4), [(BATCH, TOKENS, 48)], POSITIONS, None),
        "llama3_rotary": (halves(llama, scaled, POSITIONS, 4), [(BATCH, TOKENS, 48)], POSITIONS, scaled.inv_freq),
        "neox_rotary": (halves(neox, partial, POSITIONS, 3), [(BATCH, TOKENS, 48)], POSITIONS, None),
        "gptj_rotary": (neighbours(POSITIONS, 3, 10), [(BATCH, TOKENS, 48)], POSITIONS, None),
        "silu": (F.silu, [(6, 33)], None, None),
        "swiglu": (lambda g, u: ACT2FN["silu"](g) * u, [(2, 5, 13)] * 2, None, None),
        "geglu": (lambda x: F.gelu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], [(2, 5, 26)], None, None),
        "gemma_geglu": (lambda g, u: ACT2FN["gelu_pytorch_tanh"](g) * u, [(10, 12)] * 2, None, None),
        "reglu": (lambda x: F.relu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], [(10, 24)], None, None),
        "attention_grouped": (lambda q, k, v: grouped(q, k, v, 6, 2, CAUSAL), [(2, 11, 30), (2, 11, 10), (2, 11, 10)],
                              None, None),
        "attention_gemma2": (capped, [(2, 11, 20), (2, 11, 10), (2, 11, 10)], None, None),
    }


def main():
    tensors = {}
    for name, (function, shapes, positions, frequencies) in cases().items():
        inputs = [torch.randn(shape).double().requires_grad_() for shape in shapes]
        out = function(*inputs)
        seed = torch.randn(out.shape).double()
        out.backward(seed.to(out.dtype))
        for i, x in enumerate(inputs):
            tensors[f"{name}/in{i}"] = x.detach()
            tensors[f"{name}/grad{i}"] = x.grad
        tensors[f"{name}/out"], tensors[f"{name}/seed"] = out.detach(), seed
        if positions is not None:
            tensors[f"{name}/ids"] = positions.clone()
        if frequencies is not None:
            tensors[f"{name}/table"] = frequencies
    tensors = {k: v.contiguous() if v.dtype == torch.int32 else v.float().contiguous() for k, v in tensors.items()}
    save_file(tensors, OUT, metadata={"torch": torch.__version__, "transformers": transformers.__version__,
                                      "script": "tests/parity/transformer.py"})
    print(OUT, len(tensors), "tensors", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
