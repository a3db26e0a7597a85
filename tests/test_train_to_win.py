"""The functions of "Train to win", and what is recorded for it."""

import itertools
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_equal
from scipy import sparse

import pong.train_to_win as ttw
import train_to_win as script  # scripts/train_to_win.py
from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import Experience, close, forward, log_softmax, make_games
from pong.ppo_in_numpy import adam_step, new_agent, ppo_gradients
from pong.set_up import data_file, facts, recorded

TINY = ttw.SETTINGS | {"decisions": 96, "n_steps": 16, "gamma": 0.9}
TINY |= {"epochs": 2, "n_minibatches": 2}


def small_agent(seed):
    return new_agent(script.random_model(seed))


@pytest.fixture(scope="module")
def games():
    games = make_games(2)  # each reset takes 0.2 s per game
    yield games
    close(games)


# The loop


def test_learning_goes_on_while_the_next_rollout_is_played(games, monkeypatch):
    """The weights are those of a plain loop, and exchanged at fixed moments."""
    pasts = []

    class Judge(ttw.Critic):
        def __call__(self, past, scenes, remaining):
            assert (len(scenes), self.gamma, remaining) == (2, 0.9, 1 - len(pasts) / 3)
            super().__call__(past, scenes, remaining)
            pasts.append(past._replace(values=past.values + 1))
            return pasts[-1]

    monkeypatch.setattr(ttw, "Critic", Judge)
    start = ttw.new_run(small_agent(1), 1)
    runs = list(ttw.training(games, start, 1, TINY))
    assert [run.critic.n_updates for run, _ in runs] == [128, 256, 384]
    rng = np.random.default_rng([1, 1])
    for n, (run, row) in enumerate(runs[1:]):
        agents, now = [runs[n][0].agent], ttw.anneal(TINY, 1 - n / 3)
        for batch in ttw.minibatches(ttw.make_rollout(pasts[n], TINY)[0], TINY, rng):
            agent, metrics = ttw.update(agents[-1], batch, **now)
            agents.append(agent)
        assert_equal(run.agent.model, agent.model)
        assert row.items() >= metrics.items()
        for t in range(16):
            parts = zip(*pasts[n + 1].inputs[2 * t : 2 * t + 2], strict=True)
            inputs = tuple(sparse.vstack(part, "csr") for part in parts)
            for k, agent in enumerate(agents):  # the first is a rollout old
                logits, _, _ = forward(inputs, agent.model)
                chosen = log_softmax(logits)[range(2), pasts[n + 1].actions[t]]
                same = np.allclose(chosen, pasts[n + 1].log_probs[t], atol=1e-6)
                assert same == (k == t // 4)


def test_anneal_lowers_two_settings():
    names = "clip_coef", "value_coef", "max_grad_norm", "faster"
    kept = {n: ttw.SETTINGS[n] for n in names}
    for left in (1.0, 0.25, 0.0):
        lowered = {n: ttw.SETTINGS[n] * left for n in ("learning_rate", "entropy_coef")}
        assert ttw.anneal(ttw.SETTINGS, left) == kept | lowered


@pytest.mark.parametrize(
    "call",
    [
        *(partial(make_games, *a) for a in ((0,), (1,), (np.nan,), (2, 2, np.nan))),
        *(partial(ttw.reset, [], seed) for seed in (-1, 2**31, 1.5)),
        lambda: ttw.evaluate(None, 0),
        lambda: ttw.choose_actions(np.full((1, 3), np.nan)),
        lambda: ttw.train([], None, 1, TINY, np.nan),
        lambda: ttw.train([], None, 1, TINY | {"decisions": 0}),
        lambda: next(ttw.training([], None, 1, TINY | {"epochs": 0})),
        lambda: next(ttw.training([], None, 1, TINY | {"n_steps": np.nan})),
        lambda: ppo_gradients(np.zeros((1, 3)), np.zeros(1), None, np.nan, 0, 0),
        lambda: adam_step(new_agent({}), {}, 0.1, np.nan),
    ],
)
def test_numbers_that_make_no_sense_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|must not"):
        call()


def test_finish_games_adds_up_each_game():
    rewards, over = np.arange(12.0).reshape(6, 2), np.zeros((6, 2), bool)
    over[[1, 4, 4], [0, 0, 1]] = True
    past, scores = (Experience(*[0] * 4, rewards, 0, over), np.array([100.0, 200]))
    finished, now = ttw.finish_games(scores, past)
    assert finished == [100 + 0 + 2, 4 + 6 + 8, 200 + 1 + 3 + 5 + 7 + 9]
    assert (now.tolist(), scores.tolist()) == ([10, 11], [100, 200])
    assert ttw.mean_of_last([9.0, 1.0, 2.0], 2) == 1.5
    assert np.isnan(ttw.mean_of_last([1.0], 2))
    run = ttw.Run(None, None, 7, [50.0] + [1.0, 3.0] * 25, [])
    metrics = [{"approx_kl": k, "clip_fraction": 2 * k} for k in (1, 2)]
    row = ttw.figures(run, np.array([[1, -1], [-1, 0]]), 0.5, metrics)
    facts = {"decisions": 7, "games": 51, "mean_return": 2.0, "won": 1, "lost": 2}
    facts |= {"explained_variance": 0.5, "first_kl": 1, "first_clip_fraction": 2}
    assert row == facts | metrics[1]


def test_same_seed_gives_the_same_training(games, capsys):
    start = small_agent(20)
    results = [ttw.train(games, ttw.new_run(start, n), n, TINY) for n in (3, 3, 4)]
    assert_equal(start, small_agent(20))
    (run, history), (again, _), (other, _) = results
    assert_equal(run.agent, again.agent)
    # Three rollouts; from the last one, nothing has been learned yet.
    assert run.agent.n_updates == 8
    assert (run.agent.model["W1"] != other.agent.model["W1"]).any()
    assert [row["decisions"] for row in history] == [32, 64, 96]
    # One set of weights played the first rollout, several the second one.
    assert history[1]["first_kl"] < 1e-6 < history[2]["first_kl"]
    assert_equal(run.critic, again.critic)
    plain, _ = ttw.train(games, ttw.new_run(start, 3, critic=False), 3, TINY)
    assert plain.critic is None
    assert (plain.agent.model["W1"] != run.agent.model["W1"]).any()
    # It ends when its time is over, too, which the progress bar knows.
    assert "100%" in capsys.readouterr().err
    run, long = ttw.new_run(start, 0), TINY | {"decisions": 10**9}
    _, history = ttw.train(games, run, 0, long, max_seconds=1e-9)
    assert len(history) == 1
    assert "100%" in capsys.readouterr().err


# What is recorded


def test_shipped_agent_wins_the_recorded_games():
    model = load_model(data_file("agent.safetensors"))
    games = recorded("evaluation").query("actions == 'greedy'")
    assert games["seed"].tolist() == list(range(100_000, 100_100))
    found = np.transpose(ttw.evaluate(model, 2))
    assert found.tolist() == games[["return", "decisions"]][:2].to_numpy().tolist()
    gauges = recorded("gauges")
    clip = gauges["clip_fraction"].groupby(gauges["decisions"] // 100_000).mean()
    assert 0.35 < clip.iloc[0] < 0.4 and 0.22 < clip.iloc[-1] < 0.28
    means = recorded("evaluation").groupby("actions")["return"].mean()
    assert facts("agent")["mean return of 100 games"] == means.to_dict()


def test_training_does_what_the_recorded_runs_did():
    """With fewer rollouts, an agent that learns nothing would be as good as this."""
    run = ttw.new_run(small_agent(2026), 2026)
    rollouts = ttw.training(games := make_games(32), run, 2026, ttw.SETTINGS)
    history = []
    for run, row in itertools.islice(rollouts, 30):
        history.append(row | {"seconds": 0})
        returns = run.returns
    close(games)
    assert row["games"] == len(returns) > 20 and -21 <= np.mean(returns) < -12
    mine = script.gauges_of(2026, history)
    bands = recorded("gauges")
    assert sorted(bands["seed"].unique()) == list(script.SEEDS)
    bands = bands[bands["decisions"].isin(mine["decisions"])]
    assert len(bands) == 5 * len(mine) == 50
    means = bands.groupby("seed").mean()
    low, high = means.min(), means.max()
    for name in bands.columns.drop(["seed", "decisions", "mean_return"]):
        slack = 2 * (high[name] - low[name])
        assert low[name] - slack < mine[name].mean() < high[name] + slack, name
    # Half of the smallest recorded share of points must be there.
    pairs = recorded("critic-pairs").query("agent == 'with the critic'")
    pairs = pairs[pairs["decisions"] == 102_400]
    least = (pairs["won"] / (pairs["won"] + pairs["lost"])).min()
    won, lost = (sum(row[n] for row in history[13:25]) for n in ("won", "lost"))
    assert won / (won + lost) > least / 2 > 0.03
