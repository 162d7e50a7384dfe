"""Tests of what makes learning fast: the compiled GRU, threads, the choice of device.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest extras/test_speed.py
"""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import envs
import train
from agent import RNNAgent, input_dim
from buffer import Batch
from extras import gru, threads
from extras.device import choose_device
from learner import QLearner
from mixer import Mixer
from test_qmix import (
    OBS,
    TINY,
    A,
    M,
    N,
    S,
    equal,
    learner_state,
    make_batch,
    make_episodes,
    make_learner,
    metrics,
    no_waiting_for_the_disk,  # noqa: F401 a fixture that all tests here use
    pack,
    start,
)


def as_type(batch, dtype):
    return Batch(
        *(x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for x in batch)
    )


def unroll(rnn, x, sizes):
    """The hidden states of all rows x (R, I), sizes[t] of them at step t."""
    return rnn(PackedSequence(x, torch.tensor(sizes)))[0].data


SIZES = [  # rows at each step: groups of 32, what is left of one, and one row alone
    [1],
    [80, 80, 65, 33, 32, 32, 31, 1, 1],
    [32] * 5,
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("wide", "width"), [(8, 8), (5, 12), (64, 64), (96, 128)])
def test_compiled_gru_equals_torchs_in_float64(sizes, wide, width):
    """Values and gradients, against torch.nn.GRU of the same weights, unrolled row by row."""
    torch.manual_seed(0)
    rnn = gru.GRU(wide, width)
    x = 2 * torch.randn(sum(sizes), wide)
    weight = torch.randn(sum(sizes), width)
    exact = torch.nn.GRU(wide, width).double()
    exact.load_state_dict(rnn.state_dict())
    results = []
    for net, dtype in ((rnn, torch.float32), (exact, torch.float64)):
        inputs = x.to(dtype).requires_grad_()
        if net is rnn:
            out = unroll(net, inputs, sizes)
            assert type(out.grad_fn).__name__ == "UnrollBackward"
        else:
            starts = np.cumsum([0, *sizes])
            out = torch.zeros(len(x), width, dtype=dtype)
            for row in range(sizes[0]):
                own = [
                    start + row for start, size in zip(starts, sizes, strict=False) if row < size
                ]
                out[own] = net(inputs[own].unsqueeze(1))[0][:, 0]
        loss = (out * weight).sum()
        results.append([out, *torch.autograd.grad(loss, [inputs, *net.parameters()])])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=2e-6 * len(sizes))


def test_compiled_gru_ends_where_torchs_does():
    """h_n, in the order of the sequences as they were given: here the longest is not first."""
    rnn, sequences = gru.GRU(5, 4), [torch.randn(T, 5) for T in (2, 3, 1)]
    _, ends = rnn(pack_sequence(sequences, enforce_sorted=False))  # (1, 3, 4)
    wanted = [torch.nn.GRU.forward(rnn, x)[1] for x in sequences]  # (1, 4) each
    torch.testing.assert_close(ends[0], torch.cat(wanted))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-3, 5.0, 7.9, 8.0, 1e30, math.inf, math.nan])
def test_compiled_tanh(value):
    for x in np.float32([value, -value]):
        np.testing.assert_allclose(gru.tanh(x), np.tanh(np.float64(x)), rtol=4e-7)


@pytest.mark.parametrize("d_out", [torch.ones(6, 8), torch.ones(8, 6).t()], ids=["rows", "columns"])
def test_compiled_gru_gives_its_gradient_once_and_leaves_the_callers_alone(d_out):
    rnn, x = gru.GRU(8, 8), torch.randn(6, 8, requires_grad=True)
    out = unroll(rnn, x, [3, 2, 1])
    before = d_out.clone()
    torch.autograd.grad(out, x, d_out, retain_graph=True)
    assert torch.equal(d_out, before)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(out, x, d_out)
    assert len(gru.unroll_rows_back.signatures) == 1, "compiled again for another layout"


@pytest.mark.parametrize("sizes", [[3, 4], [4, 2], [6], [7, 0], [8, -1]])
def test_gru_refuses_other_sizes(sizes):
    with pytest.raises(ValueError, match="do not make up 7 rows"):
        unroll(gru.GRU(8, 8), torch.zeros(7, 8), sizes)


