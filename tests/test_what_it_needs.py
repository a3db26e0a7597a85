"""The functions of "What it needs", and the results recorded for it."""

from itertools import islice

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

import pong.what_it_needs as needs
import what_it_needs as script
from pong.inside_the_agent import join, make_envs, play_moments, watch
from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import find_objects, first_scene
from pong.set_up import data_file, facts, recorded

GRAYS = {"ball": 236, "opponent": 148, "own paddle": 147}
MODEL = load_model(data_file("agent.safetensors"))


@pytest.fixture(scope="module")
def frames():
    """Return the first pictures of a game."""
    envs = make_envs(1)
    some = join(islice(play_moments(envs, [11], MODEL), 600))
    envs[0].close()
    return some.frames


@pytest.mark.parametrize("name", [*GRAYS, "ball and opponent", "nothing"])
def test_erase_takes_an_object_and_nothing_else(frames, name):
    first, frames = frames[:1], frames[1:]
    before = frames.copy()
    erased = needs.erase(frames, name)
    assert_array_equal(frames, before)
    grays = [gray for key, gray in GRAYS.items() if key in name]
    mask = np.zeros(frames.shape, bool)  # never outside the court
    mask[:, 34:194] = np.isin(frames[:, 34:194], grays)
    assert_array_equal(erased, np.where(mask, 87, frames))
    assert mask.any(axis=(1, 2)).mean() > 0.5 or name == "nothing"
    hidden = mask[:, 34:194:2, 16:144].reshape(-1, 80, 32, 4).all(axis=3)
    assert not (find_objects(erased) & hidden).any()
    # In a game's first picture the own paddle has another gray.
    own = find_objects(needs.erase(first, name))[..., -1]
    assert own.any() == (name != "own paddle")


def test_forget(frames):
    scene = first_scene(frames[:4])._replace(
        previous=find_objects(frames[4:8]), last_actions=np.ones((4, 2), bool)
    )
    changes = {
        "older frame": ("previous", np.zeros((4, 80, 32), bool)),
        "motion": ("previous", scene.current),
        "last action": ("last_actions", np.zeros((4, 2), bool)),
    }
    for name in needs.ERASED:
        part, value = changes.get(name, ("current", scene.current))
        expected = scene._replace(**{part: value})
        for found, wanted in zip(needs.forget(scene, name), expected):
            assert_array_equal(found, wanted)


def test_measure_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="without"):
        needs.measure(MODEL, [1], "bal")


def test_summarize_compares_with_the_first_kind():
    columns = {
        "kind": ["b"] * 3 + ["a"] * 3,
        "return": [1, 3, 8, 0, 2, 7],  # always one less
        "decisions": [5, 5, 5, 9, 9, 8],
    }
    table, rng = pd.DataFrame(columns), np.random.default_rng(0)
    found = needs.summarize(table, "kind", rng)
    assert found.index.tolist() == ["b", "a"]
    assert found["return"]["mean"].tolist() == [4, 3]
    assert found["return"].loc["b", ["from", "to"]].tolist() == [1, 8]
    assert found["difference"].loc["a"].tolist() == [-1, -1, -1]
    found = needs.summarize(table.assign(**{"return": 5}), "kind", rng)
    assert found["games"].to_numpy().tolist() == [[3, 1], [3, 2]]


def memory_of(track):
    """Return memory with a ball on a track of columns and rows, or None."""
    memory = np.full((len(track), 128), 100, np.uint8)
    for row, place in zip(memory, track):
        row[[49, 54]] = (52, 0) if place is None else np.add(place, (49, 48))
    return memory


def test_arrivals_on_made_up_tracks():
    turned = [(130, 40), (134, 48), (138, 56), (134, 64), (130, 72)]
    passed = [(26, 94), (22, 90), (18, 86), (14, 82), (8, 78), None, None]
    late = [(129, 5), (133, 5), (137, 5), (141, 5), (137, 9), (133, 13)]
    returned = needs.Arrival(2, "agent", 56, 8, False, True)
    flat = needs.Arrival(2, "agent", 5, 0, False, True)
    twice = [(25, 9), (21, 9), (21, 9), (25, 9)]  # before and after the paddle
    for track, expected in (
        (turned, [returned]),
        (passed, [needs.Arrival(1, "opponent", 90, -4, True, True)]),
        ([*late, None], [flat]),
        (late[:4], [flat._replace(missed=True)]),  # the end, on its way out
        (twice, [needs.Arrival(1, "opponent", 9, 0, False, True)]),
        ([(100, 5), (104, 5), (108, 5), None], []),
    ):
        assert needs.arrivals(memory_of(track)) == expected
    # A serve, which is returned, a stroke, which is missed, and a serve.
    missed = needs.Arrival(6, "opponent", 90, -4, True, False)
    found = needs.arrivals(memory_of([*turned, *passed, *turned]))
    assert found == [returned, missed, returned._replace(t=14)]


