"""Record what "What the critic brings" shows, and `not_sticky` for "What helped".

    python scripts/what_the_critic_brings.py pairs parts ablations discount
    python scripts/what_the_critic_brings.py average more_runs not_sticky speed

`speed` counts seconds and wants the computer for itself. The others train agents
side by side and count decisions, so the computer may do other things. They keep
what is complete in _build, so they can be stopped, and go on unless the code has
changed. Five of the whole trainings are recorded by train_to_win.py.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import numpy as np
import pandas as pd

import recording
from pong.many_games_at_once import close, make_games
from pong.ppo_in_numpy import new_agent
from pong.train_to_win import (
    N_GAMES,
    PLAIN,
    SETTINGS,
    evaluate,
    new_run,
    train,
    training,
)
from pong.what_helped import count_points as ablate
from pong.what_the_critic_brings import Average
from recording import record
from train_to_win import SEEDS, forget, random_model, table, train_with

N_DECISIONS, EVERY = 250_000, 50_000
AVERAGE_GAMES, FIRST_AVERAGE_GAME = 20, 500_000
WHEN = (*range(200, 500, 50), *range(500, 900, 100), 1_000, 1_200)
BOTH = (400, 800, 1_200)  # thousands of decisions, as in the line above
AGENTS = {  # name: is there a critic, settings
    "the plain agent": (False, PLAIN),
    "with the critic": (True, SETTINGS),
    "the critic alone": (True, PLAIN),
    "the settings alone": (False, SETTINGS),
}
PARTS = {  # what is as in PLAIN
    "with the critic": {},
    "λ = 0.98": {"gae_lambda": PLAIN["gae_lambda"]},
    "learning rate 2e-3": {"learning_rate": PLAIN["learning_rate"]},
    "all layers alike": {"faster": PLAIN["faster"]},
    "all three as in PLAIN": PLAIN,
}
# Nothing was chosen with these seeds.
PAIRS_SEEDS, PARTS_SEEDS = range(381, 391), range(265, 275)
REMOVED = {  # what is taken away from the agent with the critic; how many seeds
    "the plain agent": 20,  # nothing
    "discount: γ = 0.99": 20,  # ten, and then ten more to see whether that holds
    "no third action": 10,
    "learn, then play": 10,
    "1 epoch": 4,
    "no clipping": 4,
}
FIRST_REMOVED_SEED = 301
LONGER, DISCOUNTS, DISCOUNT_SEEDS = 1_000_000, (1.0, 0.99), range(371, 377)
MORE_SEEDS = (6, 7, 8, 9, 10)
FACTS = {"games": N_GAMES, "settings": SETTINGS}


def start_of(seed, critic):
    """Return a training that has not begun."""
    return new_run(new_agent(random_model(seed)), seed, critic)


def count_points(job):
    """Return rows with the points of each part of a training's beginning."""
    name, seed, critic, changed, n_decisions = job
    rows, points = [], np.zeros(2, int)
    games, start = make_games(N_GAMES), start_of(seed, critic)
    for run, row in training(games, start, seed, SETTINGS | changed):
        points += row["won"], row["lost"]
        if run.decisions >= EVERY * (len(rows) + 1):
            won, lost = points.tolist()
            facts = {"agent": name, "seed": seed, "decisions": run.decisions}
            rows.append(facts | {"won": won, "lost": lost})
            rows[-1]["mean_return"] = round(row["mean_return"], 2)
            points[:] = 0
        if run.decisions >= n_decisions:
            break
    close(games)
    return rows


def pairs():
    """Record the beginnings of agents with the critic and without it."""
    jobs = [
        (name, seed, *how, N_DECISIONS)
        for name, how in AGENTS.items()
        for seed in PAIRS_SEEDS
    ]
    record("critic-pairs", count_points, jobs, **FACTS, plain=PLAIN)


