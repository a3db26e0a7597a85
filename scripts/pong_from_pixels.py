"""Record what "Pong from pixels" shows of a longer training: `reinforce`.

    python scripts/pong_from_pixels.py reinforce

trains the chapter's agent for 40 minutes of one core's time, or for
PONG_BUDGET seconds of it. The table is written at the end, of 40 minutes or more.
"""

import math
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from pong.pong_from_pixels import (
    Episode,
    choose_action,
    episode_gradient,
    frame_preprocessing,
    initialize_policy,
    make_pong,
    rmsprop_step,
    sigmoid,
    update_input,
)
from pong.set_up import training_seconds
from recording import main, save_table

SEED = 12288743
SETTINGS = {
    "batch_size": 10,
    "learning_rate": 1e-3,
    "decay": 0.99,
    "gamma": 0.99,
}


def play_without_zeros(env, model, rng, seed=None):
    """Return what `play_episode` does, from products without the zeros."""
    by_input = np.ascontiguousarray(model["W1"].T)
    frame, _ = env.reset(seed=seed)
    previous, decisions, game_over = None, [], False
    while not game_over:
        current = frame_preprocessing(frame)
        x = update_input(current, previous)
        (active,) = np.nonzero(x)
        hidden = np.maximum(0.0, x[active] @ by_input[active])
        p_up = sigmoid(hidden @ model["W2"])
        action, output_gradient = choose_action(p_up, rng)
        frame, reward, terminated, truncated, _ = env.step(action)
        decisions.append(
            (sparse.csr_array(x[None]), hidden, output_gradient, float(reward))
        )
        previous, game_over = current, terminated or truncated
    inputs, *others = zip(*decisions)
    return Episode(sparse.vstack(inputs, "csr"), *map(np.array, others))


def steps(env, seed, batch_size, learning_rate, decay, gamma):
    """Yield the returns and the lengths of the games before each step."""
    rng = np.random.default_rng(seed)
    model = initialize_policy(6400, 200, rng)
    cache = {name: np.zeros_like(weights) for name, weights in model.items()}
    while True:
        total, games = None, []
        for _ in range(batch_size):
            episode = play_without_zeros(env, model, rng, seed)
            seed = None  # the first game's; the others follow
            gradient = episode_gradient(episode, model, gamma)
            total = {
                k: g + total[k] if total else g for k, g in gradient.items()
            }
            games.append((episode.rewards.sum(), len(episode.rewards)))
        yield games
        model, cache = rmsprop_step(model, total, cache, learning_rate, decay)


def reinforce():
    """Record one row per step: games, decisions, seconds, mean return."""
    env = make_pong()
    seconds = training_seconds()
    limit = 2400 if math.isinf(seconds) else seconds
    start, rows = time.process_time(), []
    for games in steps(env, SEED, **SETTINGS):
        returns, lengths = np.array(games).T
        before = rows[-1] if rows else {"games": 0, "decisions": 0}
        rows.append(
            {
                "games": before["games"] + len(games),
                "decisions": before["decisions"] + int(lengths.sum()),
                "seconds": round(time.process_time() - start, 1),
                "mean_return": returns.mean(),
            }
        )
        print(rows[-1], flush=True)
        if time.process_time() - start > limit:
            break
    env.close()
    if limit < 2400:
        return print("shorter than 40 minutes: the recorded table stays")
    facts = {"seed": SEED, "settings": SETTINGS}
    seconds = "processor time of one core"
    save_table("reinforce", rows, **facts, seconds=seconds)


if __name__ == "__main__":
    main({"reinforce": reinforce})
