"""Our kernels, run by Triton's interpreter on a CPU, against PyTorch.

For a process of their own, since Triton decides when it is imported whether it interprets (TRITON_INTERPRET=1).
tests/gpu has the same on a GPU.
"""

from contextlib import suppress
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from lvdm.models import attention
from lvdm.models import fp8 as plain_fp8
from lvdm.models.kernels import fp8, group_norm, layer_norm, products, rotary, sums, temporal_attention

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape, grad=False):
    return torch.randn(*shape, generator=GENERATOR).requires_grad_(grad)


def close(found, expected, what):
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4, msg=lambda text: f"{what}: {text}")


def check_group_norm():
    for rows, n, c, shifted, silu in ((4, 300, 64, True, True), (2, 37, 96, False, False), (2, 20, 64, True, False)):
        x, weight, bias = draw(rows, n, c, grad=True), draw(c, grad=True), draw(c, grad=True)
        shift = draw(rows // 2, c, grad=True) if shifted else None
        moved = x if shift is None else x + shift.repeat_interleave(2, 0)[:, None]
        expected = F.group_norm((3 * moved + 2).transpose(1, 2), 32, weight, bias, 1e-5).transpose(1, 2)
        expected = F.silu(expected) if silu else expected
        slope = draw(rows, n, c)
        expected.backward(slope)
        with torch.no_grad():
            scaled, moved_by = 3 * x, (0 if shift is None else 3 * shift) + 2 * torch.ones(rows // 2, c)
            y, coefficients, moments = group_norm._run(scaled, weight, bias, moved_by, 32, 1e-5, silu)
            dx, parameters = group_norm._run_backward(scaled, slope, moved_by, coefficients, moments, silu)
        close(y, expected, "group norm")
        close(3 * dx, x.grad, "group norm, x")
        close(parameters[:, 0].sum(0), weight.grad, "group norm, weight")
        close(parameters[:, 1].sum(0), bias.grad, "group norm, bias")
        if shift is not None:
            close(3 * parameters[:, 2].unflatten(0, (-1, 2)).sum(1), shift.grad, "group norm, shift")


def check_layer_norm():
    for c, trained in ((320, True), (96, False)):
        x, update, weight, bias = draw(3, 7, c), draw(3, 7, c), draw(c, grad=True), draw(c, grad=True)
        total = (x + update).requires_grad_()
        expected, slopes = F.layer_norm(total, (c,), weight, bias), (draw(3, 7, c), draw(3, 7, c))
        torch.autograd.backward([expected, 1 * total], list(slopes))
        with torch.no_grad():
            found, y = layer_norm._run(x, update, weight, bias, 1e-5)
            close(layer_norm._run(x, None, weight, bias, 1e-5)[1], F.layer_norm(x, (c,), weight, bias), "layer norm")
            dx, parameters = layer_norm._run_backward(found, *slopes, weight, 1e-5, trained)
        for one, other in ((found, total), (y, expected), (dx, total.grad)):
            close(one, other, "sum and layer norm")
        if trained:
            close(parameters, torch.stack([weight.grad, bias.grad]), "layer norm, parameters")


def by_rows(q, k, v, bias, tables, parts, causal):
    """The definition: `attend`'s plain form, one row for each position."""
    b, n, s = q.shape[:3]
    f, place = k.shape[1] // parts, torch.arange(k.shape[1]) % (k.shape[1] // parts)
    distance = place - torch.arange(n)[:, None]
    relative = None
    if tables[0] is not None:
        reach = tables[0].shape[0] // 2
        relative = tuple(table[distance.clamp(-reach, reach) + reach] for table in tables)
    scores = None if bias is None else bias.repeat_interleave(f, 1)[:, None, None].repeat_interleave(s, 0)
    rows = (x.permute(0, 2, 3, 1, 4).flatten(0, 1) for x in (q, k, v))
    with attention.backend("reference"):
        out = attention.attend(*rows, bias=scores, causal=causal, relative=relative)
    return out.unflatten(0, (b, s)).permute(0, 3, 1, 2, 4).flatten(3)


def check_temporal_attention():
    temporal_attention.TABLE_PROGRAMS = 3  # so that a program serves several positions
    for b, n, f, parts, d, reach, weighted, causal in (
        (2, 16, 16, 1, 40, 16, False, False),
        (1, 5, 7, 1, 16, 3, False, False),
        (2, 16, 16, 3, 16, 4, True, False),
        (1, 16, 16, 1, 8, None, False, True),
        (2, 4, 4, 2, 16, 2, True, False),
    ):
        s, heads = 3, 2
        q, k, v = (draw(b, frames, s, heads, d, grad=True) for frames in (n, f * parts, f * parts))
        tables = [None if reach is None else draw(2 * reach + 1, d, grad=True) for _ in range(2)]
        bias = draw(b, parts) if weighted else None
        if weighted and parts == 2:
            bias[0, 0] = float("-inf")
        expected, slope = by_rows(q, k, v, bias, tables, parts, causal), draw(b, n, s, heads * d)
        expected.backward(slope)
        what = f"temporal attention, {n} frames to {parts} x {f}, width {d}"
        with torch.no_grad():
            assert temporal_attention.fits(q, k, parts)
            out = temporal_attention._run(q, k, v, bias, *tables, parts, causal)
            arguments = (q, k, v, bias, *tables, out, slope, parts, causal, reach is not None)
            *gradients, found = temporal_attention._run_backward(*arguments)
        close(out, expected, what)
        for one, other in zip(gradients, (q, k, v), strict=True):
            close(one, other.grad, what)
        if reach is not None:
            rows = (torch.arange(found.shape[1]) + 1 - n).clamp(-reach, reach) + reach
            for one, other in zip(found, tables, strict=True):
                close(torch.zeros_like(other).index_add_(0, rows, one), other.grad, f"{what}, tables")


def check_products():
    x, weight, bias = draw(3, 50, 64), draw(2 * 96, 64), draw(192)
    value, gate = F.linear(x, weight, bias).chunk(2, -1)
    blocks = {"block_m": 64, "block_n": 64, "block_k": 32}
    close(products._run_geglu(x, weight, bias, blocks), value * F.gelu(gate), "geglu")
    products._is_large = lambda device: device == 0
    assert products._fitting(products.TALL, x)["num_stages"] == 3
    products._is_large = lambda device: False
    for blocks in (products.NARROW, products.SQUARE, products.WIDE, products.TALL):  # 99 KiB are what small GPUs have
        small = products._fitting(blocks, x)
        halves = 2 if blocks in (products.NARROW, products.SQUARE) else 1  # of the weights, which GEGLU reads both
        rows = blocks["block_m"] + halves * blocks["block_n"]
        assert 2 * small["num_stages"] * blocks["block_k"] * rows <= 99 * 1024
    h = draw(3, 7, 192, grad=True)
    value, gate = h.chunk(2, -1)
    expected, slope = value * F.gelu(gate), draw(3, 7, 96)
    expected.backward(slope)
    with torch.no_grad():
        close(products._run_gated(h, None), expected, "gated")
        close(products._run_gated(h, slope), h.grad, "gated, gradient")
    x, weight = draw(2, 5, 14, 64), draw(96, 64, 3, 1)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=(1, 0)).permute(0, 2, 3, 1)
    for rows in (64, 2):  # blocks across frames, and within one
        found = products._run_conv(x, weight, {"block_m": rows, "block_n": 64, "block_k": 32})
        close(found, expected, "temporal convolution")


def check_the_rest():
    x, y, bias = draw(3, 7, 320), draw(3, 7, 320), draw(320)
    close(sums._run(x, y, bias), x + y + bias, "biased sum")
    x = torch.cat([100 * draw(5, 40), torch.zeros(1, 40)])
    (found, scales), (expected, others) = fp8._run(x), plain_fp8.quantize_rows(x)
    close(scales, others, "scales of rows in e4m3")
    exact = expected.float().abs().frexp().mantissa != 0.5  # where a mantissa rounds up to 2 the interpreter forgets to
    assert exact.sum() > 180
    close(found.float()[exact], expected.float()[exact], "rows in e4m3")
    x, angle = draw(2, 6, 3, 40), draw(6, 20)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    expected = torch.cat([first * c - second * s, first * s + second * c], dim=-1)
    close(rotary._run(x, cos, sin, 1), expected, "rotary positions")
    close(rotary._run(expected, cos, sin, -1), x, "rotary positions, back")


def check_the_gradient_of_a_bias_alone():
    x, weight, bias, slope = draw(6, 96), draw(96), draw(96, grad=True), draw(6, 96)
    F.layer_norm(x, (96,), weight, bias).backward(slope)
    ctx = SimpleNamespace(saved_tensors=(x, weight), eps=1e-5, types=(weight.dtype, bias.dtype))
    layer_norm._layer_norm_backward, before = layer_norm._run_backward, layer_norm._layer_norm_backward
    for differentiate, slopes, first in (
        (layer_norm._differentiate, [slope], 1),
        (layer_norm._differentiate_sum, [torch.zeros_like(x), slope], 2),
    ):
        ctx.needs_input_grad = [False] * (first + 1) + [True, False]
        close(differentiate(ctx, *slopes)[first + 1], bias.grad, "layer norm, gradient of a bias alone")
    layer_norm._layer_norm_backward = before


def check_devices():
    """Each launch makes the GPU of what it reads the current one."""
    modules = (fp8, group_norm, layer_norm, products, rotary, sums, temporal_attention)
    launches = [getattr(each, name) for each in modules for name in vars(each) if name.startswith("_run")]
    assert len(launches) == 12
    asked, device_of = [], torch.cuda.device_of
    torch.cuda.device_of = lambda x: asked.append(x) or device_of(x)
    x = draw(2, 40)
    for launch in launches:
        with suppress(TypeError):  # there is no more to launch with
            launch(x)
    torch.cuda.device_of = device_of
    assert len(asked) == len(launches) and all(each is x for each in asked), "a kernel is launched on any GPU"


def check_all():
    for check in (check_group_norm, check_layer_norm, check_temporal_attention, check_products, check_the_rest):
        check()
    check_the_gradient_of_a_bias_alone()
    check_devices()
    print("all kernels agree")