def parts():
    """Record the beginnings of agents with one setting as without a critic."""
    jobs = [
        (name, seed, True, changed, N_DECISIONS)
        for name, changed in PARTS.items()
        for seed in PARTS_SEEDS
    ]
    record("critic-parts", count_points, jobs, **FACTS)


def ablation_of(job):
    """Return rows with the points of an agent that lacks a part, but no critic."""
    name, seed = job
    rows = ablate(name, seed, SETTINGS, N_DECISIONS, EVERY, critic=True)
    if name == "the plain agent":
        rows = [row | {"variant": "with the critic"} for row in rows]
    return rows


def ablations():
    """Record the beginnings of agents with the critic that lack another part."""
    jobs = [
        (name, FIRST_REMOVED_SEED + k)
        for name, n_seeds in REMOVED.items()
        for k in range(n_seeds)
    ]
    record("critic-ablations", ablation_of, jobs, **FACTS)


def discount():
    """Record the first million decisions with a discount and without it."""
    jobs = [
        (gamma, seed, True, {"gamma": gamma}, LONGER)
        for seed in DISCOUNT_SEEDS
        for gamma in DISCOUNTS
    ]
    rest = {k: value for k, value in SETTINGS.items() if k != "gamma"}
    made = FACTS | {"settings": rest}
    columns = {"agent": "gamma"}
    record("critic-discount", count_points, jobs, columns, **made)


def run_of(seed):
    """Return rows of a whole training, without its minutes."""
    _, history = train_with("more-runs", seed, SETTINGS)
    return without_minutes(seed, history)


def without_minutes(seed, history):
    """Return the rows of a training that shared the computer with others."""
    rows = pd.DataFrame(table(seed, history)).drop(columns="seconds")
    return rows.to_dict("records")


def more_runs():
    """Record trainings with five more seeds: an hour or two on two cores."""
    record("more-runs", run_of, MORE_SEEDS, **FACTS, seeds=MORE_SEEDS)
    forget("more-runs")


def not_sticky_run(seed):
    """Return rows of a training whose actions are never repeated by chance."""
    games, history = make_games(N_GAMES, sticky=0.0), []
    for run, row in training(games, start_of(seed, True), seed, SETTINGS):
        history.append(row | {"seconds": 0.0})
        if run.decisions >= LONGER:
            break
    close(games)
    return without_minutes(seed, history)


def not_sticky():
    """Record the first million decisions in the easier game that many papers use."""
    record(
        "not-sticky", not_sticky_run, SEEDS, **FACTS, seeds=SEEDS, sticky=0.0
    )


def average_of(job):
    """Return rows with new games of an agent, and of the average of its weights."""
    name, seed, critic, settings = job
    games, average, when, rows = make_games(N_GAMES), Average(), [*WHEN], []
    for run, row in training(games, start_of(seed, critic), seed, settings):
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
        if not when:
            break
    close(games)
    return rows


def average():
    """Record what the average of the weights plays like, with and without a critic."""
    names = (
        ("with the critic", True, SETTINGS),
        ("the plain agent", False, PLAIN),
    )
    jobs = [(n, seed, *how) for seed in SEEDS for n, *how in names]
    more = {"without the critic": PLAIN, "games of each agent": AVERAGE_GAMES}
    record("critic-average", average_of, jobs, **FACTS, **more)


def speed():
    """Record the decisions per second with the critic and without it."""
    rows = []
    for seed in range(5):
        for name, critic in (("with the critic", True), ("no critic", False)):
            games, start = make_games(N_GAMES), start_of(seed, critic)
            _, history = train(games, start, seed, SETTINGS, max_seconds=12)
            close(games)
            speed = recording.per_second(history)
            rows.append({"agent": name, "decisions_per_second": speed})
            print(rows[-1], flush=True)
    recording.save_table("critic-speed", pd.DataFrame(rows).round(1), **FACTS)


if __name__ == "__main__":
    commands = (
        pairs,
        parts,
        ablations,
        discount,
        average,
        more_runs,
        not_sticky,
        speed,
    )
    recording.main({command.__name__: command for command in commands})
