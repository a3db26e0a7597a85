"""What the JavaScript of "Play against it" must agree with, from NumPy."""

import numpy as np

from pong.many_games_at_once import Scene, choose_actions, encode, forward
from pong.play import Court, draw, new_court, objects, step
from pong.ppo_in_numpy import gae


def cells(picture):
    return np.flatnonzero(picture).tolist()


def play_wildly(model, n, n_decisions, seed, noise):
    """Yield court, scene, logits, values, and points of n games, decision by decision."""
    rng, court, held = (
        np.random.default_rng(seed),
        new_court(n),
        np.zeros(n, int),
    )
    seen, nothing = objects(court), np.zeros(n, bool)
    scene = Scene(seen, seen, np.zeros((n, 2), bool), nothing)
    for _ in range(n_decisions):
        logits, values, _ = forward(encode(scene), model)
        actions, _ = choose_actions(logits, rng)
        actions = np.where(
            rng.random(n) < noise, rng.integers(0, 3, n), actions
        )
        before, reward = court, np.zeros(n)
        for _ in range(4):
            held = np.where(
                rng.random(n) < 0.25, held, np.array([1, 2, 0])[actions]
            )
            court, points = step(court, held)
            reward += points
        yield before, scene, logits, values, reward
        scene = Scene(
            scene.current, objects(court), actions[:, None] == [0, 1], nothing
        )


def scenes(model):
    """Return 1,000 scenes with what the network makes of them."""
    found = []
    for t, (court, scene, logits, values, _) in enumerate(
        play_wildly(model, 20, 350, 5, np.linspace(0, 0.5, 20))
    ):
        for g in range(20) if t % 7 == 0 else ():
            last = scene.last_actions[g]
            found.append(
                {
                    "court": [int(a[g]) for a in court],
                    "previous": cells(scene.previous[g]),
                    "current": cells(scene.current[g]),
                    "last": int(last.argmax()) if last.any() else 2,
                    "logits": logits[g].tolist(),
                    "value": float(values[g]),
                }
            )
    return found


def court_traces():
    """Return four random games, two of them with a player at the left."""
    traces = []
    for seed, human in ((1, False), (2, True), (3, False), (4, True)):
        rng, court, right, left = (
            np.random.default_rng(seed),
            new_court(1),
            0,
            0,
        )
        trace = {"actions": [], "states": [], "pictures": []}
        for t in range(2500):
            if t % 5 == 0:
                right, left = (int(a) for a in rng.integers(0, 3, 2))
            if seed > 2 and court.y[0]:  # meet the ball now and then
                goals = (court.right_goal[0], court.left_goal[0])
                away = [
                    court.y[0] - 8 + rng.integers(-8, 9) - goal
                    for goal in goals
                ]
                right, left = (
                    2 if a > 4 else 1 if a < -4 else 0 for a in away
                )
            court, _ = step(
                court, np.array([right]), np.array([left]) if human else None
            )
            trace["actions"].append([right, left if human else None])
            trace["states"].append([int(a[0]) for a in court])
            if t % 9 == 0:
                trace["pictures"].append(cells(objects(court)[0]))
        traces.append(trace)
    return traces


def numbers(model, rally):
    """Return all of it, ready for JSON."""
    values = np.array(rally["values"])[:, None]
    rewards = np.zeros_like(values)
    rewards[-1] = rally["outcome"]
    ends = np.arange(len(rewards))[:, None] == len(rewards) - 1
    estimates = [
        {
            "gamma": g,
            "lambda": k,
            "advantages": gae(
                rewards, np.vstack([values, [[0.0]]]), ends, g, k
            )[:, 0].tolist(),
        }
        for g, k in ((1, 0.98), (0.99, 0.95), (0.9, 0.5), (1, 0), (1, 1))
    ]
    clip = [
        [float(x), a, float(-np.minimum(x * a, np.clip(x, 0.8, 1.2) * a))]
        for x in np.linspace(0.5, 1.5, 41)
        for a in (1.0, -1.0, 0.3)
    ]
    traces = court_traces()
    states = [
        Court(*(np.array([v]) for v in row))
        for row in traces[2]["states"][100:200:10]
    ]
    first_chapter = [
        cells(draw(court)[35:195:2, ::2] != 87) for court in states
    ]
    return {
        "fields": Court._fields,
        "scenes": scenes(model),
        "rally": {
            "rewards": rewards[:, 0].tolist(),
            "values": rally["values"],
        },
        "gae": estimates,
        "clip": clip,
        "traces": traces,
        "preprocessed": first_chapter,
    }
