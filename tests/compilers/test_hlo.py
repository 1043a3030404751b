"""Programs in XLA's text form, read and counted; the texts are written here by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.compilers.hlo import dimensions, elements, parse, shape_bytes
from bnjax.compilers.hlo_counts import Collective, collectives, matmul_flops, traffic

SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.0 = f32[] add(%a, %b)
}
"""


def entry(*lines):
    """A module whose entry computation holds these lines."""
    return "HloModule jit_step, is_scheduled=true\n" + "\n".join(
        (SUM, "ENTRY %main (x: f32[8]) -> f32[8] {", *("  " + line for line in lines), "}", "")
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2 * 8 * 128),
        ("(f32[2,3]{1,0}, (s32[4], pred[5]{0}), u8[0]{0})", 24 + 16 + 5),
        ("s4[3]{0}", 2),
        ("f8e4m3fn[7]", 7),
        ("f32[<=8,2]", 64),
        ("token[]", 0),
        ("c64[2]", 16),
    ],
)
def test_bytes_of_a_shape(shape, size):
    """Red where a layout's tiles count as shapes."""
    assert shape_bytes(shape) == size


def test_an_unknown_element_type_is_refused():
    with pytest.raises(ValueError, match=r"unknown element type 'q7' in q7\[3\]"):
        shape_bytes("q7[3]")


def test_the_parts_of_a_tuple():
    tiled = "bf16[2,3]{1,0:T(8,128)(2,1)}"
    assert elements(f"((f32[2], {tiled}), {tiled}, u32[])") == [
        f"(f32[2], {tiled})",
        tiled,
        "u32[]",
    ]
    assert elements(tiled) == [tiled]
    assert dimensions(f"({tiled}, f32[9])") == (2, 3)


def test_an_instruction_is_read_whole():
    module = parse(
        entry(
            "%x = f32[8]{0:T(128)} parameter(0), sharding={replicated}",
            "ROOT %y.1 = (f32[8]{0:T(8,128)(2,1)}, /*index=1*/f32[]) fusion(%x, /*index=1*/%x), "
            'kind=kLoop, calls=%sum, metadata={op_name="jit(f)/add (x)"}',
        )
    )
    assert module.entry == "main"
    y = module.computations["main"]["y.1"]
    assert (y.shape, y.opcode, y.operands) == (
        "(f32[8]{0:T(8,128)(2,1)}, f32[])",
        "fusion",
        ("x", "x"),
    )
    assert y.called("calls") == ("sum",)
    assert y.called("to_apply") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("HloModule empty\n", "no line starts with ENTRY"),
        (entry("nonsense"), "not a line of a compiled program: 'nonsense'"),
        (entry("%x = f32[8] add(%a"), "a bracket is not closed"),
    ],
)
def test_what_is_no_program_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def counted(text):
    return {c.kind: (c.count, c.bytes) for c in collectives(parse(text))}


def test_a_combined_collective_counts_all_its_arrays():
    """Red where only a tuple's first array counts."""
    text = entry(
        "%p = f32[128] parameter(0)",
        "%q = bf16[64] parameter(1)",
        "ROOT %r = (f32[128]{0:T(128)S(1)}, bf16[64]) all-reduce(%p, %q), channel_id=1, "
        "to_apply=%sum",
    )
    assert collectives(parse(text)) == (Collective("all-reduce", 1, 128 * 4 + 64 * 2),)


@pytest.mark.parametrize(
    ("shape", "opcode", "kind", "size"),
    [
        ("f32[64]", "all-reduce", "all-reduce", 256),
        ("(f32[64], f32[64])", "all-gather", "all-gather", 512),
        ("((f32[64]), f32[64])", "all-reduce", "all-reduce", 256),
        ("(f32[64], f32[512])", "all-gather", "all-gather", 2048),
        ("((f32[64]), f32[8], u32[])", "reduce-scatter", "reduce-scatter", 256),
        ("(f32[64], f32[64], u32[], u32[])", "collective-permute", "collective-permute", 256),
    ],
)
def test_start_and_done_are_one_collective(shape, opcode, kind, size):
    """Red where operands count beside results, a context counts, or done counts again."""
    operands = "%p, %p" if shape == "(f32[64], f32[64])" and opcode == "all-gather" else "%p"
    if operands != "%p":  # two at once: ((operands), (results))
        shape = "((f32[64], f32[64]), (f32[64], f32[64]))"
    text = entry(
        "%p = f32[64] parameter(0)",
        f"%s = {shape} {opcode}-start({operands}), channel_id=3, to_apply=%sum",
        f"ROOT %d = f32[64] {opcode}-done(%s)",
    )
    assert counted(text) == {kind: (1, size)}


