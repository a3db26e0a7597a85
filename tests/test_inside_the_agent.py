"""The functions of "Inside the agent", and the results recorded beside it."""

import hashlib
import json

import numpy as np
import pytest
from conftest import (
    ROOT,
    check_video,
    definitions,
    notebook_functions,
    notebook_value,
)
from imageio_ffmpeg import count_frames_and_secs
from scipy import sparse

SOURCE = ROOT / "content" / "inside-the-agent.md"
BEFORE = ROOT / "content" / "train-to-win.md"
DATA = ROOT / "content" / "data"
OBJECTS = ("ball", "opponent", "own paddle")
UP_OR_DOWN = (1, -1, 0, 0)


@pytest.fixture(scope="module")
def code():
    """Return the functions of the chapter."""
    return notebook_functions(SOURCE)


@pytest.fixture(scope="module")
def model(code):
    """Return the shipped weights."""
    return code.load_model(DATA / "agent.safetensors")


@pytest.fixture(scope="module")
def games(code, model):
    """Return four games of the shipped agent."""
    return code.watch(model, [11, 12, 13, 14])


@pytest.fixture(scope="module")
def whole_game(code, model):
    """Return the moments of a whole game, with their frames."""
    envs = code.make_envs(1)
    moments = list(code.play_moments(envs, [11], model))
    envs[0].close()
    return moments


@pytest.fixture(scope="module")
def frames(whole_game):
    """Return what the emulator showed in that game."""
    return np.concatenate([m.frames for m in whole_game])


@pytest.fixture(scope="module")
def ram(whole_game):
    """Return the emulator's memory in that game."""
    return np.concatenate([m.ram for m in whole_game])


def random_scene(code, rng, n):
    """Return a scene with about as many set cells as in a game, or more."""
    previous, current = (rng.random((n, 80, 32)) < 0.02 for _ in range(2))
    last_actions = np.eye(3, dtype=bool)[rng.integers(0, 3, n), :2]
    return code.Scene(previous, current, last_actions, np.zeros(n, bool))


def small_model(rng, n_hidden=7):
    """Return weights in float64 with few hidden units."""
    shapes = {"W1": (5123, n_hidden), "W2": (n_hidden, 4), "b2": (4,)}
    return {k: rng.standard_normal(s) for k, s in shapes.items()}


def mirrored_columns():
    """Return where each input goes in the mirrored court, cell by cell."""
    columns = []
    for picture in (0, 1):
        for row in range(80):
            for column in range(32):
                columns.append(picture * 2560 + (79 - row) * 32 + column)
    return [*columns, 5121, 5120, 5122]


def as_double(inputs):
    return tuple(matrix.astype(np.float64) for matrix in inputs)


# What the chapter repeats


def test_repeated_functions_are_those_of_train_to_win():
    ours, theirs = definitions(SOURCE), definitions(BEFORE)
    repeated = ours.keys() & theirs.keys()
    assert {"encode", "forward", "load_model", "recorded_file"} <= repeated
    for name in repeated:
        assert ours[name] == theirs[name], name


def test_games_are_those_of_the_evaluation(code, model, games):
    before = notebook_functions(BEFORE)
    envs = code.make_envs(2)
    returns, decisions = before.play_games(envs, [11, 12], model)
    for env in envs:
        env.close()
    again = code.measure(model, [11, 12])
    np.testing.assert_array_equal(again[0], returns)
    np.testing.assert_array_equal(again[1], decisions)
    for game, total, length in zip(games, returns, decisions):
        assert game.rewards.sum() == total
        assert len(game.actions) == game.inputs[0].shape[0] == length


def test_watch_sorts_the_moments_by_game(games, whole_game, ram):
    """The same game, alone and side by side with others."""
    first = games[0]
    np.testing.assert_array_equal(first.ram, ram)
    assert set(first.games) == {0}
    for name in ("actions", "rewards"):
        alone = np.concatenate([getattr(m, name) for m in whole_game])
        np.testing.assert_array_equal(getattr(first, name), alone)
    seen = sparse.vstack([m.inputs[0] for m in whole_game])
    assert (first.inputs[0] != seen).nnz == 0
    assert {len(game.actions) for game in games} != {len(ram)}


