# Made by `make notebooks` from content/train-to-win.md: edit that.

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from IPython import get_ipython
from tqdm import tqdm

from pong.a_better_critic import Critic, new_critic
from pong.many_games_at_once import (
    choose_actions,
    close,
    encode,
    first_scene,
    forward,
    next_scene,
    play,
    reset,
)
from pong.ppo_in_numpy import Agent, make_rollout, minibatches, update


def learn(agent, batches, pool, coefficients, log):
    """Yield the newest weights, and take the next step in the background.

    log["agent"] is the newest one; log["metrics"] grows with each step.
    """
    log |= {"agent": agent, "metrics": []}
    for batch in batches:
        step = pool.submit(update, agent, batch, **coefficients)
        yield agent.model
        agent, metrics = step.result()
        log["agent"] = agent
        log["metrics"].append(metrics)
    yield agent.model


def anneal(settings, remaining):
    """Return what `update` needs; remaining is the share still to come."""
    names = {"clip_coef", "value_coef", "max_grad_norm", "faster"}
    return {
        "learning_rate": settings["learning_rate"] * remaining,
        "entropy_coef": settings["entropy_coef"] * remaining,
        **{name: settings[name] for name in names & settings.keys()},
    }


SETTINGS = {
    "decisions": 3_500_000,  # a stronger agent, a longer wait
    "n_steps": 128,  # decisions per game and rollout; steadier, fewer steps
    "epochs": 4,  # passes over a rollout; learns more, strays further
    "n_minibatches": 4,  # per epoch; more steps, each one noisier
    "gamma": 1.0,  # it cannot go up; below 1, putting off a defeat pays
    "gae_lambda": 0.8,  # trusts outcomes more, and forecasts less
    "clip_coef": 0.2,  # lets the policy move further per rollout
    "entropy_coef": 0.005,  # tries more, settles later
    "value_coef": 0.5,  # the shared layer serves forecasts more
    "learning_rate": 4e-3,  # faster, until it overshoots
    "max_grad_norm": 0.5,  # less caution with strange minibatches
    "faster": ["W2", "b2"],  # these go twice as far; more: bolder opinions
}
N_GAMES = 32  # steadier, but each rollout takes longer
COUNTS = ("n_steps", "epochs", "n_minibatches")  # none of them can be 0
PLAIN = SETTINGS | {"gae_lambda": 0.98, "learning_rate": 2e-3, "faster": []}


def finish_games(scores, experience):
    """Return the returns of the games that ended, and the other scores."""
    finished, scores = [], scores.copy()
    for reward, over in zip(experience.rewards, experience.game_over):
        scores += reward
        finished.extend(scores[over].tolist())
        scores[over] = 0
    return finished, scores


def mean_of_last(returns, n):
    """Return the mean of the last n returns, or NaN if there are fewer."""
    return float(np.mean(returns[-n:])) if len(returns) >= n else np.nan


def figures(run, rewards, explained, metrics):
    """Return a row: of a rollout, and of what was learned meanwhile."""
    row = {"decisions": run.decisions, "games": len(run.returns)}
    row["mean_return"] = mean_of_last(run.returns, 50)
    row["won"], row["lost"] = (int(np.sum(rewards == r)) for r in (1, -1))
    row["explained_variance"] = explained
    if metrics:  # in the first rollout, nothing is learned
        row["first_kl"] = metrics[0]["approx_kl"]
        row["first_clip_fraction"] = metrics[0]["clip_fraction"]
        row |= metrics[-1]
    return row


class Run(NamedTuple):
    """A training between two rollouts."""

    agent: Agent
    critic: Agent | None  # its network; or the agent judges for itself
    decisions: int  # so far, in all games together
    returns: list  # of the games that have ended
    generators: list  # states of the three random generators


