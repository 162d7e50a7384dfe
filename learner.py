"""Q-learning with a mixed value: the loss of QMIX, VDN and IQL, their target network and optimiser.

QMIX (https://arxiv.org/abs/1803.11485), equation 6: the mean over real steps of
(Q_tot(t) - y(t))^2, where y(t) = r(t) + gamma * Q_tot'(t + 1) at the greedy actions and Q_tot' is
the target network. The greedy actions are the online network's (double Q-learning, as in PyMARL);
with td_lambda > 0, y is the lambda-return of those one-step targets.

Not a script. See it at work: python train.py --map 2s3z

Shapes: T time, B batch, N agents, A actions, S state, I agent input, R = B * N rows.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent import RNNAgent, build_inputs
from buffer import Batch
from mixer import Mixer

# Steps that are unrolled together, see QLearner.unroll. 8 is the fastest of 4, 8, 12, 16, 20 and 30
# for episodes of very different lengths: it takes a quarter off the time of one call for all steps.
BLOCK = 8


class QLearner:
    """Learns the weights of `agent` and `mixer` in place, from batches of whole episodes.

    mixer: None for independent Q-learning, each agent's own TD error on the team's reward.
    gamma: discount per step. td_lambda: 0 = one-step targets, 1 = returns to the episode's end.
    optimiser: "rmsprop" (alpha 0.99, eps 1e-5, as in the paper) or "adam"; lr: its learning rate.
    grad_norm_clip: largest norm of the gradient of all weights together.
    bootstrap_time_limit: go on to the value of the last observation when the time limit cut the
    episode; by default its end counts as terminal, as in SMAC.
    Raises ValueError for an optimiser it does not know.
    """

    def __init__(
        self,
        agent: RNNAgent,
        mixer: Mixer | None,
        *,
        gamma: float = 0.99,
        td_lambda: float = 0.0,
        optimiser: str = "rmsprop",
        lr: float = 5e-4,
        grad_norm_clip: float = 10.0,
        double_q: bool = True,
        bootstrap_time_limit: bool = False,
    ):
        self.agent, self.mixer = agent, mixer
        self.gamma, self.td_lambda, self.double_q = gamma, td_lambda, double_q
        self.grad_norm_clip, self.bootstrap_time_limit = grad_norm_clip, bootstrap_time_limit
        self.target_agent = copy.deepcopy(agent).requires_grad_(False)
        self.target_mixer = copy.deepcopy(mixer).requires_grad_(False) if mixer else None
        self.parameters = [*agent.parameters(), *(mixer.parameters() if mixer else ())]
        if optimiser == "rmsprop":
            self.optimiser = torch.optim.RMSprop(self.parameters, lr=lr, alpha=0.99, eps=1e-5)
        elif optimiser == "adam":
            self.optimiser = torch.optim.Adam(self.parameters, lr=lr)
        else:
            raise ValueError(f"unknown optimiser {optimiser!r}: choose rmsprop or adam")

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared TD error over the filled steps of the batch (over agents too, for IQL).

        Returns the loss, a scalar to call backward on, and {"q_tot", "target"}: their means over
        the same steps, 0-dim and detached.
        """
        T, B, N = batch.actions.shape
        A = batch.avail_actions.shape[-1]
        assert batch.obs.shape[:3] == (T + 1, B, N), "one more observation than actions"
        assert (batch.filled[:, :-1] >= batch.filled[:, 1:]).all(), "longest episode first"

        # The online network runs once over all T + 1 steps; the last one only selects actions.
        none_yet = batch.actions.new_full((1, B, N), -1)
        last_actions = torch.cat((none_yet, batch.actions))  # (T + 1, B, N)
        inputs = build_inputs(batch.obs, last_actions, A).flatten(1, 2)  # (T + 1, B * N, I)
        rows = [B * N, *(batch.filled.sum(dim=1) * N).tolist()]  # of episodes that reach step t
        agent_qs = self.unroll(self.agent, inputs, rows).unflatten(1, (B, N))  # (T + 1, B, N, A)

        # Q_tot of what was done. For IQL every agent keeps its own column.
        q_tot = agent_qs[:-1].gather(-1, batch.actions.unsqueeze(-1))[..., 0]  # (T, B, N)
        if self.mixer:
            q_tot = self.mixer(q_tot, batch.state[:-1])  # (T, B)

        with torch.no_grad():
            target_qs = self.unroll(self.target_agent, inputs, rows)  # (T + 1, B * N, A)
            target_qs = target_qs[1:].unflatten(1, (B, N))  # (T, B, N, A) at the next step
            selecting_qs = agent_qs[1:] if self.double_q else target_qs
            selecting_qs = selecting_qs.masked_fill(~batch.avail_actions[1:], -torch.inf)
            next_actions = selecting_qs.argmax(dim=-1, keepdim=True)  # (T, B, N, 1)
            next_q_tot = target_qs.gather(-1, next_actions)[..., 0]  # (T, B, N)
            if self.target_mixer:
                next_q_tot = self.target_mixer(next_q_tot, batch.state[1:])  # (T, B)
            target = self.targets(batch, next_q_tot)

        assert q_tot.shape == target.shape == ((T, B) if self.mixer else (T, B, N))
        filled = _per_column(batch.filled, q_tot)
        n_filled = filled.sum()
        # where, not a product with the mask: padding may hold anything, and inf * 0 is not 0.
        loss = torch.where(filled, q_tot - target, 0.0).square().sum() / n_filled
        with torch.no_grad():
            stats = {
                name: torch.where(filled, value, 0.0).sum() / n_filled
                for name, value in (("q_tot", q_tot), ("target", target))
            }
        return loss, stats

    @staticmethod
    def unroll(agent: RNNAgent, inputs: Tensor, rows: list[int]) -> Tensor:
        """agent_qs (T + 1, B * N, A) of inputs (T + 1, B * N, I), whose first rows[t] matter at t.

        A block of steps leaves out the episodes that ended before it began; their values are 0.
        """
        T_plus_1, R, _ = inputs.shape
        # A GPU would rather have all steps in one call.
        block = BLOCK if inputs.device.type == "cpu" else T_plus_1
        hidden, agent_qs = agent.initial_hidden(R), []
        for t in range(0, T_plus_1, block):
            qs, hidden = agent(inputs[t : t + block, : rows[t]], hidden[: rows[t]])
            agent_qs.append(F.pad(qs, (0, 0, 0, R - rows[t])))  # (block, rows, A) -> (block, R, A)
        return torch.cat(agent_qs)

    def targets(self, batch: Batch, next_q_tot: Tensor) -> Tensor:
        """The lambda-returns y(t) = r(t) + gamma * ((1 - lambda) * Q'(t + 1) + lambda * y(t + 1)).

        next_q_tot (T, B), or (T, B, N) for IQL: target values one step later -> the same shape.
        At the end of an episode Q' and y count as 0 or, where the time limit is bootstrapped
        through, there is no y(t + 1) and Q' takes all the weight, as it does with lambda = 0.
        """
        ended = batch.terminated
        if not self.bootstrap_time_limit:
            ended = ended | batch.truncated
        discount = self.gamma * (~_per_column(ended, next_q_tot)).type_as(next_q_tot)
        reward = _per_column(batch.reward, next_q_tot)
        if self.td_lambda == 0:
            return reward + discount * next_q_tot
        goes_on = torch.zeros_like(next_q_tot)  # 1 where a filled step follows
        goes_on[:-1] = _per_column(batch.filled, next_q_tot)[1:]
        lambda_ = self.td_lambda * goes_on
        one_step = reward + discount * (1 - lambda_) * next_q_tot
        decay = discount * lambda_
        target = one_step.clone()
        for t in range(len(target) - 2, -1, -1):
            target[t].addcmul_(decay[t], target[t + 1])
        return target

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step. Returns loss, grad_norm (before clipping), q_tot and target, 0-dim:
        reading them waits for the device, so do that only when logging."""
        loss, stats = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_norm_clip)
        self.optimiser.step()
        return {"loss": loss.detach(), "grad_norm": grad_norm, **stats}

    def sync_target(self) -> None:
        """Copy the online weights into the target network."""
        self.target_agent.load_state_dict(self.agent.state_dict())
        if self.mixer:
            self.target_mixer.load_state_dict(self.mixer.state_dict())

    def _parts(self) -> dict:
        parts = {"agent": self.agent, "target_agent": self.target_agent}
        if self.mixer:
            parts |= {"mixer": self.mixer, "target_mixer": self.target_mixer}
        return parts | {"optimiser": self.optimiser}

    def state_dict(self) -> dict:
        """Weights, target weights and the optimiser's memory: all that learning goes on from."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def _per_column(x: Tensor, like: Tensor) -> Tensor:
    """x (T, B) as the shape of `like`: (T, B), or (T, B, N) with every agent's column the same."""
    return x.expand_as(like) if like.dim() == 2 else x.unsqueeze(-1).expand_as(like)