# Receptive fields


def test_strongest_units(code):
    effects = np.array([0.5, -3.0, 2.0, -0.1, 0.0])
    np.testing.assert_array_equal(code.strongest(effects, 2), [2, 0, 3, 1])
    np.testing.assert_array_equal(code.strongest(effects, 1), [2, 1])


def test_unit_effects_add_up_to_the_mean_outputs(code):
    rng = np.random.default_rng(0)
    weights = small_model(rng)
    inputs = code.encode(random_scene(code, rng, 30))
    logits, values, hidden = code.forward(inputs, weights)
    seen, mirrored = (
        code.unit_effects(half, weights) for half in np.split(hidden, 2)
    )
    difference = (logits[:, 0] - logits[:, 1]).mean()
    total = seen["up or down"].sum() - mirrored["up or down"].sum()
    np.testing.assert_allclose(total, difference)
    total = seen["value"].sum() + mirrored["value"].sum()
    np.testing.assert_allclose(total + 2 * weights["b2"][3], values.mean())


def test_responses_are_correlations(code):
    rng = np.random.default_rng(1)
    cells = (rng.random((50, 5123)) < 0.2).astype(np.float32)
    cells[:, 7], cells[:, 8] = 0, 1  # cells that never change
    hidden = np.maximum(rng.standard_normal((50, 3)), 0)
    hidden[:, 2] = 0
    found = code.responses(sparse.csr_matrix(cells), hidden)
    assert found.shape == (5123, 3)
    for i, j in [(0, 0), (100, 1), (5122, 0)]:
        expected = np.corrcoef(cells[:, i], hidden[:, j])[0, 1]
        np.testing.assert_allclose(found[i, j], expected, atol=1e-5)
    np.testing.assert_allclose(found[[7, 8]], 0, atol=1e-9)
    assert not found[:, 2].any()


def test_cell_counts(code, games):
    counts = code.cell_counts(games[:2])
    dense = [m.toarray() for game in games[:2] for m in game.inputs]
    np.testing.assert_array_equal(counts, sum(d.sum(axis=0) for d in dense))
    assert counts[5122] == 2 * sum(len(g.actions) for g in games[:2])


# Saliency


def test_mirror_is_that_of_encode(code):
    rng = np.random.default_rng(2)
    inputs, mirrored = code.encode(random_scene(code, rng, 5))
    dense = inputs.toarray()
    np.testing.assert_array_equal(code.mirror(dense), mirrored.toarray())
    np.testing.assert_array_equal(
        dense[:, mirrored_columns()], mirrored.toarray()
    )
    np.testing.assert_array_equal(code.mirror(code.mirror(dense)), dense)


@pytest.mark.parametrize(
    "weights",
    [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, -1, 0.5, 2)],
)
def test_saliency_agrees_with_finite_differences(code, weights):
    rng = np.random.default_rng(3)
    network, n = small_model(rng), 3
    inputs = as_double(code.encode(random_scene(code, rng, n)))
    gradient = code.saliency(inputs, network, weights)
    assert gradient.shape == (n, 5123)
    swap = mirrored_columns()

    def output(x):
        """Return the weighted sum, written down without the chapter's code."""
        outputs = np.maximum(x @ network["W1"], 0) @ network["W2"]
        other = np.maximum(x[swap] @ network["W1"], 0) @ network["W2"]
        return np.dot(weights, outputs + other[[1, 0, 2, 3]])

    for row in range(n):
        x = inputs[0][row].toarray()[0]
        cells = [*inputs[0][row].indices, *rng.integers(0, 5123, 30)]
        errors, sizes = [], []
        for cell in cells:
            moved = np.zeros(5123)
            moved[cell] = 1e-6
            slope = (output(x + moved) - output(x - moved)) / 2e-6
            errors.append(slope - gradient[row, cell])
            sizes.append(slope)
        assert np.linalg.norm(errors) < 1e-6 * np.linalg.norm(sizes)
        one = tuple(matrix[row] for matrix in inputs)
        numbers = code.numerical_saliency(one, network, weights, cells)
        np.testing.assert_allclose(numbers, sizes, atol=1e-6)


