"""Record the results of "Scale out": trainings with and without Ray.

`python scripts/scale_out.py scale_out` takes half an hour on two cores, which
should have nothing else to do.
"""

import os
import time
from importlib import metadata

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import ale_py
import gymnasium as gym
import numpy as np
import pandas as pd

from pong import scale_out as chapter
from pong.many_games_at_once import close, initialize_model, make_games
from pong.pong_from_pixels import (
    episode_gradient,
    initialize_policy,
    make_pong,
    play_episode,
    rmsprop_step,
)
from pong.ppo_in_numpy import new_agent
from pong.train_to_win import N_GAMES, PLAIN, new_run, training
from recording import DATA, main, per_second, save_table, write

SEEDS, DECISIONS = (1, 2, 3, 4, 5), 250_000
SINGLE_SECONDS = 25  # of the runs that are there once
CORES = 2
DRAWN = ("seed", "decisions", "seconds", "games", "mean_return")


class GameWorker:
    """A worker that plays one game at a time, and returns its gradient."""

    def __init__(self, seed):
        gym.register_envs(ale_py)  # a process of its own knows no games yet
        self.env, self.rng = make_pong(), np.random.default_rng(seed)
        self.env.reset(seed=seed)

    def gradient(self, model):
        """Return the policy gradient of one game, and its decisions."""
        episode = play_episode(self.env, model, self.rng)
        gradient = episode_gradient(episode, model, 0.99)
        return gradient, len(episode.rewards)


def train_game_by_game(n_workers, max_seconds, seed):
    """Return games, decisions, and seconds."""
    model = initialize_policy(6400, 200, np.random.default_rng(seed))
    cache = {name: np.zeros_like(w) for name, w in model.items()}
    ray = chapter.ray
    actor = ray.remote(GameWorker).options(num_cpus=1)
    workers = [actor.remote(seed + k) for k in range(n_workers)]
    ray.get([w.__ray_ready__.remote() for w in workers])
    games, decisions, seconds, begin = 0, 0, 0.0, time.perf_counter()
    while not games or seconds < max_seconds:
        weights = ray.put(model)
        answers = ray.get([w.gradient.remote(weights) for w in workers])
        gradients, lengths = zip(*answers)
        mean = {k: sum(g[k] for g in gradients) / n_workers for k in model}
        model, cache = rmsprop_step(model, mean, cache, 1e-4, 0.99)
        games, decisions = games + n_workers, decisions + sum(lengths)
        seconds = time.perf_counter() - begin
    for worker in workers:
        ray.kill(worker)
    return games, decisions, seconds


def run_training(settings, n_players, seed, max_seconds=np.inf):
    """Return the rows of a training; 0 players: a single process."""
    model = initialize_model(np.random.default_rng(seed))
    run, games, players = new_run(new_agent(model), seed, False), [], []
    if n_players:
        players = chapter.start_players(n_players, N_GAMES, seed, settings)
        batches = chapter.training_on_ray(players, run, settings, n_players)
    else:
        games = make_games(N_GAMES)
        batches = training(games, run, seed, settings)
    rows, begin = [], None
    for _, row in batches:
        begin = begin or time.perf_counter()
        seconds = time.perf_counter() - begin
        rows.append(row | {"seed": seed, "seconds": seconds})
        if row["decisions"] >= DECISIONS or seconds >= max_seconds:
            break
    batches.close()
    close(games)
    for player in players:
        chapter.ray.kill(player)
    return rows


def sampled(rows, every=10):
    """Return what is drawn: a row about every 10 seconds, from 50 games on."""
    kept, due = [], 0
    for row in rows:
        if row["games"] >= 50 and (row["seconds"] >= due or row is rows[-1]):
            due = row["seconds"] + every
            kept.append({name: row[name] for name in DRAWN})
    return kept


def scale_out():
    """Record trainings with and without Ray.

    The kinds take turns, so that a computer that gets slower does so for all.
    """
    settings = PLAIN | {"decisions": 2_000_000, "max_staleness": 0}
    ahead = settings | {"max_staleness": 1}
    kinds = {
        "one process": (settings, 0),
        "Ray, 2 players": (settings, 2),
        "Ray, 2 players ahead": (ahead, 2),
    }
    speeds, curves = {name: [] for name in kinds}, []
    with chapter.ray_running():
        for seed in SEEDS:
            for name, how in kinds.items():
                rows = run_training(*how, seed)
                speeds[name].append(per_second(rows))
                print(name, seed, f"{speeds[name][-1]:,.0f}/s", flush=True)
                curves += [{"training": name, **row} for row in sampled(rows)]
        rows = run_training(settings, 1, 1, SINGLE_SECONDS)
        speeds["Ray, 1 player"] = [per_second(rows)]
        games, decisions, seconds = train_game_by_game(
            CORES, SINGLE_SECONDS, 1
        )
    speeds["one game per task"] = [decisions / seconds]
    medians = {name: float(np.median(some)) for name, some in speeds.items()}
    print(medians)
    rows = [
        {"training": name, "decisions_per_second": round(median, 1)}
        for name, median in medians.items()
    ]
    curves = pd.DataFrame(curves).round({"seconds": 1, "mean_return": 2})
    curves = curves.to_csv(index=False, lineterminator="\n")
    write(DATA / "scale-out-curves.csv", curves)
    save_table(
        "scale-out",
        rows,
        seeds=SEEDS,
        decisions_per_game=round(decisions / games),
        ray=metadata.version("ray"),
        settings=settings,
    )


if __name__ == "__main__":
    main({"scale_out": scale_out})
