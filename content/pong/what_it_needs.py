# Made by `make notebooks` from content/what-it-needs.md: edit that.

from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from pong.inside_the_agent import (
    make_envs,
    object_mask,
    play_moments,
    read_ram,
)
from pong.many_games_at_once import close
from pong.train_to_win import bootstrap_interval
from pong.what_helped import paired_interval


def erase(frames, names):  # such as "ball", or "ball and opponent"
    """Return frames (n × 210 × 160) without some objects."""
    for name in names.split(" and "):
        if name in ("ball", "opponent", "own paddle"):
            mask = object_mask(frames, name)
            frames = np.where(mask, np.uint8(87), frames)
    return frames


ERASED = (
    "nothing", "ball", "opponent", "own paddle", "ball and opponent",
    "older frame", "motion", "last action",
)  # fmt: skip


def forget(scene, name):
    """Return a scene without a part of what the agent remembers."""
    if name == "older frame":
        return scene._replace(previous=np.zeros_like(scene.previous))
    if name == "motion":
        return scene._replace(previous=scene.current)
    if name == "last action":
        return scene._replace(last_actions=np.zeros_like(scene.last_actions))
    return scene


def measure(model, seeds, without="nothing", **settings):
    """Return the returns and lengths of greedy games.

    without is one of ERASED; the settings are those of `gymnasium.make`.
    """
    if without not in ERASED:
        raise ValueError(f"without: expected one of {ERASED}, got {without!r}")
    envs = make_envs(len(seeds), **settings)
    returns, decisions = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    see, recall = partial(erase, names=without), partial(forget, name=without)
    for moment in play_moments(envs, seeds, model, see, recall):
        returns[moment.games] += moment.rewards
        decisions[moment.games] += 1
    close(envs)
    return returns, decisions


def summarize(table, key, rng):
    """Return mean returns, and their differences from the first kind."""
    kinds = dict(list(table.groupby(key, sort=False)))
    first = next(iter(kinds.values()))["return"].to_numpy()
    rows = []
    for games in kinds.values():
        returns = games["return"].to_numpy()
        interval = bootstrap_interval(returns, rng)
        difference = paired_interval(returns, first, rng)
        different = len(games[["return", "decisions"]].drop_duplicates())
        counts = len(games), different
        rows.append([returns.mean(), *interval, *difference, *counts])
    names = [*product(("return", "difference"), ("mean", "from", "to"))]
    names += [("games", "played"), ("games", "different")]
    return pd.DataFrame(rows, list(kinds), pd.MultiIndex.from_tuples(names))


VARIANTS = {
    "the training's game": {},
    "frame skip 2": {"frameskip": 2},
    "frame skip 3": {"frameskip": 3},
    "frame skip 5": {"frameskip": 5},
    "frame skip 8": {"frameskip": 8},
    "no sticky actions": {"repeat_action_probability": 0.0},
    "sticky actions 0.5": {"repeat_action_probability": 0.5},
    "difficulty 1 (opponent's paddle halved)": {"difficulty": 1},
    "difficulty 2 (own paddle halved)": {"difficulty": 2},
    "difficulty 3 (both halved)": {"difficulty": 3},
    "mode 1": {"mode": 1},
    "mode 1, difficulty 1": {"mode": 1, "difficulty": 1},
    "mode 1, difficulty 2": {"mode": 1, "difficulty": 2},
    "mode 1, difficulty 3": {"mode": 1, "difficulty": 3},
}


class Arrival(NamedTuple):
    """The ball comes to a paddle."""

    t: int  # the last moment before it is level with the paddle
    player: str  # "agent" or "opponent"
    height: int  # row of the ball, from 0 at the top of the court to 159
    speed: int  # rows per decision, positive downward
    missed: bool
    serve: bool  # nobody has touched this ball yet


def arrivals(ram):  # T × 128, of one game
    """Return each Arrival of a game in order, serves included."""
    truth = read_ram(ram)
    x, y = truth["ball x"], truth["ball y"]
    dx, dy = (np.diff(z, prepend=np.nan) for z in (x, y))
    found = []
    # A ball at column 138 or 20 has come to a paddle.
    for player, sign, line in (("agent", 1, 138), ("opponent", -1, -20)):
        coming, way = sign * dx > 0, line - sign * x
        near = (way >= 0) & (way < 20)  # more than a ball moves at once
        over = (way < 0) | ~coming
        turned = sign * dx < 0
        for t in np.flatnonzero(coming[:-1] & near[:-1] & over[1:]):
            ended = turned[t + 1 :] | np.isnan(x[t + 1 :])
            missed = not turned[t + 1 + ended.argmax()]
            ball = int(y[t]), int(dy[t])
            found.append((int(t), player, *ball, bool(missed)))
    found.sort()
    # A rally begins with the game, and after each ball that was missed.
    new = [True, *(missed for *_, missed in found)]
    return [Arrival(*ball, serve) for ball, serve in zip(found, new)]


def arrival_rows(seed, ram):
    """Return the arrivals of a game as rows of a table."""
    table = pd.DataFrame(arrivals(ram)).drop(columns="t")
    table.insert(0, "seed", seed)
    return table.astype({"missed": int, "serve": int})


def arrival_map(table):
    """Return how many balls came, and how many were missed: 8 × 5 each.

    Heights of 20 rows each, from the top; from steeply up to steeply down.
    """
    height = np.clip(table["height"] // 20, 0, 7).to_numpy()
    speed = np.digitize(table["speed"], [-6.5, -1.5, 1.5, 6.5])
    came, missed = np.zeros((2, 8, 5), int)
    np.add.at(came, (height, speed), 1)
    np.add.at(missed, (height, speed), table["missed"].to_numpy())
    return came, missed
