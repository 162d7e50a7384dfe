"""torch.nn.GRU over whole episodes of different lengths, and its gradient, compiled for the CPU.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)         (Cho et al. 2014,
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          https://arxiv.org/abs/1406.1078,
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))         as torch.nn.GRU writes it)
    h' = (1 - z) n + z h

The same numbers as torch.nn.GRU, to float32's rounding, and sooner for such episodes: torch makes
some thirty calls for every step, each too small to be worth it; here one compiled loop does them
all, but for the matrix products, which numba leaves to scipy. To do without: gru=torch.nn.GRU in
make_agent of train.py.

Not a script. See it at work: python train.py --map 2s3z

Shapes: B sequences, T steps of the longest, I input, H GRU width, R rows of all steps together,
        G rows of one group.
"""

import os
import threading
from unittest import mock

import numpy as np
import torch
from numba import config, njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from starcraft import compiled  # noqa: F401 before anything is compiled

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # heard if nobody has imported scipy before
import scipy.linalg.cython_blas  # noqa: F401 what np.dot becomes in compiled code

# Rows that are worked on together: enough for a product, and few enough that its result is still in
# a near cache when the gates are made of it.
GROUP = 32
# a * b + c may be one instruction, and nothing else be bent: NaN stays NaN. nogil: the learner's
# threads run side by side.
JIT = dict(error_model="numpy", fastmath={"contract"}, nogil=True, cache=True)
LOCK = threading.Lock()  # one thread compiles, lest the vectoriser stay switched on for all
# A Python number would turn everything into float64. Beyond LIMIT, tanh is
# taken to stay what it is there, 3e-7 below 1 at most.
ONE, HALF, LIMIT = np.float32([1, 0.5, 7.905])


@njit(**JIT)
def tanh(x):
    """float32 -> float32, as a fraction of two polynomials (the coefficients of Eigen,
    https://eigen.tuxfamily.org; error below 3e-7): unlike a call of the library's own, this can be
    done for several numbers at once."""
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
def unroll_rows(x, sizes, w_ih, w_hh, b_ih, b_hh, out, gates, ns):
    """Fill out (R, H) with the hidden states; gates (R, 3 H) with r, z and W_hn h + b_hn, and
    ns (R, H) with n, for the gradients: where nobody asks for those, one row is enough for each.

    x (R, I): the rows of step 0, then those of step 1, ...; sizes[t] of them at step t, never more
    than before: row i of a step goes on from row i of the step before. w_ih (I, 3 H), w_hh
    (H, 3 H) and b_ih, b_hh (3 H,): r, z, n. All float32, sizes int64.
    """
    H = out.shape[1]
    from_x, from_h = np.zeros((GROUP, 3 * H), np.float32), np.zeros((GROUP, 3 * H), np.float32)
    before = np.zeros((sizes[0], H), np.float32)  # the hidden states one step earlier
    first = 0  # row of the step
    for size in sizes:
        now = out[first : first + size]
        for lo in range(0, size, GROUP):
            G = min(GROUP, size - lo)
            np.dot(x[first + lo : first + lo + G], w_ih, from_x[:G])
            np.dot(before[lo : lo + G], w_hh, from_h[:G])
            for i in range(G):
                a, b, h, new = from_x[i], from_h[i], before[lo + i], now[lo + i]
                row = (first + lo + i) % len(gates)
                gate, kept_n = gates[row], ns[row]
                for j in range(H):
                    r = sigmoid(a[j] + b_ih[j] + b[j] + b_hh[j])
                    z = sigmoid(a[H + j] + b_ih[H + j] + b[H + j] + b_hh[H + j])
                    hn = b[2 * H + j] + b_hh[2 * H + j]
                    n = tanh(a[2 * H + j] + b_ih[2 * H + j] + r * hn)
                    new[j] = n + z * (h[j] - n)
                    gate[j], gate[H + j], gate[2 * H + j], kept_n[j] = r, z, hn, n
        before = now
        first += size


