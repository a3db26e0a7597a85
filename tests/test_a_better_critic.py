"""The critic that knows where things are, and what is recorded of it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import a_better_critic as script
import pong.a_better_critic as better
from pong.many_games_at_once import (
    Scene,
    close,
    encode,
    first_scene,
    initialize_model,
    make_games,
    play,
    reset,
)
from pong.ppo_in_numpy import make_rollout, new_agent
from pong.set_up import recorded
from pong.train_to_win import SETTINGS, new_run, training
from pong.what_helped import compare


@pytest.fixture(scope="module")
def rollouts():
    """Return two rollouts of 20 steps in three games, each with what comes after."""
    games, model = make_games(3, 1), initialize_model(np.random.default_rng(0))
    scenes = [first_scene(frames) for frames in reset(games, 3)]
    rng, found = np.random.default_rng(1), []
    for _ in range(2):
        past, scenes = play(games, scenes, iter([model]), rng, 20)
        rewards = rng.choice([-1.0, 0.0, 1.0], past.rewards.shape, p=[0.1, 0.8, 0.1])
        found.append((past._replace(rewards=rewards.astype(np.float32)), scenes))
    close(games)
    return found


def test_places_are_means_of_cells():
    rng = np.random.default_rng(0)
    pictures = rng.random((2, 5, 80, 32)) < 0.02
    pictures[:, 0, :, 1:31] = False  # no ball
    moved = np.zeros((5, 2), bool)
    scene = Scene(*pictures, moved, moved[:, 0])
    found = [better.find_places(side) for side in encode(scene)]
    y, x = np.linspace(-1, 1, 80), np.linspace(-1, 1, 32)
    for n in range(5):
        heights, columns, there = [], [], []
        for picture in pictures[:, n]:
            for part in (slice(0, 1), slice(1, 31), slice(31, 32)):
                rows, places = np.nonzero(picture[:, part])
                heights.append(y[rows].mean() if len(rows) else 0)
                if part.start == 1:
                    columns.append(x[part][places].mean() if len(rows) else 0)
                    there.append(len(rows) > 0)
        for side, sign in zip(found, (1, -1)):
            expected = [sign * np.array(heights), columns, there]
            assert_allclose(side[n], np.concatenate(expected), atol=1e-6)
    assert not found[0][0, -2:].any() and found[0][1:, -2:].all()


def test_what_the_critic_sees_goes_on_from_rollout_to_rollout(rollouts):
    (first, _), (second, scenes) = rollouts
    joined = second._replace(
        inputs=first.inputs + second.inputs,
        rewards=np.concatenate([first.rewards, second.rewards]),
        values=np.concatenate([first.values[:-1], second.values]),
    )
    whole, _ = better.look(joined, scenes)
    one, before = better.look(*rollouts[0])
    two, _ = better.look(second, scenes, before)
    assert_allclose(np.concatenate([one[:, :-1], two], axis=1), whole, atol=1e-6)
    assert whole.shape == (2, 41, 3, 22) and whole.dtype == np.float32
    assert_array_equal(whole[:, 3:, :, 10:20], whole[:, :-3, :, :10])
    assert_array_equal(whole[0, :3, :, 10:20], whole[0, [0, 0, 0], :, :10])
    point = np.zeros(3)
    for t, reward in enumerate(joined.rewards):
        assert_allclose(whole[:, t, :, 20], [point, point], atol=1e-6)
        point = np.where(reward, reward, 0.97 * point)
    assert_allclose(whole[:, :, :, 21], [joined.values] * 2, atol=1e-6)


def test_the_critic_judges_first_and_learns_then(rollouts):
    critic = better.Critic(1, n_kept=2)
    for experience, scenes in (*rollouts, rollouts[0]):
        before, model = critic.before, critic.network.model
        copy = {name: weights.copy() for name, weights in model.items()}
        judged = critic(experience, scenes, 1.0)
        seen, _ = better.look(experience, scenes, before)
        assert_array_equal(judged.values, better.judge(seen[0], model)[-1])
        assert_array_equal(judged.rewards, experience.rewards)
        assert all(np.array_equal(model[name], copy[name]) for name in copy)
        assert np.abs(judged.values).max() <= 1
    assert len(critic.kept) == 2 and critic.network.n_updates == 3 * 128
    seen, returns = critic.targets()
    errors = (better.judge(seen, critic.network.model)[-1] - returns) ** 2
    random = better.judge(seen, better.Critic(1).network.model)[-1]
    assert errors.mean() < 0.1 * np.mean((random - returns) ** 2)
    still = critic.network.model["W0"]
    critic(*rollouts[0], remaining=0.0)
    assert_array_equal(critic.network.model["W0"], still)


def test_the_critic_ignores_what_the_emulator_ignored(rollouts):
    experience, scenes = rollouts[0]
    ignored = np.random.default_rng(0).random(experience.ignored.shape) < 0.3
    critic = better.Critic(1)
    critic(experience._replace(ignored=ignored), scenes, 1.0)
    seen, returns = critic.targets()
    assert seen.shape == (2, np.sum(~ignored), 22) and len(returns) == seen.shape[1]
    assert_array_equal(seen[0], critic.kept[0][0][0, :-1][~ignored])


def test_training_learns_from_the_values_of_the_judge(monkeypatch):
    """It gets each rollout, what comes after, and how much is still to come."""
    settings = SETTINGS | {"n_steps": 8, "decisions": 48}
    asked, judged = [], []
    monkeypatch.setattr(
        "pong.train_to_win.make_rollout",
        lambda past, settings: (
            judged.append(past.values),
            make_rollout(past, settings),
        )[1],
    )

    def judge(past, scenes, remaining):
        asked.append((past.actions.shape, len(scenes), remaining))
        return past._replace(values=past.values * 0 + len(asked))

    games, model = make_games(2), initialize_model(np.random.default_rng(0))
    for _ in training(games, new_run(new_agent(model), 1), 1, settings, judge):
        pass
    close(games)
    assert asked == [((8, 2), 2, 1 - k / 3) for k in range(3)]
    assert [np.unique(values).tolist() for values in judged] == [[1], [2], [3]]


def test_points_of_pairs_are_counted_by_part(monkeypatch):
    rewards = np.random.default_rng(0).integers(-1, 2, (9, 5, 8))  # of rollouts

    def training(games, run, seed, settings, judge):
        for k, r in enumerate(rewards):
            past = SimpleNamespace(rewards=r)
            assert (judge(past, None, 1.0) is past) == (seed == 7)
            yield SimpleNamespace(decisions=40 * (k + 1)), None

    monkeypatch.setattr(script, "training", training)
    monkeypatch.setattr(script, "make_games", lambda n: [])
    monkeypatch.setattr(script, "EVERY", 70)
    monkeypatch.setattr(script, "N_DECISIONS", 200)
    rows = script.count_points(("no critic", 7))
    assert [row.pop("decisions") for row in rows] == [80, 160]
    for row, part in zip(rows, (rewards[:2], rewards[2:4])):
        won, lost = (part == 1).sum(), (part == -1).sum()
        assert row == {"agent": "no critic", "seed": 7, "won": won, "lost": lost}


# What the page says