def test_contributions_add_up_to_the_answer(code, model, games):
    double = {k: w.astype(np.float64) for k, w in model.items()}
    some = as_double(tuple(m[::400] for m in games[0].inputs))
    logits, values, _ = code.forward(some, double)
    for weights, outputs in (
        (UP_OR_DOWN, logits[:, 0] - logits[:, 1]),
        ((0, 0, 0, 1), values - 2 * double["b2"][3]),
    ):
        gradient = code.saliency(some, double, weights)
        for cells, g, answer in zip(some[0].toarray(), gradient, outputs):
            parts = code.contributions(cells, g)
            np.testing.assert_allclose(sum(parts.values()), answer, atol=1e-9)


def test_contributions_sort_the_cells(code):
    places = {
        "opponent, older": (0, 40, 0),
        "ball, older": (0, 3, 1),
        "own paddle, older": (0, 79, 31),
        "opponent, newer": (1, 0, 0),
        "ball, newer": (1, 50, 30),
        "own paddle, newer": (1, 20, 31),
    }
    columns = {
        name: np.ravel_multi_index(place, (2, 80, 32))
        for name, place in places.items()
    } | {"last action": 5121, "constant": 5122}
    gradient = np.random.default_rng(4).standard_normal(5123)
    for name, column in columns.items():
        cells = np.zeros(5123)
        cells[column] = 1
        parts = code.contributions(cells, gradient)
        assert parts.pop(name) == gradient[column]
        assert not any(parts.values())


def test_neighbor_agreement(code):
    rng = np.random.default_rng(5)
    rest = np.zeros((1, 3))
    stripes = np.repeat(rng.standard_normal((2, 40, 32)), 2, axis=1)
    noise = rng.standard_normal((2, 80, 32))
    everywhere = np.ones(5123, bool)
    for picture, low, high in ((stripes, 0.4, 0.6), (noise, -0.1, 0.1)):
        gradient = np.concatenate([picture.reshape(1, -1), rest], axis=1)
        assert low < code.neighbor_agreement(gradient, everywhere) < high
    # Only rows 0 and 1, which are equal.
    top = np.zeros((2, 80, 32), bool)
    top[:, :2] = True
    visited = np.append(top.ravel(), [False] * 3)
    gradient = np.concatenate([stripes.reshape(1, -1), rest], axis=1)
    np.testing.assert_allclose(code.neighbor_agreement(gradient, visited), 1)


# The emulator's memory


def rows_and_columns(mask):
    """Return the first and last row and column that are set, or None."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (rows[0], rows[-1], columns[0], columns[-1]) if len(rows) else None


def boxes(frame):
    """Return where a picture shows the objects, rows from the court's top."""
    court = frame[34:194]
    grays = {"ball": 236, "opponent": 148, "own paddle": 147}
    return {n: rows_and_columns(court == gray) for n, gray in grays.items()}


def expected_boxes(ram):
    """Return where the objects are, by AtariARI's addresses, or None."""
    ram = ram.astype(int)
    sizes = {  # left, top, width, height
        "ball": (ram[49] - 49, ram[54] - 48, 2, 4),
        "opponent": (ram[45] - 48, ram[50] - 49, 4, 16),
        "own paddle": (ram[46] - 48, ram[51] - 48, 4, 16),
    }
    if not ram[54]:
        del sizes["ball"]
    result = dict.fromkeys(OBJECTS)
    for name, (left, top, width, height) in sizes.items():
        first, last = max(top, 0), min(top + height, 160) - 1
        if first <= last:
            result[name] = (first, last, left, left + width - 1)
    return result


def test_addresses_agree_with_the_pixels_over_a_whole_game(frames, ram):
    compared = dict.fromkeys(OBJECTS, 0)
    for frame, memory in zip(frames[1:], ram[1:]):
        found, expected = boxes(frame), expected_boxes(memory)
        for name, box in found.items():
            if box is None or expected[name] is None:
                # Not there, or just about to cross the edge of the court.
                other = box or expected[name]
                assert (
                    other is None
                    or name == "opponent"
                    or min(other[1], 159 - other[0]) <= 2
                ), name
                continue
            assert np.abs(np.subtract(box, expected[name])).max() <= 1, name
            compared[name] += 1
    assert min(compared.values()) > len(frames) / 2


