"""StarCraft II on several machines: SMACWorkers in Ray actors, behind the same vector contract.

SMAC: https://arxiv.org/abs/1902.04043. Not a script; every machine of the cluster needs the game
(see README.md) and Ray (see cluster.py):

    python train.py --env sc2 --env-args ray=auto --n-envs 64

Shapes: E games, G games of one actor, N agents, A actions, O observation, S state.
"""

import platform
import sys
from pathlib import Path

import numpy as np

from .cluster import connect, packed, travels, unpacked
from .sc2 import (
    PROVEN,
    START_PATIENCE,
    TRIES,
    GameUnavailable,
    check,
    check_timeout,
    make_arrays,
)

ANY = -1  # instead of an action: one that is available
SOURCES = "starcraft/*.py", "starcraft/*.json"  # what a machine needs of this project
GRACE = 60.0  # seconds that Ray may need beyond what the games need
CLOSING = 10.0  # seconds in which games must have been closed before they are killed


class Machine:
    """A Ray actor: SMACWorkers on the machine that Ray chose.

    Every method answers (what was asked for, (obs, state, avail_actions), starts); starts: the most
    that one of its games has been started.
    """

    def __init__(self, sources):
        sys.path.insert(0, str(unpacked(sources)))

    def start(self, map_name, n_envs, seed, timeout, make_game, stride):
        """Start the games. Raises GameUnavailable, which names this machine."""
        from starcraft.sc2 import GameUnavailable, SMACWorkers, sc2_problem

        problem = sc2_problem(map_name) if make_game is None else None
        if problem:
            raise GameUnavailable(f"StarCraft II cannot be played on {platform.node()}: {problem}")
        self.env = SMACWorkers(map_name, n_envs, seed, timeout, make_game, stride)
        names = ("n_agents", "n_actions", "obs_dim", "state_dim", "episode_limit", "version")
        return self.answer({name: getattr(self.env, name) for name in names})

    def answer(self, what):
        env, starts = self.env, max(game.starts for game in self.env.games)
        return what, (env.obs, env.state, env.avail_actions), starts

    def reset(self, mask):
        self.env.reset(mask)
        return self.answer(None)

    def step(self, actions):
        """actions (G, N); a row of ANY: nobody will use what comes of that episode."""
        available = self.env.avail_actions.argmax(-1)  # (G, N)
        return self.answer(tuple(self.env.step(np.where(actions == ANY, available, actions))))

    def close(self):
        self.env.close()


class Host:
    """An actor and its part of the E games, seen from the trainer."""

    def __init__(self, first, end):
        self.part = slice(first, end)
        self.actor = self.starting = None  # starting: what Machine.start will answer
        self.spent = self.starts = 0  # starts of a game in actors before this one, and in this one
        self.steps = self.failures = 0  # failures: actors in a row that came to nothing