def test_a_scattered_result_counts_with_what_went_in():
    text = entry(
        "%p = f32[64] parameter(0)",
        "ROOT %r = f32[8] reduce-scatter(%p), channel_id=1, dimensions={0}, to_apply=%sum",
    )
    assert counted(text) == {"reduce-scatter": (1, 256)}


def test_collectives_inside_calls_fusions_and_wrappers_count_once():
    """Red where only the entry is read, or a wrapper counts beside what it wraps."""
    inner = """
%wrapped (p: f32[16]) -> f32[16] {
  %p = f32[16] parameter(0)
  ROOT %r = f32[16] all-to-all(%p), channel_id=7
}
"""
    text = inner + entry(
        "%x = f32[16] parameter(0)",
        "%a = ((f32[16]), f32[16], u32[]) async-start(%x), calls=%wrapped",
        "%b = f32[16] async-done(%a), calls=%wrapped",
        "%c = ((f32[16]), f32[16]) all-to-all-start(%b), calls=%wrapped",
        "%d = f32[16] all-to-all-done(%c)",
        "%e = f32[16] call(%d), to_apply=%wrapped",
        "ROOT %f = f32[16] fusion(%e), kind=kCustom, calls=%wrapped",
    )
    assert counted(text) == {"all-to-all": (4, 4 * 64)}


def test_a_collective_spread_over_fusions_is_one():
    """TPUs overlap it so with products; every part names the same channel."""
    part = """
%part{0} (p: f32[4]) -> f32[32] {{
  %p = f32[4] parameter(0)
  ROOT %g = f32[32] all-gather(%p), channel_id={1}, dimensions={{0}}
}}
"""
    text = part.format(1, 8) + part.format(2, 8) + part.format(3, 9)
    fusions = [f"%f{i} = f32[32] fusion(%x), kind=kCustom, calls=%part{i}" for i in (1, 2, 3)]
    assert counted(text + entry("%x = f32[4] parameter(0)", *fusions)) == {"all-gather": (2, 256)}


def test_a_loop_counts_by_its_turns_where_they_are_known():
    loop = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[4] get-tuple-element(%p), index=1
  %r = f32[4] all-reduce(%v), channel_id=1, to_apply=%sum
  ROOT %t = (s32[], f32[4]) tuple(%i, %r)
}

%until (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  ROOT %c = pred[] constant(false)
}
"""
    line = "ROOT %w = (s32[], f32[4]) while(%x), condition=%until, body=%body"
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    first = "%x = (s32[], f32[4]) parameter(0)"
    assert counted(loop + entry(first, line)) == {"all-reduce": (1, 16)}
    assert counted(loop + entry(first, line + known)) == {"all-reduce": (5, 80)}
    assert traffic(parse(loop + entry(first, line + known))) == (5 * 32, 5)


def test_traffic_is_operands_and_result_of_what_computes():
    """Parameters, constants, tuples, their elements and bitcasts are free."""
    text = entry(
        "%x = bf16[4,8] parameter(0)",
        "%c = f32[8] constant({...})",
        "%b = bf16[32] bitcast(%x)",
        "%f = (bf16[4,8], f32[8]) fusion(%x, %c), kind=kInput, calls=%sum",
        "%g = f32[8] get-tuple-element(%f), index=1",
        "%k = bf16[32] copy(%b)",
        "ROOT %t = (f32[8], bf16[32]) tuple(%g, %k)",
    )
    fusion, copy = (64 + 32) + (64 + 32), 64 + 64
    assert traffic(parse(text)) == (fusion + copy, 2)


def test_traffic_of_a_copy_in_two_parts():
    text = entry(
        "%x = f32[8] parameter(0)",
        "%s = (f32[8], f32[8], u32[]) copy-start(%x)",
        "ROOT %d = f32[8] copy-done(%s)",
    )
    assert traffic(parse(text)) == (64, 1)


@pytest.mark.parametrize(
    "shape", ["(f32[64], f32[32])", "((f32[64], f32[32]), (f32[64], f32[32]))"]
)
def test_traffic_of_a_started_sum_of_two(shape):
    """Both of the forms that compilers write: red where one array counts, or operands twice."""
    text = entry(
        "%p = f32[64] parameter(0)",
        "%q = f32[32] parameter(1)",
        f"%s = {shape} all-reduce-start(%p, %q), to_apply=%sum",
        "ROOT %d = (f32[64], f32[32]) all-reduce-done(%s)",
    )
    assert traffic(parse(text)) == (2 * 4 * 96, 1)


@pytest.mark.parametrize(
    ("use", "read"),
    [
        ("%u = f32[10] slice(%p), slice={[0:10]}", 40),
        ("%u = f32[10] slice(%v), slice={[0:10]}", 40),
        ("%u = f32[100] negate(%p)", 400),
        ("%w = f32[10] slice(%p), slice={[0:10]}\n  %u = f32[4] reduce(%p, %q)", 400),
    ],
    ids=["sliced", "bitcast, then sliced", "whole", "sliced and summed"],
)
def test_an_operand_that_is_only_sliced_counts_with_the_slices(use, read):
    """Each branch reads the gradient of a concatenation so, in part."""
    fused = f"""
