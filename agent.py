"""The agent network of QMIX (https://arxiv.org/abs/1803.11485): a DRQN, shared by all agents.

Each agent sees its own observation, its own last action and its own number; a GRU carries what it
has seen so far. The hidden state is passed in and out and never kept here, so the same weights
unroll a whole batch of episodes in one call or act one step at a time.

Not a script. See it at work: python train.py --map 2s3z

Shapes: T time, B batch, N agents, A actions, O observation, H GRU width,
        I = O + A + N input, R rows (every agent of every episode is one; of one step in forward,
        of all steps together in unroll).
"""

import torch
from gru import gru
from torch import Tensor, nn


class RNNAgent(nn.Module):
    """Linear + ReLU, GRU, Linear to one value per action (paper, section 4 and appendix)."""

    def __init__(self, input_dim: int, n_actions: int, hidden_dim: int = 64):
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.rnn = nn.GRU(hidden_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, n_actions)

    def initial_hidden(self, rows: int) -> Tensor:
        """Zeros (rows, H) on the device of the network: what an episode begins with."""
        return self.fc1.weight.new_zeros(rows, self.rnn.hidden_size)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Unroll T steps (T may be 1).

        inputs (T, R, I) float, hidden (R, H) -> agent_qs (T, R, A), hidden (R, H) after step T.
        """
        x = torch.relu(self.fc1(inputs))  # (T, R, H)
        x, hidden = self.rnn(x, hidden.unsqueeze(0))  # (T, R, H), (1, R, H)
        return self.fc2(x), hidden[0]

    def unroll(self, inputs: Tensor, sizes: list[int]) -> Tensor:
        """Whole episodes of different lengths at once, from their first steps.

        inputs (R, I) float: the rows of step 0, then those of step 1, ...; sizes[t] of them at
        step t, never more than before, row i going on from row i of the step before -> agent_qs
        (R, A), the values that forward gives step by step, to float32's rounding.
        """
        x = torch.relu(self.fc1(inputs))  # (R, H)
        return self.fc2(gru(self.rnn, x, sizes))


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