def test_arrival_map():
    columns = ["height", "speed", "missed"]
    rows = [(-2, -8, 1), (19, -6, 0), (20, 0, 1), (163, 2, 1), *[(100, 7, 1)] * 2]
    came, missed = needs.arrival_map(pd.DataFrame(rows, columns=columns))
    expected = np.zeros((8, 5), int)
    for place in ((0, 0), (1, 2), (7, 3), (5, 4), (5, 4)):
        expected[place] += 1
    assert_array_equal(missed, expected)
    expected[0, 1] = 1
    assert_array_equal(came, expected)


def test_recorded_tables_are_complete():
    tables = ("erasing", needs.ERASED, 30), ("variants", needs.VARIANTS, 20)
    for name, kinds, n in tables:
        pairs = recorded(name).to_numpy()[:, :2].tolist()
        assert pairs == [[kind, 200_000 + k] for kind in kinds for k in range(n)]
    assert facts("variants")["variants"] == needs.VARIANTS


def test_recorded_games_can_be_played_again():
    """Those that are soon over. So `measure` hides what it should."""
    names, kinds = ("erasing", "variants"), ("motion", "mode 1, difficulty 2")
    for name, kind, seed in zip(names, kinds, (200_010, 200_017)):
        row = next(r for r in recorded(name).values.tolist() if r[:2] == [kind, seed])
        how = {"without": kind} if name == "erasing" else needs.VARIANTS[kind]
        assert np.ravel(needs.measure(MODEL, [seed], **how)).tolist() == row[2:]


def test_what_the_page_says_of_the_opponents_paddle():
    games = recorded("erasing").pivot(index="seed", columns="erased", values="return")
    both, ball = (games[name] for name in ("ball and opponent", "ball"))
    interval = needs.paired_interval(both, ball, np.random.default_rng(0))
    assert np.round(interval, 1).tolist() == [-0.4, -0.7, -0.1] and set(both) == {-21}


def test_recorded_points_are_those_of_the_game():
    (game,) = watch(MODEL, [200_004])  # the agent loses two points
    rows = recorded("points").query("seed == 200_004").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, needs.arrival_rows(200_004, game.ram))
    # One serve for each point, to whoever lost the point before.
    serves = [ball.t for ball in needs.arrivals(game.ram) if ball.serve]
    ends = np.flatnonzero(game.rewards)
    assert np.searchsorted(ends, serves).tolist() == list(range(len(ends)))
    losers = rows[rows["missed"] == 1]["player"].tolist()
    assert rows[rows["serve"] == 1]["player"].tolist()[1:] == losers[:-1]


def test_what_the_page_says_of_openings(monkeypatch):
    table = recorded("openings")
    won = table.query("lost == 0 and met == 1").groupby("decisions")
    won = [part.value_counts(["served_to", "speed"]).to_dict() for _, part in won]
    assert won[0] == {("agent", -8): 191, ("opponent", 8): 105}
    assert won[-1]["opponent", 8] == 308 and all(w.keys() == won[0].keys() for w in won)
    lost = table.query("lost == 1 and met < 2 and decisions > 0")
    lost = lost.value_counts(["decisions", "met"], sort=False).unstack()
    share = 100 * lost.sum(axis=1) / table["decisions"].value_counts()
    assert [*lost.iloc[0], *share.dropna().round()] == [206, 132, 47, 17, 10, 5]
    met = table.query("served_to == 'opponent' and met > 0")
    once = met.eval("met == 1 and lost == 0").groupby(met["decisions"]).mean()
    assert once.loc[[100_000, 7_000_000]].round(2).tolist() == [0.53, 0.75]
    monkeypatch.setattr(script, "AGE_GAMES", 1)
    again = script.rallies_of("1m.safetensors", 1_000_000).values.tolist()
    table = table.query("decisions == 1_000_000 and seed == 200_000")
    assert again == table.values.tolist()