@pytest.mark.parametrize(
    "rnn",
    [
        gru.GRU(8, 8, num_layers=2),
        gru.GRU(8, 8, bias=False),
        gru.GRU(8, 8, bidirectional=True),
        gru.GRU(8, 8).double(),
        gru.GRU(8, 8).to("meta"),
    ],
)
def test_what_the_compiled_gru_cannot_do_is_torchs(rnn):
    like = rnn.weight_ih_l0
    x = torch.randn(6, rnn.input_size, device=like.device, dtype=like.dtype, requires_grad=True)
    out = unroll(rnn, x, [3, 2, 1])
    assert out.shape == (6, rnn.hidden_size * (1 + rnn.bidirectional))
    assert "Unroll" not in type(out.grad_fn).__name__


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_compiled_gru_stays_in_its_thread():
    """scipy's OpenBLAS would start one for every core."""
    code = """
import os, torch
from extras.gru import GRU
from torch.nn.utils.rnn import PackedSequence
torch.set_num_threads(1)
before = len(os.listdir("/proc/self/task"))
GRU(64, 64)(PackedSequence(torch.zeros(64, 64), torch.tensor([64])))
print(len(os.listdir("/proc/self/task")) - before)
"""
    env = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(train.__file__).parent, env=env, capture_output=True
    )
    assert done.stdout.split() == [b"0"], done.stderr.decode()