def test_addresses_of_the_score(whole_game, ram):
    rewards = np.concatenate([m.rewards for m in whole_game])
    for address, sign in ((13, -1), (14, 1)):
        points = np.cumsum(rewards == sign)[:-1]
        np.testing.assert_array_equal(ram[1:, address], points)
    assert rewards.any()


def test_read_ram(code, frames, ram):
    truth = code.read_ram(ram)
    assert np.isfinite(truth["own paddle y"]).all()
    for t in range(1, len(ram), 7):
        expected = expected_boxes(ram[t])["ball"]
        if boxes(frames[t])["ball"] is not None:
            assert expected[2] == truth["ball x"][t]
            assert expected[0] == max(truth["ball y"][t], 0)
        elif ram[t, 54] == 0:
            assert np.isnan(truth["ball x"][t])
    assert 0.05 < np.isnan(truth["ball y"]).mean() < 0.5
    memory = np.zeros((1, 128), np.uint8)
    memory[0, [49, 54, 51, 50]] = 60, 50, 40, 45  # no byte wraps around
    assert {k: v[0] for k, v in code.read_ram(memory).items()} == {
        "ball x": 11,
        "ball y": 2,
        "own paddle y": -8,
        "opponent y": -4,
    }


def test_first_pixel(code, frames):
    for name in OBJECTS:
        left, top = code.first_pixel(frames[1:], name)
        seen = 0
        for x, y, frame in zip(left, top, frames[1:]):
            box = boxes(frame)[name]
            if box is None or box[0] == 0 or box[1] == 159:
                assert np.isnan(x) and np.isnan(y)
            else:
                assert (y, x) == (box[0], box[2])
                seen += 1
        assert seen > 100


# Masks


@pytest.mark.parametrize("name", OBJECTS)
def test_a_mask_erases_its_object_and_nothing_else(code, frames, ram, name):
    before = frames.copy()
    erased = code.erase(frames, name)
    np.testing.assert_array_equal(frames, before)
    changed = erased != frames
    n_seen = 0
    for t in range(1, len(frames)):
        box = rows_and_columns(changed[t, 34:194])
        if box is None:
            assert boxes(frames[t])[name] is None
            continue
        # Where the memory says that the object is,
        expected = expected_boxes(ram[t])[name]
        if expected is not None:
            assert np.abs(np.subtract(box, expected)).max() <= 1
        # all of it, nothing outside the court, and no part of the others.
        assert boxes(erased[t])[name] is None
        assert not changed[t, :34].any() and not changed[t, 194:].any()
        others = [other for other in OBJECTS if other != name]
        assert [boxes(erased[t])[o] for o in others] == [
            boxes(frames[t])[o] for o in others
        ]
        n_seen += 1
    assert n_seen > len(frames) / 2
    # The network sees court where the object was.
    cells = code.find_objects(erased[1:]) & changed[
        1:, 34:194:2, 16:144
    ].reshape(-1, 80, 32, 4).all(axis=3)
    assert not cells.any()


def test_erase_takes_several_objects_or_none(code, frames):
    some = frames[100:140]
    both = code.erase(some, "ball and opponent")
    one_by_one = code.erase(code.erase(some, "ball"), "opponent")
    np.testing.assert_array_equal(both, one_by_one)
    for frame in both:
        assert boxes(frame)["ball"] is boxes(frame)["opponent"] is None
        assert boxes(frame)["own paddle"] is not None
    for name in ("nothing", "older frame", "last action"):
        np.testing.assert_array_equal(code.erase(some, name), some)


def test_forget(code):
    scene = random_scene(code, np.random.default_rng(6), 4)
    changed = {
        "older frame": {"previous": np.zeros((4, 80, 32), bool)},
        "motion": {"previous": scene.current},
        "last action": {"last_actions": np.zeros((4, 2), bool)},
        "nothing": {},
        "ball": {},
    }
    copy = [np.array(part) for part in scene]
    for name, parts in changed.items():
        expected = scene._replace(**parts)
        for a, b in zip(code.forget(scene, name), expected):
            np.testing.assert_array_equal(a, b)
    for part, original in zip(scene, copy):
        np.testing.assert_array_equal(part, original)


