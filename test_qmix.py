"""Tests of the algorithm: agent, mixers, replay, loss, two-step game (https://arxiv.org/abs/1803.11485).

    python -m pytest test_qmix.py                 all of it
    python -m pytest test_qmix.py -m "not slow"   without training on ten seeds

The loss and its gradients are compared with `reference_loss` below: the paper's equations in plain
loops over episodes, steps and agents, in float64, sharing no code with what is tested.
"""

import io
import itertools
import json
import math
import os

import gru as gru_module
import numpy as np
import pytest
import run as run_module
import torch
from run import BufferFiles

import buffer as buffer_module
import learner as learner_module
import two_step_game
from agent import RNNAgent, build_inputs, epsilon_greedy
from buffer import Batch, ReplayBuffer
from learner import QLearner
from mixer import MIXERS, Mixer

N, A, OBS, S, H, M = 3, 4, 5, 6, 7, 8  # agents, actions, observation, state, GRU and mixing width
LENGTHS = (5, 4, 2, 1)  # of the episodes in a batch of make_batch
TRUNCATED = (False, True, False, True)  # which of them the time limit ended


def make_batch(seed=0) -> Batch:
    """Random float64 episodes of LENGTHS with about half of all actions available."""
    g = torch.Generator().manual_seed(seed)
    B, T = len(LENGTHS), max(LENGTHS)
    avail_actions = torch.rand(T + 1, B, N, A, generator=g) < 0.5
    allowed = torch.randint(A, (T + 1, B, N, 1), generator=g)
    avail_actions.scatter_(-1, allowed, True)
    t, length = torch.arange(T)[:, None], torch.tensor(LENGTHS)
    last, truncated = t == length - 1, torch.tensor(TRUNCATED)
    return Batch(
        obs=torch.randn(T + 1, B, N, OBS, generator=g, dtype=torch.float64),
        state=torch.randn(T + 1, B, S, generator=g, dtype=torch.float64),
        avail_actions=avail_actions,
        actions=allowed[:-1, ..., 0],
        reward=torch.randn(T, B, generator=g, dtype=torch.float64) * (t < length),
        terminated=last & ~truncated,
        truncated=last & truncated,
        filled=t < length,
    )


def make_learner(kind="qmix", seed=0, hypernet_layers=2, **options) -> QLearner:
    """Float64, with target weights that differ from the online ones."""
    torch.manual_seed(seed)

    def weights():
        agent = RNNAgent(OBS + A + N, A, H).double()
        return agent, None if kind == "iql" else Mixer(kind, N, S, M, hypernet_layers, 9).double()

    learner, (older_agent, older_mixer) = QLearner(*weights(), **options), weights()
    learner.target_agent.load_state_dict(older_agent.state_dict())
    if learner.mixer:
        learner.target_mixer.load_state_dict(older_mixer.state_dict())
    return learner


# ---- The reference: equations written out, one number or vector at a time


def reference_agent_qs(w, obs, actions, length):
    """Values [t][n] (A,) of one episode; t runs from 0 to length. w: weights by name."""
    qs = [[None] * N for _ in range(length + 1)]
    for n in range(N):
        h = torch.zeros(H, dtype=torch.float64)
        for t in range(length + 1):
            last_action, number = torch.zeros(A).double(), torch.zeros(N).double()
            if t > 0:
                last_action[actions[t - 1, n]] = 1
            number[n] = 1
            x = torch.cat([obs[t, n], last_action, number])
            x = torch.clamp(w["fc1.weight"] @ x + w["fc1.bias"], min=0)
            i_r, i_z, i_n = (w["rnn.weight_ih_l0"] @ x + w["rnn.bias_ih_l0"]).split(H)
            h_r, h_z, h_n = (w["rnn.weight_hh_l0"] @ h + w["rnn.bias_hh_l0"]).split(H)
            r, z = 1 / (1 + torch.exp(-(i_r + h_r))), 1 / (1 + torch.exp(-(i_z + h_z)))
            h = (1 - z) * torch.tanh(i_n + r * h_n) + z * h
            qs[t][n] = w["fc2.weight"] @ h + w["fc2.bias"]
    return qs


def reference_net(w, name, s):
    """A linear layer, or linear, ReLU, linear: whichever the weights say."""
    if f"{name}.weight" in w:
        return w[f"{name}.weight"] @ s + w[f"{name}.bias"]
    x = torch.clamp(w[f"{name}.0.weight"] @ s + w[f"{name}.0.bias"], min=0)
    return w[f"{name}.2.weight"] @ x + w[f"{name}.2.bias"]


