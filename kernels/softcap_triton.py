"""The cap of scores in Triton: a hyperbolic tangent that keeps its precision near 0."""

import triton
import triton.language as tl

_TWO_LOG2_E = tl.constexpr(2.8853900817779268)


@triton.jit
def tanh(b_x):
    """tanh of float32.  (1 - e) / (1 + e) with e = exp(-2 |x|) loses precision near 0, where most scores are: there its
    Taylor series, of which five terms are exact to 1e-7 of the result up to 0.3.
    """
    b_e = tl.math.exp2(tl.abs(b_x) * -_TWO_LOG2_E)
    b_far = (1.0 - b_e) / (1.0 + b_e)
    b_2 = b_x * b_x
    b_series = -0.333333333 + b_2 * (0.133333333 + b_2 * (-0.0539682540 + b_2 * 0.0218694885))
    return tl.where(b_2 < 0.09, b_x + b_x * b_2 * b_series, tl.where(b_x < 0, -b_far, b_far))
