"""Several threads for each gradient step: parts of a batch at once, through the learner's own loss.

The matrices of QMIX (https://arxiv.org/abs/1803.11485) are too small to divide each of them between
cores, which is what torch does by itself. Episodes are divided instead: every thread calls
`learner.loss` on some of them, and the gradients are added up.

Not a script. See it at work: python train.py --map 2s3z --threads 2

Shapes: B episodes in a batch, P observations and F steps in them (see buffer.py), T steps.
"""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch

from buffer import DONE, Batch

CHECK_EVERY = 200
TOLERANCE = 0.01  # of the gradient's norm: rounding is far below


def set_threads(threads: int) -> None:
    """At most so many for the simulator; torch divides nothing any more (see share_out)."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(1)  # after numba's, which sets it for all of OpenMP


def share_out(learner, threads: int) -> None:
    """From now on learner.loss(batch) is worked on by so many threads, each with one core.

    Right for every loss that is a mean over steps, is not random, and leaves nothing behind in the
    learner: parts call it at the same time. The parts' gradient is that of the whole batch then:
    at once and every CHECK_EVERY batches they are compared. If they differ, or a statistic is more
    than one number, this says so on stderr, and all goes on in one thread.
    """
    if threads == 1:
        return
    whole, batches = learner.loss, itertools.count()
    # One fewer: the calling thread works too. Asleep, it would leave a core that Linux, waking all
    # the others at once, may take milliseconds to give to any of them.
    pool = ThreadPoolExecutor(threads - 1, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(batch, first, end):
        part = episodes(batch, first, end)
        loss, stats = whole(part)
        share = len(part.reward) / len(batch.reward)
        weights = [p for p in learner.parameters if p.requires_grad]
        found = torch.autograd.grad(share * loss, weights, materialize_grads=True)
        stats = {name: share * value for name, value in stats.items()}
        return share * loss.detach(), stats, found

    def alone(batch):
        print("--threads does nothing: the loss is no mean over steps, is random, leaves something"
              " behind or has a statistic that is not one number", file=sys.stderr)  # fmt: skip
        learner.loss = whole
        return whole(batch)

    def loss(batch):
        cuts = shares(batch, threads)
        if len(cuts) <= 2:
            return whole(batch)
        first, *others = itertools.pairwise(cuts)
        futures = [pool.submit(gradients, batch, *ends) for ends in others]
        found = [gradients(batch, *first), *(future.result() for future in futures)]
        losses, stats, grads = zip(*found, strict=True)
        if any(np.ndim(value) for value in stats[0].values()):  # one for each episode, say
            return alone(batch)
        grads = [sum(parts) for parts in zip(*grads, strict=True)]
        if next(batches) % CHECK_EVERY == 0:
            *_, expected = gradients(batch, cuts[0], cuts[-1])
            got, expected = (torch.cat([g.flatten() for g in x]) for x in (grads, expected))
            if (got - expected).norm() > TOLERANCE * expected.norm():  # not if both are NaN
                return alone(batch)
        stats = {name: sum(part[name] for part in stats) for name in stats[0]}
        weights = [p for p in learner.parameters if p.requires_grad]
        return Computed.apply(sum(losses), grads, *weights), stats

    learner.loss = loss


class Computed(torch.autograd.Function):
    """A loss whose gradients are known already: backward hands them out."""

    @staticmethod
    def forward(ctx, loss, gradients, *weights):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, d_loss):
        return None, None, *(d_loss * gradient for gradient in ctx.gradients)


def shares(batch: Batch, parts: int) -> list[int]:
    """0, ..., B: cuts between at most `parts` groups of episodes with about equally many steps: few
    long ones in the first, many short ones in the last."""
    B = batch.sizes[0]
    steps = (np.array(batch.sizes)[1:, None] > np.arange(B)).sum(axis=0).cumsum()  # (B,) up to each
    full = steps[-1] * np.arange(1, parts) / parts
    cuts = np.searchsorted(steps, full) + 1  # the episodes up to which a share is full
    return sorted({0, *cuts.tolist(), B})


def episodes(batch: Batch, first: int, end: int) -> Batch:
    """The batch of its episodes first to end - 1 alone."""
    B, episode = batch.sizes[0], np.arange(batch.sizes[0])
    there = episode < np.array(batch.sizes)[:, None]  # (T + 1, B), and in this order the rows
    ours = there & (first <= episode) & (episode < end)
    rows = torch.from_numpy(np.flatnonzero(ours[there])).to(batch.obs.device)  # (P,)
    steps = rows[end - first :] - B  # (F,)
    part = {name: x[steps if name in DONE else rows]
            for name, x in batch._asdict().items() if name not in ("acted", "sizes")}  # fmt: skip
    acted = torch.searchsorted(rows, batch.acted[steps])  # the same rows, counted in this part
    sizes = ours.sum(axis=1)
    return Batch(**part, acted=acted, sizes=sizes[sizes > 0].tolist())