@njit(**JIT)
def unroll_rows_back(sizes, w_hh, out, gates, ns, states, d_out):
    """Overwrite gates (R, 3 H) with the gradient of W_h h + b_h, and ns (R, H) with that of
    W_in x + b_in. r and z are made of sums: there W_i x + b_i has the same gradient. Fill states
    (R, H) with h. d_out (R, H), the gradient of `out`, is overwritten: it ends as the one by way of
    all later steps as well.

    w_hh (3 H, H), as torch keeps it. See unroll_rows for the rest.
    """
    H = out.shape[1]
    none, product = np.zeros((sizes[0], H), np.float32), np.zeros((GROUP, H), np.float32)
    first = len(out)
    for t in range(len(sizes) - 1, -1, -1):
        first -= sizes[t]
        start = first - sizes[t - 1] if t > 0 else 0  # of the step before
        before = out[start:first] if t > 0 else none
        d_before = d_out[start:first] if t > 0 else none  # zeros, read before written
        for lo in range(0, sizes[t], GROUP):
            G = min(GROUP, sizes[t] - lo)
            for i in range(lo, lo + G):
                gate, kept_n, state = gates[first + i], ns[first + i], states[first + i]
                h, d, d_h = before[i], d_out[first + i], d_before[i]
                for j in range(H):
                    r, z, hn, n = gate[j], gate[H + j], gate[2 * H + j], kept_n[j]
                    d_n = d[j] * (ONE - z) * (ONE - n * n)
                    gate[j] = d_n * hn * r * (ONE - r)
                    gate[H + j] = d[j] * (h[j] - n) * z * (ONE - z)
                    gate[2 * H + j] = d_n * r
                    kept_n[j], state[j] = d_n, h[j]
                    d_h[j] += d[j] * z
            if t > 0:
                np.dot(gates[first + lo : first + lo + G], w_hh, product[:G])
                for i in range(G):
                    more, d_h = product[i], d_before[lo + i]
                    for j in range(H):  # in one line numba would not do several numbers at once
                        d_h[j] += more[j]


def call(kernel, *arguments):
    """unroll_rows or unroll_rows_back with tensors. They are compiled, once, with the vectoriser
    that starcraft/compiled.py turns off, because it slows the rules there; these two live on it."""
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments]
    if kernel.signatures:
        return kernel(*arrays)
    with LOCK, mock.patch.object(config, "LOOP_VECTORIZE", 1):
        kernel(*arrays)


class Unroll(torch.autograd.Function):
    """Both for torch: x (R, I), sizes, and the GRU's four tensors as it has them -> out (R, H). Its
    gradient can be asked for once, and has no gradient itself."""

    @staticmethod
    def forward(ctx, x, sizes, w_ih, w_hh, b_ih, b_hh):
        R, H = len(x), w_hh.shape[1]
        rows = R if any(ctx.needs_input_grad) else 1
        out, gates, ns = (x.new_empty(size) for size in ((R, H), (rows, 3 * H), (rows, H)))
        weights = w_ih.t().contiguous(), w_hh.t().contiguous(), b_ih, b_hh
        call(unroll_rows, x.contiguous(), sizes, *weights, out, gates, ns)
        ctx.sizes, ctx.kept = sizes, (gates, ns)
        ctx.save_for_backward(x, w_ih, w_hh, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        x, w_ih, w_hh, out = ctx.saved_tensors
        if ctx.kept is None:
            raise RuntimeError("this gradient can be asked for once: build with gru=torch.nn.GRU")
        (d_from, d_n), ctx.kept = ctx.kept, None  # overwritten below
        d_out, states = d_out.clone(memory_format=torch.contiguous_format), torch.empty_like(out)
        call(unroll_rows_back, ctx.sizes, w_hh.contiguous(), out, d_from, d_n, states, d_out)
        d_w_hh, d_b_hh = d_from.t() @ states, d_from.sum(dim=0)
        d_from[:, -out.shape[1] :] = d_n  # from here on of W_i x + b_i
        return d_from @ w_ih, None, d_from.t() @ x, d_w_hh, d_from.sum(dim=0), d_b_hh


class GRU(nn.GRU):
    """torch.nn.GRU with the same weights and results; only whole episodes are done sooner.

    Compiled is one plain layer over a PackedSequence of float32 on the CPU, from zeros; torch does
    everything else. Raises ValueError for batch_sizes that do not fit the rows.
    """

    def forward(self, x, hidden=None):
        if not isinstance(x, PackedSequence) or hidden is not None or not self.compiles(x.data):
            return super().forward(x, hidden)
        sizes = x.batch_sizes.numpy()  # (T,) sequences that have a step t
        if (
            not len(sizes)
            or sizes.sum() != len(x.data)
            or sizes.min() < 1
            or (np.diff(sizes) > 0).any()
        ):
            raise ValueError(
                f"sizes {sizes.tolist()} do not make up {len(x.data)} rows, longest first"
            )
        out = Unroll.apply(x.data, sizes, *self.parameters())
        sequence = np.arange(sizes[0])  # (B,)
        last = (sizes[:, None] > sequence).sum(axis=0) - 1  # (B,) each one's last step
        ends = torch.from_numpy((sizes.cumsum() - sizes)[last] + sequence)  # and the row of it
        h_n = out[ends].unsqueeze(0)  # (B, H) -> (1, B, H)
        return x._replace(data=out), self.permute_hidden(h_n, x.unsorted_indices)

    def compiles(self, x: Tensor) -> bool:
        H = self.hidden_size
        shapes = [tuple(weight.shape) for weight in self.parameters()]
        plain = shapes == [(3 * H, x.shape[-1]), (3 * H, H), (3 * H,), (3 * H,)]
        kinds = {(tensor.dtype, tensor.device.type) for tensor in (x, *self.parameters())}
        return plain and kinds == {(torch.float32, "cpu")} and not config.DISABLE_JIT
