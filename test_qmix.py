"""Tests of the algorithm: agent, mixers, replay, loss, environments, the loop, the two-step game.

QMIX: https://arxiv.org/abs/1803.11485

    python -m pytest test_qmix.py                 all of it
    python -m pytest test_qmix.py -m "not slow"   without training on ten seeds

The loss and its gradients are compared with `reference_loss` below: the paper's equations in plain
loops over episodes, steps and agents, in float64. Of what is tested it uses only the agent's single
step, which test_the_agent_is_the_papers_drqn holds against the equations.
"""

import csv
import io
import itertools
import json
import math
import os
import re
import shlex

import numpy as np
import pytest
import torch

import envs
import train
import two_step_game
from agent import Players, RNNAgent, build_inputs, epsilon_greedy, input_dim
from buffer import Batch, ReplayBuffer
from extras import evaluate, files
from learner import QLearner
from mixer import MIXERS, Mixer

N, A, OBS, S, H, M = 3, 4, 5, 6, 7, 8  # agents, actions, observation, state, GRU and mixing width
LENGTHS = (5, 4, 2, 1)  # of the episodes in a batch of make_batch
TRUNCATED = (False, True, False, True)  # which of them the time limit ended


def make_episodes(seed=0) -> list[dict]:
    """Random float64 episodes of LENGTHS with about half of all actions available."""
    g = torch.Generator().manual_seed(seed)
    episodes = []
    for length, truncated in zip(LENGTHS, TRUNCATED, strict=True):
        avail_actions = torch.rand(length + 1, N, A, generator=g) < 0.5
        allowed = torch.randint(A, (length + 1, N, 1), generator=g)
        last = torch.arange(length) == length - 1
        episodes.append(
            {
                "obs": torch.randn(length + 1, N, OBS, generator=g, dtype=torch.float64),
                "state": torch.randn(length + 1, S, generator=g, dtype=torch.float64),
                "avail_actions": avail_actions.scatter(-1, allowed, True),
                "actions": allowed[:-1, :, 0],
                "reward": torch.randn(length, generator=g, dtype=torch.float64),
                "terminated": last & (not truncated),
                "truncated": last & truncated,
            }
        )
    return episodes


def pack(episodes) -> Batch:
    """A Batch of them, row by row; the longest must come first."""
    columns = {name: [] for name in Batch._fields}
    for t in range(len(episodes[0]["reward"]) + 1):
        there = [e for e in episodes if t <= len(e["reward"])]
        columns["sizes"].append(len(there))
        for e in there:
            goes_on = t < len(e["reward"])
            if goes_on:
                columns["acted"].append(torch.tensor(len(columns["obs"])))
                for name in ("actions", "reward", "terminated", "truncated"):
                    columns[name].append(e[name][t])
            for name in ("obs", "state", "avail_actions"):
                columns[name].append(e[name][t])
            none_yet = torch.full((len(e["obs"][0]),), -1)
            columns["last_actions"].append(e["actions"][t - 1] if t > 0 else none_yet)
    sizes = columns.pop("sizes")
    return Batch(**{name: torch.stack(rows) for name, rows in columns.items()}, sizes=sizes)


def make_batch(seed=0) -> Batch:
    return pack(make_episodes(seed))


def make_learner(kind="qmix", seed=0, hypernet_layers=2, **options) -> QLearner:
    """Float64, with target weights that differ from the online ones."""
    torch.manual_seed(seed)

    def weights():
        agent = RNNAgent(input_dim(OBS, A, N), A, H).double()
        mixer = MIXERS[kind](N, S, M, hypernet_layers, 9)
        return agent, mixer and mixer.double()

    learner, (older_agent, older_mixer) = QLearner(*weights(), **options), weights()
    learner.target_agent.load_state_dict(older_agent.state_dict())
    if learner.mixer:
        learner.target_mixer.load_state_dict(older_mixer.state_dict())
    return learner


# ---- The reference: equations written out, one number or vector at a time


def reference_inputs(obs, actions, t, n):
    """What agent n reads at step t of an episode: (I,)."""
    last_action, number = torch.zeros(A).double(), torch.zeros(N).double()
    if t > 0:
        last_action[actions[t - 1, n]] = 1
    number[n] = 1
    return torch.cat([obs[t, n], last_action, number])


def reference_agent_qs(agent, obs, actions, length):
    """Values [t][n] (A,) of one episode, step by step; t runs from 0 to length."""
    qs = [[None] * N for _ in range(length + 1)]
    for n in range(N):
        hidden = agent.initial_hidden(1)
        for t in range(length + 1):
            x = reference_inputs(obs, actions, t, n)
            agent_qs, hidden = agent(x.unsqueeze(0), hidden)
            qs[t][n] = agent_qs[0]
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


