"""Record the screening of "What helped": nine ideas at once, 24 trainings.

    python scripts/screening.py screening together   (in .venv)

Each training has a seed of its own and about half of the ideas, by a design of
Plackett and Burman (1946): any two ideas meet equally often with and without
each other. `together` trains agents with the ideas that looked best, and with
all of these but the critic, to be compared with those of `what_helped.py
ablations`. Both keep what is complete, so they can be stopped and go on.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from recording import main, save_table, write

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import sparse
from scipy.linalg import circulant
from scipy.special import ndtr

from pong.many_games_at_once import (
    close,
    encode,
    first_scene,
    forward,
    initialize_model,
    make_games,
    reset,
)
from pong.ppo_in_numpy import (
    adam_step,
    backward,
    gae,
    make_rollout,
    minibatches,
    new_agent,
    ppo_gradients,
)
from pong.train_to_win import N_GAMES, SETTINGS, anneal
from pong.what_helped import ages, play_variant
from what_helped import parts_folder

IDEAS = {  # name: changed settings
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "256 steps a rollout": {"n_steps": 256, "n_minibatches": 8},
    "entropy 0.015": {"entropy_coef": 0.015},
    "clip upward 0.5": {},
    "luck that lasts": {},
    "top edges only": {},
    "coarse pictures too": {},
    "only with a ball": {},
    "a critic of its own": {"gae_lambda": 0.8},
}
BEST = [  # the five whose twelve trainings were ahead by 0.01 or more
    "learning rate 4e-3",
    "clip upward 0.5",
    "luck that lasts",
    "coarse pictures too",
    "a critic of its own",
]
FIRST_SEED, N_DECISIONS, EVERY = 121, 250_000, 50_000


def design():
    """Return which of the ideas each training has: bool, shape (24, ideas)."""
    row = np.array([*"11111010110011001010000"]) == "1"
    runs = np.vstack([circulant(row), np.zeros(len(row), bool)])
    return runs[:, : len(IDEAS)]


class Lasting:
    """Numbers from 0 to 1 for `choose_actions`, each much like the last one."""

    def __init__(self, rng, correlation=0.5):
        self.rng, self.correlation, self.z = rng, correlation, None

    def random(self, shape):
        """Return as many numbers as there are games."""
        fresh = self.rng.standard_normal(shape)
        old = fresh if self.z is None else self.z
        rest = np.sqrt(1 - self.correlation**2)
        self.z = self.correlation * old + rest * fresh
        return ndtr(self.z)


def rows_of(dense):
    """Return a csr_matrix with a 1 for each True."""
    return sparse.csr_matrix(dense, dtype=np.float32)


def encode_with(ideas):
    """Return a function like `encode` for agents with some of the ideas."""

    def view(pictures, last_actions):
        n = len(last_actions)
        parts = [picture.copy() for picture in pictures]
        if "top edges only" in ideas:  # where an object begins
            for part, picture in zip(parts, pictures):
                part[:, 1:] &= ~picture[:, :-1]
        parts += [last_actions, np.ones((n, 1), bool)]
        if "coarse pictures too" in ideas:  # 20 × 8 squares of 4 × 4 cells
            for picture in pictures:
                parts.append(picture.reshape(n, 20, 4, 8, 4).any(axis=(2, 4)))
        return rows_of(np.hstack([part.reshape(n, -1) for part in parts]))

    def encode_more(scene):
        pictures = scene.previous, scene.current
        mirrored = [picture[:, ::-1] for picture in pictures]
        return (
            view(pictures, scene.last_actions),
            view(mirrored, scene.last_actions[:, ::-1]),
        )

    changed = {"top edges only", "coarse pictures too"} & set(ideas)
    return encode_more if changed else encode


def first_model(rng, n_inputs, scale):
    """Return random weights for a number of inputs."""
    model = initialize_model(rng)
    more = 0.1 * rng.standard_normal((n_inputs - len(model["W1"]), 200))
    W1 = np.vstack([scale * model["W1"], more])
    return model | {"W1": W1.astype(np.float32)}


def sees_ball(inputs):
    """Return whether there is anything between the paddles, for each row."""
    column = inputs.indices % 32
    current = (inputs.indices >= 2560) & (inputs.indices < 5120)
    inside = current & (column > 0) & (column < 31)
    marks = (inside.astype(np.float32), inputs.indices, inputs.indptr)
    return np.asarray(sparse.csr_matrix(marks, inputs.shape).sum(1))[:, 0] > 0


def judge(inputs, critic):
    """Return a critic's values, from -1 to 1."""
    parts = range(0, inputs[0].shape[0], 8192)
    rows = [[matrix[i : i + 8192] for matrix in inputs] for i in parts]
    return np.tanh(
        np.concatenate([forward(part, critic.model)[1] for part in rows])
    )


def targets(experience, inputs, critic, gae_lambda=0.95):
    """Return what the values of a rollout should have been, and the values."""
    values = judge(inputs, critic).reshape(experience.values.shape)
    ends = (experience.rewards != 0) | experience.game_over
    advantages = gae(experience.rewards, values, ends, 1.0, gae_lambda)
    return (advantages + values[:-1]).ravel(), values


