"""Q-learning with a mixed value: the loss of QMIX, VDN and IQL, their target network and optimiser.

QMIX (https://arxiv.org/abs/1803.11485), equation 6: the mean over filled steps of
(Q_tot(t) - y(t))^2, where y(t) = r(t) + gamma * Q_tot'(t + 1) at the greedy actions and Q_tot' is
the target network. The greedy actions are the online network's (double Q-learning, as in PyMARL);
with td_lambda > 0, y is the lambda-return of those one-step targets.

Not a script. See it at work: python train.py --map 2s3z

Shapes: T time, B batch, N agents, A actions, S state, I agent input, F filled steps in a batch,
        P = F + B observations in it.
"""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor, nn

from agent import RNNAgent, build_inputs
from buffer import Batch
from mixer import Mixer


class QLearner:
    """Learns the weights of `agent` and `mixer` in place, from batches of whole episodes.

    mixer: None for independent Q-learning, each agent's own TD error on the team's reward.
    gamma: discount per step. td_lambda: 0 = one-step targets, 1 = returns to the episode's end.
    optimiser: "rmsprop" (alpha 0.99 as in the paper, eps 1e-5 as in PyMARL) or "adam".
    lr: its learning rate, which may be changed between updates.
    grad_norm_clip: largest norm of the gradient of all weights together.
    double_q: the online network chooses the next action that the target network values.
    bootstrap_time_limit: go on to the value of the last observation when the time limit cut the
    episode; by default its end counts as terminal, as in SMAC.
    threads: so many parts of a batch are worked on at once, each by a thread with one core. These
    matrices are too small to divide each of them between cores, which is what torch does itself.
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
        threads: int = 1,
    ):
        self.agent, self.mixer = agent, mixer
        self.gamma, self.td_lambda, self.double_q = gamma, td_lambda, double_q
        self.grad_norm_clip, self.bootstrap_time_limit = grad_norm_clip, bootstrap_time_limit
        # .to lays the weights of a copied GRU in one piece again: cuDNN warns and copies otherwise.
        device = next(agent.parameters()).device
        self.target_agent = copy.deepcopy(agent).requires_grad_(False).to(device)
        self.target_mixer = copy.deepcopy(mixer).requires_grad_(False) if mixer else None
        self.parameters = [*agent.parameters(), *(mixer.parameters() if mixer else ())]
        if optimiser not in ("rmsprop", "adam"):
            raise ValueError(f"unknown optimiser {optimiser!r}: choose rmsprop or adam")
        self.optimiser_name, self.lr = optimiser, lr
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Made when it is first needed: torch then imports its compiler, which takes a second."""
        if self.optimiser_name == "rmsprop":
            return torch.optim.RMSprop(
                self.parameters, lr=self.lr, alpha=0.99, eps=1e-5, foreach=True
            )
        return torch.optim.Adam(self.parameters, lr=self.lr, fused=True)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared TD error over the filled steps of the batch (over agents too, for IQL).

        Returns the loss, a scalar to call backward on, and {"q_tot", "target"}: their means over
        the same steps, 0-dim and detached.
        """
        T, B, N = batch.actions.shape
        A = batch.avail_actions.shape[-1]
        assert batch.obs.shape[:3] == (T + 1, B, N), "one more observation than actions"
        assert (batch.filled[:, :-1] >= batch.filled[:, 1:]).all(), "longest episode first"
        none = torch.zeros_like(batch.filled[:1])
        real = torch.cat((~none, batch.filled))  # (T + 1, B): also after an episode's last step
        acted = torch.cat((batch.filled, none))[real].nonzero(as_tuple=True)[0]  # (F,) of those P
        sizes = [N * size for size in real.sum(dim=1).tolist()]  # rows of agents at each step
        # Padding is left out of all that follows: x[seen] is (P, ...), x[step] is (F, ...).
        seen, step = real.nonzero(as_tuple=True), batch.filled.nonzero(as_tuple=True)

        # Both networks run once over all that was seen: for values and to choose the next actions.
        # What follows the steps in `acted` is all but the first B, in the same order.
        last_actions = torch.cat((batch.actions.new_full((1, B, N), -1), batch.actions))
        inputs = build_inputs(batch.obs[seen], last_actions[seen], A)  # (P, N, I)
        inputs = inputs.flatten(0, 1)  # (P, N, I) -> (P * N, I)
        agent_qs = self.agent.unroll(inputs, sizes).unflatten(0, (-1, N))  # (P * N, A) -> (P, N, A)
        state = batch.state[seen]  # (P, S)

        # Q_tot of what was done. For IQL every agent keeps its own column.
        actions = batch.actions[step].unsqueeze(-1)  # (F, N, 1)
        q_tot = agent_qs[acted].gather(-1, actions)[..., 0]  # (F, N)
        if self.mixer:
            q_tot = self.mixer(q_tot, state[acted])  # (F,)

        with torch.no_grad():
            target_qs = self.target_agent.unroll(inputs, sizes).view_as(agent_qs)[B:]  # (F, N, A)
            selecting_qs = agent_qs[B:] if self.double_q else target_qs
            unavailable = ~batch.avail_actions[1:][step]  # (F, N, A)
            selecting_qs = selecting_qs.masked_fill(unavailable, -torch.inf)
            next_actions = selecting_qs.argmax(dim=-1, keepdim=True)  # (F, N, 1)
            next_q_tot = target_qs.gather(-1, next_actions)[..., 0]  # (F, N)
            if self.target_mixer:
                next_q_tot = self.target_mixer(next_q_tot, state[B:])  # (F,)
            # Returns run along time: back to (T, B) and, once they are there, to (F,) again.
            padded = next_q_tot.new_zeros(T, B, *next_q_tot.shape[1:])
            padded[step] = next_q_tot
            target = self.targets(batch, padded)[step]

        assert q_tot.shape == target.shape == (acted.shape if self.mixer else (len(acted), N))
        loss = (q_tot - target).square().mean()
        return loss, {"q_tot": q_tot.detach().mean(), "target": target.mean()}

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
        parts = split(batch, self.threads) if self.threads > 1 else [batch]
        at_once = self.pool.map if len(parts) > 1 else map
        steps = batch.filled.sum()
        stats, gradients = zip(*at_once(lambda p: self.gradients(p, steps), parts), strict=True)
        stats = {name: sum(part[name] for part in stats) for name in stats[0]}
        for parameter, *of_parts in zip(self.parameters, *gradients, strict=True):
            parameter.grad = sum(of_parts)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_norm_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        self.optimiser.step()
        return stats | {"grad_norm": grad_norm}

    def gradients(self, part: Batch, steps: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """What a part of a batch adds to loss, q_tot and target, and to the gradient of the loss
        for each of self.parameters, where all parts together have `steps` steps."""
        loss, stats = self.loss(part)
        share = part.filled.sum().type_as(loss) / steps
        gradients = torch.autograd.grad(share * loss, self.parameters)
        stats = {"loss": loss.detach(), **stats}
        return {name: share * mean for name, mean in stats.items()}, gradients

    def sync_target(self) -> None:
        """Copy the online weights into the target network."""
        self.target_agent.load_state_dict(self.agent.state_dict())
        if self.mixer:
            self.target_mixer.load_state_dict(self.mixer.state_dict())

    def _networks(self) -> tuple[str, ...]:
        return ("agent", "target_agent") + (("mixer", "target_mixer") if self.mixer else ())

    def state_dict(self) -> dict:
        """Weights, target weights and the optimiser's memory: all that learning goes on from."""
        names = self._networks() + (("optimiser",) if "optimiser" in vars(self) else ())
        return {name: getattr(self, name).state_dict() for name in names}

    def load_state_dict(self, state: dict) -> None:
        for name in self._networks() + (("optimiser",) if "optimiser" in state else ()):
            getattr(self, name).load_state_dict(state[name])


def _per_column(x: Tensor, like: Tensor) -> Tensor:
    """x (T, B) as the shape of `like`: (T, B), or (T, B, N) with every agent's column the same."""
    return x.expand_as(like) if like.dim() == 2 else x.unsqueeze(-1).expand_as(like)


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch as at most `parts` batches of about equally many steps, without copying: few long
    episodes in the first, many short ones in the last, each cut to its own longest."""
    lengths = batch.filled.sum(dim=0)  # (B,), the longest first
    steps = lengths.cumsum(0)
    shares = steps[-1] * torch.arange(1, parts, device=steps.device) / parts
    cuts = torch.searchsorted(steps, shares) + 1  # the episodes up to which a share is full
    ends = sorted({0, *cuts.tolist(), len(lengths)})
    lengths = lengths.tolist()
    return [
        Batch(*(x[: lengths[first] + len(x) - lengths[0], first:end] for x in batch))
        for first, end in itertools.pairwise(ends)
    ]
