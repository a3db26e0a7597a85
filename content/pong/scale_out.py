# Made by `make notebooks` from content/scale-out.md: edit that.

import logging
import os
import re
import secrets
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

if not find_spec("ray"):
    raise ImportError("Missing on this page: (uv) pip install ray")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_ADDRESS"):
    # Ray would try the address 20 times, for 40 seconds each.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
else:
    # No cluster: Ray listens at 127.0.0.1, where no other computer can call.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Ray would let players wait for whatever else the computer does.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray would like to draw widgets. This book has none.
warnings.filterwarnings("ignore", message="IProgress not found")
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)


import numpy as np
import ray
from scipy import sparse

import pong
from pong.many_games_at_once import (
    Experience,
    first_scene,
    make_games,
    mirror_order,
    play,
    reset,
)
from pong.ppo_in_numpy import make_rollout, minibatches, update
from pong.train_to_win import (
    Run,
    anneal,
    check_finite,
    figures,
    finish_games,
    generator,
)


def pack(experience):
    """Return an Experience in few bytes, as a dict of arrays."""
    inputs = sparse.vstack([pair[0] for pair in experience.inputs], "csr")
    packed = experience._asdict() | {
        "columns": inputs.indices.astype(np.uint16),  # of what is not zero
        "lengths": np.diff(inputs.indptr).astype(np.uint16),  # in a decision
        "actions": experience.actions.astype(np.uint8),
        "rewards": experience.rewards.astype(np.int8),
    }
    del packed["inputs"]
    return packed


def unpack(packed):
    """Return the Experience that was packed, its inputs in one pair."""
    columns, order = packed["columns"].astype(np.int32), mirror_order()
    starts = np.concatenate([[0], np.cumsum(packed["lengths"], dtype=int)])
    ones = np.ones(len(columns), np.float32)
    inputs = tuple(
        sparse.csr_matrix((ones, c, starts), (len(starts) - 1, len(order)))
        for c in (columns, order[columns])
    )
    rest = {name: packed[name] for name in Experience._fields[1:]}
    rest["actions"] = rest["actions"].astype(int)
    rest["rewards"] = rest["rewards"].astype(np.float32)
    return Experience([inputs], **rest)


def side_by_side(experiences):
    """Return the Experience of several players as that of one."""
    # Players one after the other become decisions one after the other.
    n_steps, n = experiences[0].actions.shape
    order = np.arange(len(experiences) * n_steps * n).reshape(-1, n_steps, n)
    order = order.swapaxes(0, 1).ravel()
    pairs = zip(*(pair for e in experiences for pair in e.inputs))
    inputs = tuple(sparse.vstack(pair, "csr")[order] for pair in pairs)
    columns = zip(*(e[1:] for e in experiences))
    return Experience([inputs], *map(np.hstack, columns))


def free_memory(root="/"):
    """Return the free memory in bytes: infinity if the system doesn't tell."""
    free, system = [np.inf], Path(root)
    with suppress(OSError, IndexError):  # old systems don't say it
        text = (system / "proc/meminfo").read_text()
        available = text.partition("MemAvailable:")[2].split()[0]
        free.append(1024 * float(available))
    # A container, such as Binder's, may have less than its computer.
    with suppress(OSError, ValueError):  # "max" is no limit
        group = system / "sys/fs/cgroup"
        limit = float((group / "memory.max").read_text())
        used = float((group / "memory.current").read_text())
        stat = (group / "memory.stat").read_text()
        cached = re.findall(r"active_file (\d+)", stat)
        free.append(limit - used + sum(map(int, cached)))
    return min(free)