def reference_loss(learner, kind, episodes, gamma, td_lambda, double_q, bootstrap_time_limit):
    """The loss, and the means of Q_tot and of the targets."""
    mix = dict(learner.mixer.named_parameters()) if learner.mixer else None
    target_mix = learner.target_mixer.state_dict() if learner.mixer else None
    q_tots, targets = [], []
    for episode, length, truncated in zip(episodes, LENGTHS, TRUNCATED, strict=True):
        obs, actions, state = episode["obs"], episode["actions"], episode["state"]
        qs = reference_agent_qs(learner.agent, obs, actions, length)
        target_qs = reference_agent_qs(learner.target_agent, obs, actions, length)
        # What the team (or, for iql, agent n) expects at step t when it goes on greedily.
        best = [[None] * N for _ in range(length + 1)]
        for t in range(length + 1):
            for n in range(N):
                allowed = [a for a in range(A) if episode["avail_actions"][t, n, a]]
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
            if not (bootstrap_time_limit and truncated):
                value[length] = 0
            reward = episode["reward"]
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
    learner = make_learner(kind, hypernet_layers=layers, **options)
    loss, stats = learner.loss(make_batch())
    gradients = torch.autograd.grad(loss, learner.parameters)
    expected, q_tot, target = reference_loss(learner, kind, make_episodes(), **options)
    results, wanted = (loss, stats["q_tot"], stats["target"]), (expected, q_tot, target)
    torch.testing.assert_close(results, wanted, rtol=1e-10, atol=1e-12)
    expected_gradients = torch.autograd.grad(expected, learner.parameters)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-11)


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
    assert set(stats) >= {"loss", "grad_norm", "q_tot", "target"}
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


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0])
def test_what_tests_play_is_the_moving_average_of_all_weights_so_far(rate):
    learner = make_learner(average_rate=rate)
    learner.agent.register_buffer("scale", torch.ones(1).double())  # as of a normalisation
    learner.average.register_buffer("scale", torch.zeros(1).double())
    learner.agent.register_buffer("batches", torch.tensor(3))
    learner.average.register_buffer("batches", torch.tensor(0))
    history = [[p.detach().clone() for p in learner.agent.parameters()]]
    for seed in range(4):
        learner.update(make_batch(seed))
        history.append([p.detach().clone() for p in learner.agent.parameters()])
    # In closed form: the weights of k steps ago count rate * (1 - rate)^k, those at first the rest.
    share = [(1 - rate) ** 4] + [rate * (1 - rate) ** (4 - step) for step in range(1, 5)]
    for mean, *weights in zip(learner.average.parameters(), *history, strict=True):
        torch.testing.assert_close(mean, sum(map(torch.mul, weights, map(torch.tensor, share))))
    assert learner.average.scale.item() == pytest.approx(1 - (1 - rate) ** 4)
    assert learner.average.batches == 3


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
    with pytest.raises(ValueError, match="adam or rmsprop"):
        make_learner(optimiser="sgd")


def test_every_parameter_group_gets_the_learning_rate():
    learner, more = make_learner(), torch.nn.Parameter(torch.zeros(1))
    learner.optimiser.add_param_group({"params": [more], "lr": 1.0})
    learner.lr = 0.01
    learner.update(make_batch())
    assert [group["lr"] for group in learner.optimiser.param_groups] == [0.01, 0.01]


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
    assert all(map(torch.equal, first.average.parameters(), second.average.parameters()))


# ---- Agent -----------------------------------------------------------


def test_unroll_equals_acting_step_by_step():
    """Episodes that end early; every agent of an episode has a memory of its own."""
    torch.manual_seed(0)
    agent, sizes = RNNAgent(6, A, H), [4, 4, 3, 1]
    inputs = torch.randn(sum(sizes), N, 6)
    hidden, values = agent.initial_hidden(4 * N), []
    assert hidden.shape == (4 * N, H) and not hidden.any()
    for step in inputs.split(sizes):
        qs, hidden = agent(step.flatten(0, 1), hidden[: len(step) * N])
        values.append(qs.unflatten(0, (-1, N)))
    whole = agent.unroll(inputs, sizes)
    torch.testing.assert_close(whole, torch.cat(values))
    other = torch.cat((inputs[:4] + 1, inputs[4:]))
    changed = not torch.allclose(agent.unroll(other, sizes)[-1], whole[-1])
    assert changed, "it remembers: another first input, other values at the last step"


