"""StarCraft battles on the vector contract of SMAC: a simulator, and the real game.

SMAC: https://arxiv.org/abs/1902.04043. This folder needs nothing outside it but numpy and numba
(the simulator) or SMAC (the game): copy it into another project as it is. See its README.md.

    from starcraft.simulator import BattleSim, StarCraft2Env     # StarCraft2Env: drop-in for smac's
    from starcraft.sc2 import SMACWorkers                        # the real game, without numba
"""

from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """What one step of E environments returned."""

    reward: np.ndarray  # (E,) float32
    terminated: np.ndarray  # (E,) bool: won, lost or drawn
    truncated: np.ndarray  # (E,) bool: stopped by the time limit
    battle_won: np.ndarray  # (E,) bool
    aborted: np.ndarray  # (E,) bool: the game broke, drop the episode; never in the simulator
