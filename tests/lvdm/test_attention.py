import sys
from types import ModuleType

import pytest
import torch

from lvdm.errors import ConfigError
from lvdm.models import attention
from lvdm.models.attention import Attention, RelativePosition, attend


def random_inputs(rows=3, heads=2, n=5, m=5, d=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    q, k, v = normal(rows, heads, n, d), normal(rows, heads, m, d), normal(rows, heads, m, d)
    return q, k, v, normal(rows, 1, n, m), (normal(n, m, d), normal(n, m, d))


def by_loops(q, k, v, bias, causal, relative):
    """The definition, one query at a time."""
    rel_k, rel_v = relative
    out = torch.zeros_like(q)
    for r, h, i in ((r, h, i) for r in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])):
        last = i + 1 if causal else k.shape[2]
        keys, values = k[r, h, :last], v[r, h, :last]
        if rel_k is not None:
            keys = keys + rel_k[i, :last]
        if rel_v is not None:
            values = values + rel_v[i, :last]
        scores = keys @ q[r, h, i] / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[r, 0, i, :last]
        out[r, h, i] = scores.softmax(0) @ values
    return out


@pytest.mark.parametrize("name", ["sdpa", "reference"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", [(False, False), (True, True), (False, True), (True, False)])
def test_attend_is_its_definition(name, with_bias, causal, which):
    q, k, v, bias, relative = random_inputs(dtype=torch.float64)
    relative = tuple(x if used else None for x, used in zip(relative, which))
    bias = bias if with_bias else None
    with attention.backend(name):
        out = attend(q, k, v, bias=bias, causal=causal, relative=relative if any(which) else None)
    torch.testing.assert_close(out, by_loops(q, k, v, bias, causal, relative))


@pytest.mark.parametrize("name", ["sdpa", "reference"])
def test_gradients_reach_relative_positions(name):
    q, k, v, bias, relative = random_inputs(rows=1, heads=1, n=3, m=2, d=2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v, *relative)]
    with attention.backend(name):
        assert torch.autograd.gradcheck(lambda q, k, v, a, b: attend(q, k, v, bias=bias, relative=(a, b)), inputs)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("bias_rows", [1, 11])
def test_rows_beyond_the_kernel_limit_go_in_chunks(monkeypatch, relative, bias_rows):
    q, k, v, bias, positions = random_inputs(rows=11)
    settings = {"bias": bias[:bias_rows], "relative": positions if relative else None}
    whole = attend(q, k, v, **settings)
    kernel, seen = ("_relative" if relative else "_sdpa"), []
    original = getattr(attention, kernel)
    monkeypatch.setattr(attention, "MAX_ROWS_TIMES_HEADS", 7)  # 3 rows of 2 heads
    monkeypatch.setattr(attention, kernel, lambda q, *rest: seen.append(len(q)) or original(q, *rest))
    torch.testing.assert_close(attend(q, k, v, **settings), whole)
    assert seen == [3, 3, 3, 2]


@pytest.mark.parametrize("relative", [False, True])
def test_more_rows_than_the_limit(relative):
    q, k, v, _, positions = random_inputs(rows=70_001, heads=1, n=2, m=2, d=4)
    positions = positions if relative else None
    out = attend(q, k, v, relative=positions)
    assert out.shape == q.shape
    torch.testing.assert_close(out[-1:], attend(q[-1:], k[-1:], v[-1:], relative=positions))


def test_bfloat16_stays_close_to_float32():
    q, k, v, _, relative = random_inputs()
    exact = attend(q, k, v, relative=relative)
    rough = attend(*(x.bfloat16() for x in (q, k, v)), relative=relative)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)


def test_relative_positions_are_clamped_distances_from_query_to_key():
    relative = RelativePosition(3, max_relative=2)
    table = relative.embeddings_table
    out = relative(4, 5)
    assert out.shape == (4, 5, 3)
    for query in range(4):
        for key in range(5):
            assert out[query, key].equal(table[min(max(key - query, -2), 2) + 2])
    assert relative(torch.arange(4), torch.tensor([0, 1, 0, 1])).equal(torch.cat([out[:, :2], out[:, :2]], dim=1))


def test_backend_is_restored_after_an_error():
    with pytest.raises(RuntimeError), attention.backend("reference"):
        raise RuntimeError
    assert attention._backend == "sdpa"


def test_unknown_backend():
    with pytest.raises(ConfigError, match=r"'flash'.*sdpa, xformers, reference"):
        attention.set_backend("flash")


def fake_xformers(monkeypatch, operator):
    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = operator
    ops.LowerTriangularMask = type("LowerTriangularMask", (), {})
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def test_xformers_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ConfigError, match=r"cannot be imported.*'sdpa'"):
        attention.set_backend("xformers")


def test_xformers_without_an_operator(monkeypatch):
    def no_operator(*_, **__):
        raise NotImplementedError("No operator found")

    fake_xformers(monkeypatch, no_operator)
    with pytest.raises(ConfigError, match=r"no operator.*'sdpa'"):
        attention.set_backend("xformers")
    assert attention._backend == "sdpa"


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_xformers_is_given_its_own_layout(monkeypatch, with_bias, causal):
    """xformers takes (rows, n, heads, d) and a full bias or its own causal mask."""

    def operator(q, k, v, attn_bias=None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if isinstance(attn_bias, torch.Tensor):
            assert attn_bias.shape == (*q.shape[:3], k.shape[2])
            scores_bias, is_causal = attn_bias, False
        else:
            scores_bias, is_causal = None, attn_bias is not None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scores_bias, is_causal=is_causal)
        return out.transpose(1, 2)

    fake_xformers(monkeypatch, operator)
    q, k, v, bias, _ = random_inputs()
    settings = {"bias": bias if with_bias else None, "causal": causal}
    with attention.backend("xformers"):
        out = attend(q, k, v, **settings)
    torch.testing.assert_close(out, attend(q, k, v, **settings))


def test_image_tokens_have_keys_and_values_of_their_own():
    layer = Attention(8, 2, 4, context_dim=6, image_tokens=True)
    x, context = torch.randn(2, 5, 8), torch.randn(2, 77 + 4, 6)
    both = layer(x, context)
    text_only = layer(x, context[:, :77])
    layer.to_k, layer.to_v = layer.to_k_ip, layer.to_v_ip
    image_only = layer(x, context[:, 77:])  # as if they were text
    torch.testing.assert_close(both, text_only + image_only - layer.to_out.bias)


@pytest.mark.parametrize("max_relative", [None, 3])
def test_a_context_serves_several_rows_in_turn(max_relative):
    layer = Attention(8, 2, 4, context_dim=6, max_relative=max_relative)
    x, context = torch.randn(6, 5, 8), torch.randn(2, 7, 6)
    torch.testing.assert_close(layer(x, context), layer(x, context.repeat_interleave(3, dim=0)))
