"""torch.nn.GRU over whole episodes of different lengths, and its gradient, compiled for the CPU.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)         (Cho et al. 2014,
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          https://arxiv.org/abs/1406.1078,
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))         as torch.nn.GRU writes it)
    h' = (1 - z) n + z h

The same numbers as torch.nn.GRU, to float32's rounding, in less than half of its time for such
episodes: torch makes some thirty calls for every step, each too small to be worth it; here one
compiled loop does them all. To do without: RNNAgent(..., gru=torch.nn.GRU).

Not a script. See it at work: python train.py --map 2s3z

Shapes: H GRU width, R rows of all steps together, G rows of one group.
"""

import threading
from unittest import mock

import numpy as np
import torch
from numba import config, njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from starcraft import compiled  # noqa: F401 before anything is compiled

GROUP = 16  # rows that are worked on together: few enough that they stay in the nearest cache
# a * b + c may be one instruction, and nothing else be bent: NaN stays NaN. nogil: the learner's
# threads run side by side.
JIT = dict(error_model="numpy", fastmath={"contract"}, nogil=True, cache=True)
LOCK = threading.Lock()  # one thread compiles, lest the vectoriser stay switched on for all
# A Python number would turn everything into float64. Beyond LIMIT, tanh is 1 to float32's rounding.
ONE, HALF, LIMIT = np.float32([1, 0.5, 7.905])


@njit(**JIT)
def tanh(x):
    """float32 -> float32, as a fraction of two polynomials (the coefficients of Eigen,
    https://eigen.tuxfamily.org; error below 3e-7): unlike a call of the library's own, this can be
    done for 8 or 16 numbers at once."""
    x = LIMIT if x > LIMIT else -LIMIT if x < -LIMIT else x  # NaN stays NaN, unlike with min, max
    y = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * y + np.float32(2.00018790482477e-13)
    p = p * y + np.float32(-8.60467152213735e-11)
    p = p * y + np.float32(5.12229709037114e-08)
    p = p * y + np.float32(1.48572235717979e-05)
    p = p * y + np.float32(6.37261928875436e-04)
    p = p * y + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * y + np.float32(1.18534705686654e-04)
    q = q * y + np.float32(2.26843463243900e-03)
    q = q * y + np.float32(4.89352518554385e-03)
    return x * p / q


@njit(**JIT)
def sigmoid(x):
    """float32 -> float32."""
    return HALF + HALF * tanh(HALF * x)


@njit(**JIT)
def add_product(a, w, out):
    """out (G, M) += a (G, K) @ w (K, M), eight of the K at a time: each number of `out` is then
    fetched and put back an eighth as often. K must be a multiple of 8."""
    for k in range(0, len(w), 8):
        for i in range(len(a)):
            a0, a1, a2, a3 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
            a4, a5, a6, a7 = a[i, k + 4], a[i, k + 5], a[i, k + 6], a[i, k + 7]
            for j in range(w.shape[1]):
                out[i, j] += (
                    (a0 * w[k, j] + a1 * w[k + 1, j])
                    + (a2 * w[k + 2, j] + a3 * w[k + 3, j])
                    + (a4 * w[k + 4, j] + a5 * w[k + 5, j])
                    + (a6 * w[k + 6, j] + a7 * w[k + 7, j])
                )


@njit(**JIT)
def unroll_rows(x, sizes, w_ih, w_hh, b_ih, b_hh, out, gates):
    """Fill out (R, H) with the hidden states, and gates (R, 4 H) with n, r, z and W_hn h + b_hn: in
    this order columns 0 to 3 H and H to 4 H are what the gradients of W_i and W_h need.

    x (R, H): the rows of step 0, then those of step 1, ...; sizes[t] of them at step t, never more
    than before: row i of a step goes on from row i of the step before. w_ih, w_hh (H, 3 H) and
    b_ih, b_hh (3 H,): r, z, n. All float32, sizes int64. A single row of gates is no more than
    scratch paper.
    """
    H = x.shape[1]
    from_x, from_h = np.empty((GROUP, 3 * H), np.float32), np.empty((GROUP, 3 * H), np.float32)
    before = np.zeros((sizes[0], H), np.float32)  # the hidden states one step earlier
    first = 0  # row of the step
    for size in sizes:
        now = out[first : first + size]
        for lo in range(0, size, GROUP):
            G = min(GROUP, size - lo)
            from_x[:] = b_ih
            from_h[:] = b_hh
            add_product(x[first + lo : first + lo + G], w_ih, from_x)
            add_product(before[lo : lo + G], w_hh, from_h)
            for i in range(G):
                a, b, h, new = from_x[i], from_h[i], before[lo + i], now[lo + i]
                gate = gates[(first + lo + i) % len(gates)]
                for j in range(H):
                    r = sigmoid(a[j] + b[j])
                    z = sigmoid(a[H + j] + b[H + j])
                    n = tanh(a[2 * H + j] + r * b[2 * H + j])
                    new[j] = n + z * (h[j] - n)
                    gate[j], gate[H + j], gate[2 * H + j], gate[3 * H + j] = n, r, z, b[2 * H + j]
        before = now
        first += size