def reference_q_tot(kind, w, qs, s):
    """qs: N numbers, s (S,) -> a number."""
    if kind == "vdn":
        return sum(qs)
    if kind == "vdn-s":
        return sum(qs) + reference_net(w, "v", s)[0]
    if kind == "qmix-lin":
        weights = reference_net(w, "w1", s).abs()
        return sum(weights[n] * qs[n] for n in range(N)) + reference_net(w, "v", s)[0]
    if kind == "qmix-ns":
        w1, b1, w_final, v = (w[f"{x}.value"] for x in ("w1", "b1", "w_final", "v"))
    else:
        w1, b1, w_final, v = (reference_net(w, x, s) for x in ("w1", "b1", "w_final", "v"))
    total = v[0]
    for m in range(M):
        x = b1[m] + sum(w1[n * M + m].abs() * qs[n] for n in range(N))
        total = total + w_final[m].abs() * (x if x > 0 else torch.exp(x) - 1)
    return total


def reference_loss(learner, kind, batch, gamma, td_lambda, double_q, bootstrap_time_limit):
    """The loss, and the means of Q_tot and of the targets."""
    online, target = dict(learner.agent.named_parameters()), learner.target_agent.state_dict()
    mix = dict(learner.mixer.named_parameters()) if learner.mixer else None
    target_mix = learner.target_mixer.state_dict() if learner.mixer else None
    q_tots, targets = [], []
    for b, length in enumerate(LENGTHS):
        obs, actions, state = batch.obs[:, b], batch.actions[:, b], batch.state[:, b]
        qs = reference_agent_qs(online, obs, actions, length)
        target_qs = reference_agent_qs(target, obs, actions, length)
        # What the team (or, for iql, agent n) expects at step t when it goes on greedily.
        best = [[None] * N for _ in range(length + 1)]
        for t in range(length + 1):
            for n in range(N):
                allowed = [a for a in range(A) if batch.avail_actions[t, b, n, a]]
                chooser = qs if double_q else target_qs
                action = max(allowed, key=lambda a: float(chooser[t][n][a].detach()))
                best[t][n] = target_qs[t][n][action]
        for n in range(N) if kind == "iql" else [None]:
            if kind == "iql":
                value = [best[t][n] for t in range(length + 1)]
                q = [qs[t][n][actions[t, n]] for t in range(length)]
            else:
                value = [
                    reference_q_tot(kind, target_mix, x, s)
                    for x, s in zip(best, state, strict=False)
                ]
                chosen = [[qs[t][i][actions[t, i]] for i in range(N)] for t in range(length)]
                q = [reference_q_tot(kind, mix, x, s) for x, s in zip(chosen, state, strict=False)]
            if not (bootstrap_time_limit and TRUNCATED[b]):
                value[length] = 0
            reward = batch.reward[:, b]
            for t in range(length):
                # The lambda-return as the weighted sum of all n-step returns (forward view).
                y, weights = 0, 0
                for k in range(1, length - t + 1):
                    n_step = sum(gamma**i * reward[t + i] for i in range(k))
                    n_step = n_step + gamma**k * value[t + k]
                    weight = (1 if k == length - t else 1 - td_lambda) * td_lambda ** (k - 1)
                    y, weights = y + weight * n_step, weights + weight
                assert math.isclose(weights, 1)
                q_tots.append(q[t])
                targets.append(y.detach())
    q_tots, targets = torch.stack(q_tots), torch.stack(targets)
    return ((q_tots - targets) ** 2).mean(), q_tots.mean(), targets.mean()


SETTINGS = [  # kind, hypernet_layers, td_lambda, double_q, bootstrap_time_limit
    *itertools.product(["qmix", "iql"], [2], [0.0, 0.6], [True, False], [True, False]),
    *itertools.product(["vdn", "vdn-s", "qmix-lin", "qmix-ns"], [2], [0.0, 0.6], [True], [True]),
    *itertools.product(["qmix", "qmix-lin"], [1], [0.6], [True], [False]),
    ("vdn", 2, 1.0, True, False),
]


@pytest.mark.parametrize("kind, layers, td_lambda, double_q, bootstrap", SETTINGS)
def test_loss_and_gradients_are_the_papers(kind, layers, td_lambda, double_q, bootstrap):
    options = {"gamma": 0.9, "td_lambda": td_lambda, "double_q": double_q}
    options["bootstrap_time_limit"] = bootstrap
    learner, batch = make_learner(kind, hypernet_layers=layers, **options), make_batch()
    loss, stats = learner.loss(batch)
    gradients = torch.autograd.grad(loss, learner.parameters)
    expected, q_tot, target = reference_loss(learner, kind, batch, **options)
    results, wanted = (loss, stats["q_tot"], stats["target"]), (expected, q_tot, target)
    torch.testing.assert_close(results, wanted, rtol=1e-10, atol=1e-12)
    expected_gradients = torch.autograd.grad(expected, learner.parameters)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kind", ["qmix", "iql"])