def test_the_agent_is_the_papers_drqn():
    """Linear, ReLU, GRU, Linear, in the equations of the GRU."""
    torch.manual_seed(0)
    agent, x, h = RNNAgent(6, A, H).double(), torch.randn(4, 6).double(), torch.randn(4, H).double()
    agent_qs, hidden = agent(x, h)
    w = agent.state_dict()
    x = torch.clamp(x @ w["fc1.weight"].T + w["fc1.bias"], min=0)
    i_r, i_z, i_n = (x @ w["rnn.weight_ih_l0"].T + w["rnn.bias_ih_l0"]).split(H, dim=1)
    h_r, h_z, h_n = (h @ w["rnn.weight_hh_l0"].T + w["rnn.bias_hh_l0"]).split(H, dim=1)
    r, z = 1 / (1 + torch.exp(-(i_r + h_r))), 1 / (1 + torch.exp(-(i_z + h_z)))
    h = (1 - z) * torch.tanh(i_n + r * h_n) + z * h
    torch.testing.assert_close(hidden, h, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(agent_qs, h @ w["fc2.weight"].T + w["fc2.bias"])


def test_dropout_is_off_but_for_the_gradient_step():
    def learner(rate):
        found = make_learner()
        for agent in (found.agent, found.target_agent):
            agent.fc1.register_forward_hook(
                lambda module, _, x: torch.dropout(x, rate, module.training)
            )
        return found

    dropping, plain = learner(0.5), learner(0.0)
    obs, everything = np.ones((2, N, OBS)), np.ones((2, N, A), bool)
    seen = [Players(x.agent, 2, N, A) for x in (dropping, plain)]
    for _ in range(2):
        for players in seen:
            players.act(obs, everything)
        torch.testing.assert_close(seen[0].agent_qs, seen[1].agent_qs)
    losses = [float(x.update(make_batch())["loss"]) for x in (dropping, plain)]
    assert losses[0] != losses[1] and not dropping.average.training
    plain.agent.load_state_dict(dropping.agent.state_dict())
    for players in seen:
        players.act(obs, everything)
    torch.testing.assert_close(seen[0].agent_qs, seen[1].agent_qs)
    with torch.no_grad():
        inputs = torch.ones(3, N, input_dim(OBS, A, N)).double()
        values = [x.target_agent.unroll(inputs, [2, 1]) for x in (dropping, plain)]
    torch.testing.assert_close(*values)


def test_inputs_are_observation_last_action_and_agent_number():
    obs = torch.tensor([[[0.5, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # (E, N, O)
    inputs = build_inputs(obs, torch.tensor([[-1, 2], [0, -1]]), n_actions=3)
    expected = [
        [[0.5, 2, 0, 0, 0, 1, 0], [3, 4, 0, 0, 1, 0, 1]],
        [[5, 6, 1, 0, 0, 1, 0], [7, 8, 0, 0, 0, 0, 1]],
    ]
    assert inputs.tolist() == expected and input_dim(2, 3, 2) == 7


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
@pytest.mark.parametrize("kind", two_step_game.KINDS)
def test_mixers_are_monotonic_and_the_greedy_actions_are_the_joint_argmax(kind, layers):
    torch.manual_seed(0)
    for _ in range(5):
        mixer = MIXERS[kind](N, S, M, layers).double()
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
    mixer, qs, state = MIXERS[kind](N, S, M), torch.randn(N), torch.randn(S)

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
        mixer = Mixer(N, S, M, layers, hypernet_embed=9)
        assert sum(p.numel() for p in mixer.parameters()) == hypernets + b1_and_v
    assert MIXERS["iql"](N, S, M, 2, 9) is None
    with pytest.raises(ValueError, match="1 or 2"):
        Mixer(N, S, hypernet_layers=3)
    for switch in ({"weights": "hypr"}, {"state_term": "v(s)"}, {"weights": "one"}):
        with pytest.raises(ValueError, match="no such mixer"):  # a sum has no hidden layer
            Mixer(N, S, **switch)


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
        return obs, np.hstack((-code, 0 * code)), avail_actions

    for _ in range(steps):
        before = seen()
        buffer.see(*before)
        t += 1
        end, odd = t == length, number % 2 == 1
        actions, reward = np.stack((number % 3, t % 3), axis=1), 0.5 - before[1][:, 0]
        buffer.add(actions, reward, end & odd, end & ~odd)
        drop = end & (number % 5 == 3)
        buffer.drop(drop)
        buffer.close(end & ~drop, *seen())
        for e in np.flatnonzero(end):
            closed += [] if drop[e] else [(number[e], length[e])]
            number[e], t[e], length[e] = max(number) + 1, 0, rng.integers(1, 8)
    return closed


def check_batch(batch, stored):
    """The batch is some of the stored episodes, whole and in order, packed row by row."""
    B = batch.sizes[0]
    numbers = (batch.obs[:B, 0, 0] // 100).long().tolist()
    assert len(set(numbers)) == B
    episodes, lengths = [], dict(stored)
    for number in numbers:
        T = lengths[number]
        code, last = 100.0 * number + torch.arange(T + 1.0), torch.arange(T) == T - 1
        first_agent = torch.where(torch.arange(T + 1) % 2 == 1, 0.0, code)
        obs = torch.stack((first_agent, code + 0.5), dim=1).unsqueeze(-1).expand(-1, -1, 3)
        actions = torch.stack((torch.full((T,), number % 3), torch.arange(1, T + 1) % 3), dim=1)
        episodes.append(
            {
                "obs": obs,
                "state": torch.stack((-code, 0 * code), dim=1),
                "avail_actions": torch.tensor([False, True, False]).expand(T + 1, 2, 3),
                "actions": actions,
                "reward": code[:-1] + 0.5,
                "terminated": last & (number % 2 == 1),
                "truncated": last & (number % 2 == 0),
            }
        )
    expected = pack(episodes)
    assert batch.sizes == expected.sizes
    for name, x in batch._asdict().items():
        if name != "sizes":
            torch.testing.assert_close(x, getattr(expected, name), rtol=0, atol=0, msg=name)
    # step f acted on row acted[f] and led to row B + f: the next step of the same episode
    assert torch.equal(batch.state[batch.acted, 0] - 1, batch.state[B:, 0])


SIZES = {"n_agents": 2, "n_actions": 3, "obs_dim": 3, "state_dim": 2}


def test_buffer_keeps_the_latest_whole_episodes():
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(4, 2, 7, **SIZES)
    closed = play(buffer, steps=8)
    assert len(buffer) == len(closed) == 2
    with pytest.raises(ValueError, match="larger sample than population"):
        buffer.sample(3, rng)
    check_batch(buffer.sample(2, rng), closed)

    buffer = ReplayBuffer(4, 2, 7, **SIZES)
    closed = play(buffer, steps=60)
    assert len(buffer) == 4 < len(closed)
    seen = set()
    for _ in range(30):
        batch = buffer.sample(3, rng)
        check_batch(batch, closed[-4:])
        seen |= set((batch.obs[:3, 0, 0] // 100).tolist())
    assert seen == {number for number, _ in closed[-4:]}
    with pytest.raises(RuntimeError, match="longer than 7, the episode_limit"):
        for _ in range(8):
            buffer.add(0, 0, False, False)


def test_buffer_states_its_size_and_refuses_what_does_not_fit():
    sizes = {"n_agents": 2, "n_actions": 3, "obs_dim": 5, "state_dim": 4}
    sizes |= {"n_envs": 2, "episode_limit": 9}
    longest = 10 * (4 * 2 * 5 + 4 * 4 + 2 * 3 + 4 + 2 * 2 + 2)  # + reward, actions, both flags
    longest += longest // 8
    assert ReplayBuffer(58, **sizes, room=6 * longest).nbytes == 60 * longest
    with pytest.raises(ValueError, match=r"59 episodes.*reduce --buffer-size"):
        ReplayBuffer(59, **sizes, room=6 * longest)


def test_no_buffer_is_larger_than_it_says():
    """One environment; all episodes are as long as they can be, and no number is zero."""
    buffer = ReplayBuffer(100, 1, 7, n_agents=3, n_actions=3, obs_dim=3, state_dim=5)
    ones, true, false = np.ones(15, np.float32), np.ones(1, bool), np.zeros(1, bool)
    seen = ones[:9].reshape(1, 3, 3), ones[:5].reshape(1, 5), np.ones((1, 3, 3), bool)
    for _ in range(100):
        for step in range(7):
            buffer.see(*seen)
            buffer.add(np.ones((1, 3), int), ones[:1], true if step == 6 else false, false)
        buffer.close(true, *seen)
    assert len(buffer) == 100 and 0.8 * buffer.nbytes < buffer.held <= buffer.nbytes


def test_buffer_stays_within_the_room_there_is():
    buffer = ReplayBuffer(40, 2, 7, **SIZES, room=2000)
    closed = play(buffer, steps=60)
    # bytes: 4 for each number that is not zero (1 for a bool): one available action and agent 1's
    # observation, agent 0's at even steps, of the state one number; 0 is the very first code
    cost = []
    for number, T in closed:
        numbers = 3 * (T + 1) + 3 * (T // 2 + 1) + T + 1 - 4 * (number == 0)
        bits = [per_step * (T + 1) for per_step in (2 * 3, 2, 2 * 3)]  # obs, state, avail_actions
        cost.append(4 * numbers + 2 * (T + 1) + sum(math.ceil(n / 8) for n in bits))
        cost[-1] += T * (2 * 2 + 4 + 2)
    stored = len(buffer)
    assert sum(cost[-stored:]) == buffer.held <= 2000 < sum(cost[-stored - 1 :])
    check_batch(buffer.sample(stored, np.random.default_rng(0)), closed[-stored:])


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_buffer_does_not_touch_memory_before_it_needs_it():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffer = ReplayBuffer(1, 500, 100, n_agents=5, n_actions=11, obs_dim=200, state_dim=100)
    assert buffer.nbytes > 2e8 and resident() - before < 2e7


# ---- Environments ----------------------------------------------------


def test_two_step_game_is_the_papers():
    env = envs.make_env("two_step", n_envs=3)
    assert env.name == "two_step" and env.state.tolist() == [[1, 0, 0]] * 3
    step = env.step(np.array([[0, 1], [1, 0], [1, 1]]))
    assert not step.reward.any() and not step.terminated.any()
    assert env.state.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert (env.obs == env.state[:, None]).all()
    step = env.step(np.array([[1, 1], [0, 1], [1, 1]]))
    assert step.reward.tolist() == [7, 1, 8] and step.terminated.all()
    assert step.battle_won.tolist() == [False, False, True] and not step.truncated.any()
    env.reset(np.array([True, False, False]))
    assert env.state.tolist()[0] == [1, 0, 0] and env.state.tolist()[1] == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("sc3",), {}, "unknown environment 'sc3': choose from .*two_step"),
        (("sim", "3m", 0), {}, "at least 1"),
        (("sc2", "3m", 1, 1), {"time": 1}, "environment sc2, called with .* unexpected .* 'time'"),
        (("two_step",), {"balance": "ladder"}, "environment two_step, called with .* unexpected"),
        (("sim", "3m"), {"colour": 1}, "unknown option 'colour'"),
    ],
)
def test_environments_that_cannot_be_had(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env(*arguments, **options)


def test_auto_takes_the_simulator_where_starcraft_is_not_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(envs, "sc2_problem", lambda _: "it is not installed")
    assert envs.make_env("auto", "3m", 2).name == "sim"
    line = capsys.readouterr().err
    assert line == "Playing the simulator, not StarCraft II: it is not installed\n"
    with pytest.raises(ValueError, match="cannot be played here: it is not installed"):
        envs.make_env("sc2", "3m", 2)
    monkeypatch.setattr(envs, "sc2_problem", lambda _: None)

    class Games(envs.TwoStepGame):
        def __init__(self, *given):
            super().__init__(n_envs=2)
            self.name, self.given = "sc2", given

    monkeypatch.setattr(envs, "SMACWorkers", Games)
    assert envs.make_env("auto", "3m", 2, 5).given == ("3m", 2, 5, 60.0)
    assert envs.make_env("sc2", "3m", None, 5, timeout=9).given == ("3m", None, 5, 9)
    with pytest.raises(ValueError, match="environment sc2, called with map"):
        envs.make_env("auto", "3m", 2, balance="ladder")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("obs", np.zeros((3, 2, 3)), "obs must be float32 of shape .3, 2, 3., not float64"),
        ("state", np.zeros((3, 4), np.float32), "state must be .* not float32 of shape .3, 4."),
        ("avail_actions", np.ones((3, 2, 2)), "avail_actions must be bool"),
        (
            "avail_actions",
            np.eye(4, dtype=bool)[1:].reshape(3, 2, 2),
            "an agent has no available action",
        ),
    ],
)
def test_an_environment_that_breaks_the_contract_is_named(monkeypatch, name, value, message):
    class Broken(envs.TwoStepGame):
        def __init__(self, *given):
            super().__init__(*given)
            setattr(self, name, value)

    monkeypatch.setitem(envs.ENVS, "broken", Broken)
    with pytest.raises(ValueError, match=f"environment broken: {message}"):
        envs.make_env("broken", n_envs=3)


# ---- The two-step game -----------------------------------------------

SUMS = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])  # q1(a1) + q2(a2)
FIT = (SUMS @ np.linalg.lstsq(SUMS, [0, 1, 1, 8])[0]).reshape(2, 2)  # the best sum in state 2B
TRUE_VALUES = {  # of QMIX the game's own; of VDN least squares over all joint actions
    "qmix": [[6.93, 6.93], [7.92, 7.92], [7, 7], [7, 7], [0, 1], [1, 8]],
    "vdn": [[6.93, 6.93], [0.99 * FIT.max()] * 2, [7, 7], [7, 7], *FIT],
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


def test_two_step_game_in_short(monkeypatch, capsys):
    monkeypatch.setattr(two_step_game, "ROUNDS", 400)
    status, out, err = run_two_step_game(monkeypatch, capsys, "--mixer=qmix", "--seed=1", "--json")
    assert status == 0 and err == "" and out.count("\n") == 1
    check_two_step_game(json.loads(out), tolerance=0.6, best=8)


def test_two_step_game_with_one_episode_per_gradient_step(monkeypatch):
    monkeypatch.setattr(two_step_game, "PARALLEL", 1)
    monkeypatch.setattr(two_step_game, "ROUNDS", two_step_game.BATCH_SIZE - 1)
    untrained = two_step_game.table(*two_step_game.train("vdn", 0))["state_2B"]
    monkeypatch.setattr(two_step_game, "ROUNDS", two_step_game.BATCH_SIZE)
    assert two_step_game.table(*two_step_game.train("vdn", 0))["state_2B"] != untrained


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_two_step_game(seed):
    check_two_step_game(two_step_game.play("qmix", seed), tolerance=0.10, best=8)
    check_two_step_game(two_step_game.play("vdn", seed), tolerance=0.35, best=7)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--mixer", "qmox"], "unknown mixer 'qmox': choose one of qmix, "),
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


# ---- The loop: short runs on the two-step game, networks of a few units --

TINY = shlex.split("""
    --env two_step --steps 600 --n-envs 4 --test-interval 100 --test-episodes 6 --train-interval 4
    --buffer-size 40 --batch-size 8 --epsilon-anneal-steps 300 --target-update-interval 20
    --hidden-dim 8 --mixing-embed-dim 4 --hypernet-embed 8 --threads 1
""")
TIMING = ("wall_time", "env_steps_per_s")


def start(folder, *more):
    return train.main([*TINY, *more, "--run-dir", str(folder)])


def metrics(folder):
    """Rows of metrics.csv without the timing columns; checks that it is well formed."""
    text = (folder / "metrics.csv").read_text()
    assert text.endswith("\n")
    rows = list(csv.DictReader(text.splitlines()))
    assert all(None not in row.values() for row in rows)
    t_env = [int(row["t_env"]) for row in rows]
    assert t_env == sorted(set(t_env)), "t_env must be strictly increasing"
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def learner_state(folder):
    return files.load(folder / "checkpoint.pt")["learner"]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda _: None)


def test_linear_its_boundaries():
    epsilon = [train.linear(t, 1.0, 0.05, 50_000) for t in (0, 25_000, 49_999, 50_000, 10**9)]
    assert epsilon == pytest.approx([1.0, 0.525, 0.050019, 0.05, 0.05], abs=1e-9)
    assert epsilon[2] > epsilon[3] == epsilon[4] == 0.05
    assert train.linear(0, 0.3, 0.3, 1) == 0.3


def test_flags_reach_the_learner():
    words = "--gamma 0.5 --td-lambda 0.25 --optimiser rmsprop --lr 0.125 --grad-norm-clip 3"
    words += " --no-double-q --bootstrap-time-limit --average-rate 0.75 --threads 1"
    words += " --hidden-dim 5 --mixing-embed-dim 6 --hypernet-layers 2 --hypernet-embed 7"
    args, _ = train.parse_args(words.split())
    learner = train.make_learner(args, envs.TwoStepGame(), "cpu")
    assert (learner.gamma, learner.td_lambda, learner.lr) == (0.5, 0.25, 0.125)
    assert (learner.grad_norm_clip, learner.average_rate) == (3, 0.75)
    assert (learner.double_q, learner.bootstrap_time_limit) == (False, True)
    assert isinstance(learner.optimiser, torch.optim.RMSprop)
    assert learner.optimiser.param_groups[0]["lr"] == 0.125
    assert learner.agent.fc1.out_features == 5 and learner.mixer.b1.out_features == 6
    assert learner.mixer.w_final[0].out_features == 7
    args, _ = train.parse_args(["--hypernet-layers", "1"])
    one = train.make_learner(args, envs.TwoStepGame(), "cpu").mixer
    assert isinstance(one.w_final, torch.nn.Linear)


@pytest.mark.parametrize("n_envs", [1, 3, 8])
def test_gradient_steps_depend_on_episodes_only(tmp_path, n_envs):
    """One update at each third episode, from the one that fills the first batch of 8 on."""
    start(tmp_path / "run", "--n-envs", str(n_envs), "--train-interval", "3", "--steps", "240")
    row = metrics(tmp_path / "run")[-1]
    episodes = int(row["episodes"])
    assert episodes == 120
    due = range(3, episodes + 1, 3)  # n_envs end at once, so up to n_envs - 1 more are stored
    assert int(row["updates"]) == sum(-(-count // n_envs) * n_envs >= 8 for count in due)


def test_learning_changes_the_agent_and_syncing_the_target(tmp_path):
    start(tmp_path / "never", "--target-update-interval", "1000000")
    start(tmp_path / "always", "--target-update-interval", "1")
    args, _ = train.parse_args(TINY)
    initial = train.make_learner(args, envs.TwoStepGame(), "cpu").state_dict()
    never, always = learner_state(tmp_path / "never"), learner_state(tmp_path / "always")
    for name in ("agent", "mixer"):
        for weight in initial[name]:
            assert not torch.equal(initial[name][weight], never[name][weight]), weight
        assert equal(initial[f"target_{name}"], never[f"target_{name}"])
        assert equal(always[name], always[f"target_{name}"])
        assert not equal(never[name], always[name]), "targets matter"


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_trains_and_evaluates(tmp_path, mixer, capsys):
    start(tmp_path / "run", "--mixer", mixer, "--steps", "100", "--paper", "--n-envs", "4")
    assert int(metrics(tmp_path / "run")[-1]["updates"]) > 5
    assert train.main(["--evaluate", str(tmp_path / "run"), "--test-episodes", "3"]) == 0
    assert re.search(r"^test_win_rate=\d\.\d{3} test_return=\d+\.\d episodes=3\n\Z",
                     capsys.readouterr().out, re.M)  # fmt: skip


class Corridor:
    """Environment e wins after lengths[e] steps if that is odd, loses if even; it aborts each third
    episode of environment 0 at its first step, with senseless observations and reward."""

    n_agents, n_actions, obs_dim, state_dim, episode_limit = 2, 2, 1, 1, 9

    def __init__(self, lengths, aborts):
        self.n_envs, self.lengths, self.aborts = len(lengths), np.array(lengths), aborts
        self.t, self.begun = np.zeros(self.n_envs, int), np.zeros(self.n_envs, int)
        self.avail_actions = np.ones((self.n_envs, 2, 2), bool)
        self.reset()

    def reset(self, mask=None):
        mask = np.ones(self.n_envs, bool) if mask is None else mask
        self.t[mask] = 0
        self.begun[mask] += 1
        self.obs = np.tile(self.t[:, None, None], (1, 2, 1)).astype(np.float32)
        self.state = self.t[:, None].astype(np.float32)

    def step(self, actions):
        assert (self.t < self.lengths).all(), "stepped without a reset"
        self.t += 1
        aborted = (np.arange(self.n_envs) == 0) & (self.begun % 3 == 0) & self.aborts
        terminated = (self.t == self.lengths) & ~aborted
        self.obs[:], self.state[:] = self.t[:, None, None], self.t[:, None]
        self.obs[aborted] = self.state[aborted] = np.nan
        reward = np.where(aborted, np.nan, 1.0).astype(np.float32)
        no = np.zeros(self.n_envs, bool)
        return envs.Step(reward, terminated, no, terminated & (self.lengths % 2 == 1), aborted)

    def close(self):
        pass


@pytest.mark.parametrize("aborts", [False, True])
def test_short_episodes_count_no_more_than_long_ones(aborts):
    env, agent = Corridor([1, 8], aborts), RNNAgent(input_dim(1, 2, 2), 2, 4)
    # five episodes: three of the first environment, two of the second
    result = train.averages(*train.play_episodes(agent, env, 5))
    assert result["test_win_rate"] == pytest.approx(3 / 5)
    assert result["test_return"] == result["test_episode_length"] == pytest.approx(19 / 5)
    assert result["aborted_episodes"] > 0 if aborts else result["aborted_episodes"] == 0


def test_aborted_episodes_are_counted_and_never_learned_from(tmp_path, monkeypatch):
    sampled, original = [], ReplayBuffer.sample

    def spying(self, *args):
        sampled.append(original(self, *args))
        return sampled[-1]

    monkeypatch.setattr(ReplayBuffer, "sample", spying)
    monkeypatch.setitem(envs.ENVS, "corridor", lambda *_: Corridor([3, 4], True))
    assert start(tmp_path / "run", "--env", "corridor", "--buffer-size", "9") == 0
    last = metrics(tmp_path / "run")[-1]
    assert int(last["aborted_episodes"]) > 20
    # Environment 0: two episodes of three steps, then an abort; environment 1: four steps each.
    steps = int(last["t_env"])
    assert int(last["episodes"]) == pytest.approx(steps * (2 / 13 + 7 / (4 * 13)), rel=0.05)
    assert sampled
    for batch in sampled:
        assert all(torch.isfinite(x).all() for x in (batch.obs, batch.state, batch.reward))
        assert batch.sizes[3] == batch.sizes[0] and len(batch.sizes) in (4, 5)  # 3 or 4 steps
        t = torch.repeat_interleave(torch.arange(len(batch.sizes)), torch.tensor(batch.sizes))
        assert torch.equal(batch.state[:, 0], t.float()), "what was seen before the step"


def test_every_episode_begins_without_a_memory():
    """Acting in two environments out of step equals unrolling each of their episodes by itself."""
    torch.manual_seed(0)
    env, agent = Corridor([3, 5], False), RNNAgent(input_dim(1, 2, 2), 2, 4)
    agent.initial_hidden = lambda rows: torch.full((rows, 4), 0.5)  # not only zeros
    players = Players(agent, 2, 2, 2)
    hidden, last_actions = agent.initial_hidden(4).view(2, 2, 4), torch.full((2, 2), -1)
    for _ in range(20):
        inputs = build_inputs(torch.from_numpy(env.obs), last_actions, 2)
        with torch.no_grad():
            for e in range(2):
                _, hidden[e] = agent(inputs[e], hidden[e])
        actions = players.act(env.obs, env.avail_actions, epsilon=0.5)
        assert torch.allclose(players.hidden.view(2, 2, 4), hidden, atol=1e-6)
        last_actions = torch.from_numpy(actions.copy())
        over = env.step(actions).terminated
        env.reset(over)
        players.forget(over)
        hidden[over], last_actions[over] = 0.5, -1


def test_schedules_of_the_learning_rate_and_of_the_target_network(tmp_path, monkeypatch):
    rates, syncs, update = [], [], QLearner.update
    monkeypatch.setattr(
        QLearner, "update", lambda self, batch: (rates.append(self.lr), update(self, batch))[1]
    )
    monkeypatch.setattr(QLearner, "sync_target", lambda self: syncs.append(1))
    start(tmp_path / "run", "--lr", "0.01", "--lr-finish", "0.004", "--train-interval", "1")
    assert len(syncs) == 300 // 20  # of 300 episodes, every 20
    # Four games end at once, every 8 steps; from the second time on there are 8 to learn from.
    wanted = [train.linear(8 * k, 0.01, 0.004, 600) for k in range(2, 76) for _ in range(4)]
    assert rates == pytest.approx(wanted)
    assert rates[-1] == pytest.approx(0.004)


def test_no_two_battles_share_a_seed(tmp_path, monkeypatch):
    seeds, make = [], envs.make_env

    def spying(env, map_name, n_envs, seed, **options):
        made = make(env, map_name, n_envs, seed, **options)
        seeds.extend(range(seed, seed + made.n_envs))
        return made

    monkeypatch.setattr(train, "make_env", spying)
    monkeypatch.setattr(evaluate, "make_env", spying)
    for seed in ("3", "4"):
        folder = tmp_path / seed
        start(folder, "--seed", seed, "--steps", "4", "--n-envs", "1000", "--test-episodes", "99")
        train.main(["--evaluate", str(folder), "--test-episodes", "2000"])
    assert len(seeds) == len(set(seeds)) > 4000


def test_paper_values_give_way_to_explicit_flags():
    args, *_ = train.parse_args(["--paper"])
    assert vars(args).keys() == vars(train.parse_args([])[0]).keys()  # PAPER names no other flag
    assert (args.optimiser, args.lr, args.td_lambda, args.train_interval) == ("rmsprop", 5e-4, 0, 1)
    args, *_ = train.parse_args(["--paper", "--lr", "0.01"])
    assert (args.optimiser, args.lr) == ("rmsprop", 0.01)
