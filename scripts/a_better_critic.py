"""Record what "A better critic" shows.

    python scripts/a_better_critic.py pairs parts runs games average speed

`runs` and `speed` count seconds and want the computer for themselves. The others train
an agent on each core and count decisions, so the computer may do other things.
`runs` takes an hour, and leaves its agents in _build for `games`.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import numpy as np
import pandas as pd

import recording
from pong.a_better_critic import CRITIC_SETTINGS, Average, Critic
from pong.keep_a_training_safe import load_model, save_model
from pong.many_games_at_once import close, make_games
from pong.ppo_in_numpy import new_agent
from pong.set_up import set_up
from pong.train_to_win import (
    N_GAMES,
    SETTINGS,
    evaluate,
    new_run,
    train,
    training,
)
from train_to_win import (
    BUILD,
    SEEDS,
    game_rows,
    gauges_of,
    random_model,
    table,
    train_with,
)

N_DECISIONS, EVERY = 250_000, 50_000
GAMES, FIRST_GAME = 30, 400_000
AVERAGE_GAMES, FIRST_AVERAGE_GAME = 20, 500_000
WHEN = (*range(200, 500, 50), *range(500, 900, 100), 1_000, 1_200)
BOTH = (400, 800, 1_200)  # thousands of decisions, as in the line above


def no_critic(seed):
    """Return what stands for a critic where there is none."""
    return lambda past, *_: past


AGENTS = {  # name: how to make its critic, its seeds
    "with the critic": (Critic, range(41, 51)),
    "no critic": (no_critic, range(41, 45)),
}
PARTS = {  # what is as in SETTINGS again; seeds with which nothing was chosen
    "with the critic": {},
    "λ = 0.98": {"gae_lambda": SETTINGS["gae_lambda"]},
    "learning rate 2e-3": {"learning_rate": SETTINGS["learning_rate"]},
    "all layers alike": {"faster": ()},
    "all three as before": SETTINGS | {"faster": ()},
}
PARTS_SEEDS = range(265, 275)
FACTS = {"games": N_GAMES, "settings": CRITIC_SETTINGS}


def start_of(seed):
    """Return a training that has not begun."""
    return new_run(new_agent(random_model(seed)), seed)


def count_points(job):
    """Return rows with the points of each part of a training's beginning."""
    name, seed, make_critic, changed = job
    critic, rows, points = make_critic(seed), [], []

    def judge(experience, *rest):
        points.append(experience.rewards)
        return critic(experience, *rest)

    games = make_games(N_GAMES)
    settings = CRITIC_SETTINGS | changed
    for run, _ in training(games, start_of(seed), seed, settings, judge):
        if run.decisions >= EVERY * (len(rows) + 1):
            won, lost = (int(np.sum(np.array(points) == r)) for r in (1, -1))
            row = {"agent": name, "seed": seed, "decisions": run.decisions}
            rows.append(row | {"won": won, "lost": lost})
            points.clear()
        if run.decisions >= N_DECISIONS:
            break
    close(games)
    print(rows[-1], flush=True)
    return rows


def pairs():
    """Record the beginnings of agents with the critic and without it."""
    jobs = [(n, s, f, {}) for n, (f, seeds) in AGENTS.items() for s in seeds]
    rows = [row for part in in_parallel(count_points, jobs) for row in part]
    recording.save_table("critic-pairs", rows, **FACTS)


def parts():
    """Record the beginnings of agents with one setting as it was before."""
    jobs = [(n, s, Critic, d) for n, d in PARTS.items() for s in PARTS_SEEDS]
    rows = [row for part in in_parallel(count_points, jobs) for row in part]
    recording.save_table("critic-parts", rows, **FACTS)


def part_of(seed):
    """Return where a whole training is kept: other settings, other places."""
    return BUILD / f"critic-{recording.key_of(CRITIC_SETTINGS)}-{seed}"