@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
def test_padding_cannot_influence_loss_or_gradients(kind, td_lambda):
    batch, g = make_batch(), torch.Generator().manual_seed(1)
    learner = make_learner(kind, td_lambda=td_lambda, bootstrap_time_limit=True)
    dirty = {"filled": batch.filled}
    T = len(batch.filled)
    for name in ("obs", "state", "avail_actions", "actions", "reward", "terminated", "truncated"):
        x = getattr(batch, name)
        past = torch.arange(len(x))[:, None] >= torch.tensor(LENGTHS) + (len(x) > T)
        past = past.view(*past.shape, *[1] * (x.dim() - 2)).expand_as(x)
        huge = 1e8 * torch.randn(x.shape, generator=g).double()
        any_action = torch.randint(A, x.shape, generator=g)
        junk = {torch.float64: huge, torch.int64: any_action, torch.bool: torch.tensor(True)}
        dirty[name] = torch.where(past, junk[x.dtype], x)
    results = []
    for one in (batch, Batch(**dirty)):
        loss, stats = learner.loss(one)
        results.append([loss, *stats.values(), *torch.autograd.grad(loss, learner.parameters)])
    for clean, soiled in zip(*results, strict=True):
        torch.testing.assert_close(soiled, clean, rtol=0, atol=0)  # not by a single bit


@pytest.mark.parametrize("double_q", [True, False])
def test_unavailable_actions_are_never_the_greedy_ones(double_q):
    learner, batch = make_learner("vdn", double_q=double_q), make_batch()
    batch = batch._replace(actions=torch.ones_like(batch.actions))
    batch.avail_actions[..., 0] = False
    batch.avail_actions[..., 1] = True
    losses = []
    for bias in (0.0, 1000.0):  # nobody did action 0 and nobody may, so its value must not matter
        with torch.no_grad():
            learner.agent.fc2.bias[0] = learner.target_agent.fc2.bias[0] = bias
        losses.append(learner.loss(batch)[0])
    torch.testing.assert_close(*losses, rtol=0, atol=0)


# ---- Learner ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["qmix", "vdn", "iql"])
def test_update_changes_online_weights_only_and_sync_copies_them(kind):
    learner, batch = make_learner(kind), make_batch()

    def weights(agent, mixer):
        parts = [*agent.parameters(), *(mixer.parameters() if mixer else ())]
        return [p.detach().clone() for p in parts]

    def online():
        return weights(learner.agent, learner.mixer)

    def target():
        return weights(learner.target_agent, learner.target_mixer)

    online_before, target_before = online(), target()
    stats = learner.update(batch)
    assert set(stats) == {"loss", "grad_norm", "q_tot", "target"}
    assert all(x.dim() == 0 and not x.requires_grad and x.isfinite() for x in stats.values())
    assert not any(map(torch.equal, online(), online_before)), "a weight got no gradient"
    assert all(map(torch.equal, target(), target_before))
    learner.sync_target()
    assert all(map(torch.equal, target(), online()))
    copied = target()
    learner.update(batch)
    assert all(map(torch.equal, target(), copied)), (
        "the target shares memory with the online network"
    )


def test_gradients_are_clipped_by_their_common_norm():
    learner, batch = make_learner(grad_norm_clip=0.01), make_batch()
    loss, _ = learner.loss(batch)
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, learner.parameters)]).norm()
    assert norm > 0.01
    torch.testing.assert_close(learner.update(batch)["grad_norm"], norm)
    left = torch.cat([p.grad.flatten() for p in learner.parameters]).norm()
    torch.testing.assert_close(left, torch.tensor(0.01).double(), rtol=1e-3, atol=0)


def test_rmsprop_and_adam_take_their_textbook_first_step():
    batch = make_batch()
    for name, step in (
        ("rmsprop", lambda g: g / (math.sqrt(0.01) * g.abs() + 1e-5)),  # running mean: 0.01 g^2
        ("adam", lambda g: g / (g.abs() + 1e-8)),
    ):
        learner = make_learner(optimiser=name, lr=1e-3)
        before = learner.agent.fc2.bias.detach().clone()
        learner.update(batch)
        g = learner.agent.fc2.bias.grad
        torch.testing.assert_close(learner.agent.fc2.bias.detach(), before - 1e-3 * step(g))
    with pytest.raises(ValueError, match="rmsprop or adam"):
        make_learner(optimiser="sgd")


@pytest.mark.parametrize("kind", ["qmix", "iql"])
def test_a_restored_learner_goes_on_exactly(kind):
    first, second = make_learner(kind, seed=0), make_learner(kind, seed=1)
    first.update(make_batch(0))
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved))
    for learner in (first, second):
        learner.update(make_batch(1))
        learner.sync_target()
    assert all(map(torch.equal, first.parameters, second.parameters))