@pytest.mark.parametrize("name", ["ball and opponent", "own paddle", "motion"])
def test_play_moments_hides_what_it_should(code, model, name):
    envs = code.make_envs(1)
    for _, moment in zip(
        range(120), code.play_moments(envs, [5], model, name)
    ):
        cells = moment.inputs[0].toarray()[0, :5120].reshape(2, 80, 32)
        if name == "motion":
            np.testing.assert_array_equal(*cells)
        elif name == "own paddle":
            near = code.read_ram(moment.ram)["ball x"][0] > 120
            assert near or not cells[:, :, -1].any()
        else:
            assert not cells[:, :, :-1].any()
        assert moment.inputs[0][0, 5122] == 1
    envs[0].close()


# Probes


def test_probe_is_ridge_regression(code):
    rng = np.random.default_rng(7)
    features = rng.standard_normal((60, 5)) * [1, 10, 0.1, 3, 1] + 2
    targets = features @ rng.standard_normal((5, 2)) + 1
    probe = code.fit_probe(features, targets, ridge=0.0)
    new = rng.standard_normal((8, 5))
    augmented = np.column_stack([features, np.ones(60)])
    solution = np.linalg.lstsq(augmented, targets, rcond=None)[0]
    expected = np.column_stack([new, np.ones(8)]) @ solution
    np.testing.assert_allclose(probe(new), expected, rtol=1e-4)
    # A strong penalty leaves the mean.
    probe = code.fit_probe(features, targets, ridge=1e9)
    mean = np.tile(targets.mean(axis=0), (8, 1))
    np.testing.assert_allclose(probe(new), mean, rtol=1e-4)


def test_r_squared(code):
    targets = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0]])
    mean = np.tile(targets.mean(axis=0), (3, 1))
    np.testing.assert_allclose(code.r_squared(targets, targets), 1)
    np.testing.assert_allclose(code.r_squared(mean, targets), 0, atol=1e-12)
    np.testing.assert_allclose(
        code.r_squared(targets + np.array([1, 0]), targets), [1 - 3 / 8, 1]
    )


def test_probe_targets(code, ram):
    named, valid = code.probe_targets(ram)
    truth = code.read_ram(ram)
    for axis in "xy":
        speed = named[f"ball {axis} velocity"]
        position = truth[f"ball {axis}"]
        np.testing.assert_array_equal(speed[1:], np.diff(position))
        np.testing.assert_array_equal(named[f"ball {axis}"], position)
    assert set(np.unique(np.abs(named["ball x velocity"][valid]))) <= {
        *range(9)
    }
    assert np.isfinite(np.stack(list(named.values()))[:, valid]).all()
    assert 0.5 < valid.mean() < 0.95


def test_probes_beat_those_of_random_weights(code, model, games):
    scores = code.probe_scores(games, model)
    controls = [
        code.probe_scores(
            games, code.initialize_model(np.random.default_rng(seed))
        )
        for seed in (1, 2, 3)
    ]
    best = {k: max(c[k] for c in controls) for k in scores}
    # How far away the ball is, and which way it flies.
    for name in ("ball x", "ball x velocity"):
        assert scores[name] > best[name] + 0.02, name
    # Heights are nearly as easy to read from random sums. See the text.
    for name in ("ball y", "own paddle y", "opponent y"):
        assert scores[name] > 0.8, name


def test_probes_are_scored_on_other_games(code, model, games):
    """What the held-out game looks like does not change the fit."""
    last = games[-1]
    order = np.random.default_rng(8).permutation(len(last.actions))
    shuffled = last._replace(ram=last.ram[order])
    scores = code.probe_scores([*games[:-1], shuffled], model, n_held_out=1)
    for name in ("ball y", "own paddle y", "opponent y"):
        assert scores[name] < 0.1, name


# The ball comes to a paddle


def memory_of(track):
    """Return memory with a ball on a track of columns and rows, or None."""
    memory = np.full((len(track), 128), 100, np.uint8)
    for row, place in zip(memory, track):
        row[[49, 54]] = (52, 0) if place is None else np.add(place, (49, 48))
    return memory


