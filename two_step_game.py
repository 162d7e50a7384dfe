"""The two-step game of the QMIX paper (https://arxiv.org/abs/1803.11485, section 5), its Table 2.

Two agents, two steps. The first agent's first action leads to state 2A, where every joint action
pays 7, or to state 2B, which pays [[0, 1], [1, 8]]. VDN, a sum of the agents' values, cannot
represent 2B, expects less than 7 there and takes the safe way. QMIX can, and finds the 8.

    python two_step_game.py                                  both methods beside the paper's table
    python two_step_game.py --mixer qmix --seed 3 --json     one method as one JSON object

Agent, mixer, learner, replay and game are the modules that train.py uses; the loop is shorter, and
the settings are the paper's for this game, but for what is said below. Every action is random
(epsilon = 1 as in the paper), so what is learned is the best fit over all joint actions and not
over those of one policy.

Shapes: E games side by side, N = 2 agents, A = 2 actions, S state.
"""

import argparse
import json
import sys

import numpy as np
import torch
from torch import nn

from agent import Players, RNNAgent, input_dim
from buffer import ReplayBuffer
from envs import TwoStepGame
from learner import QLearner
from mixer import MIXERS

# Batch, buffer (episodes) and mixing width are the paper's. Different: each gradient step follows
# PARALLEL episodes, in the paper one, so that its target interval of 100 episodes is 100 gradient
# steps here. There are ROUNDS of them (the paper: 10,000 time steps), and the learning rate falls
# to zero from twice the paper's 5e-4, which keeps the noise of sampling out of the printed values.
# Agent, double Q-learning and hypernetworks of two layers are train.py's; the paper's agent here
# has no memory and is not told its last action, and its hypernetworks have one layer.
BATCH_SIZE, BUFFER_SIZE, TARGET_UPDATE, MIXING_EMBED_DIM = 32, 500, 100, 8
PARALLEL, ROUNDS, LR = 32, 1500, 1e-3

KINDS = [kind for kind in MIXERS if kind != "iql"]  # those with a Q_tot
STATES = ("state_1", "state_2A", "state_2B")
PAPER = {  # Table 2 in the order of STATES; rows: the first agent's action, columns: the second's
    "qmix": [[[6.93, 6.93], [7.92, 7.92]], [[7, 7], [7, 7]], [[0, 1], [1, 8]]],
    "vdn": [
        [[6.94, 6.94], [6.35, 6.36]],
        [[6.99, 7.02], [6.99, 7.02]],
        [[-1.87, 2.31], [2.33, 6.51]],
    ],
}


