"""The functions of "Train to win", and what is recorded for it."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import pong.train_to_win as ttw
import train_to_win as script  # scripts/train_to_win.py
from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import (
    Experience,
    close,
    forward,
    initialize_model,
    log_softmax,
    make_games,
    reset,
)
from pong.ppo_in_numpy import make_rollout, minibatches, new_agent, update
from pong.set_up import data_file, facts, recorded

TINY = ttw.SETTINGS | {"decisions": 192, "n_steps": 16}
TINY |= {"epochs": 2, "n_minibatches": 2}


def small_agent(seed):
    return new_agent(initialize_model(np.random.default_rng(seed)))


def assert_same_models(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


# The loop


def train_and_watch(monkeypatch, agent, seed, n_rollouts):
    """Return the runs of a training, and what was played for each."""
    pasts, play = [], ttw.play

    def spy(*args):
        past, scenes = play(*args)
        pasts.append(past)
        return past, scenes

    monkeypatch.setattr(ttw, "play", spy)
    games, start = make_games(4), ttw.new_run(agent, seed)
    steps = ttw.training(games, start, seed, TINY)
    runs = [run for run, _ in islice(steps, n_rollouts)]
    steps.close()
    close(games)
    return runs, pasts


def test_learning_in_the_background_equals_a_plain_loop(monkeypatch):
    first = small_agent(1)
    _, (past,) = train_and_watch(monkeypatch, first, 1, 1)
    rollout, _ = make_rollout(past, TINY)
    batches = list(minibatches(rollout, TINY, np.random.default_rng(19)))
    coefficients, log = ttw.anneal(TINY, 0.5), {}
    with ThreadPoolExecutor(1) as pool:
        learner = ttw.learn(first, iter(batches), pool, coefficients, log)
        models = list(learner)
    assert models[0] is first.model and models[-1] is log["agent"].model
    agent = first
    steps = zip(batches, models[1:], log["metrics"], strict=True)
    for batch, model, said in steps:
        agent, metrics = update(agent, batch, **coefficients)
        assert said == metrics
        assert_same_models(model, agent.model)
    assert np.abs(agent.model["W1"] - first.model["W1"]).max() > 1e-4


def test_what_is_learned_from_is_up_to_a_rollout_old(monkeypatch):
    """The weights that play are exchanged during a rollout, at fixed moments."""
    runs, pasts = train_and_watch(monkeypatch, small_agent(5), 5, 3)
    # The first quarter of the third rollout is played by the weights with
    # which the second one ended; the rest by newer ones.
    for t in range(16):
        parts = zip(*pasts[2].inputs[2 * t : 2 * t + 2], strict=True)
        inputs = tuple(sparse.vstack(part, "csr") for part in parts)
        logits, _, _ = forward(inputs, runs[1].agent.model)
        chosen = log_softmax(logits)[range(4), pasts[2].actions[t]]
        same = np.allclose(chosen, pasts[2].log_probs[t], atol=1e-6)
        assert same == (t < 4)


def test_anneal_lowers_two_settings():
    for left in (1.0, 0.25, 0.0):
        shares = {"learning_rate": left, "entropy_coef": left}
        now = ttw.anneal(ttw.SETTINGS, left)
        assert {"clip_coef", "value_coef", "max_grad_norm", *shares} == {*now}
        for name, value in now.items():
            assert value == ttw.SETTINGS[name] * shares.get(name, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_games(0),
        lambda: make_games(1),
        lambda: make_games(np.nan),
        lambda: reset([], -1),
        lambda: reset([], 2**31),
        lambda: reset([], 1.5),
        lambda: ttw.evaluate(None, 0),
        lambda: ttw.train([], None, 1, TINY, np.nan),
        lambda: ttw.train([], None, 1, TINY | {"decisions": 0}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_finish_games_adds_up_each_game():
    rewards, over = np.arange(12.0).reshape(6, 2), np.zeros((6, 2), bool)
    over[[1, 4, 4], [0, 0, 1]] = True
    past, scores = (Experience(*[0] * 4, rewards, 0, over), np.array([100.0, 200]))
    finished, now = ttw.finish_games(scores, past)
    assert finished == [100 + 0 + 2, 4 + 6 + 8, 200 + 1 + 3 + 5 + 7 + 9]
    np.testing.assert_array_equal(now, [10, 11])
    np.testing.assert_array_equal(scores, [100, 200])
    assert ttw.mean_of_last([9.0, 1.0, 2.0], 2) == 1.5
    assert np.isnan(ttw.mean_of_last([1.0], 2))


def test_same_seed_gives_the_same_training(capsys):
    start, games, results = small_agent(20), make_games(4), []
    for seed in (3, 3, 4):
        run = ttw.new_run(start, seed)
        results.append(ttw.train(games, run, seed, TINY))
    assert_same_models(start.model, small_agent(20).model)
    (run, history), (again, _), (other, _) = results
    for part, same in zip(run.agent[:3], again.agent[:3], strict=True):
        assert_same_models(part, same)
    # Three rollouts; from the last one, nothing has been learned yet.
    assert run.agent.n_updates == again.agent.n_updates == 8
    assert (run.agent.model["W1"] != other.agent.model["W1"]).any()
    assert [row["decisions"] for row in history] == [64, 128, 192]
    keys = {"decisions", "games", "mean_return", "explained_variance"}
    assert history[0].keys() == keys | {"seconds"}
    keys |= {"seconds", "approx_kl", "clip_fraction", "entropy"}
    assert history[1].keys() == keys | {"first_kl", "first_clip_fraction"}
    # One set of weights played the first rollout, several the second one.
    assert history[1]["first_kl"] < 1e-6 < history[2]["first_kl"]
    # It ends when its time is over, too, which the progress bar knows.
    assert "100%" in capsys.readouterr().err
    run, long = ttw.new_run(start, 0), TINY | {"decisions": 10**9}
    _, history = ttw.train(games, run, 0, long, max_seconds=1e-9)
    assert len(history) == 1
    assert "100%" in capsys.readouterr().err
    close(games)


# Evaluation


def test_shipped_agent_wins_the_recorded_games():
    model = load_model(data_file("agent.safetensors"))
    returns, decisions = ttw.evaluate(model, 4)
    assert (returns > 0).all()
    games = recorded("evaluation").query("actions == 'greedy'")
    assert games["seed"].tolist() == list(range(100_000, 100_100))
    assert games["return"].tolist()[:4] == returns.tolist()
    assert games["decisions"].tolist()[:4] == decisions.tolist()
    means = recorded("evaluation").groupby("actions")["return"].mean()
    assert facts("agent")["mean return of 100 games"] == means.to_dict()


# The recorded runs


def test_training_does_what_the_recorded_runs_did(tmp_path, monkeypatch):
    """Train another seed for 150,000 decisions, as the bands were recorded."""
    monkeypatch.setattr(script, "KEPT", tmp_path)
    mine = pd.read_csv(script.gauges_of(2026, 150_000))[:-1]
    assert mine["seed"].unique() == [2026]
    bands = recorded("gauges")
    assert sorted(bands["seed"].unique()) == list(script.SEEDS)
    bands = bands[bands["decisions"].isin(mine["decisions"])]
    assert len(bands) == 5 * len(mine) > 50
    means = bands.groupby("seed").mean()
    low, high = means.min(), means.max()
    for name in bands.columns.drop(["seed", "decisions", "mean_return"]):
        slack = high[name] - low[name]
        assert low[name] - slack < mine[name].mean() < high[name] + slack, name
    # Half of the smallest gain must be there.
    gains = bands.groupby("seed")["mean_return"].last() + 20.5
    assert gains.min() > 0
    assert mine["mean_return"].iloc[-1] > -20.5 + gains.min() / 2


def test_recorded_rows_hold_the_moments_that_the_page_asks_for():
    """Every 50,000 decisions, the first rows at 0 and at +15, and the end."""
    names = ("decisions", "seconds", "games", "mean_return")
    means = [np.nan if k < 25 else k - 47.0 for k in range(1, 65)]
    history = [
        dict(zip(names, (5000 * k, float(k), 2 * k, mean)))
        for k, mean in enumerate(means, start=1)
    ]
    history[49]["mean_return"] = -1.0  # back below an even game
    rows = script.table(7, history)
    seconds = [row["seconds"] for row in rows]
    assert seconds == [1, 11, 21, 31, 41, 47, 51, 61, 62, 64]
    assert {row["seed"] for row in rows} == {7}
    assert rows[-1]["mean_return"] == 17.0
