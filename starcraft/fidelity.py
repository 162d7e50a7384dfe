import numpy as np

from .maps import AUTO
from .simulator import BattleSim


def mirrored_share(name, battles, seed=0):
    """The allies' share of decided battles in which both sides are the built-in enemy, and the
    allies stand where the enemies do, turned by 180 degrees about the middle of the map."""
    sim = BattleSim(name, battles, seed)
    N = sim.n_agents
    own, other = sim.units[:, :N], sim.units[:, N:]
    assert (np.sort(own["kind"]) == np.sort(other["kind"])).all(), f"{name}: the sides differ"
    own[:] = other
    own["side"], own["order"] = 0, AUTO
    for axis, span in zip("xy", sim.world["walkable"].shape, strict=True):
        for field in (axis, f"goal_{axis}"):
            own[field] = span - other[field]
        own[f"heading_{axis}"] = -other[f"heading_{axis}"]
    fighting, won, lost = np.ones(battles, bool), 0, 0
    while fighting.any():
        dead = sim.units["health"][:, :N] <= 0
        sim.avail_actions[:, :, :2] = np.stack((dead, ~dead), -1)  # N: as units stood before
        step = sim.step(np.where(dead, 0, 1))
        over = step.terminated | step.truncated
        won += (step.battle_won & fighting).sum()
        drawn = (sim.units["health"] <= 0).all(1) | step.truncated
        lost += (over & ~step.battle_won & ~drawn & fighting).sum()
        fighting &= ~over
        sim.reset(over)
    return won / (won + lost), won + lost