def test_loss_of_the_compiled_gru_is_the_papers():
    """As test_loss_and_gradients_are_the_papers, in float32."""
    results, batch = [], make_batch()
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        agent = RNNAgent(input_dim(OBS, A, N), A, 8, gru=gru.GRU)
        learner = QLearner(agent, Mixer(N, S, M), td_lambda=0.6)
        learner.target_agent.fc2.weight.data += 0.1
        for net in (learner.agent, learner.target_agent, learner.mixer, learner.target_mixer):
            net.to(dtype)
        loss, stats = learner.loss(as_type(batch, dtype))
        gradients = torch.autograd.grad(loss, learner.parameters)
        results.append([x.double() for x in (loss, *stats.values(), *gradients)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "lengths, parts, wanted",
    [
        ([6, 3, 3], 2, [[6], [3, 3]]),
        ([5, 5, 5], 3, [[5], [5], [5]]),
        ([9, 4, 3, 2], 2, [[9], [4, 3, 2]]),
        ([4, 4, 4, 4], 1, [[4, 4, 4, 4]]),
        ([7], 4, [[7]]),
    ],
)
def test_parts_of_a_batch_have_equally_many_steps(lengths, parts, wanted):
    sizes = [sum(length >= t for length in lengths) for t in range(lengths[0] + 1)]
    batch = Batch(*[torch.zeros(1)] * 9, sizes=sizes)
    cuts = threads.shares(batch, parts)
    assert [lengths[first:end] for first, end in itertools.pairwise(cuts)] == wanted


@pytest.mark.parametrize(("first", "end"), [(0, 4), (0, 1), (1, 3), (3, 4)])
def test_a_part_of_a_batch_is_the_batch_of_its_episodes(first, end):
    part, wanted = threads.episodes(make_batch(), first, end), pack(make_episodes()[first:end])
    assert part.sizes == wanted.sizes
    for name in Batch._fields[:-1]:
        assert torch.equal(getattr(part, name), getattr(wanted, name)), name


def test_threads_change_nothing_with_the_compiled_gru():
    learners = []
    for n in (1, 3):
        torch.manual_seed(0)
        learners.append(QLearner(RNNAgent(input_dim(OBS, A, N), A, 8, gru=gru.GRU), Mixer(N, S, M)))
        threads.share_out(learners[-1], n)
    batch = as_type(make_batch(), torch.float32)
    for _ in range(3):
        torch.testing.assert_close(*(one.update(batch) for one in learners), rtol=1e-5, atol=1e-6)
    parameters = [one.parameters for one in learners]
    torch.testing.assert_close(*parameters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["qmix", "iql"])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_threads_change_nothing(kind, n):
    """A batch worked on in parts gives the same statistics and weights as the whole of it."""
    one, many = make_learner(kind, td_lambda=0.6), make_learner(kind, td_lambda=0.6)
    threads.share_out(many, n)
    for _ in range(3):
        stats, same = one.update(make_batch()), many.update(make_batch())
        torch.testing.assert_close(same, stats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(many.parameters, one.parameters, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", ["weighted", "float", "sum", "always 1", "a number per episode"])
def test_what_a_student_changes_in_the_loss_is_what_the_threads_do(monkeypatch, capsys, change):
    """A mean over steps is divided; anything else is not, and that is said."""
    original = QLearner.loss

    def changed(self, batch):
        loss, stats = original(self, batch)
        if change == "sum":
            loss = loss * len(batch.reward)
        if change == "always 1":  # and only its gradient tells
            loss = loss / loss.detach()
        mine = batch.reward[: batch.sizes[0]] if "episode" in change else loss.detach()
        if change == "float":
            mine = float(mine)
        return 3 * loss, stats | {"mine": mine}

    monkeypatch.setattr(QLearner, "loss", changed)
    one, many = make_learner(), make_learner()
    threads.share_out(many, 2)
    stats, same = one.update(make_batch()), many.update(make_batch())
    torch.testing.assert_close(same, stats, rtol=1e-12, atol=1e-12)
    assert ("no mean over steps" in capsys.readouterr().err) == (
        change not in ("weighted", "float")
    )


def test_threads_with_gradients_that_do_not_lie_row_by_row(capsys):
    """As einsum's do not."""
    one, many = make_learner(), make_learner()
    for learner in (one, many):
        fc2 = learner.agent.fc2
        fc2.forward = lambda x, fc2=fc2: torch.einsum("...i,ji->...j", x, fc2.weight) + fc2.bias
    (gradient,) = torch.autograd.grad(one.loss(make_batch())[0], [one.agent.fc2.weight])
    assert not gradient.is_contiguous()
    threads.share_out(many, 2)
    stats, same = one.update(make_batch()), many.update(make_batch())
    torch.testing.assert_close(same, stats, rtol=1e-12, atol=1e-12)
    assert not capsys.readouterr().err


def test_a_loss_that_is_a_mean_only_at_first_is_found_out(monkeypatch, capsys):
    original, calls = QLearner.loss, []

    def changed(self, batch):
        loss, stats = original(self, batch)
        calls.append(1)
        return (loss * len(batch.reward) if len(calls) > 9 else loss), stats

    monkeypatch.setattr(QLearner, "loss", changed)
    monkeypatch.setattr(threads, "CHECK_EVERY", 4)
    learner = make_learner()
    threads.share_out(learner, 2)
    for _ in range(9):
        learner.update(make_batch())
    assert capsys.readouterr().err.count("no mean over steps") == 1 and learner.loss(make_batch())


@pytest.mark.parametrize("faster", ["cpu", "cuda"])
def test_device_auto_measures(tmp_path, monkeypatch, faster):
    """The GPU is the CPU in disguise, and the other one takes a fifth of a second longer."""
    make, to = train.make_learner, Batch.to

    def make_learner(args, env, device):
        learner = make(args, env, "cpu")
        update = learner.update
        learner.update = lambda batch: (time.sleep(0.2 * (device != faster)), update(batch))[1]
        return learner

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(train, "make_learner", make_learner)
        patch.setattr(Batch, "to", lambda batch, _: to(batch, "cpu"))
        args, _ = train.parse_args(TINY)
        assert choose_device(args, envs.make_env("two_step"), make_learner) == faster
        if faster == "cpu":
            start(tmp_path / "auto")
            assert (
                json.loads((tmp_path / "auto" / "config.json").read_text())["flags"]["device"]
                == "cpu"
            )
    if faster == "cpu":  # the measurement leaves no trace
        start(tmp_path / "cpu", "--device", "cpu")
        runs = tmp_path / "auto", tmp_path / "cpu"
        assert metrics(runs[0]) == metrics(runs[1]) and equal(*map(learner_state, runs))