def start_ray(folder, n_cpus, store_bytes, n_attempts=5, **options):
    """Start Ray on this computer, where n_cpus actors may run at a time."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    Path(folder, "rfc3987_syntax.py").write_text("raise ImportError")
    paths = [str(folder), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for attempt in range(1, n_attempts + 1):
        try:
            return ray.init(
                "local",
                num_cpus=n_cpus,
                num_gpus=0,
                object_store_memory=int(store_bytes),
                include_dashboard=False,
                _temp_dir=f"{folder}/{attempt}",
                **options,
            )
        except Exception:
            ray.shutdown()
            if attempt == n_attempts:
                raise


def temporary_folder(parent):
    """Return a TemporaryDirectory; first remove those of dead processes."""
    # On Windows, to ask would be to kill.
    left = Path(parent).glob("ray-pong-*") if os.name == "posix" else ()
    for folder in left:
        try:
            os.kill(int(folder.name.split("-")[2]), 0)  # only asks
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            pass  # alive, and somebody else's; or not of this page
    name = f"ray-pong-{os.getpid()}-"
    return tempfile.TemporaryDirectory("", name, parent, True)


@contextmanager
def ray_running(address=None, n_cpus=3, store_bytes=150e6, needed=1.0e9):
    """Start Ray here for a while, or connect to the cluster of RAY_ADDRESS."""
    options = {"log_to_driver": False, "logging_level": "FATAL"}
    if not address and free_memory() < needed:
        raise MemoryError(
            f"Ray and its players need {needed / 1e9:.1f} GB of free memory. "
            "Close other notebooks, or run this one on a larger computer."
        )
    # The paths of Ray's sockets may have at most 100 characters.
    parent = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
    with temporary_folder(parent) as folder:
        try:
            if address:
                package = {"py_modules": [os.path.dirname(pong.__file__)]}
                ray.init(address, runtime_env=package, **options)
            else:
                start_ray(folder, n_cpus, store_bytes, **options)
            yield
        finally:
            ray.shutdown()


class Player:
    """Some games, and what it takes to play them."""

    def __init__(self, n_games, seed, settings):
        self.games = make_games(n_games, n_groups=1)
        self.seed, self.n_steps = seed, settings["n_steps"]
        self.scenes, self.scores = None, np.zeros(n_games)

    def rollout(self, model, version):
        """Return a packed Experience, returns of ended games, the version."""
        if self.scenes is None:
            # Whoever begins later plays other games. Seeds end at 2e9.
            new = 1_000_000 * (version % 1_999)
            pictures = reset(self.games, self.seed + new)
            self.scenes = [first_scene(frames) for frames in pictures]
            self.rng = np.random.default_rng([self.seed, version])
        experience, self.scenes = play(
            self.games, self.scenes, iter([model]), self.rng, self.n_steps
        )
        returns, self.scores = finish_games(self.scores, experience)
        return pack(experience), returns, version


def start_players(n_players, n_games, seed, settings):
    """Return actors that share some games; seed is that of the first game."""
    if not 0 < n_players <= n_games or n_games % n_players:
        raise ValueError("n_games: expected 1, 2, ... for each of n_players")
    share = n_games // n_players
    actor = ray.remote(num_cpus=1, max_restarts=-1)(Player)
    seeds = range(seed, seed + n_games, share)
    return [actor.remote(share, first, settings) for first in seeds]


class Crew(NamedTuple):
    """The players, by what they are doing."""

    idle: list
    playing: dict  # a reference to a rollout: who plays it
    restarting: dict  # a reference to a sign of life: whose


def send_out(crew, n_rollouts, weights, version):
    """Let idle players play, until so many rollouts are under way."""
    while crew.idle and len(crew.playing) < n_rollouts:
        player = crew.idle.pop(0)
        crew.playing[player.rollout.remote(weights, version)] = player


def next_answer(crew):
    """Return a rollout, an error if it is lost, or None: a successor is up."""
    waiting = crew.playing | crew.restarting
    done, _ = ray.wait(list(waiting), timeout=200)
    if not done:
        raise TimeoutError("Waited 200 s. Is there a core for each player?")
    reference = done[0]
    player, lost = waiting[reference], crew.playing.pop(reference, None)
    crew.restarting.pop(reference, None)
    try:
        answer = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        if not isinstance(error, ray.exceptions.ActorDiedError):
            if not lost:  # no successor yet
                time.sleep(0.1)
            crew.restarting[player.__ray_ready__.remote()] = player
        elif not any(crew):
            raise
        return error if lost else None
    crew.idle.append(player)
    return answer if lost else None


def collect_batch(crew, weights, version, n_rollouts, max_staleness):
    """Return packed rollouts, returns of games, and counts of rollouts."""
    fresh, returns, ahead = [], [], n_rollouts * max_staleness
    counts = {"used": 0, "stale": 0, "lost": 0}
    while len(fresh) < n_rollouts:
        send_out(crew, n_rollouts - len(fresh) + ahead, weights, version)
        answer = next_answer(crew)
        if isinstance(answer, Exception):
            counts["lost"] += 1
        elif answer is not None:
            packed, ended, played_with = answer
            returns += ended
            stale = version - played_with > max_staleness
            counts["stale" if stale else "used"] += 1
            if not stale:
                fresh.append(packed)
    send_out(crew, ahead, weights, version)
    return fresh, returns, counts


def training_on_ray(players, run, settings, n_rollouts):
    """Yield the Run and a row of figures after each batch of n_rollouts."""
    if run.critic:
        raise ValueError("a Run with a critic: use new_run(..., critic=False)")
    agent, rng = run.agent, generator(run.generators[1])
    per_batch = settings["epochs"] * settings["n_minibatches"]
    version, crew = agent.n_updates // per_batch, Crew(list(players), {}, {})
    weights = ray.put(agent.model)
    while run.decisions < settings["decisions"]:
        fresh, ended, counts = collect_batch(
            crew, weights, version, n_rollouts, settings["max_staleness"]
        )
        past = side_by_side([unpack(packed) for packed in fresh])
        rollout, explained = make_rollout(past, settings)
        now = anneal(settings, 1 - run.decisions / settings["decisions"])
        steps = []
        for batch in minibatches(rollout, settings, rng):
            agent, metrics = update(agent, batch, **now)
            steps.append(metrics)
        check_finite("weights", agent.model.values(), run.decisions)
        weights, version = ray.put(agent.model), version + 1
        states = [*run.generators]
        states[1] = rng.bit_generator.state
        done = run.decisions + past.actions.size
        run = Run(agent, None, done, run.returns + ended, states)
        yield run, figures(run, past.rewards, explained, steps) | counts