def in_parallel(function, jobs):
    """Return the results of a function, with a process for each core."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, set_up, ("1.0",)) as pool:
        return [*pool.map(function, jobs)]


def runs():
    """Record a whole training with each of the reference seeds, one at a time."""
    import resource  # Windows has none

    BUILD.mkdir(exist_ok=True)
    rows, gauges, peaks = [], [], []
    for seed in SEEDS:
        run, history = train_with(
            random_model(seed), seed, CRITIC_SETTINGS, judge=Critic(seed)
        )
        save_model(part_of(seed), run.agent.model, FACTS)
        rows += table(seed, history, levels=(0, 10, 15, 18))
        gauges.append(gauges_of(seed, history).round(6))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        peaks.append(usage.ru_maxrss // 1024)
        print(rows[-1], peaks[-1], flush=True)
    made = {"seeds": SEEDS, **FACTS}
    memory = {"peak memory after each seed (MB)": peaks}
    recording.save_table("critic-runs", rows, **made, **memory)
    recording.save_table("critic-gauges", pd.concat(gauges), **made)


def games_of(seed):
    """Return rows with new games of the agent that `runs` has left."""
    rows, model = [], load_model(part_of(seed))
    for way, rng in (("sampled", np.random.default_rng(0)), ("greedy", None)):
        results = evaluate(model, GAMES, rng, FIRST_GAME)
        rows += game_rows(
            {"agent": seed, "actions": way}, *results, FIRST_GAME
        )
        print(seed, way, results[0].mean(), flush=True)
    return rows


def games():
    """Record new games of all these agents."""
    rows = [row for part in in_parallel(games_of, SEEDS) for row in part]
    recording.save_table("critic-games", rows, environment="ALE/Pong-v5")


def average_of(job):
    """Return rows with new games of an agent, and of the average of its weights."""
    name, seed = job
    make_critic, settings = {
        "with the critic": (Critic, CRITIC_SETTINGS),
        "the agent of the book": (no_critic, SETTINGS),
    }[name]
    games, average, when, rows = make_games(N_GAMES), Average(), [*WHEN], []
    judge = make_critic(seed)
    for run, row in training(games, start_of(seed), seed, settings, judge):
        average(run)
        if run.decisions < 1_000 * when[0]:
            continue
        models = {"average": average.model}
        if when.pop(0) in BOTH:
            models["newest"] = run.agent.model
        facts = {"agent": name, "seed": seed, "decisions": run.decisions}
        facts["training"] = round(row["mean_return"], 2)
        for weights, model in models.items():
            for way, rng in (
                ("drawn", np.random.default_rng(0)),
                ("greedy", None),
            ):
                how = AVERAGE_GAMES, rng, FIRST_AVERAGE_GAME
                returns, _ = evaluate(model, *how)
                rows.append(facts | {"weights": weights, "actions": way})
                rows[-1]["return"] = round(float(returns.mean()), 2)
                print(rows[-1], flush=True)
        if not when:
            break
    close(games)
    return rows


def average():
    """Record what the average of the weights plays like, with and without a critic."""
    names = "with the critic", "the agent of the book"
    jobs = [(name, seed) for seed in SEEDS for name in names]
    rows = [row for part in in_parallel(average_of, jobs) for row in part]
    settings = {"without the critic": SETTINGS, **FACTS}
    settings |= {"games of each agent": AVERAGE_GAMES}
    recording.save_table("critic-average", rows, **settings)


def speed():
    """Record the decisions per second with the critic and without it."""
    rows = []
    for seed in range(5):
        for name, (make_critic, _) in AGENTS.items():
            games = make_games(N_GAMES)
            _, history = train(
                games,
                start_of(seed),
                seed,
                CRITIC_SETTINGS,
                max_seconds=12,
                judge=make_critic(seed),
            )
            close(games)
            # The first row has seen the emulators start, which takes seconds.
            first, last = history[0], history[-1]
            decisions, seconds = (
                last[k] - first[k] for k in ("decisions", "seconds")
            )
            rows.append(
                {"agent": name, "decisions_per_second": decisions / seconds}
            )
            print(rows[-1], flush=True)
    recording.save_table("critic-speed", pd.DataFrame(rows).round(1), **FACTS)


if __name__ == "__main__":
    set_up("1.0")
    commands = (pairs, parts, runs, games, average, speed)
    recording.main({command.__name__: command for command in commands})
