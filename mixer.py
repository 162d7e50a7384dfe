"""Mixing networks: from the agents' chosen values to Q_tot, in QMIX and its ablations.

QMIX (https://arxiv.org/abs/1803.11485) writes Q_tot as a network of the agents' values with weights
that are all >= 0, so Q_tot never falls when an agent's value rises (equation 5). The joint greedy
action is then each agent's own greedy action (equation 4). Hypernetworks, small networks that read
the state, produce those weights; biases come from the state too but may have any sign.

Not a script. See it at work: python train.py --mixer qmix    or    python two_step_game.py

Shapes: ... any leading dimensions (in a batch F steps), N agents, S state, M mixing width.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Learned(nn.Module):
    """Stands where a hypernetwork would and ignores the state: `size` ordinary parameters."""

    def __init__(self, size: int, fan_in: int):
        super().__init__()
        self.value = nn.Parameter(torch.empty(size).uniform_(-1, 1) / fan_in**0.5)

    def forward(self, state: Tensor) -> Tensor:
        return self.value  # (size,): broadcasts over the leading dimensions of state


class Mixer(nn.Module):
    """QMIX, or an ablation, by three switches.

    n_agents N, state_dim S. mixing_embed_dim M: width of the hidden layer and of V(s).
    hypernet_layers: 1 (the paper's) or 2 (PyMARL's Linear, ReLU, Linear with hypernet_embed units
    between); ValueError for others.
    weights: "one": plain sum; "hyper": abs of hypernetwork(s); "learned": abs of parameters.
    hidden: an ELU layer of M units between the agents' values and Q_tot; not with "one".
    state_term, added to Q_tot: "none"; "V(s)": a small network; "learned": a plain bias.
    Raises ValueError for switches that are none of these.
    """

    def __init__(
        self,
        n_agents: int,
        state_dim: int,
        mixing_embed_dim: int = 32,
        hypernet_layers: int = 2,
        hypernet_embed: int = 64,
        *,
        weights: str = "hyper",
        hidden: bool = True,
        state_term: str = "V(s)",
    ):
        super().__init__()
        if hypernet_layers not in (1, 2):
            raise ValueError(f"hypernet_layers is {hypernet_layers}: it must be 1 or 2")
        kinds = ("hyper", "learned") if hidden else ("one", "hyper", "learned")
        if weights not in kinds or state_term not in ("none", "V(s)", "learned"):
            raise ValueError(f"no such mixer: {weights=}, {hidden=}, {state_term=}")
        self.weights, self.hidden, self.state_term = weights, hidden, state_term
        self.n_agents = n_agents
        N, S, M = n_agents, state_dim, mixing_embed_dim

        def weights_from(size: int, fan_in: int) -> nn.Module:
            """What produces `size` mixing weights, before abs, from the state."""
            if weights == "learned":
                return Learned(size, fan_in)
            if hypernet_layers == 1:
                return nn.Linear(S, size)
            between = nn.Linear(S, hypernet_embed)
            return nn.Sequential(between, nn.ReLU(), nn.Linear(hypernet_embed, size))

        if weights != "one":
            self.w1 = weights_from(N * M if hidden else N, fan_in=N)
        if hidden:
            self.b1 = Learned(M, fan_in=N) if weights == "learned" else nn.Linear(S, M)
            self.w_final = weights_from(M, fan_in=M)
        if state_term == "V(s)":
            self.v = nn.Sequential(nn.Linear(S, M), nn.ReLU(), nn.Linear(M, 1))
        elif state_term == "learned":
            self.v = Learned(1, fan_in=M)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """agent_qs (..., N) values of the chosen actions, state (..., S) -> q_tot (...)."""
        # abs keeps every path from an agent's value to Q_tot non-decreasing; so does ELU.
        if self.weights == "one":
            q_tot = agent_qs.sum(dim=-1)
        elif not self.hidden:
            q_tot = (agent_qs * self.w1(state).abs()).sum(dim=-1)
        else:
            w1 = self.w1(state).abs()
            w1 = w1.unflatten(-1, (self.n_agents, -1))  # (..., N * M) -> (..., N, M)
            x = (agent_qs.unsqueeze(-1) * w1).sum(dim=-2)  # (..., N, 1) * (..., N, M) -> (..., M)
            x = F.elu(x + self.b1(state))
            q_tot = (x * self.w_final(state).abs()).sum(dim=-1)
        if self.state_term != "none":
            q_tot = q_tot + self.v(state)[..., 0]  # (..., 1) -> (...), Learned (1,) -> ()
        return q_tot


def no_mixer(*sizes: int) -> None:
    """Independent Q-learning: there is no Q_tot, each agent learns from the team's reward."""


# name -> constructor; put yours here. It is called with n_agents, state_dim, mixing_embed_dim and,
# by train.py but not by two_step_game.py, hypernet_layers and hypernet_embed, which therefore need
# default values. "qmix-ns" is QMIX that sees no state; EPyMARL's qmix_ns is another thing:
# QMIX whose agents do not share parameters.
MIXERS = {
    "qmix": Mixer,
    "vdn": partial(Mixer, weights="one", hidden=False, state_term="none"),
    "iql": no_mixer,
    "qmix-lin": partial(Mixer, weights="hyper", hidden=False, state_term="V(s)"),
    "qmix-ns": partial(Mixer, weights="learned", hidden=True, state_term="learned"),
    "vdn-s": partial(Mixer, weights="one", hidden=False, state_term="V(s)"),
}