%fused (q: f32[4], p: f32[100]) -> f32[4] {{
  %q = f32[4] parameter(0)
  %p = f32[100] parameter(1)
  %v = f32[100] bitcast(%p)
  {use}
  ROOT %o = f32[4] add(%q, %q)
}}
"""
    if "%v)" not in use:
        fused = fused.replace("  %v = f32[100] bitcast(%p)\n", "")
    text = fused + entry(
        "%a = f32[4] parameter(0)",
        "%b = f32[100] parameter(1)",
        "ROOT %f = f32[4] fusion(%a, %b), kind=kLoop, calls=%fused",
    )
    assert traffic(parse(text)) == (16 + read + 16, 1)


def convolve(x, kernel, strides, padding, **kwargs):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **kwargs
    )


def pairs(size, kernel, stride, before, after):
    """Pairs of an output and a tap that meet the image, counted one by one."""
    outputs = (size + before + after - kernel) // stride + 1
    return sum(
        0 <= out * stride + tap - before < size for out in range(outputs) for tap in range(kernel)
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_a_convolution_leave_the_border_out(stride):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 9, 7, 6), (3, 5, 3, 4))]
    text = (
        jax.jit(lambda x, k: convolve(x, k, (stride, 1), ((1, 1), (2, 2)), feature_group_count=2))
        .lower(*shapes)
        .as_text("hlo")
    )
    rows, columns = pairs(9, 3, stride, 1, 1), pairs(7, 5, 1, 2, 2)
    assert matmul_flops(parse(text)) == 2 * 2 * 4 * 3 * rows * columns


def test_flops_are_xlas_for_a_step_forward_and_backward():
    """Red for a wrong reading of windows, dilations or groups in the gradients' convolutions."""

    def loss(kernel, depthwise, dense, x):
        x = convolve(x, kernel, (2, 2), "SAME")
        x = convolve(x, depthwise, (1, 1), "SAME", feature_group_count=8)
        return (x.reshape(4, -1) @ dense).sum()

    shapes = ((3, 3, 5, 8), (3, 3, 1, 8), (8 * 36, 10), (4, 12, 12, 5))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*shapes)
    counted = matmul_flops(parse(lowered.as_text("hlo")))
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)
    assert counted <= lowered.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("target", "operands", "result"),
    [
        ("convForward", ("bf16[2,5,5,3]", "bf16[7,3,3,3]"), "bf16[2,5,5,7]"),
        ("convBackwardInput", ("bf16[2,5,5,7]", "bf16[7,3,3,3]"), "bf16[2,5,5,3]"),
        ("convBackwardFilter", ("bf16[2,5,5,3]", "bf16[2,5,5,7]"), "bf16[7,3,3,3]"),
    ],
)
def test_flops_of_cudnns_convolutions(target, operands, result):
    """The three passes multiply the same pairs: red where their operands are taken for others'."""
    text = entry(
        f"%x = {operands[0]} parameter(0)",
        f"%y = {operands[1]} parameter(1)",
        f"ROOT %c = ({result}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %y), "
        "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
        f'custom_call_target="__cudnn${target}"',
    )
    assert matmul_flops(parse(text)) == 2 * 2 * 7 * 3 * 13 * 13


def test_flops_of_matrix_products_here_and_in_cublas():
    dots = {"lhs_contracting_dimensions": '["1"]', "rhs_contracting_dimensions": '["0"]'}
    numbers = ",".join(f'"{name}":{value}' for name, value in dots.items())
    text = entry(
        "%x = f32[4,16] parameter(0)",
        "%y = f32[16,8] parameter(1)",
        "%d = f32[4,8] dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        '%c = (f32[4,8], s8[64]) custom-call(%x, %y), custom_call_target="__cublas$gemm", '
        f'backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":{{{numbers}}}}}}}',
        'ROOT %o = f32[4,8] custom-call(%d), custom_call_target="mine"',
    )
    assert matmul_flops(parse(text)) == 2 * (2 * 4 * 8 * 16)


def test_the_text_of_this_jax_is_read():
    """A sharded program: one all-reduce of the sum, the product split."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    args = (
        jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=whole),
    )
    product = jax.jit(lambda x, w: jnp.tanh(x @ w).sum(0)).lower(*args).compile()
    module = parse(product.as_text())
    assert collectives(module) == (Collective("all-reduce", 1, 16 * 4),)
    assert matmul_flops(module) == 2 * math.prod((64, 32, 16)) // jax.device_count()
