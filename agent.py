"""The agents of QMIX (https://arxiv.org/abs/1803.11485): one DRQN that all of them share.

Each agent reads its own observation, its own last action and its own number; a GRU carries what it
has seen so far. `forward` acts one step at a time; `unroll` does whole episodes at once, for the
loss. `Players` acts in many episodes side by side and remembers what each of them carries along.

Not a script. See it at work: python train.py --map 2s3z

Shapes: E environments, N agents, A actions, O observation, I = O + A + N input, H GRU width;
        in a batch of episodes P observations (buffer.py draws how they lie); R rows: all agents
        of the first episode, then of the next (which agent a row is, its last N inputs say).
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class RNNAgent(nn.Module):
    """Linear + ReLU, GRU, Linear to one value per action (paper, section 4 and appendix).

    In training mode only while QLearner.update is at work: dropout, say, is off whenever it acts.

    gru: torch.nn.GRU, or a class with its arguments, weights and results (train.py gives a faster
    one).
    """

    def __init__(self, input_dim: int, n_actions: int, hidden_dim: int = 64, gru=nn.GRU):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.rnn = gru(hidden_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, n_actions)

    def initial_hidden(self, rows: int) -> Tensor:
        """Zeros (rows, H) on the device of the network: what an episode begins with. In unroll
        torch.nn.GRU begins with zeros by itself. One tensor, a row per agent, is all that Players
        and checkpoints carry along: an LSTM's two would lie side by side, (rows, 2 * H), and be cut
        apart by .chunk(2, dim=-1), each .contiguous() for a GPU."""
        return self.fc1.weight.new_zeros(rows, self.hidden_dim)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step. inputs (R, I) float, hidden (R, H) -> agent_qs (R, A), hidden (R, H)."""
        x = torch.relu(self.fc1(inputs))  # (R, H)
        _, hidden = self.rnn(x.unsqueeze(0), hidden.unsqueeze(0))  # (1, R, H) each: one step
        return self.fc2(hidden[0]), hidden[0]

    def unroll(self, inputs: Tensor, sizes: list[int]) -> Tensor:
        """Whole episodes at once, from their first steps: what forward gives step by step.

        inputs (P, N, I) float, as a Batch has its observations: sizes[t] of them at step t.
        -> agent_qs (P, N, A). Without a memory it would be one call of forward for all rows.
        """
        P, N, _ = inputs.shape
        x = torch.relu(self.fc1(inputs)).flatten(0, 1)  # (P, N, H) -> (P * N, H)
        # A PackedSequence is laid out as a Batch is; each agent of each episode is a sequence.
        rows = N * torch.tensor(sizes)  # at each step
        x = self.rnn(PackedSequence(x, rows))[0].data  # (P * N, H)
        return self.fc2(x).unflatten(0, (P, N))  # (P * N, A) -> (P, N, A)


def input_dim(obs_dim: int, n_actions: int, n_agents: int) -> int:
    """How many numbers `build_inputs` gives each agent."""
    return obs_dim + n_actions + n_agents


def build_inputs(obs: Tensor, last_actions: Tensor, n_actions: int) -> Tensor:
    """What the agents read: observation, last action (one-hot), agent number (one-hot).

    obs (..., N, O) float, last_actions (..., N) int64 with -1 where nothing was done yet
    -> (..., N, O + A + N) float. A last action of -1 becomes A zeros.
    """
    *batch, n_agents, _ = obs.shape
    actions = torch.arange(n_actions, device=obs.device)
    # Not F.one_hot: it has no way to say "none yet".
    action_one_hot = (last_actions.unsqueeze(-1) == actions).to(obs.dtype)  # (..., N, A)
    agent_one_hot = torch.eye(n_agents, dtype=obs.dtype, device=obs.device)
    agent_one_hot = agent_one_hot.expand(*batch, n_agents, n_agents)  # (..., N, N)
    return torch.cat((obs, action_one_hot, agent_one_hot), dim=-1)


def epsilon_greedy(
    agent_qs: Tensor,
    avail_actions: Tensor,
    epsilon: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One coin per agent: with probability epsilon any available action, otherwise the best one.

    agent_qs (..., A) float, avail_actions (..., A) bool with at least one True in each row
    -> actions (...) int64. Random numbers come from `generator` (on the device of agent_qs).
    """
    greedy = agent_qs.masked_fill(~avail_actions, -torch.inf).argmax(dim=-1)
    # The largest of independent uniform numbers is equally likely to be any of them.
    noise = torch.rand(agent_qs.shape, generator=generator, device=agent_qs.device)
    explore = noise.masked_fill(~avail_actions, -1.0).argmax(dim=-1)
    coin = torch.rand(greedy.shape, generator=generator, device=agent_qs.device)
    return torch.where(coin < epsilon, explore, greedy)


class Players:
    """The agents of E running episodes, with what each episode carries along.

    hidden (E * N, H): what they remember. last_actions (E, N) int64, -1 = none yet. returns (E,)
    and lengths (E,): the episode's reward and steps so far. agent_qs (E, N, A): the latest values.
    """

    def __init__(self, agent: RNNAgent, n_envs: int, n_agents: int, n_actions: int, seed: int = 0):
        self.agent = agent.eval()
        self.hidden = agent.initial_hidden(n_envs * n_agents)
        self.last_actions = torch.full((n_envs, n_agents), -1, device=self.hidden.device)
        self.agent_qs = self.hidden.new_zeros(n_envs, n_agents, n_actions)
        self.returns, self.lengths = np.zeros(n_envs), np.zeros(n_envs, np.int64)
        self.generator = torch.Generator(self.hidden.device).manual_seed(seed)

    @torch.inference_mode()
    def act(self, obs: np.ndarray, avail_actions: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
        """One action for every agent, all in one forward pass.

        obs (E, N, O) float32, avail_actions (E, N, A) bool -> actions (E, N) int64.
        """
        obs, avail_actions = (
            torch.from_numpy(x).to(self.hidden.device) for x in (obs, avail_actions)
        )
        inputs = build_inputs(obs, self.last_actions, avail_actions.shape[-1])
        inputs = inputs.flatten(0, 1)  # (E, N, I) -> (E * N, I)
        agent_qs, self.hidden = self.agent(inputs, self.hidden)
        self.agent_qs = agent_qs.view_as(avail_actions)  # (E * N, A) -> (E, N, A)
        self.last_actions = epsilon_greedy(self.agent_qs, avail_actions, epsilon, self.generator)
        return self.last_actions.cpu().numpy()

    def count(self, reward: np.ndarray) -> None:
        """One step more, and its reward (E,)."""
        self.returns += reward
        self.lengths += 1

    def forget(self, over: np.ndarray) -> None:
        """New episodes begin where `over` (E,) bool is True: nothing is carried into them."""
        mask = torch.from_numpy(over).to(self.hidden.device).unsqueeze(1)  # (E, 1)
        rows = mask.expand_as(self.last_actions).reshape(-1, 1)  # (E, N) -> (E * N, 1)
        self.hidden = torch.where(rows, self.agent.initial_hidden(len(rows)), self.hidden)
        self.last_actions = self.last_actions.masked_fill(mask, -1)
        self.returns[over] = self.lengths[over] = 0
