"""StarCraft II on several machines: SMACWorkers in Ray actors, behind the same vector contract.

SMAC: https://arxiv.org/abs/1902.04043. Not a script; every machine of the cluster needs the game
(see README.md) and Ray (see cluster.py):

    python train.py --env sc2 --env-args ray=auto --n-envs 64

Shapes: E games, G games of one actor, N agents, A actions, O observation, S state.
"""

import contextlib
import hmac
import multiprocessing.connection
import pickle
import platform
import secrets
import socket
import sys
import time
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
SHORT = 10.0  # seconds for what takes no time if nothing is wrong
LOOK = 2.0  # seconds of silence until Ray is asked whether an actor is gone


class Line:
    """One end of a connection between two machines, for whatever can be pickled. Raises OSError or
    EOFError when it breaks. Unpickling can run anything: `Machine.play` listens only to whoever
    sends its key first, and the network between is trusted, as Ray trusts it.
    """

    def __init__(self, connected):
        self.socket, self.file = connected, connected.makefile("rb")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self):
        return self.socket.fileno()

    def send(self, message):
        self.socket.sendall(pickle.dumps(message))

    def receive(self):
        try:
            return pickle.load(self.file)
        except pickle.UnpicklingError as error:  # cut short
            raise EOFError from error

    def close(self):
        self.file.close()
        self.socket.close()


