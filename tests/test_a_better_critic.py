"""The critic that knows where things are, and what is recorded of it."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

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
from pong.pong_from_pixels import central_differences


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
    pictures = np.random.default_rng(0).random((2, 5, 80, 32)) < 0.02
    pictures[:, 0, :, 1:31] = False  # no ball
    moved, places = np.zeros((5, 2), bool), []
    for picture in np.concatenate(pictures):  # the five older ones first
        parts = [picture & (np.arange(32) == k) for k in (0, 31)]
        parts.insert(1, picture & ~parts[0] & ~parts[1])
        cells = [np.nonzero(part) for part in parts]
        means = [np.mean(c, axis=1) if c[0].size else (39.5, 15.5) for c in cells]
        places.append([*(y / 39.5 - 1 for y, _ in means), means[1][1] / 15.5 - 1])
        places[-1].append(cells[1][0].size > 0)
    places = np.array(places, float).reshape(2, 5, 5)
    heights = np.hstack(places[..., :3])
    rest = places[..., 3:].transpose(1, 2, 0).reshape(5, 4)
    scene = Scene(*pictures, moved, moved[:, 0])
    for side, sign in zip(encode(scene), (1, -1)):
        expected = np.hstack([sign * heights, rest])
        assert_allclose(better.find_places(side), expected, atol=1e-6)
    assert rest[0].tolist() == [0, 0, 0, 0] and rest[1:, 2:].all()


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


def test_the_gradient_of_the_critic():
    """Half the sum of squares, in 64 bits, with a few random weights."""
    rng = np.random.default_rng(1)
    rows, goal = rng.normal(size=(30, 22)), rng.normal(size=30)
    model = better.new_critic(rng, (22, 6, 5, 1)).model
    model = {name: w + rng.normal(0, 0.1, w.shape) for name, w in model.items()}

    def loss(model):
        return 0.5 * np.sum((better.judge(rows, model)[-1] - goal) ** 2)

    layers = better.judge(rows, model)
    gradient = better.judge_backward(layers, layers[-1] - goal, model)
    assert list(gradient) == ["W2", "b2", "W1", "b1", "W0", "b0"]
    for name, exact in gradient.items():
        used = np.flatnonzero(exact)[:20]
        numerical = central_differences(loss, model, name, used)
        assert_allclose(numerical, exact.flat[used], rtol=1e-5, atol=1e-8)


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
    seen, returns = better.hindsight(critic.kept, critic.network.model)
    errors = (better.judge(seen, critic.network.model)[-1] - returns) ** 2
    random = better.judge(seen, better.Critic(1).network.model)[-1]
    assert errors.mean() < 0.1 * np.mean((random - returns) ** 2)
    still = critic.network.model["W0"]
    ignored = np.random.default_rng(0).random(experience.ignored.shape) < 0.3
    critic(experience._replace(ignored=ignored), scenes, remaining=0.0)
    assert_array_equal(critic.network.model["W0"], still)
    seen, _ = better.hindsight(critic.kept[1:], critic.network.model)
    assert_array_equal(seen, critic.kept[1][0][:, :-1][:, ~ignored])


# What the page says
