"""The critic that knows where things are, and what is recorded of it."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal, assert_equal

import pong.a_better_critic as better
import pong.many_games_at_once as many
from pong.pong_from_pixels import central_differences
from pong.ppo_in_numpy import new_agent
from pong.set_up import facts, recorded
from pong.train_to_win import new_run
from pong.what_helped import compare, paired_interval


@pytest.fixture(scope="module")
def rollouts():
    games = many.make_games(3, 1)
    model = many.initialize_model(np.random.default_rng(0))
    scenes = [many.first_scene(frames) for frames in many.reset(games, 3)]
    rng, found = np.random.default_rng(1), []
    for _ in range(2):
        past, scenes = many.play(games, scenes, iter([model]), rng, 20)
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
    assert whole.shape == (2, 41, 3, 22) and whole.dtype == np.float32
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
    for name, exact in zip(model, [gradient[name] for name in model]):
        used = np.flatnonzero(exact)[:20]
        numerical = central_differences(loss, model, name, used)
        assert_allclose(numerical, exact.flat[used], rtol=1e-5, atol=1e-8)


def test_the_critic_judges_first_and_learns_then(rollouts):
    critic = better.Critic(1, n_kept=2)
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
    models = critic.network.model, better.Critic(1).network.model
    errors = [better.forecast(seen, model)[-1] - returns for model in models]
    assert np.linalg.norm(errors[0]) < 0.3 * np.linalg.norm(errors[1])
    ignored = np.random.default_rng(0).random(experience.ignored.shape) < 0.3
    critic(experience._replace(ignored=ignored), scenes, remaining=0.0)
    assert_array_equal(critic.network.model["W0"], models[0]["W0"])
    seen, _ = better.hindsight(critic.kept[1:], critic.network.model)
    assert_array_equal(seen, critic.kept[1][0][:, :-1][:, ~ignored])


def test_the_average_follows_the_weights():
    average = better.Average(0.5)
    for weight in (8, 4, 2):
        agent = new_agent({"W1": np.full((2, 3), weight, np.float32)})
        average(run := new_run(agent, 1), [])
    average(run, [], at_once=True)  # `train` hands over the last Run twice
    assert_equal(average.model, {"W1": np.full((2, 3), 4, np.float32)}, strict=True)


def test_what_the_page_says_of_pairs():
    plain, *new = map(recorded, ("ablations", "critic-pairs", "critic-parts"))
    points = pd.concat([plain.rename(columns={"variant": "agent"}), *new])
    points = points[points["decisions"] == 253_952]
    share = points["won"] / (points["won"] + points["lost"])
    shares = points.assign(share=share).pivot(index="seed", columns="agent")["share"]
    ends = shares.loc[41:50, ["the agent of the book", "with the critic", "no critic"]]
    fresh = shares.loc[265:274, new[1]["agent"].unique()]
    table, parts = (compare(t, np.random.default_rng(0)) for t in (ends, fresh))
    assert {*parts["seeds"], *parts["effect"]} == {10, "not known"}
    assert table[["seeds", "effect"]].values.tolist() == [[10, "more"], [4, "less"]]
    gains = ends["with the critic"] - ends["the agent of the book"]
    means = [*ends.mean()[:2].round(2), *fresh.mean()[::4].round(2)]
    assert [sum(gains > 0.09), sum(gains < 0), *means] == [7, 3, 0.37, 0.48, 0.46, 0.39]


def test_what_the_page_says_of_whole_trainings():
    names = ("reference-runs", "critic-runs")
    (old, new), (was, now) = map(recorded, names), map(facts, names)
    assert was["made with"]["processor"] == now["made with"]["processor"]
    was, now = was["settings"], now["settings"]
    changed = {name for name in now if now[name] != was.get(name)}
    assert changed == {"gae_lambda", "learning_rate", "faster"}
    even, good = (
        [
            t[t["mean_return"] >= n].groupby("seed")["decisions"].min()
            for t in (old, new)
        ]
        for n in (0, 15)
    )
    assert 1e6 < even[0].max() and even[1].max() < 5e5 and [*map(len, good)] == [4, 5]
    sooner, low, _ = paired_interval(*even[::-1], np.random.default_rng(0))
    assert (round(sooner, -4), low < -5e5) == (-350_000, True)
    middle = [sorted([*t, 9e6])[2] / 1e6 for t in good]
    assert np.round(middle, 1).tolist() == [1.9, 1.8]
    ends = [t.groupby("seed")["mean_return"].last() for t in (old, new)]
    assert (ends[1] - ends[0]).mean().round() == 2 and ends[0].min() == 10.46
    highest = [t.groupby("seed")["mean_return"].max() for t in (old, new)]
    assert [sum(t >= 18) for t in highest] == [0, 2]
    assert recorded("critic-games")["return"].min() > 0
    speeds = recorded("critic-speed")["decisions_per_second"].to_numpy()
    assert {*np.round(speeds[::2] / speeds[1::2], 2)} <= {0.90, 0.91, 0.93, 0.94}


def test_what_the_page_says_of_new_games():
    table = recorded("critic-average")
    book = table[table["agent"] == "the agent of the book"]
    now = book[book["decisions"] == 253_952].groupby("actions").mean(numeric_only=True)
    assert (now["return"] - now["training"]).round().tolist() == [6, 8]
    played = table[table["weights"] == "average"]
    looks = played.pivot_table("return", "decisions", ["agent", "actions", "seed"])
    still = np.minimum(looks, looks.shift(-1, fill_value=21))["with the critic"]
    first = [sorted((still[way] >= 0).idxmax() // 1000) for way in ("drawn", "greedy")]
    assert first == [[200, 200, 253, 253, 352], [200, 200, 200, 253, 352]]
    assert (still >= 15).any().loc[lambda good: good].index.tolist() == [("greedy", 1)]
    means = looks.mean().unstack("agent").groupby("actions").mean().to_numpy()
    assert np.round(means[:, 1] - means[:, 0]).tolist() == [8, 8]
    drawn, greedy = (looks.T.xs(way, level=1) for way in ("drawn", "greedy"))
    drawing = (greedy - drawn).groupby("agent").mean().round().to_numpy()
    assert drawing[[1, 1, 0], [1, -1, -1]].tolist() == [4, 0, 3]
    games = recorded("critic-runs").query("seed == 1")["games"].tolist()
    speeds = recorded("critic-speed").groupby("agent").median().to_numpy()
    assert 93 in games and 50 < 254_000 / speeds[1, 0] < 60