def test_arrivals_on_made_up_tracks(code):
    turned = [(130, 40), (134, 48), (138, 56), (134, 64), (130, 72)]
    passed = [(22, 90), (18, 86), (14, 82), (8, 78), None, None]
    late = [(129, 5), (133, 5), (137, 5), (141, 5), (137, 9), (133, 13)]
    assert code.arrivals(memory_of(turned)) == [
        code.Arrival(2, "agent", 56, 8, False)
    ]
    assert code.arrivals(memory_of([(26, 94), *passed])) == [
        code.Arrival(1, "opponent", 90, -4, True)
    ]
    assert code.arrivals(memory_of([*late, None])) == [
        code.Arrival(2, "agent", 5, 0, False)
    ]
    # The game ends with the ball on its way out.
    assert code.arrivals(memory_of(late[:4])) == [
        code.Arrival(2, "agent", 5, 0, True)
    ]
    assert code.arrivals(memory_of([(60, 5), (64, 5), (68, 5), None])) == []


def test_missed_balls_are_the_points(code, games):
    returned = 0
    for game in games:
        found = code.arrivals(game.ram)
        for player, sign in (("agent", -1), ("opponent", 1)):
            missed = [a.t for a in found if a.player == player and a.missed]
            ends = np.flatnonzero(game.rewards == sign)
            assert len(missed) == len(ends)
            # A few decisions later the ball has left the court.
            assert (np.subtract(ends, missed) > 0).all()
            assert (np.subtract(ends, missed) < 15).all()
        returned += sum(not a.missed for a in found)
    assert returned > 100


def test_before_arrivals(code):
    Arrival = code.Arrival
    came = [
        [Arrival(3, "agent", 1, 1, False), Arrival(50, "agent", 1, 1, True)],
        [
            Arrival(60, "opponent", 1, 1, True),
            Arrival(90, "agent", 1, 1, True),
        ],
    ]
    find = code.before_arrivals
    assert find(came, "agent", True, 6) == [(0, 44), (1, 84)]
    assert find(came, "agent", False, 6) == []
    assert find(came, "agent", False, 2) == [(0, 1)]


def test_arrival_map(code):
    rows = [
        {"player": "agent", "height": -2, "speed": -8, "missed": 1},
        {"player": "agent", "height": 19, "speed": -5, "missed": 0},
        {"player": "agent", "height": 20, "speed": 0, "missed": 1},
        {"player": "agent", "height": 163, "speed": 2, "missed": 1},
        {"player": "agent", "height": 100, "speed": 6, "missed": 1},
        {"player": "opponent", "height": 100, "speed": 6, "missed": 1},
    ]
    lost = np.zeros((8, 5), int)
    for place in ((0, 0), (1, 2), (7, 3), (5, 4)):
        lost[place] = 1
    np.testing.assert_array_equal(code.arrival_map(rows, "agent", True), lost)
    lost[0, 1] = 1
    np.testing.assert_array_equal(code.arrival_map(rows, "agent", False), lost)


def test_rally_outcomes(code):
    rewards = np.array([0.0, 0, 1, 0, -1, -1, 0])
    outcomes = [1, 1, 1, -1, -1, -1, 0]
    np.testing.assert_array_equal(code.rally_outcomes(rewards), outcomes)
    np.testing.assert_array_equal(code.rally_outcomes(np.zeros(3)), [0, 0, 0])


# The video


def test_thoughts(code, whole_game):
    p_up, values, scores = code.thoughts(whole_game)
    logits = np.concatenate([m.logits for m in whole_game])
    exponentials = np.exp(logits.astype(float))
    expected = exponentials[:, 0] / exponentials.sum(axis=1)
    np.testing.assert_allclose(p_up, expected, rtol=1e-4)
    assert len(values) == len(whole_game)
    memory = np.concatenate([m.ram for m in whole_game])
    np.testing.assert_array_equal(scores, memory[:, [13, 14]])