# ---- Agent -----------------------------------------------------------


def test_one_unroll_equals_step_by_step():
    torch.manual_seed(0)
    agent, inputs = RNNAgent(6, A, H), torch.randn(9, 4, 6)
    whole, last_hidden = agent(inputs, agent.initial_hidden(4))
    hidden = agent.initial_hidden(4)
    assert hidden.shape == (4, H) and whole.shape == (9, 4, A) and not hidden.any()
    for t in range(9):
        qs, hidden = agent(inputs[t : t + 1], hidden)
        torch.testing.assert_close(qs[0], whole[t])
    torch.testing.assert_close(hidden, last_hidden)
    # It remembers: with another first input the last values are others.
    other = torch.cat((inputs[:1] + 1, inputs[1:]))
    assert not torch.allclose(agent(other, agent.initial_hidden(4))[0][-1], whole[-1])


SIZES = [  # rows at each step: groups of 16, what is left of one, and one row alone
    [1],
    [40, 40, 33, 17, 16, 16, 15, 1, 1],
    [16] * 5,
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("width", [8, 12, 64])
def test_compiled_gru_equals_torchs_in_float64(sizes, width):
    """Values and gradients, against torch.nn.GRU of the same weights, unrolled row by row."""
    torch.manual_seed(0)
    rnn = torch.nn.GRU(width, width)
    x = 2 * torch.randn(sum(sizes), width)
    weight = torch.randn(sum(sizes), width)
    exact = torch.nn.GRU(width, width).double()
    exact.load_state_dict(rnn.state_dict())
    results = []
    for net, dtype in ((rnn, torch.float32), (exact, torch.float64)):
        inputs = x.to(dtype).requires_grad_()
        if net is rnn:
            out = gru_module.gru(net, inputs, sizes)
            assert (type(out.grad_fn).__name__ == "UnrollBackward") == (width % 8 == 0)
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


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-3, 5.0, 7.9, 8.0, 1e30, math.inf, math.nan])
def test_compiled_tanh(value):
    for x in np.float32([value, -value]):
        np.testing.assert_allclose(gru_module.tanh(x), np.tanh(np.float64(x)), rtol=4e-7)


@pytest.mark.parametrize("d_out", [torch.ones(6, 8), torch.ones(8, 6).t()], ids=["rows", "columns"])
def test_compiled_gru_gives_its_gradient_once_and_leaves_the_callers_alone(d_out):
    rnn, x = torch.nn.GRU(8, 8), torch.randn(6, 8, requires_grad=True)
    out = gru_module.gru(rnn, x, [3, 2, 1])
    before = d_out.clone()
    torch.autograd.grad(out, x, d_out, retain_graph=True)
    assert torch.equal(d_out, before)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(out, x, d_out)
    assert len(gru_module.unroll_rows_back.signatures) == 1, "compiled again for another layout"


@pytest.mark.parametrize("sizes", [[3, 4], [4, 2], [6], [7, 0], [8, -1]])
def test_gru_refuses_other_sizes(sizes):
    with pytest.raises(ValueError, match="do not make up 7 rows"):
        gru_module.gru(torch.nn.GRU(8, 8), torch.zeros(7, 8), sizes)


@pytest.mark.parametrize(
    "rnn",
    [
        torch.nn.GRU(8, 16),
        torch.nn.GRU(8, 8, num_layers=2),
        torch.nn.GRU(8, 8, bias=False),
        torch.nn.LSTM(8, 8),
        torch.nn.GRU(8, 8).to("meta"),
    ],
)
def test_what_the_compiled_gru_cannot_do_is_torchs(rnn):
    x = torch.randn(6, 8, device=rnn.weight_ih_l0.device, requires_grad=True)
    out = gru_module.gru(rnn, x, [3, 2, 1])
    assert out.shape == (6, rnn.hidden_size) and "Unroll" not in type(out.grad_fn).__name__