class RaySMAC:
    """E games of StarCraft II on the vector contract, `games` of them to an actor with as many
    cores. What breaks a game is dealt with where it runs, by SMACWorkers. A machine that dies, or
    an actor that does not answer, ends its episodes as `aborted`; another actor is started at once,
    wherever there is room, with other seeds, and reset() of those environments waits for it.

    Args:
        n_envs: games side by side; None: as many as the cluster has cores for.
        timeout: seconds; a game that answers no request for so long is restarted.
        address: of the Ray cluster; "auto": the one of this machine.
        make_game: see SMACWorkers; every machine must be able to import it.

    Raises:
        ValueError: no cluster, or too small a one; in step, what SMACWorkers raises there.
        GameUnavailable: what SMACWorkers raises, on any machine; here, in step and in reset, when
            TRIES actors in a row were lost within PROVEN steps.
    """

    name = "sc2"
    tests_play_here = True

    def __init__(
        self, map_name, n_envs=None, seed=0, timeout=60.0, address="auto", games=2, make_game=None
    ):
        check_timeout(timeout)
        if not (isinstance(games, int) and games > 0):
            raise ValueError(f"games must be 1 or more to an actor, not {games}")
        self.ray = connect(str(address))
        travels(__name__)
        games = min(games, n_envs or games)
        room = sum(int(node["Resources"].get("CPU", 0)) // games * games for node in self.nodes())
        if not 0 < (n_envs or room) <= room:
            raise ValueError(
                f"the Ray cluster has cores for {room} games, {games} to an actor: choose --n-envs"
                " accordingly, or add machines"
            )
        n_envs = n_envs or room
        self.map_name, self.n_envs, self.seed, self.timeout = map_name, n_envs, seed, timeout
        self.make_game, self.restarts, self.last_fault = make_game, 0, ""
        self.sources = self.ray.put(packed(Path(__file__).parents[1], *SOURCES))
        firsts = range(0, self.n_envs, games)
        self.hosts = [Host(i, min(i + games, self.n_envs)) for i in firsts]
        self.playing = np.zeros(self.n_envs, bool)  # (E,) an episode that can be stepped
        self.lost = np.zeros(self.n_envs, bool)  # (E,) of those, the ones whose actor is gone
        try:
            for host in self.hosts:
                self._start(host)
            self.reset()
        except BaseException:
            self.close()
            raise

    def nodes(self):
        return [node for node in self.ray.nodes() if node["Alive"]]

    def reset(self, mask=None):
        """Begin new episodes where mask (E,) is True, None: all. Waits for actors that start."""
        who = np.ones(self.n_envs, bool) if mask is None else np.asarray(mask)
        there = [host for host in self.hosts if who[host.part].any()]
        asked = {
            host.actor.reset.remote(who[host.part]): host for host in there if not host.starting
        }
        for host, _, seen in self._answers(asked):
            self._show(host, who[host.part], seen)
        for host, seen in self._await_started(there):
            self._show(host, who[host.part], seen)
        self.playing[who], self.lost[who] = True, False

    def step(self, actions):
        """One step in all games at once."""
        actions = np.asarray(actions)
        check(actions, self.avail_actions, self.playing)
        rows = np.where(self.lost[:, None], ANY, actions)  # (E, N)
        asked = {host.actor.step.remote(rows[host.part]): host for host in self.hosts}
        for array in self._step[:-1]:
            array[:] = 0
        aborted = self._step.aborted
        aborted[:] = True
        for host, result, seen in self._answers(asked):
            for array, part in zip(self._step, result, strict=True):
                array[host.part] = part
            self._show(host, slice(None), seen)
            host.steps += 1
        aborted |= self.lost
        for array in (*self._step[:-1], self.obs, self.state):
            array[aborted] = 0
        self.avail_actions[aborted] = True  # no row may be empty
        self.lost[:] = False
        self.playing = ~(self._step.terminated | self._step.truncated | aborted)
        return self._step

    def close(self):
        """End all actors and their games. If it is never called, they end with this program."""
        actors = [host.actor for host in self.hosts if host.actor]
        if actors:
            closed = [actor.close.remote() for actor in actors]
            self.ray.wait(closed, num_returns=len(closed), timeout=CLOSING)
        for actor in actors:
            self.ray.kill(actor)

    def _show(self, host, rows, seen):
        for array, part in zip((self.obs, self.state, self.avail_actions), seen, strict=True):
            array[host.part][rows] = part[rows]

    def _await_started(self, hosts):
        """Until each has an actor whose games run. Returns [(host, what they show)] of new ones."""
        new = []
        while asked := {host.starting: host for host in hosts if host.starting}:
            for host, about, seen in self._answers(asked):
                host.starting = None
                if not hasattr(self, "obs"):
                    vars(self).update(about)
                    make_arrays(self)
                new.append((host, seen))
        return new

    def _answers(self, asked):
        """Yield (host, what it was asked for, what its games show); asked: {reference: host}. Those
        that are gone or silent are left out, and started anew."""
        if not asked:
            return
        patience = START_PATIENCE * self.timeout + GRACE
        ready, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=patience)
        for reference in ready:
            host = asked[reference]
            try:
                what, seen, host.starts = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:  # of SMACWorkers
                if isinstance(error.cause, GameUnavailable):
                    raise GameUnavailable(str(error.cause)) from None
                raise
            except self.ray.exceptions.RayError as error:
                self._restart(host, f"it is gone: {type(error).__name__}")
            else:
                yield host, what, seen
        for reference in silent:
            self._restart(asked[reference], "no answer in time")

    def _restart(self, host, fault):
        self.ray.kill(host.actor)
        where = f"actor of games {host.part.start} to {host.part.stop - 1}"
        self.restarts, self.last_fault = self.restarts + 1, f"{where}: {fault}"
        self.lost[host.part] |= self.playing[host.part]
        host.failures = 0 if host.steps >= PROVEN else host.failures + 1
        if host.failures >= TRIES:
            raise GameUnavailable(
                f"{TRIES} Ray actors in a row were lost within {PROVEN} steps; the last time,"
                f" {self.last_fault}"
            )
        # no seed twice, not even of starts that were not heard of
        host.spent += host.starts + TRIES
        host.starts = host.steps = 0
        self._start(host)

    def _start(self, host):
        n_envs, E = host.part.stop - host.part.start, self.n_envs
        seed = self.seed + host.part.start + E * host.spent
        host.actor = self.ray.remote(Machine).options(num_cpus=n_envs).remote(self.sources)
        job = self.map_name, n_envs, seed, self.timeout, self.make_game, E
        host.starting = host.actor.start.remote(*job)
