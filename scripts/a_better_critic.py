"""Record what "A better critic" shows.

    python scripts/a_better_critic.py pairs parts runs games average speed
    python scripts/a_better_critic.py finish

`speed` counts seconds and wants the computer for itself. The others train an agent
on each core and count decisions, so the computer may do other things.
`runs` leaves its agents in _build for `games`, and goes on where it was stopped.
`finish` trains the agent that is shipped further, with a critic, and replaces it.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import numpy as np
import pandas as pd

import recording
from pong.a_better_critic import CRITIC_SETTINGS, Average, Critic
from pong.keep_a_training_safe import load_model, save_model
from pong.many_games_at_once import (
    close,
    first_scene,
    make_games,
    play,
    reset,
)
from pong.ppo_in_numpy import new_agent
from pong.set_up import facts, set_up
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
    WEIGHTS,
    game_rows,
    random_model,
    table,
    train_with,
    write_facts,
)

N_DECISIONS, EVERY = 250_000, 50_000
GAMES, FIRST_GAME = 30, 400_000
AVERAGE_GAMES, FIRST_AVERAGE_GAME = 20, 500_000
FIRST_FINISHED_GAME = 600_000
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
FINISH_SEED, WARM_UP = 12, 25  # rollouts that only the critic learns from
FINISH = CRITIC_SETTINGS | {
    "decisions": 2_000_000,
    "learning_rate": 1e-3,
    "entropy_coef": 0.002,
    "gae_lambda": 0.9,
}
PLAIN_FINISH = SETTINGS | {
    name: FINISH[name]
    for name in ("decisions", "learning_rate", "entropy_coef")
}


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


def run_with(seed):
    """Return the rows of a whole training, unless they are there already."""
    part = part_of(seed).with_suffix(".csv")
    if not part.exists():
        run, history = train_with(
            random_model(seed), seed, CRITIC_SETTINGS, judge=Critic(seed)
        )
        save_model(part_of(seed), run.agent.model, FACTS)
        rows = pd.DataFrame(table(seed, history, levels=(0, 10, 15, 18)))
        recording.write(part, rows.to_csv(index=False))
    return pd.read_csv(part)


def in_parallel(function, jobs):
    """Return the results of a function, with a process for each core."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, set_up, ("1.0",)) as pool:
        return [*pool.map(function, jobs)]


def runs():
    """Record a whole training with each of the reference seeds."""
    BUILD.mkdir(exist_ok=True)
    rows = pd.concat(in_parallel(run_with, SEEDS)).drop(columns="seconds")
    recording.save_table("critic-runs", rows, seeds=SEEDS, **FACTS)
    for seed in SEEDS:  # the next recording begins anew
        part_of(seed).with_suffix(".csv").unlink()


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


def critic_of(model, seed):
    """Return a critic that has watched an agent for a while."""
    critic, games = Critic(seed), make_games(N_GAMES)
    scenes = [first_scene(frames) for frames in reset(games, seed)]
    rng = np.random.default_rng(seed)
    for _ in range(WARM_UP):
        past, scenes = play(games, scenes, iter([model]), rng, 128)
        critic(past, scenes, 1.0)
    close(games)
    critic.before = None  # the games that come are others
    return critic


def finish_with(job):
    """Return the weights and the last mean return of an agent trained further."""
    name, model = job
    make_critic, settings = FINISHES[name]
    path = BUILD / f"finish-{recording.key_of(name, settings)}"
    if not path.with_suffix(".csv").exists():
        critic = make_critic(model, FINISH_SEED)
        run, history = train_with(model, FINISH_SEED, settings, judge=critic)
        save_model(path, run.agent.model, settings)
        rows = pd.DataFrame(table(FINISH_SEED, history))
        recording.write(path.with_suffix(".csv"), rows.to_csv(index=False))
    rows = pd.read_csv(path.with_suffix(".csv"))
    return load_model(path), float(rows["mean_return"].iloc[-1])


def finished_games(job):
    """Return rows with new games of an agent."""
    name, way, model = job
    rng = np.random.default_rng(0) if way == "sampled" else None
    results = evaluate(model, 100, rng, FIRST_FINISHED_GAME)
    print(name, way, results[0].mean(), flush=True)
    kind = {"agent": name, "actions": way}
    return game_rows(kind, *results, FIRST_FINISHED_GAME)


def finish():
    """Train the shipped agent further, with a critic and without: compare them."""
    known = facts("agent")
    if len(known.get("finished with", ())) != 1:
        sys.exit("expected an agent that scripts/train_to_win.py finished")
    BUILD.mkdir(exist_ok=True)
    before = load_model(WEIGHTS)
    trained = in_parallel(finish_with, [(name, before) for name in FINISHES])
    models = {"before": before}
    models |= {name: model for name, (model, _) in zip(FINISHES, trained)}
    jobs = [(*m, w) for w in ("sampled", "greedy") for m in models.items()]
    jobs = [(name, way, model) for name, model, way in jobs]
    rows = [row for part in in_parallel(finished_games, jobs) for row in part]
    settings = {name: s for name, (_, s) in FINISHES.items()}
    recording.save_table("critic-finish", rows, seed=FINISH_SEED, **settings)
    known["finished with"].append(
        {
            "made with": recording.made_with(),
            "critic": f"it watched {WARM_UP} rollouts before",
            "seed": FINISH_SEED,
            "games": N_GAMES,
            "settings": FINISH,
            "mean return of the last 50 training games": trained[0][1],
        }
    )
    write_facts(known)
    save_model(WEIGHTS, models["with the critic"], known)


FINISHES = {  # the first one is shipped
    "with the critic": (critic_of, FINISH),
    "without a critic": (lambda *_: no_critic(0), PLAIN_FINISH),
}


if __name__ == "__main__":
    set_up("1.0")
    commands = (pairs, parts, runs, games, average, speed, finish)
    recording.main({command.__name__: command for command in commands})