def new_run(agent, seed, critic=True):
    """Return a training that has not begun, perhaps one without a critic."""
    rngs = [np.random.default_rng([seed, k]) for k in range(3)]
    network = new_critic(rngs[2]) if critic else None
    states = [rng.bit_generator.state for rng in rngs]
    return Run(agent, network, 0, [], states)


def generator(state):
    """Return a random generator that goes on from a state."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    return rng


def check_finite(name, arrays, decisions):
    """Stop if a number has gone wrong."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise FloatingPointError(
            f"{name}: NaN or infinity after {decisions:,} decisions"
        )


@contextmanager
def closed_if_interrupted(games):
    """Close the games if something interrupts what is done with them."""
    try:
        yield
    except BaseException:
        close(games)
        raise


def training(games, run, seed, settings):
    """Yield the Run and a row of figures after each rollout."""
    if not all(settings[name] > 0 for name in COUNTS):
        raise ValueError(f"{', '.join(COUNTS)}: expected more than 0")
    T, rngs = settings["n_steps"], [generator(s) for s in run.generators]
    every = max(1, T // (settings["epochs"] * settings["n_minibatches"]))
    critic = run.critic and Critic(run.critic, rngs[2], settings["gamma"])
    # A run that goes on plays new games, and none of the evaluation's.
    seed += 1_000_000 + run.decisions if run.decisions else 0
    scenes = [first_scene(frames) for frames in reset(games, seed)]
    scores, batches, now = np.zeros(sum(g.num_envs for g in games)), [], {}
    with ThreadPoolExecutor(1) as pool:
        while run.decisions < settings["decisions"]:
            learner = learn(run.agent, batches, pool, now, log := {})
            with closed_if_interrupted(games):
                past, scenes = play(games, scenes, learner, rngs[0], T, every)
            check_finite("rewards", [past.rewards], run.decisions)
            check_finite("weights", log["agent"].model.values(), run.decisions)
            remaining = 1 - run.decisions / settings["decisions"]
            past = critic(past, scenes, remaining) if critic else past
            rollout, explained = make_rollout(past, settings)
            batches = minibatches(rollout, settings, rngs[1])
            now = anneal(settings, remaining)
            ended, scores = finish_games(scores, past)
            so_far = run.decisions + past.actions.size, run.returns + ended
            states = [rng.bit_generator.state for rng in rngs]
            run = Run(log["agent"], critic and critic.network, *so_far, states)
            yield run, figures(run, past.rewards, explained, log["metrics"])


def progress_bar(done):
    """Return a progress bar; done is the share that was done before."""
    form = "{percentage:3.0f}%|{bar}| {remaining} left{postfix}"
    return tqdm(total=1.0, initial=done, ncols=78, bar_format=form)


@contextmanager
def stop_button():
    """Give an Event that Ctrl-C, or a notebook's stop button, sets."""
    pressed = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        ends = pressed.is_set() and get_ipython() is None  # a plain program
        signal.signal(signal.SIGINT, signal.SIG_IGN if ends else before)
    if ends:
        raise SystemExit(130)


def train(
    games, run, seed, settings, max_seconds=np.inf, history=(), save=None
):
    """Train until the decisions or the time are used up, or it is stopped.

    Parameters
    ----------
    games : list, from `make_games`
    run : Run, from `new_run` or, with its history, from a checkpoint
    seed : int, of the first game; a run that goes on plays other games
    settings : dict, such as `SETTINGS`
    max_seconds : float, for all of the training, with that in the history
    history : list of dict, one for each rollout so far
    save : called as save(run, history) per rollout, then with at_once=True

    Returns
    -------
    run : Run, after the last rollout
    history : list of dict, per rollout a row of `figures`, and the seconds
    """
    if not max_seconds > 0 < settings["decisions"]:
        raise ValueError("max_seconds, decisions: expected more than 0")

    def share(run, seconds):
        done = run.decisions / settings["decisions"]
        return min(1.0, max(done, seconds / max_seconds))

    history = list(history)
    before = history[-1]["seconds"] if history else 0.0
    begin = time.perf_counter() - before
    with stop_button() as stop, progress_bar(share(run, before)) as bar:
        for run, row in training(games, run, seed, settings):
            row["seconds"] = time.perf_counter() - begin
            history.append(row)
            text = "{games} games, mean return {mean_return:+.1f}, {0:,.0f}/s"
            speed = row["decisions"] / row["seconds"]
            bar.set_postfix_str(text.format(speed, **row), refresh=False)
            bar.update(share(run, row["seconds"]) - bar.n)
            if save:
                save(run, history)
            if stop.is_set() or row["seconds"] >= max_seconds:
                break
        if save:
            save(run, history, at_once=True)
        if stop.is_set():
            bar.write(f"Stopped after {run.decisions:,} decisions.")
    return run, history


def play_games(envs, seeds, model, rng=None):
    """Play one game in each environment, side by side.

    Parameters
    ----------
    envs, seeds : n standard environments in grayscale, a seed for each
    model : dict of weights, which stay as they are
    rng : Generator that draws the actions; without one, play is greedy

    Returns
    -------
    returns, decisions : arrays (n,) of points, and of the games' lengths
    """
    pairs = zip(envs, seeds, strict=True)
    frames = np.stack([env.reset(seed=s)[0] for env, s in pairs])
    scene = first_scene(frames)
    returns, decisions = np.zeros(len(envs)), np.zeros(len(envs), int)
    playing = np.ones(len(envs), bool)
    while playing.any():
        logits, _, _ = forward(encode(scene), model)
        actions, _ = choose_actions(logits, rng)
        for i in np.flatnonzero(playing):
            action = (2, 3, 0)[actions[i]]  # up, down, stay
            frames[i], reward, terminated, truncated, _ = envs[i].step(action)
            returns[i] += reward
            decisions[i] += 1
            playing[i] = not (terminated or truncated)
        scene = next_scene(scene, actions, frames, np.zeros(len(envs), bool))
    return returns, decisions


def evaluate(model, n_games, rng=None, first_seed=100_000):
    """Play standard games, up to 20 side by side.

    Parameters
    ----------
    model, rng : weights, and who draws the actions; without rng, greedy
    n_games, first_seed : int; game k has the seed first_seed + k

    Returns
    -------
    returns, decisions : arrays (n_games,) of points, and of the lengths
    """
    if n_games < 1:
        raise ValueError("n_games: expected at least 1")
    results, seeds = [], range(first_seed, first_seed + n_games)
    starts = range(0, n_games, 20)  # 20 emulators at a time
    for start in tqdm(starts, leave=False, disable=n_games <= 20 or None):
        some = seeds[start : start + 20]
        envs = [gym.make("ALE/Pong-v5", obs_type="grayscale") for _ in some]
        results.append(play_games(envs, some, model, rng))
        close(envs)
    return tuple(map(np.concatenate, zip(*results)))


def bootstrap_interval(returns, rng, n_samples=10_000):
    """Return the 95 % interval of the mean."""
    means = rng.choice(returns, (n_samples, len(returns))).mean(axis=1)
    return tuple(np.percentile(means, [2.5, 97.5]).tolist())


def summary(returns, rng):
    """Return the figures of an evaluation in a line."""
    low, high = bootstrap_interval(returns, rng)
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    won = f"{np.sum(returns > 0)} of {len(returns)} games won"
    return f"mean {returns.mean():+.1f}, {interval}, {won}"


def record_game(model, folder, name, seed, rng=None):
    """Return the return of a game, and the path of its recording."""
    env = gym.wrappers.RecordVideo(
        gym.make("ALE/Pong-v5", obs_type="grayscale", render_mode="rgb_array"),
        folder,
        episode_trigger=lambda episode: True,
        name_prefix=name,
        fps=30,  # twice the speed of the console
    )
    with env:
        returns, _ = play_games([env], [seed], model, rng)
    return returns[0], f"{folder}/{name}-episode-0.mp4"