def test_loss_of_the_compiled_gru_is_the_papers():
    """As test_loss_and_gradients_are_the_papers, in float32 and with a width that is compiled."""
    results, batch = [], make_batch()
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        learner = QLearner(RNNAgent(OBS + A + N, A, 8), Mixer("qmix", N, S, M), td_lambda=0.6)
        learner.target_agent.fc2.weight.data += 0.1
        for net in (learner.agent, learner.target_agent, learner.mixer, learner.target_mixer):
            net.to(dtype)
        loss, stats = learner.loss(
            Batch(*(x.to(dtype) if x.is_floating_point() else x for x in batch))
        )
        gradients = torch.autograd.grad(loss, learner.parameters)
        results.append([x.double() for x in (loss, *stats.values(), *gradients)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_unroll_equals_acting_step_by_step():
    """Rows that end early, on torch's own GRU (width 7) and the compiled one (8)."""
    for width in (7, 8):
        torch.manual_seed(0)
        agent, sizes = RNNAgent(6, A, width), [4, 4, 3, 1]
        inputs = torch.randn(sum(sizes), 6)
        hidden, values = agent.initial_hidden(4), []
        for step in inputs.split(sizes):
            qs, hidden = agent(step.unsqueeze(0), hidden[: len(step)])
            values.append(qs[0])
        torch.testing.assert_close(agent.unroll(inputs, sizes), torch.cat(values))


def test_inputs_are_observation_last_action_and_agent_number():
    obs = torch.tensor([[[0.5, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # (E, N, O)
    inputs = build_inputs(obs, torch.tensor([[-1, 2], [0, -1]]), n_actions=3)
    expected = [
        [[0.5, 2, 0, 0, 0, 1, 0], [3, 4, 0, 0, 1, 0, 1]],
        [[5, 6, 1, 0, 0, 1, 0], [7, 8, 0, 0, 0, 0, 1]],
    ]
    assert inputs.tolist() == expected


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    rows = 40_000
    qs = torch.tensor([[9.0, 1.0, 3.0, -2.0], [-5.0, -1.0, -3.0, -9.0]]).expand(rows, 2, 4)
    avail = torch.tensor([[False, True, True, True], [True, False, False, True]])
    generator = torch.Generator().manual_seed(0)
    actions = epsilon_greedy(qs, avail.expand(rows, 2, 4), epsilon, generator)
    assert actions.shape == (rows, 2) and actions.dtype == torch.int64
    third, half = epsilon / 3, epsilon / 2  # the best available ones are action 2 and action 0
    for agent, wanted in enumerate(
        [[0, third, 1 - epsilon + third, third], [1 - half, 0, 0, half]]
    ):
        counts = torch.bincount(actions[:, agent], minlength=4) / rows
        for frequency, p in zip(counts.tolist(), wanted, strict=True):
            assert abs(frequency - p) <= 4 * math.sqrt(p * (1 - p) / rows)
    # One coin each: the agents explore independently.
    both = ((actions[:, 0] != 2) & (actions[:, 1] != 0)).float().mean().item()
    p = 2 * third * half
    assert abs(both - p) <= 4 * math.sqrt(p * (1 - p) / rows)


# ---- Mixers ----------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", MIXERS)
def test_mixers_are_monotonic_and_the_greedy_actions_are_the_joint_argmax(kind, layers):
    torch.manual_seed(0)
    for _ in range(5):
        mixer = Mixer(kind, N, S, M, layers).double()
        agent_qs = (3 * torch.randn(40, 5, N).double()).requires_grad_()
        state = 3 * torch.randn(40, 5, S).double()
        q_tot = mixer(agent_qs, state)
        assert q_tot.shape == (40, 5)
        (slopes,) = torch.autograd.grad(q_tot.sum(), agent_qs)
        assert (slopes >= 0).all() and (slopes > 0).any()
        # Brute force: of all A^N joint actions none is better than everybody's own best one.
        qs = 3 * torch.randn(20, N, A).double()
        joint = torch.tensor(list(itertools.product(range(A), repeat=N)))  # (A^N, N)
        values = qs[:, torch.arange(N), joint]  # (20, A^N, N)
        q_joint = mixer(values, state[0, :1].expand(20, len(joint), S))  # (20, A^N)
        q_greedy = mixer(qs.amax(-1), state[0, :1].expand(20, S))  # (20,)
        torch.testing.assert_close(q_greedy, q_joint.amax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "kind, bent, weights_see_state, offset_sees_state",
    [
        ("vdn", False, False, False),
        ("vdn-s", False, False, True),
        ("qmix-lin", False, True, True),
        ("qmix-ns", True, False, False),
        ("qmix", True, True, True),
    ],
)
def test_what_each_ablation_leaves_out(kind, bent, weights_see_state, offset_sees_state):
    torch.manual_seed(0)
    mixer, qs, state = Mixer(kind, N, S, M), torch.randn(N), torch.randn(S)

    def slopes(agent_qs, state):
        agent_qs = agent_qs.clone().requires_grad_()
        return torch.autograd.grad(mixer(agent_qs, state), agent_qs)[0]

    def differ(x, y):
        return not torch.allclose(x, y, rtol=1e-4, atol=1e-5)

    assert differ(slopes(qs, state), slopes(qs - 3, state)) == bent
    assert differ(slopes(qs, state), slopes(qs, state + 1)) == weights_see_state
    nothing = torch.zeros(N)
    assert differ(mixer(nothing, state), mixer(nothing, state + 1)) == offset_sees_state
    if kind in ("vdn", "vdn-s"):
        assert slopes(qs, state).tolist() == [1] * N
    if kind == "vdn":
        assert not list(mixer.parameters())
        torch.testing.assert_close(mixer(qs, state), qs.sum())


def test_sizes_of_the_networks():
    def linear(x, y):
        return x * y + y

    b1_and_v = linear(S, M) + linear(S, M) + linear(M, 1)
    one = linear(S, N * M) + linear(S, M)
    two = 2 * linear(S, 9) + linear(9, N * M) + linear(9, M)
    for layers, hypernets in ((1, one), (2, two)):
        mixer = Mixer("qmix", N, S, M, layers, hypernet_embed=9)
        assert sum(p.numel() for p in mixer.parameters()) == hypernets + b1_and_v
    with pytest.raises(ValueError, match="choose one of vdn"):
        Mixer("iql", N, S)
    with pytest.raises(ValueError, match="1 or 2"):
        Mixer("qmix", N, S, hypernet_layers=3)


# ---- Replay buffer ---------------------------------------------------


def play(buffer, steps):
    """E = 2 environments play episodes 0, 1, 2, ... of 1 to 7 steps; all that is stored tells its
    episode and step, but agent 0 sees nothing at odd steps. Every fifth is dropped. Returns
    [(episode, length)] in order of closing."""
    rng = np.random.default_rng(0)
    number, t, length, closed = np.array([0, 1]), np.zeros(2, int), rng.integers(1, 8, 2), []
    avail_actions = np.zeros((2, 2, 3), bool)
    avail_actions[..., 1] = True

    def seen():
        code = (100 * number + t)[:, None]
        obs = code[..., None] + np.array([[0], [0.5]]) + np.zeros(3)
        obs[t % 2 == 1, 0] = 0
        return obs, np.hstack((code, 0 * code)), avail_actions

    for _ in range(steps):
        before = seen()
        t += 1
        end, odd = t == length, number % 2 == 1
        actions, reward = np.stack((number % 3, t % 3), axis=1), before[1][:, 0] + 0.5
        buffer.add(*before, actions, reward, end & odd, end & ~odd)
        drop = end & (number % 5 == 3)
        buffer.drop(drop)
        buffer.close(end & ~drop, *seen())
        for e in np.flatnonzero(end):
            closed += [] if drop[e] else [(number[e], length[e])]
            number[e], t[e], length[e] = max(number) + 1, 0, rng.integers(1, 8)
    return closed


def check_batch(batch, stored):
    """Every column of the batch is one of the stored episodes, whole and in order."""
    length = batch.filled.sum(dim=0)
    T, B = batch.filled.shape
    assert length.max() == T and length.tolist() == sorted(length.tolist(), reverse=True)
    numbers = (batch.obs[0, :, 0, 0] // 100).long().tolist()
    assert len(set(numbers)) == B
    for b, (number, L) in enumerate(zip(numbers, length.tolist(), strict=True)):
        assert (number, L) in stored
        code = 100 * number + torch.arange(L + 1.0)
        assert torch.equal(batch.obs[: L + 1, b, 1, 2], code + 0.5)  # the last observation too
        assert torch.equal(batch.obs[: L + 1, b, 0, 2], code * (code % 2 == 0))
        assert not batch.obs[L + 1 :, b].any() and not batch.state[L + 1 :, b].any()
        assert torch.equal(batch.state[: L + 1, b], torch.stack((code, 0 * code), dim=1))
        assert torch.equal(batch.reward[:L, b], code[:-1] + 0.5)
        assert batch.filled[:L, b].all() and not batch.filled[L:, b].any()
        steps = torch.arange(1, L + 1) % 3
        assert torch.equal(batch.actions[:L, b, 1], steps)
        assert (batch.actions[:L, b, 0] == number % 3).all()
        ends = (batch.terminated if number % 2 else batch.truncated)[:, b]
        others = (batch.truncated if number % 2 else batch.terminated)[:, b]
        assert ends.nonzero().flatten().tolist() == [L - 1] and not others.any()
        assert (batch.avail_actions[: L + 1, b] == torch.tensor([False, True, False])).all()
        assert batch.avail_actions[L + 1 :, b].all() and not batch.reward[L:, b].any()


def test_buffer_keeps_the_latest_whole_episodes():
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(4, 2, 7, n_agents=2, n_actions=3, obs_dim=3, state_dim=2)
    assert not buffer.can_sample(1)
    closed = play(buffer, steps=8)
    assert len(buffer) == len(closed) == 2 and buffer.can_sample(2) and not buffer.can_sample(3)
    with pytest.raises(ValueError, match="3 episodes wanted, 2 stored"):
        buffer.sample(3, rng)
    check_batch(buffer.sample(2, rng), closed)

    buffer = ReplayBuffer(4, 2, 7, n_agents=2, n_actions=3, obs_dim=3, state_dim=2)
    closed = play(buffer, steps=60)
    assert len(buffer) == 4 < len(closed)
    seen = set()
    for _ in range(30):
        batch = buffer.sample(3, rng)
        check_batch(batch, closed[-4:])
        seen |= set((batch.obs[0, :, 0, 0] // 100).tolist())
    assert seen == {number for number, _ in closed[-4:]}
    f32, i64, b = torch.float32, torch.int64, torch.bool
    assert [x.dtype for x in batch] == [f32, f32, b, i64, f32, b, b, b]
    with pytest.raises(RuntimeError, match="close it"):
        for _ in range(8):
            buffer.add(0, 0, True, 0, 0, False, False)


def test_a_restored_buffer_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "MAX_PIECES", 3)
    sizes = {"n_agents": 2, "n_actions": 3, "obs_dim": 3, "state_dim": 2}
    first, closed, pieces = ReplayBuffer(20, 2, 7, **sizes), 0, []
    files = BufferFiles(tmp_path, first)
    for steps in (3, 40, 9, 9, 9, 9, 9, 9, 14):
        first.drop(np.array([True, True]))
        closed += len(play(first, steps))
        saved = files.save(closed)
        files.clean()
        pieces.append(len(saved["pieces"]))
        second = ReplayBuffer(20, 2, 7, **sizes)
        restored = BufferFiles(tmp_path, second)
        restored.load(saved)
        assert len(first) == len(second) and first.held == second.held
        for one, other in zip(first.episodes, second.episodes, strict=True):
            np.testing.assert_equal(one, other)
        assert restored.save(closed)["pieces"] == saved["pieces"], "nothing new, nothing written"
    assert len(first) == 20 < closed and pieces[:6] == [0, 1, 2, 3, 1, 2]  # more than 3 are merged
    assert first.steps.all(), "both environments should be in the middle of a game"
    for buffer in (first, second):
        buffer.close(np.array([True, True]), *np.ones((3, 2, 1, 1)))
    assert all(map(torch.equal, *(b.sample(20, np.random.default_rng(0)) for b in (first, second))))
    with pytest.raises(ValueError, match="another size"):
        BufferFiles(tmp_path, ReplayBuffer(20, 3, 7, **sizes)).load(saved)


def test_buffer_states_its_size_and_refuses_what_does_not_fit(monkeypatch):
    sizes = {"n_agents": 2, "n_actions": 3, "obs_dim": 5, "state_dim": 4}
    sizes |= {"n_envs": 2, "episode_limit": 9}
    longest = 10 * (4 * 2 * 5 + 4 * 4 + 2 * 3 + 4 + 2 + 2)  # + reward, actions, both flags
    assert ReplayBuffer(100, **sizes).nbytes == 102 * longest
    assert "100 episodes" in str(ReplayBuffer(100, **sizes))
    monkeypatch.setattr(buffer_module, "available_memory", lambda: 8 * longest)
    with pytest.raises(ValueError, match=r"reduce --buffer-size \(at most 58 episodes\)"):
        ReplayBuffer(59, **sizes)
    assert "fewer episodes if" in str(ReplayBuffer(58, **sizes))
    monkeypatch.setattr(buffer_module, "available_memory", lambda: float("inf"))
    assert "fewer" not in str(ReplayBuffer(100, **sizes))


def test_buffer_stays_within_the_memory_there_is(monkeypatch):
    sizes = {"n_agents": 2, "n_actions": 3, "obs_dim": 3, "state_dim": 2}
    monkeypatch.setattr(buffer_module, "available_memory", lambda: 2400)
    buffer = ReplayBuffer(40, 2, 7, **sizes)
    closed = play(buffer, steps=60)
    # bytes: two agents' obs and state, and their masks; avail_actions; what agent 0 sees
    always, seen, step = 4 * 3 + 2 + 4 + 2 + 2 * 3, 4 * 3, 2 + 4 + 2
    cost = [(L + 1) * always + (L // 2 + 1) * seen + L * step for _, L in closed]
    stored = len(buffer)
    assert sum(cost[-stored:]) == buffer.held <= 1800 < sum(cost[-stored - 1 :])
    check_batch(buffer.sample(stored, np.random.default_rng(0)), closed[-stored:])
    buffer.clear()
    assert len(buffer) == buffer.held == 0 and not buffer.steps.any()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_buffer_does_not_touch_memory_before_it_needs_it():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffer = ReplayBuffer(1, 500, 100, n_agents=5, n_actions=11, obs_dim=200, state_dim=100)
    assert buffer.nbytes > 2e8 and resident() - before < 2e7


# ---- The two-step game -----------------------------------------------

TRUE_VALUES = {  # of QMIX the game's own; of VDN the best sum, by least squares over joint actions
    "qmix": [[6.93, 6.93], [7.92, 7.92], [7, 7], [7, 7], [0, 1], [1, 8]],
    "vdn": [[6.93, 6.93], [6.43, 6.43], [7, 7], [7, 7], [-1.5, 2.5], [2.5, 6.5]],
}


def run_two_step_game(monkeypatch, capsys, *arguments):
    """Exit status, stdout and stderr of `python two_step_game.py arguments`."""
    monkeypatch.setattr("sys.argv", ["two_step_game.py", *arguments])
    status, threads = 0, torch.get_num_threads()
    try:
        two_step_game.main()
    except SystemExit as error:
        status = error.code
    torch.set_num_threads(threads)
    return status, *capsys.readouterr()


def check_two_step_game(result, tolerance, best):
    states = ["state_1", "state_2A", "state_2B"]
    assert list(result) == ["mixer", "seed", *states, "greedy_return"]
    cells = np.concatenate([result[state] for state in states])
    np.testing.assert_allclose(cells, TRUE_VALUES[result["mixer"]], rtol=0, atol=tolerance)
    assert result["greedy_return"] == best


def test_vdn_fixed_point_is_the_least_squares_fit():
    sums = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])  # q1(a1) + q2(a2)
    fit = sums @ np.linalg.lstsq(sums, [0, 1, 1, 8], rcond=None)[0]
    np.testing.assert_allclose(fit.reshape(2, 2), TRUE_VALUES["vdn"][4:])


def test_two_step_game_in_short(monkeypatch, capsys):
    monkeypatch.setattr(two_step_game, "ROUNDS", 400)
    status, out, err = run_two_step_game(monkeypatch, capsys, "--mixer=qmix", "--seed=1", "--json")
    assert status == 0 and err == "" and out.count("\n") == 1
    check_two_step_game(json.loads(out), tolerance=0.6, best=8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_two_step_game(seed):
    torch.set_num_threads(1)  # as the script does
    check_two_step_game(two_step_game.play("qmix", seed), tolerance=0.10, best=8)
    check_two_step_game(two_step_game.play("vdn", seed), tolerance=0.35, best=7)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--mixer", "qmox"], "unknown mixer 'qmox': choose one of vdn, "),
        (["--mixer", "iql"], "iql has no Q_tot"),
        (["--seed", "-1"], "--seed is -1: it must be 0 or more"),
        (["--seed", "one"], "invalid int value: 'one'"),
        (["--json"], "say which with --mixer"),
        (["--color"], "unrecognized arguments: --color"),
    ],
)
def test_two_step_game_refuses_in_one_line(monkeypatch, capsys, arguments, complaint):
    status, out, err = run_two_step_game(monkeypatch, capsys, *arguments)
    assert status == 2 and out == "" and complaint in err and err.count("\n") == 1


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
    filled = torch.arange(lengths[0])[:, None] < torch.tensor(lengths)  # (T, B)
    got = [part.filled for part in learner_module.split(Batch(*[filled] * 8), parts)]
    assert [part.sum(dim=0).tolist() for part in got] == wanted
    assert all(part[-1, 0] for part in got), "cut to its own longest"


def test_a_batch_must_begin_with_its_longest_episode():
    batch = Batch(*(x.flip(1) for x in make_batch()))
    with pytest.raises(AssertionError, match="longest episode first"):
        make_learner().loss(batch)


def test_threads_change_nothing_with_the_compiled_gru():
    learners = []
    for threads in (1, 3):
        torch.manual_seed(0)
        networks = RNNAgent(OBS + A + N, A, 8), Mixer("qmix", N, S, M)
        learners.append(QLearner(*networks, threads=threads))
    batch = Batch(*(x.float() if x.is_floating_point() else x for x in make_batch()))
    for _ in range(3):
        torch.testing.assert_close(*(one.update(batch) for one in learners), rtol=1e-5, atol=1e-6)
    parameters = [one.parameters for one in learners]
    torch.testing.assert_close(*parameters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["qmix", "iql"])
@pytest.mark.parametrize("threads", [2, 3, 9])
def test_threads_change_nothing(kind, threads):
    """A batch worked on in parts gives the same statistics and weights as the whole of it."""
    one, many = make_learner(kind), make_learner(kind, threads=threads)
    for _ in range(3):
        stats, same = one.update(make_batch()), many.update(make_batch())
        torch.testing.assert_close(same, stats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(many.parameters, one.parameters, rtol=1e-9, atol=1e-12)
