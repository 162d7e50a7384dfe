"""Q-learning with a mixed value: the loss of QMIX, VDN and IQL, their target network and optimiser.

QMIX (https://arxiv.org/abs/1803.11485), equation 6: (Q_tot(t) - y(t))^2 with
y(t) = r(t) + gamma * Q_tot'(t + 1) at the greedy actions, where Q_tot' is the target network. The
loss is the mean over all steps, as in PyMARL; the paper has the sum. The greedy actions are the
online network's (double Q-learning, as in PyMARL); with td_lambda > 0, y is the lambda-return of
those one-step targets.

Not a script. See it at work: python train.py --map 2s3z

Shapes: B episodes in a batch, P observations and F steps in them (buffer.py draws how they lie),
        N agents, A actions, S state, I agent input.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from agent import RNNAgent, build_inputs
from buffer import Batch

OPTIMISERS = {
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.99, eps=1e-5, foreach=True),  # eps: PyMARL's
}


class QLearner:
    """Learns the weights of `agent` and `mixer` in place, from batches of whole episodes.

    mixer: None for independent Q-learning, each agent's own TD error on the team's reward.
    gamma: discount per step. td_lambda: 0 = one-step targets, 1 = returns to the episode's end.
    optimiser: a key of OPTIMISERS. lr: its learning rate, which may be changed between updates.
    grad_norm_clip: largest norm of the gradient of all weights together.
    double_q: the online network chooses the next action that the target network values.
    bootstrap_time_limit: go on to the value of the last observation when the time limit cut the
    episode; by default its end counts as terminal, as in SMAC.
    average_rate: how far `average`, the agent that tests play, goes towards the agent's weights
    after each gradient step: their exponential moving average. Learning never sees it. 1, as in
    the paper: all the way, so it equals the agent.
    Raises ValueError for an optimiser it does not know.
    """

    def __init__(
        self,
        agent: RNNAgent,
        mixer: nn.Module | None,
        *,
        gamma: float = 0.99,
        td_lambda: float = 0.0,
        optimiser: str = "rmsprop",
        lr: float = 5e-4,
        grad_norm_clip: float = 10.0,
        double_q: bool = True,
        bootstrap_time_limit: bool = False,
        average_rate: float = 1.0,
    ):
        if optimiser not in OPTIMISERS:
            raise ValueError(f"unknown optimiser {optimiser!r}: choose {' or '.join(OPTIMISERS)}")
        self.agent, self.mixer = agent, mixer
        self.gamma, self.td_lambda, self.double_q = gamma, td_lambda, double_q
        self.lr, self.grad_norm_clip, self.average_rate = lr, grad_norm_clip, average_rate
        self.bootstrap_time_limit = bootstrap_time_limit
        # On a GPU, .to lays the weights of the copied GRU in one piece again, as cuDNN wants them.
        device = next(agent.parameters()).device
        self.target_agent = copy.deepcopy(agent).requires_grad_(False).eval().to(device)
        self.target_mixer = copy.deepcopy(mixer).requires_grad_(False).eval() if mixer else None
        self.average = copy.deepcopy(self.target_agent).to(device)
        self.parameters = [*agent.parameters(), *(mixer.parameters() if mixer else ())]
        self.optimiser = OPTIMISERS[optimiser](self.parameters, lr=lr)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared TD error over all steps of the batch (over agents too, for IQL).

        Returns the loss, a scalar to call backward on, and statistics for metrics.csv and
        TensorBoard under new names: means over the same steps, finite, 0-dim and detached. With
        several threads each of them calls this for its part of the batch (extras/threads.py).
        """
        B, F, N = batch.sizes[0], *batch.actions.shape
        inputs = build_inputs(batch.obs, batch.last_actions, batch.avail_actions.shape[-1])
        agent_qs = self.agent.unroll(inputs, batch.sizes)  # (P, N, A)
        # Step f acted on row acted[f] and led to row B + f.
        q_tot = at(agent_qs[batch.acted], batch.actions)  # (F, N) of what was done
        if self.mixer:
            q_tot = self.mixer(q_tot, batch.state[batch.acted])  # (F,)

        with torch.no_grad():
            target_qs = self.target_agent.unroll(inputs, batch.sizes)[B:]  # (F, N, A)
            next_qs = agent_qs[B:] if self.double_q else target_qs
            best = next_qs.masked_fill(~batch.avail_actions[B:], -torch.inf).argmax(dim=-1)
            next_q_tot = at(target_qs, best)  # (F, N)
            if self.mixer:
                next_q_tot = self.target_mixer(next_q_tot, batch.state[B:])  # (F,)
            target = self.lambda_returns(batch, next_q_tot)

        assert q_tot.shape == target.shape == ((F,) if self.mixer else (F, N))
        loss = (q_tot - target).square().mean()
        return loss, {"q_tot": q_tot.detach().mean(), "target": target.mean()}

    def lambda_returns(self, batch: Batch, next_q_tot: Tensor) -> Tensor:
        """y(t) = r(t) + gamma * ((1 - lambda) * Q'(t + 1) + lambda * y(t + 1)) for every step.

        next_q_tot (F,), or (F, N) for IQL: target values one step later -> the same shape. After
        an episode's last step nothing comes: y(t) = r(t). Only where the time limit cut it, and is
        bootstrapped through, y(t) = r(t) + gamma * Q'(t + 1).
        """
        last = batch.terminated | batch.truncated
        ended = batch.terminated if self.bootstrap_time_limit else last
        shape = (-1,) + (1,) * (next_q_tot.dim() - 1)  # (F,) or, for IQL, (F, 1)
        reward, last, ended = (x.to(next_q_tot).view(shape) for x in (batch.reward, last, ended))
        discount, lambda_ = self.gamma * (1 - ended), self.td_lambda * (1 - last)
        y, decay = reward + discount * (1 - lambda_) * next_q_tot, discount * lambda_
        # From the last step to the first. Episodes lie longest first, so that those that go on to
        # step t + 1 are the first ones of step t, in the same order.
        ys, decays = y.split(batch.sizes[1:]), decay.split(batch.sizes[1:])  # views, one per step
        for t in reversed(range(len(ys) - 1)):
            n = len(ys[t + 1])
            ys[t][:n] += decays[t][:n] * ys[t + 1]
        return y

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step. Returns the loss, its statistics and grad_norm (before clipping),
        0-dim: reading them waits for the device, so do that only when logging."""
        self.agent.train()
        loss, stats = self.loss(batch)
        self.agent.eval()
        self.optimiser.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_norm_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        self.optimiser.step()
        weights = self.average.state_dict().values(), self.agent.state_dict().values()
        for mean, new in zip(*weights, strict=True):
            # Integers are counters, as normalisations have them: copied, not averaged.
            mean.copy_(mean.lerp(new, self.average_rate) if new.is_floating_point() else new)
        return dict(loss=loss.detach(), grad_norm=grad_norm, **stats)  # a name twice: TypeError

    def sync_target(self) -> None:
        """Copy the online weights into the target network."""
        self.target_agent.load_state_dict(self.agent.state_dict())
        if self.mixer:
            self.target_mixer.load_state_dict(self.mixer.state_dict())

    def parts(self) -> dict:
        """What a resumed run needs: networks, their copies, the optimiser; any object with
        state_dict() and load_state_dict() whose shapes stay the same. What is not named here is
        not saved; what is not in self.parameters is not learned."""
        names = ("agent", "mixer", "target_agent", "target_mixer", "average", "optimiser")
        return {name: part for name in names if (part := getattr(self, name))}

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def at(agent_qs: Tensor, actions: Tensor) -> Tensor:
    """Each agent's value of its action: (F, N, A) at (F, N) -> (F, N)."""
    return agent_qs.gather(-1, actions.unsqueeze(-1))[..., 0]  # (F, N, 1) -> (F, N)
