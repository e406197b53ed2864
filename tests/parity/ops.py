"""Writes tests/parity/fixtures/ops_torch.safetensors: what PyTorch computes, forward and backward, for each operation.

  python tests/parity/ops.py
Made with torch 2.15.0 and safetensors 0.8.0 on CPU, in float64 and rounded once. tests/unit/test_ops_parity.c demands
agreement within 1e-5. For each case: CASE/in0.., CASE/ids (int32, where there are any), CASE/seed (d loss / d out),
CASE/out, CASE/grad0...
"""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(7)
OUT = pathlib.Path(__file__).parent / "fixtures" / "ops_torch.safetensors"
MASK = torch.tensor([[1] * 9 + [0] * 2, [1, 0, 1] + [1] * 8], dtype=torch.bool)


def attention(q, k, v, causal):
    heads = [x.view(2, 11, 3, 5).transpose(1, 2) for x in (q, k, v)]
    mask = MASK[:, None, None, :].expand(2, 3, 11, 11)
    if causal:
        mask = mask & torch.ones(11, 11, dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).reshape(2, 11, 15)


def topk(x, absolute):
    return x.gather(1, (x.abs() if absolute else x).topk(5, dim=1).indices)


TARGETS = torch.tensor([3, -100, 0, 18, 7, -100], dtype=torch.int32)
IDS = torch.tensor([[4, 0, 12], [4, 4, 1]], dtype=torch.int32)
CODES = torch.tensor([[0, 4, 9], [9, 1, 2], [4, 4, 0], [7, 8, 9]], dtype=torch.int32)

# name: (function of the inputs, their shapes, ids or None)
CASES = {
    "add": (lambda a, b: a + b, [(3, 1, 7), (5, 1)], None),
    "sub": (lambda a, b: a - b, [(3, 5, 7), (7,)], None),
    "mul": (lambda a, b: a * b, [(3, 5, 7), (3, 1, 1)], None),
    "div": (lambda a, b: a / (b + 4), [(3, 5, 7), (5, 7)], None),
    "maximum": (torch.maximum, [(5, 7), (7,)], None),
    "minimum": (torch.minimum, [(7,), (5, 7)], None),
    "gelu": (F.gelu, [(6, 33)], None),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), [(6, 33)], None),
    "exp": (torch.exp, [(33,)], None),
    "tanh": (torch.tanh, [(33,)], None),
    "sigmoid": (torch.sigmoid, [(33,)], None),
    "sum": (lambda x: x.sum(1), [(3, 5, 7)], None),
    "mean": (lambda x: x.mean(-1, keepdim=True), [(3, 5, 7)], None),
    "max": (lambda x: x.amax(0), [(5, 7)], None),
    "min": (lambda x: x.amin(1), [(5, 7)], None),
    "matmul": (torch.matmul, [(17, 9), (9, 13)], None),
    "matmul_batched": (torch.matmul, [(3, 5, 9), (3, 9, 4)], None),
    "linear": (lambda x, w, b: F.linear(x, w, b), [(2, 5, 9), (13, 9), (13,)], None),
    "linear_gelu": (lambda x, w, b: F.gelu(F.linear(x, w, b)), [(2, 5, 9), (13, 9), (13,)], None),
    "linear_relu": (lambda x, w, b: F.relu(F.linear(x, w, b)), [(10, 9), (13, 9), (13,)], None),
    "softmax": (lambda x: F.softmax(x, -1), [(5, 19)], None),
    "log_softmax": (lambda x: F.log_softmax(x, -1), [(5, 19)], None),
    "layer_norm": (lambda x, r, w, b: F.layer_norm(x + r, (21,), w, b, 1e-12), [(6, 21), (6, 21), (21,), (21,)], None),
    "attention": (lambda q, k, v: attention(q, k, v, False), [(2, 11, 15)] * 3, MASK.to(torch.int32)),
    "attention_causal": (lambda q, k, v: attention(q, k, v, True), [(2, 11, 15)] * 3, MASK.to(torch.int32)),
    "embedding": (lambda t: F.embedding(IDS.long(), t), [(13, 6)], IDS),
    "cross_entropy": (lambda x: F.cross_entropy(x, TARGETS.long(), ignore_index=-100), [(6, 19)], TARGETS),
    "mse_loss": (F.mse_loss, [(5, 7), (5, 7)], None),
    "topk": (lambda x: topk(x, False), [(4, 23)], None),
    "topk_absolute": (lambda x: topk(x, True), [(4, 23)], None),
    "sparse_decode": (lambda v, w, b: (v[..., None] * w[CODES.long()]).sum(1) + b, [(4, 3), (10, 8), (8,)], CODES),
}


def main():
    tensors = {}
    for name, (function, shapes, ids) in CASES.items():
        inputs = [torch.randn(shape).double().requires_grad_() for shape in shapes]
        out = function(*inputs)
        seed = torch.randn(out.shape).double()
        out.backward(seed)
        for i, x in enumerate(inputs):
            tensors[f"{name}/in{i}"] = x.detach()
            tensors[f"{name}/grad{i}"] = x.grad
        tensors[f"{name}/out"], tensors[f"{name}/seed"] = out.detach(), seed
        if ids is not None:
            tensors[f"{name}/ids"] = ids
    tensors = {k: v.contiguous() if v.dtype == torch.int32 else v.float().contiguous() for k, v in tensors.items()}
    OUT.parent.mkdir(exist_ok=True)
    save_file(tensors, OUT, metadata={"torch": torch.__version__, "script": "tests/parity/ops.py"})
    print(OUT, len(tensors), "tensors", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