def train(kind: str, seed: int) -> tuple[RNNAgent, nn.Module]:
    """Learn from random play. kind: one of KINDS. Returns the agent and its mixer."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env = TwoStepGame(n_envs=PARALLEL)
    E, N, A, obs_dim, S = env.n_envs, env.n_agents, env.n_actions, env.obs_dim, env.state_dim
    agent, mixer = RNNAgent(input_dim(obs_dim, A, N), A), MIXERS[kind](N, S, MIXING_EMBED_DIM)
    learner = QLearner(agent, mixer, gamma=0.99, optimiser="rmsprop", lr=LR)
    buffer = ReplayBuffer(BUFFER_SIZE, E, env.episode_limit, N, A, obs_dim, S)
    players, everywhere = Players(agent, E, N, A, seed), np.ones(E, bool)
    for round_ in range(ROUNDS):
        for _ in range(env.episode_limit):
            buffer.see(env.obs, env.state, env.avail_actions)
            actions = players.act(env.obs, env.avail_actions, epsilon=1.0)
            step = env.step(actions)
            buffer.add(actions, step.reward, step.terminated, step.truncated)
        buffer.close(everywhere, env.obs, env.state, env.avail_actions)
        env.reset()
        players.forget(everywhere)
        learner.lr = LR * (1 - round_ / ROUNDS)
        if len(buffer) >= BATCH_SIZE:
            learner.update(buffer.sample(BATCH_SIZE, rng))
        if (round_ + 1) % TARGET_UPDATE == 0:
            learner.sync_target()
    return agent, mixer.eval()


@torch.no_grad()
def table(agent: RNNAgent, mixer: nn.Module) -> dict[str, list[list[float]]]:
    """Q_tot of every joint action in the three states, 2x2 each, by state name.

    The states of the second step are reached by the joint actions (0, 0) and (1, 0).
    """
    env = TwoStepGame(n_envs=2)
    players = Players(agent, 2, env.n_agents, env.n_actions)

    def q_tot(e):
        """Of environment e now, (A, A) as lists."""
        pairs = torch.stack(torch.meshgrid(*players.agent_qs[e], indexing="ij"), dim=-1)
        state = torch.from_numpy(env.state[e]).expand(2, 2, -1)  # (A, A, S), as pairs is (A, A, N)
        # + 0.0 turns -0.0 into 0.0
        return [[round(q, 4) + 0.0 for q in row] for row in mixer(pairs, state).tolist()]

    players.act(env.obs, env.avail_actions)
    state_1 = q_tot(0)
    players.last_actions = torch.tensor([[0, 0], [1, 0]])
    env.step(players.last_actions.numpy())
    players.act(env.obs, env.avail_actions)
    return dict(zip(STATES, (state_1, q_tot(0), q_tot(1)), strict=True))


def greedy_return(agent: RNNAgent) -> float:
    """Undiscounted return of one game in which both agents take their best actions."""
    env = TwoStepGame()
    players, total = Players(agent, 1, env.n_agents, env.n_actions), 0.0
    for _ in range(env.episode_limit):
        total += float(env.step(players.act(env.obs, env.avail_actions)).reward[0])
    return total


def play(kind: str, seed: int) -> dict:
    """Train one method and return what --json prints."""
    agent, mixer = train(kind, seed)
    values = table(agent, mixer)
    return {"mixer": kind, "seed": seed, **values, "greedy_return": greedy_return(agent)}


def show(result: dict) -> None:
    kind = result["mixer"]
    print(f"{kind}, seed {result['seed']}: Q_tot here" + " | in the paper" * (kind in PAPER))
    for i, state in enumerate(STATES):
        for row in range(2):
            line = f"  {state.replace('_', ' '):9}" if row == 0 else " " * 11
            line += "".join(f"{round(q, 2) + 0.0:7.2f}" for q in result[state][row])  # no -0.00
            if kind in PAPER:
                line += "   |" + "".join(f"{q:7.2f}" for q in PAPER[kind][i][row])
            print(line)
    print(f"  return of the greedy policy: {result['greedy_return']:g}\n")


def fail(message: str):
    print(f"two_step_game.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="The two-step game of the QMIX paper, its Table 2."
    )
    parser.error = fail
    parser.add_argument(
        "--mixer", help=f"train only this one of {', '.join(KINDS)} (default: qmix and vdn)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed, 0 or more (default: 0)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object only; needs --mixer"
    )
    args = parser.parse_args()
    if args.mixer == "iql":
        fail("iql has no Q_tot, which is what the table shows: choose " + ", ".join(KINDS))
    if args.mixer not in (None, *KINDS):
        fail(f"unknown mixer {args.mixer!r}: choose one of {', '.join(KINDS)}")
    if not 0 <= args.seed < 2**63:
        fail(f"--seed is {args.seed}: it must be 0 or more, and less than 2^63")
    if args.json and not args.mixer:
        fail("--json prints one method: say which with --mixer")

    torch.set_num_threads(1)  # nets this small only lose by sharing the work out
    for kind in [args.mixer] if args.mixer else ["qmix", "vdn"]:
        result = play(kind, args.seed)
        if args.json:
            print(json.dumps(result))
        else:
            show(result)


if __name__ == "__main__":
    main()
