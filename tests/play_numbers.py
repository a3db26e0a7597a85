"""What the JavaScript of "Play against it" must agree with, from NumPy."""

import numpy as np

from pong.many_games_at_once import Scene, encode, forward
from pong.play import Court, draw, new_court, objects, step
from pong.ppo_in_numpy import gae

N_GAMES, N_FRAMES = 10, 1000  # of one player, and as many of two


def cells(picture):
    return np.flatnonzero(picture).tolist()


def follower(seed, frames, games, both=False):
    """Play, and return the actions (T, 2, n) and the Court's arrays (T, n).

    The right player, or both, follow the ball with some part of the paddle, its
    edges too, or miss it.
    """
    rng, court = np.random.default_rng(seed), new_court(games)
    actions, seen = [], []
    for t in range(frames):
        if t % 50 == 0:
            parts = rng.integers(-6, 19, (2, games))
        goals = np.stack([court.right_goal, court.left_goal])
        away = (court.y - parts - goals) * (court.y > 0)
        right, left = np.select([away > 2, away < -2], [2, 1], 0)
        court, _ = step(court, right, left if both else None)
        actions.append([right, left])
        seen.append(court)
    return np.array(actions), Court(*np.stack(seen, axis=1))


def scenes(courts, model):
    """Return 500 scenes with what the network makes of them."""
    rng = np.random.default_rng(5)
    now, game = rng.integers(4, N_FRAMES, 500), rng.integers(0, N_GAMES, 500)
    before, court = (Court(*(a[t, game] for a in courts)) for t in (now - 4, now))
    last = rng.integers(0, 3, 500)
    scene = Scene(objects(before), objects(court), last[:, None] == [0, 1], None)
    logits, values, _ = forward(encode(scene), model)
    columns = {
        "court": np.transpose(court).tolist(),
        "previous": map(cells, scene.previous),
        "current": map(cells, scene.current),
        "last": last.tolist(),
        "logits": logits.tolist(),
        "value": values.tolist(),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def pictures(states):  # (frames, games, 14)
    """Return what some courts look like, and what the first agent gets of it."""
    rows = states.reshape(-1, len(Court._fields))
    # A score is drawn late: so look at new ones, too, and at all digits.
    new = rows[rows[:, Court._fields.index("wait")] == 63]
    scores = ((9, 21), (8, 17), (6, 5), (14, 3))
    high = [[*rows[1000, :-2], *score] for score in scores]
    rows = np.vstack([rows[::997], new[::4], high])
    drawn = [draw(Court(*rows.T), i) for i in range(len(rows))]
    return [
        {
            "court": row.tolist(),
            "gray": picture.ravel().tolist(),
            "preprocessed": cells(picture[35:195:2, ::2] != 87),
        }
        for row, picture in zip(rows, drawn)
    ]


def numbers(model, rally):
    """Return all of it, ready for JSON."""
    values = np.array([*rally["values"], 0.0])[:, None]
    rewards = np.zeros((len(values) - 1, 1))
    rewards[-1] = rally["outcome"]
    estimates = []
    for g, k in ((1, 0.98), (0.99, 0.95), (0.9, 0.5), (1, 0), (1, 1)):
        advantages = gae(rewards, values, rewards != 0, g, k)[:, 0].tolist()
        estimates.append({"gamma": g, "lambda": k, "advantages": advantages})
    clip = [
        [float(x), a, float(-np.minimum(x * a, np.clip(x, 0.8, 1.2) * a))]
        for x in np.linspace(0.5, 1.5, 41)
        for a in (1.0, -1.0, 0.3)
    ]
    games, found = [], {"scenes": [], "pictures": []}
    for seed, both in ((3, False), (4, True)):
        actions, courts = follower(seed, N_FRAMES, N_GAMES, both)
        states = np.stack(courts, axis=2)
        for game in range(N_GAMES):
            played = actions[:, :, game].tolist(), states[:, game].tolist()
            games.append({"both": both, "actions": played[0], "states": played[1]})
        found["scenes"] += scenes(courts, model)
        found["pictures"] += pictures(states)
    return {
        **found,
        "rally": rally | {"rewards": rewards[:, 0].tolist()},
        "gae": estimates,
        "clip": clip,
        "games": games,
    }