@njit(**JIT)
def unroll_rows_back(sizes, w_hh, out, gates, d_out):
    """Overwrite gates (R, 4 H) with gradients: columns 0 to 3 H are then that of W_i x + b_i, its n
    first, columns H to 4 H that of W_h h + b_h. d_out (R, H), the gradient of `out`, is overwritten
    too: it ends as the one by way of all later steps as well.

    w_hh (3 H, H), as torch keeps it. See unroll_rows for the rest.
    """
    H = out.shape[1]
    none = np.zeros((sizes[0], H), np.float32)
    first = len(out)
    for t in range(len(sizes) - 1, -1, -1):
        first -= sizes[t]
        start = first - sizes[t - 1] if t > 0 else 0  # of the step before
        before = out[start:first] if t > 0 else none
        d_before = d_out[start:first] if t > 0 else none  # then h is read before d_h is written
        for lo in range(0, sizes[t], GROUP):
            hi = min(lo + GROUP, sizes[t])
            for i in range(lo, hi):
                gate, h, d, d_h = gates[first + i], before[i], d_out[first + i], d_before[i]
                for j in range(H):
                    n, r, z, hn = gate[j], gate[H + j], gate[2 * H + j], gate[3 * H + j]
                    d_n = d[j] * (ONE - z) * (ONE - n * n)
                    gate[j] = d_n
                    gate[H + j] = d_n * hn * r * (ONE - r)
                    gate[2 * H + j] = d[j] * (h[j] - n) * z * (ONE - z)
                    gate[3 * H + j] = d_n * r
                    d_h[j] += d[j] * z
            if t > 0:
                add_product(gates[first + lo : first + hi, H:], w_hh, d_before[lo:hi])


def call(kernel, *arguments):
    """unroll_rows or unroll_rows_back with tensors. They are compiled, once, with the vectoriser
    that starcraft/compiled.py turns off, because it slows the rules there; these two live on it."""
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments]
    if kernel.signatures:
        return kernel(*arrays)
    with LOCK, mock.patch.object(config, "LOOP_VECTORIZE", 1):
        kernel(*arrays)


class Unroll(torch.autograd.Function):
    """Both for torch: x (R, H), sizes, and the GRU's four tensors as it has them -> out (R, H). Its
    gradient can be asked for once, and has no gradient itself."""

    @staticmethod
    def forward(ctx, x, sizes, w_ih, w_hh, b_ih, b_hh):
        R, H = x.shape
        out = x.new_empty(R, H)
        gates = x.new_empty(R if any(ctx.needs_input_grad) else 1, 4 * H)
        weights = w_ih.t().contiguous(), w_hh.t().contiguous(), b_ih, b_hh
        call(unroll_rows, x.contiguous(), sizes, *weights, out, gates)
        ctx.sizes, ctx.gates = sizes, gates
        ctx.save_for_backward(x, w_ih, w_hh, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        x, w_ih, w_hh, out = ctx.saved_tensors
        H, sizes, gates, ctx.gates = out.shape[1], ctx.sizes, ctx.gates, None  # it is overwritten
        if gates is None:
            raise RuntimeError("this gradient can be asked for once: run forward again")
        d_out = d_out.clone(memory_format=torch.contiguous_format)
        call(unroll_rows_back, sizes, w_hh.contiguous(), out, gates, d_out)
        d_from_x, d_from_h = gates[:, : 3 * H], gates[:, H:]  # (R, 3 H): n, r, z and r, z, n
        states = zip(out.split(sizes.tolist())[:-1], sizes[1:], strict=True)
        before = [out.new_zeros(sizes[0], H), *(state[:size] for state, size in states)]
        d_w_ih, d_b_ih = (d_from_x.t() @ x).roll(-H, 0), d_from_x.sum(dim=0).roll(-H)
        d_w_hh, d_b_hh = d_from_h.t() @ torch.cat(before), d_from_h.sum(dim=0)
        return d_from_x @ w_ih.roll(H, 0), None, d_w_ih, d_w_hh, d_b_ih, d_b_hh


class GRU(nn.GRU):
    """torch.nn.GRU with the same weights and results; only whole episodes are done sooner.

    Compiled is one plain layer, as wide as its input, a multiple of 8, over a PackedSequence of
    float32 on the CPU, from zeros; torch does everything else. Raises ValueError for batch_sizes
    that do not fit the rows.
    """

    def forward(self, x, hidden=None):
        if not isinstance(x, PackedSequence) or hidden is not None or not self.compiles(x.data):
            return super().forward(x, hidden)
        sizes = x.batch_sizes.numpy()  # (T,) sequences that have a step t
        if sizes.sum() != len(x.data) or sizes.min() < 1 or (np.diff(sizes) > 0).any():
            raise ValueError(
                f"sizes {sizes.tolist()} do not make up {len(x.data)} rows, longest first"
            )
        out = Unroll.apply(x.data, sizes, *self.parameters())
        sequence = np.arange(sizes[0])
        last = (sizes[:, None] > sequence).sum(axis=0) - 1  # each one's last step
        ends = torch.from_numpy((sizes.cumsum() - sizes)[last] + sequence)  # and the row of it
        return x._replace(data=out), out[ends].unsqueeze(0)

    def compiles(self, x: Tensor) -> bool:
        H = self.hidden_size
        shapes = [tuple(weight.shape) for weight in self.parameters()]
        plain = shapes == [(3 * H, x.shape[-1])] * 2 + [(3 * H,)] * 2 and x.shape[-1] == H
        kinds = {(tensor.dtype, tensor.device.type) for tensor in (x, *self.parameters())}
        plain = plain and kinds == {(torch.float32, "cpu")} and not config.DISABLE_JIT
        return plain and H % 8 == 0 and not self.bidirectional