class Machine:
    """A Ray actor: SMACWorkers on the machine that Ray chose. Ray starts this process and tells
    when it has died. What the games are asked goes over a Line instead, because a call through Ray
    takes as much work as a step of a game.

    start, reset and step answer (what was asked for, (obs, state, avail_actions), starts); starts:
    the most that one of its games has been started.
    """

    def __init__(self, sources):
        sys.path.insert(0, str(unpacked(sources)))

    def start(self, map_name, n_envs, seed, timeout, make_game, stride):
        """Start the games. Raises GameUnavailable, which names this machine."""
        from ray.util import get_node_ip_address

        from starcraft.sc2 import GameUnavailable, SMACWorkers, sc2_problem

        problem = sc2_problem(map_name) if make_game is None else None
        if problem:
            raise GameUnavailable(f"StarCraft II cannot be played on {platform.node()}: {problem}")
        self.env = SMACWorkers(map_name, n_envs, seed, timeout, make_game, stride)
        names = ("n_agents", "n_actions", "obs_dim", "state_dim", "episode_limit", "version")
        about = {name: getattr(self.env, name) for name in names}
        node = get_node_ip_address()
        # the address by which others know this machine need not be its own
        self.server = socket.create_server((node if node.startswith("127.") else "", 0))
        return self.answer((about, (node, self.server.getsockname()[1])))

    def play(self, key):
        """Serve the first connection that begins with `key`, until it closes. What SMACWorkers
        raises ends this call, so that the trainer hears of it from Ray."""
        while True:
            trainer = Line(self.server.accept()[0])
            trainer.socket.settimeout(SHORT)
            with contextlib.suppress(OSError):
                # unpickling what a stranger sends could do anything
                if hmac.compare_digest(trainer.file.read(len(key)), key):
                    break
            trainer.close()
        self.server.close()
        trainer.socket.settimeout(None)
        with contextlib.closing(trainer):
            while True:
                try:
                    method, argument = trainer.receive()
                except (OSError, EOFError):
                    return
                answer = getattr(self, method)(argument)
                with contextlib.suppress(OSError):  # receive() will fail as well
                    trainer.send(answer)

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
        self.line = self.ending = None  # ending: how Machine.play will end
        self.spent = self.starts = 0  # starts of a game in actors before this one, and in this one
        self.steps = self.failures = 0  # failures: actors in a row that came to nothing
        self.unread = False  # asked, and its answer was not read


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
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(int(node.get("CPU", 0)) // games * games for node in nodes)
        if not 0 < (n_envs or room) <= room:
            raise ValueError(
                f"the Ray cluster has cores for {room} games, {games} to an actor: choose --n-envs"
                " accordingly, or add machines"
            )
        n_envs = n_envs or room
        self.map_name, self.n_envs, self.seed, self.timeout = map_name, n_envs, seed, timeout
        self.patience = START_PATIENCE * timeout + GRACE
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

    def reset(self, mask=None):
        """Begin new episodes where mask (E,) is True, None: all. Waits for actors that start."""
        who = np.ones(self.n_envs, bool) if mask is None else np.asarray(mask)
        there = [host for host in self.hosts if who[host.part].any()]
        asked = {host: who[host.part] for host in there if host.line}
        for host, _, seen in self._answers("reset", asked):
            self._show(host, who[host.part], seen)
        for host, seen in self._await_started(there):
            self._show(host, who[host.part], seen)
        self.playing[who], self.lost[who] = True, False

    def step(self, actions):
        """One step in all games at once."""
        actions = np.asarray(actions)
        check(actions, self.avail_actions, self.playing)
        self.playing[:] = False  # until all have answered: Ctrl-C may end this
        rows = np.where(self.lost[:, None], ANY, actions)  # (E, N)
        asked = {host: rows[host.part] for host in self.hosts}
        for array in self._step[:-1]:
            array[:] = 0
        aborted = self._step.aborted
        aborted[:] = True
        for host, result, seen in self._answers("step", asked):
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
        for host in self.hosts:
            self._hang_up(host)
        if actors:
            closed = [actor.close.remote() for actor in actors]
            self.ray.wait(closed, num_returns=len(closed), timeout=SHORT)
        for actor in actors:
            self.ray.kill(actor)

    def _show(self, host, rows, seen):
        for array, part in zip((self.obs, self.state, self.avail_actions), seen, strict=True):
            array[host.part][rows] = part[rows]

    def _await_started(self, hosts):
        """Until each has an actor whose games run. Returns [(host, what they show)] of new ones."""
        new = []
        while starting := {host.starting: host for host in hosts if host.starting}:
            ready, silent = self.ray.wait(
                list(starting), num_returns=len(starting), timeout=self.patience
            )
            for host in map(starting.get, ready):
                if answer := self._outcome(host, host.starting):
                    (about, address), seen, host.starts = answer
                    if not hasattr(self, "obs"):
                        vars(self).update(about)
                        make_arrays(self)
                    if self._call(host, address):
                        new.append((host, seen))
            for host in map(starting.get, silent):
                self._restart(host, "no answer in time")
        return new

    def _call(self, host, address):
        """Begin to talk to an actor whose games run; False: it cannot be reached."""
        key = secrets.token_bytes(32)
        host.starting, host.ending = None, host.actor.play.remote(key)
        try:
            # SHORT is also the limit for the rest of an answer that has begun
            host.line = Line(socket.create_connection(address, SHORT))
            host.line.socket.sendall(key)
        except OSError as error:
            node, port = address
            self._restart(host, f"{node}, port {port}, cannot be reached (a firewall?): {error}")
        return host.line is not None

    def _answers(self, method, asked):
        """Ask hosts, {host: argument of the method}, and yield (host, what it was asked for, what
        its games show). Those that are gone or silent are left out, and started anew."""
        # Else what they answered then would be taken for what they answer now.
        for host in [host for host in asked if host.unread]:
            del asked[host]
            self._restart(host, "Ctrl-C while it was asked")
        for host, argument in asked.items():
            host.unread = True
            with contextlib.suppress(OSError):  # receive() will fail as well
                host.line.send((method, argument))
        lines = {host.line: host for host in asked}
        deadline = time.monotonic() + self.patience
        while lines:
            ready = multiprocessing.connection.wait(list(lines), LOOK)
            for host in map(lines.pop, ready):
                try:
                    what, seen, host.starts = host.line.receive()
                except (OSError, EOFError):
                    self._outcome(host, host.ending)
                else:
                    host.unread = False
                    yield host, what, seen
            if not ready:  # the line of a machine without power stays open
                ended = {host.ending: line for line, host in lines.items()}
                for ending in self.ray.wait(list(ended), num_returns=len(ended), timeout=0)[0]:
                    self._outcome(lines.pop(ended[ending]), ending)
                if time.monotonic() > deadline:
                    break
        for host in lines.values():
            self._restart(host, "no answer in time")

    def _outcome(self, host, reference):
        """The answer of a call through Ray, or None: there is none, and the host was restarted."""
        fault = "its connection broke"
        try:
            if answer := self.ray.get(reference, timeout=SHORT):
                return answer
        except self.ray.exceptions.GetTimeoutError:
            pass  # the actor lives, and has not noticed yet
        except self.ray.exceptions.RayTaskError as error:  # of SMACWorkers
            if isinstance(error.cause, GameUnavailable):
                raise GameUnavailable(str(error.cause)) from None
            raise
        except self.ray.exceptions.RayError as error:
            fault = f"it is gone: {type(error).__name__}"
        self._restart(host, fault)

    def _hang_up(self, host):
        if host.line:
            host.line.close()
        host.line, host.unread = None, False

    def _restart(self, host, fault):
        self._hang_up(host)
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
