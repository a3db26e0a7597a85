"""What the JavaScript of "Play against it" must agree with, from NumPy."""

import numpy as np

from pong.many_games_at_once import Scene, encode, forward
from pong.play import Court, draw, new_court, objects, recorded_games, step
from pong.ppo_in_numpy import gae


def cells(picture):
    return np.flatnonzero(picture).tolist()


def rows(court):
    """Return each of n courts as a list of numbers."""
    return np.transpose(court).tolist()


def scenes(model):
    """Return 1,000 scenes of games with what the network makes of them."""
    games, _ = recorded_games()
    rng = np.random.default_rng(5)
    game, last = np.concatenate(games, axis=1), rng.integers(0, 3, 1000)
    now = np.sort(rng.integers(4, game.shape[1], 1000))
    before, court = (Court(*game[:, t]) for t in (now - 4, now))
    last_actions = last[:, None] == [0, 1]
    scene = Scene(objects(before), objects(court), last_actions, None)
    logits, values, _ = forward(encode(scene), model)
    columns = {
        "court": rows(court),
        "previous": map(cells, scene.previous),
        "current": map(cells, scene.current),
        "last": last.tolist(),
        "logits": logits.tolist(),
        "value": values.tolist(),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def follower(seed, n, both=False):
    """Return n actions of one player or two, and the Court's frames.

    They follow the ball with some part of the paddle, its edges too, or miss it.
    """
    rng, court = np.random.default_rng(seed), new_court(1)
    actions, frames = [], []
    for t in range(n):
        if t % 50 == 0:
            parts = rng.integers(-6, 19, 2)
        goals = np.hstack([court.right_goal, court.left_goal])
        away = (court.y - parts - goals) * (court.y > 0)
        right, left = np.select([away > 2, away < -2], [2, 1], 0).tolist()
        left = left if both else None
        court, _ = step(court, right, left)
        actions.append([right, left])
        frames.append(court)
    return actions, Court(*np.hstack(frames))


def court_traces():
    """Return a game of one player, and one of two, 5,000 frames long."""
    traces = []
    for seed, both in ((3, False), (4, True)):
        actions, court = follower(seed, 5000, both)
        seen = list(map(cells, objects(court)[::9]))
        trace = {"actions": actions, "states": rows(court), "pictures": seen}
        traces.append(trace)
    return traces


def numbers(model, rally):
    """Return all of it, ready for JSON."""
    values = np.array([*rally["values"], 0.0])[:, None]
    rewards = np.zeros((len(values) - 1, 1))
    rewards[-1] = rally["outcome"]
    estimates = []
    for g, k in ((1, 0.98), (0.99, 0.95), (0.9, 0.5), (1, 0), (1, 1)):
        advantages = gae(rewards, values, rewards != 0, g, k)[:, 0].tolist()
        row = {"gamma": g, "lambda": k, "advantages": advantages}
        estimates.append(row)
    clip = [
        [float(x), a, float(-np.minimum(x * a, np.clip(x, 0.8, 1.2) * a))]
        for x in np.linspace(0.5, 1.5, 41)
        for a in (1.0, -1.0, 0.3)
    ]
    traces = court_traces()
    states = np.array(traces[0]["states"][100:200:10]).T
    pictures = [draw(Court(*states), game) for game in range(10)]
    return {
        "fields": Court._fields,
        "scenes": scenes(model),
        "rally": rally | {"rewards": rewards[:, 0].tolist()},
        "gae": estimates,
        "clip": clip,
        "traces": traces,
        "preprocessed": [cells(p[35:195:2, ::2] != 87) for p in pictures],
    }