def test_colors_are_those_of_the_console(code):
    env = code.gym.make(
        "ALE/Pong-v5", obs_type="grayscale", render_mode="rgb_array"
    )
    env.reset(seed=9)
    for t in range(200):
        frame, *_ = env.step(2 + t // 9 % 2)
        if t > 2:
            colors = code.colorize(frame).astype(int)
            assert np.abs(colors - env.render()).max() <= 1
    env.close()


def test_a_frame_shows_game_input_and_now(code, whole_game):
    moments = whole_game[40:120]
    all_frames = list(code.make_frames(moments))
    assert len(all_frames) == len(moments)
    p_up, *_ = code.thoughts(moments)
    strip = code.draw_strip(p_up, (0, 1), "red")
    assert strip.shape == (80, 4 * len(moments) + 256, 3)
    for t in (0, 33, 79):
        frame, moment = all_frames[t], moments[t]
        assert frame.shape == (448, 640, 3) and frame.dtype == np.uint8
        game = code.colorize(moment.frames[0])
        np.testing.assert_array_equal(frame[28:448:2, :320:2], game)
        cells = moment.inputs[0].toarray()[0, :5120].reshape(2, 80, 32) > 0
        for picture, left in zip(cells, (352, 504)):
            shown = frame[28:188:2, left : left + 128 : 4, 0] > 128
            np.testing.assert_array_equal(shown, picture)
        for top in (224, 342):
            assert not frame[top : top + 80, 495:497].any()  # now
        past = code.draw_strip(p_up, (0, 1), "C0")[:, 4 * t : 4 * t + 126]
        np.testing.assert_array_equal(frame[224:304, 368 : 368 + 126], past)
        # The strip's column under "now" is red where the probability is.
        column = strip[:, 4 * t + 128].astype(int)
        red = np.flatnonzero((column[:, 0] > 200) & (column[:, 1] < 128))
        heights = 1 - (red + 0.5) / 80
        assert heights.min() - 0.1 < p_up[t] < heights.max() + 0.1
    # What will be is pale: the same pixels are darker once they were.
    past, future = all_frames[40], all_frames[10]
    assert future[224:304, 500:620].mean() > past[224:304, 380:480].mean()


def test_video_has_all_frames_and_plays_in_a_browser(
    code, whole_game, tmp_path
):
    moments = whole_game[:720]
    path = tmp_path / "thoughts.mp4"
    n = code.write_video(str(path), code.make_frames(moments))
    assert n == 720
    assert count_frames_and_secs(str(path)) == (
        720,
        pytest.approx(48, abs=0.1),
    )
    assert path.stat().st_size <= 2_000_000
    pictures = check_video(path)  # H.264, yuv420p, size
    assert len(pictures) == 720
    first = np.frombuffer(pictures[300], np.uint8).reshape(448, 640, 3)
    wanted = next(
        f for i, f in enumerate(code.make_frames(moments)) if i == 300
    )
    assert np.abs(first.astype(int) - wanted).mean() < 8


# Tables


def test_summarize(code):
    rows = [
        {"kind": kind, "return": value}
        for kind, values in {"b": [1.0, 3.0], "a": [5.0] * 4}.items()
        for value in values
    ]
    b, a = code.summarize(rows, "kind", np.random.default_rng(0))
    assert (b["kind"], b["games"], b["mean"]) == ("b", 2, 2.0)
    assert (b["low"], b["high"]) == (1.0, 3.0)
    assert (a["kind"], a["low"], a["mean"], a["high"]) == ("a", 5, 5, 5)
    assert code.summarize([], "kind", np.random.default_rng(0)) == []


def test_compare(code):
    rows = [
        {"kind": "a", "seed": 1.0, "return": 5.0},
        {"kind": "a", "seed": 2.0, "return": -7.0},
        {"kind": "a", "seed": 3.0, "return": 0.0},
        {"kind": "b", "seed": 2.0, "return": 9.0},
    ]
    seeds, again = [1, 2, 3], np.array([5.0, 9.0, 0.0])
    text = code.compare(rows, "kind", "a", seeds, again)
    assert text == "a: +5 +9 +0 (2 of 3 as recorded)"
    assert "nothing recorded" in code.compare([], "kind", "a", seeds, again)


def test_difficulties_halve_the_paddles(code):
    heights = [code.paddle_heights(0, d) for d in range(4)]
    assert heights == [(16, 16), (16, 8), (8, 16), (8, 8)]


# The recorded results


def test_recorded_files_are_what_the_notebook_expects():
    hashes = notebook_value(SOURCE, "SHA256")
    names = ("erasing", "points", "variants")
    tables = {f"{name}.{kind}" for name in names for kind in ("csv", "json")}
    assert set(hashes) == tables | {"agent.safetensors"}
    for name, digest in hashes.items():
        contents = (DATA / name).read_bytes()
        assert hashlib.sha256(contents).hexdigest() == digest, name
        if name.endswith(".json"):
            assert "made with" in json.loads(contents)


def test_recorded_tables_are_complete(code):
    for name, key, wanted in (
        ("erasing", "erased", notebook_value(SOURCE, "ERASED")),
        ("variants", "variant", notebook_value(SOURCE, "VARIANTS")),
    ):
        rows = code.read_table(DATA / f"{name}.csv")
        assert list(dict.fromkeys(r[key] for r in rows)) == list(wanted)
        n_games = len(rows) // len(wanted)
        seeds = list(range(200_000, 200_000 + n_games))
        for kind in wanted:
            assert [r["seed"] for r in rows if r[key] == kind] == seeds
    rows = code.read_table(DATA / "points.csv")
    n_games = json.loads((DATA / "points.json").read_text())["games"]
    seeds = list(dict.fromkeys(r["seed"] for r in rows))
    assert seeds == list(range(200_000, 200_000 + n_games))


@pytest.mark.parametrize("without", ["nothing", "own paddle"])
def test_recorded_games_can_be_played_again(code, model, without):
    rows = code.read_table(DATA / "erasing.csv")
    (row,) = [
        r for r in rows if r["erased"] == without and r["seed"] == 200_001
    ]
    returns, decisions = code.measure(model, [200_001], without)
    assert (returns[0], decisions[0]) == (row["return"], row["decisions"])


def test_recorded_variants_can_be_played_again(code, model):
    name = "difficulty 2 (own paddle halved)"
    settings = notebook_value(SOURCE, "VARIANTS")[name]
    rows = code.read_table(DATA / "variants.csv")
    (row,) = [r for r in rows if (r["variant"], r["seed"]) == (name, 200_000)]
    returns, decisions = code.measure(model, [200_000], **settings)
    assert (returns[0], decisions[0]) == (row["return"], row["decisions"])


def test_recorded_points_are_those_of_the_games(code, model):
    (game,) = code.watch(model, [200_002])
    rows = code.read_table(DATA / "points.csv")
    recorded = [row for row in rows if row["seed"] == 200_002]
    assert recorded == code.arrival_rows(200_002, game.ram)
    won = sum(r["missed"] * (r["player"] == "opponent") for r in recorded)
    lost = sum(r["missed"] * (r["player"] == "agent") for r in recorded)
    assert won - lost == game.rewards.sum()
    assert max(won, lost) == 21


def test_record_writes_the_hashes_into_all_notebooks(
    record, tmp_path, monkeypatch
):
    (tmp_path / "one.csv").write_bytes(b"1\n")
    digest = hashlib.sha256(b"1\n").hexdigest()
    texts = {"a.md": '"one.csv": "",\n', "b.md": '"one.csv": (\n  "0a"\n),\n'}
    paths = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text + '"two.csv": "",\n')
        paths.append(tmp_path / name)
    monkeypatch.setattr(record, "DATA", tmp_path)
    monkeypatch.setattr(record, "SOURCE", paths[0])
    monkeypatch.setattr(record, "INSIDE", paths[1])
    record.update_hashes()
    for path in paths:
        text = f'"one.csv": "{digest}",\n"two.csv": "",\n'
        assert path.read_text() == text
    # Two jobs share the games without overlap.
    shares = [record.seeds_of(job, 2, 5) for job in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == [200_000 + i for i in range(5)]


def test_notebook_and_book_agree_on_the_repository(config):
    assert notebook_value(SOURCE, "REPOSITORY") == config["repository"]["url"]