def learn_values(critic, kept, rng, rate, n_steps, n_rows=2048):
    """Return the critic after steps on decisions of the kept rollouts."""
    for k in rng.permutation(len(kept))[:4]:  # it knows more than it did then
        kept[k][2] = targets(*kept[k][:2], critic)[0]
    sizes = [len(returns) for _, _, returns in kept]
    inputs = [
        sparse.vstack(
            [x[side][:n] for (_, x, _), n in zip(kept, sizes)], "csr"
        )
        for side in (0, 1)
    ]
    ignored = np.concatenate([e.ignored.ravel() for e, _, _ in kept])
    returns = np.concatenate([returns for _, _, returns in kept])
    counts = np.flatnonzero(~ignored)
    for _ in range(n_steps):
        rows = rng.choice(counts, n_rows)
        drawn = tuple(matrix[rows] for matrix in inputs)
        _, values, hidden = forward(drawn, critic.model)
        slopes = (np.tanh(values) - returns[rows]) / n_rows
        nothing = np.zeros((n_rows, 3), np.float32)
        gradient = backward(drawn, hidden, nothing, slopes, critic.model)
        critic = adam_step(critic, gradient, rate, 0.5)
    return critic


def ages_upward(agent, batches, now, clip_up=0.5):
    """Do what `ages` does; actions that turned out well may gain more."""
    yield agent
    for batch in batches:
        logits, values, hidden = forward(batch.inputs, agent.model)
        coefficients = now["entropy_coef"], now["value_coef"]
        down, up = (
            ppo_gradients(logits, values, batch, clip, *coefficients)
            for clip in (now["clip_coef"], clip_up)
        )
        well = batch.advantages > 0
        slopes = np.where(well[:, None], up[0], down[0]), down[1]
        gradient = backward(batch.inputs, hidden, *slopes, agent.model)
        rates = now["learning_rate"], now["max_grad_norm"]
        agent = adam_step(agent, gradient, *rates)
        yield agent


def train_with(ideas, seed, n_games=N_GAMES):
    """Yield the agent and its experience after each rollout."""
    settings = SETTINGS.copy()
    for idea in ideas:
        settings |= IDEAS[idea]
    encode_scene = encode_with(ideas)
    rng = np.random.default_rng(seed)
    play_rng, learn_rng, critic_rng = (
        np.random.default_rng([seed, k]) for k in range(3)
    )
    if "luck that lasts" in ideas:
        play_rng = Lasting(play_rng)
    games = make_games(n_games, 1)
    scene = first_scene(reset(games, seed)[0])
    n_inputs = encode_scene(scene)[0].shape[1]
    scale = 2 if "top edges only" in ideas else 1  # fewer inputs are 1
    agent = new_agent(first_model(rng, n_inputs, scale))
    critic = new_agent(first_model(critic_rng, n_inputs, scale))
    steps = ages_upward if "clip upward 0.5" in ideas else ages
    n_steps, batches, now, kept = settings["n_steps"], [], {}, []
    every = n_steps // (settings["epochs"] * settings["n_minibatches"])
    try:
        for done in range(0, settings["decisions"], n_steps * n_games):
            experience, scene, agent = play_variant(
                games[0],
                scene,
                steps(agent, batches, now),
                play_rng,
                n_steps,
                every,
                encode_scene,
                (2, 3, 0),
            )
            remaining = 1 - done / settings["decisions"]
            rows = zip(*experience.inputs, encode_scene(scene))
            inputs = [sparse.vstack(matrices, "csr") for matrices in rows]
            if "only with a ball" in ideas:
                seen = sees_ball(inputs[0])[: experience.actions.size]
                unseen = ~seen.reshape(experience.ignored.shape)
                ignored = experience.ignored | unseen
                experience = experience._replace(ignored=ignored)
            if "a critic of its own" in ideas:
                returns, values = targets(experience, inputs, critic)
                experience = experience._replace(values=values)
                kept = [*kept, [experience, inputs, returns]][-16:]
                critic = learn_values(
                    critic, kept, critic_rng, 2e-3 * remaining, n_steps // 4
                )
            now = anneal(settings, remaining)
            rollout = make_rollout(experience, settings)[0]
            batches = minibatches(rollout, settings, learn_rng)
            yield agent, experience
    finally:
        close(games)


def record(job):
    """Train with some ideas and a seed, unless that is done; return the rows."""
    name, names, seed = job
    path = parts_folder() / f"{name}-{seed}.json"
    if not path.exists():
        rows, done, won, lost = [], 0, 0, 0
        for _, experience in train_with(names, seed):
            done += experience.actions.size
            won += int(np.sum(experience.rewards > 0))
            lost += int(np.sum(experience.rewards < 0))
            if done >= EVERY * (len(rows) + 1):
                row = {"seed": seed, "decisions": done}
                row |= {"won": won, "lost": lost}
                rows.append(row | {idea: int(idea in names) for idea in IDEAS})
                won = lost = 0
            if done >= N_DECISIONS:
                break
        write(path, json.dumps(rows))
    print(*job, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def save_all(name, jobs, **facts):
    """Record trainings, one per core, in a table."""
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        rows = [row for part in pool.map(record, jobs) for row in part]
    save_table(name, rows, decisions=N_DECISIONS, settings=SETTINGS, **facts)


def screening():
    """Record the trainings of the design."""
    jobs = [
        ("screening", np.array([*IDEAS])[has].tolist(), FIRST_SEED + number)
        for number, has in enumerate(design())
    ]
    save_all("screening", jobs)


def together():
    """Record the best ideas, with a critic and without, for ten baselines."""
    agents = {"together": BEST, "no-critic": BEST[:-1]}
    jobs = [
        (name, names, seed)
        for name, names in agents.items()
        for seed in range(41, 51)
    ]
    save_all("together", jobs, ideas=BEST)


if __name__ == "__main__":
    main({"screening": screening, "together": together})
