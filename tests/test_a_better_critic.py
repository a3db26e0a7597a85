"""The critic that knows where things are."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal, assert_equal

import pong.a_better_critic as better
import pong.many_games_at_once as many
from pong.pong_from_pixels import central_differences


@pytest.fixture(scope="module")
def rollouts():
    games = many.make_games(3, 1)
    model = many.initialize_model(np.random.default_rng(0))
    scenes = [many.first_scene(frames) for frames in many.reset(games, 3)]
    rng, found = np.random.default_rng(1), []
    for n in (2, 20):
        past, scenes = many.play(games, scenes, iter([model]), rng, n)
        rewards = rng.choice([-1.0, 0.0, 1.0], past.rewards.shape, p=[0.1, 0.8, 0.1])
        found.append((past._replace(rewards=rewards.astype(np.float32)), scenes))
    many.close(games)
    return found


def test_places_are_means_of_cells():
    pictures = np.random.default_rng(0).random((2, 5, 80, 32)) < 0.02
    pictures[:, 0, :, 1:31] = False  # no ball
    scene = many.Scene(*pictures, np.zeros((5, 2), bool), np.zeros(5, bool))
    for side, sign in zip(many.encode(scene), (1, -1)):
        for n, found in enumerate(better.find_places(side)):
            heights, columns, there = [], [], []
            for picture in pictures[:, n]:
                for first, last in ((0, 1), (1, 31), (31, 32)):
                    cells = np.argwhere(picture[:, first:last])
                    y, x = cells.mean(axis=0) if len(cells) else (39.5, 14.5)
                    heights.append(sign * (y / 39.5 - 1))
                    if first == 1:
                        columns.append((x + 1) / 15.5 - 1)
                        there.append(len(cells) > 0)
            assert_allclose(found, heights + columns + there, atol=1e-6)
            assert all(there) == (n > 0)


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
    assert whole.shape == (2, 23, 3, 22) and whole.dtype == np.float32
    assert_array_equal(whole[:, 3:, :, 10:20], whole[:, :-3, :, :10])
    assert_array_equal(whole[0, :3, :, 10:20], whole[0, [0, 0, 0], :, :10])
    point = np.zeros(3)
    for t, reward in enumerate(joined.rewards):
        assert_allclose(whole[:, t, :, 20], [point, point], atol=1e-6)
        point = np.where(reward, reward, 0.97 * point)
    assert_allclose(whole[:, :, :, 21], [joined.values] * 2, atol=1e-6)


def test_the_gradient_of_the_critic():
    rng = np.random.default_rng(1)
    rows, goal = rng.normal(size=(30, 22)), rng.normal(size=30)
    model = better.new_critic(rng, (22, 6, 5, 1)).model
    model = {name: w + rng.normal(0, 0.1, w.shape) for name, w in model.items()}

    def loss(model):
        return 0.5 * np.sum((better.forecast(rows, model)[-1] - goal) ** 2)

    layers = better.forecast(rows, model)
    gradient = better.forecast_backward(layers, layers[-1] - goal, model)
    for name, weights in model.items():
        numerical = central_differences(loss, model, name, range(weights.size))
        assert_allclose(gradient[name].ravel(), numerical, rtol=1e-5, atol=1e-7)


def test_the_critic_judges_first_and_learns_then(rollouts, monkeypatch):
    rng = np.random.default_rng(1)
    monkeypatch.setattr(better, "N_KEPT", 2)
    critic = better.Critic(first := better.new_critic(rng), rng)
    for experience, scenes in (*rollouts, rollouts[0]):
        before, model = critic.before, critic.network.model
        copy = {name: weights.copy() for name, weights in model.items()}
        judged = critic(experience, scenes, remaining=1.0)
        seen, after = better.look(experience, scenes, before)
        assert_equal(critic.before, after)
        assert_array_equal(judged.values, better.forecast(seen[0], model)[-1])
        assert_equal(model, copy)
    assert len(critic.kept) == 2 and critic.network.n_updates == 3 * 128
    seen, returns = better.hindsight(critic.kept, critic.network.model)
    models = critic.network.model, first.model
    errors = [better.forecast(seen, model)[-1] - returns for model in models]
    assert np.linalg.norm(errors[0]) < 0.3 * np.linalg.norm(errors[1])
    ignored = np.random.default_rng(0).random(experience.ignored.shape) < 0.3
    critic(experience._replace(ignored=ignored), scenes, remaining=0.0)
    assert_array_equal(critic.network.model["W0"], models[0]["W0"])
    seen, returns = better.hindsight(critic.kept[1:], critic.network.model, 0.0)
    assert_array_equal(seen, critic.kept[1][0][:, :-1][:, ~ignored])
    assert_allclose(returns, experience.rewards[~ignored], atol=1e-6)
    others = [better.Critic(first, np.random.default_rng(0), gamma) for gamma in (0, 1)]
    ends = [(c(*rollouts[0], 1.0), c.network.model["W0"])[1] for c in others]
    assert (ends[0] != ends[1]).any()
