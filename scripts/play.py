"""Record what "Play against it" shows.

    python scripts/play.py traces weights ages rallies

`traces` records games of the emulator, frame by frame, with seeds that were
not used to find the rules; `weights` trains for about six minutes and writes
the agents that the page loads, of several ages, to content/_extra/play;
`ages` measures them on the emulator as they are loaded, and `rallies` records
the first rally of their first games.

    python scripts/play.py two_players

records a rally in which the left paddle is a player's, too. It needs an emulator
for two, which `pip install multi-agent-ale-py` brings.
"""

import json
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import ale_py
import numpy as np
import pandas as pd
from ale_py.roms import get_rom_path

import recording
from pong.inside_the_agent import read_ram, watch
from pong.keep_a_training_safe import (
    load_model,
    load_small_model,
    save_small_model,
)
from pong.many_games_at_once import (
    choose_actions,
    close,
    encode,
    first_scene,
    forward,
    initialize_model,
    make_games,
    next_scene,
)
from pong.play import CELLS, DOWN, STAY, UP
from pong.ppo_in_numpy import new_agent
from pong.set_up import data_file, facts, recorded
from pong.train_to_win import N_GAMES, evaluate, new_run, training

WEIGHTS = recording.ROOT / "content" / "_extra" / "play" / "weights"
FIRST_SEED = 9000
NOISE = (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 0.1, 0.2, 0.12, 0.08)
LEFT_PLAYER = {"left": 50, "left_goal": 59}  # where they are with two players
BUTTONS = (ale_py.Action.NOOP, ale_py.Action.RIGHT, ale_py.Action.LEFT)
AGES = {"100k": 100_000, "400k": 400_000, "1m": 1_000_000}
LABELS = {
    "untrained": "untrained",
    "100k": "100,000 decisions",
    "400k": "400,000 decisions",
    "1m": "1 million decisions",
    "shipped": "the book’s agent, {} million decisions",
}


def record(model, seed, noise, max_frames=7000):
    """Return the memory (T + 1, 128) and the actions (T,) of one game."""
    ale, rng = ale_py.ALEInterface(), np.random.default_rng(seed)
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", 0.0)  # drawn here instead
    ale.setInt("frame_skip", 1)
    ale.loadROM(get_rom_path("pong"))
    ale.reset_game()
    memory, actions, held, wild = [ale.getRAM().copy()], [], STAY, 0
    scene = first_scene(ale.getScreenGrayscale().reshape(1, 210, 160))
    while not ale.game_over() and len(actions) < max_frames:
        logits, _, _ = forward(encode(scene), model)
        chosen, _ = choose_actions(logits, rng)
        if wild == 0 and rng.random() < noise:
            wild, random_action = rng.integers(1, 12), rng.integers(3)
        if wild:
            wild, chosen = wild - 1, np.array([random_action])
        for _ in range(4):
            if rng.random() >= 0.25:
                held = (UP, DOWN, STAY)[chosen[0]]
            ale.act(BUTTONS[held])
            actions.append(held)
            memory.append(ale.getRAM().copy())
            if ale.game_over():
                break
        picture = ale.getScreenGrayscale().reshape(1, 210, 160)
        scene = next_scene(scene, chosen, picture, np.zeros(1, bool))
    return np.array(memory), np.array(actions)


def traces():
    """Record what the players did, and the bytes of CELLS as differences."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    model, cells, actions = load_model(data_file("agent.safetensors")), [], []
    for i, noise in enumerate(NOISE):
        memory, done = record(model, FIRST_SEED + i, noise)
        cells.append(memory[:, list(CELLS.values())])
        actions.append(np.append(done, 0))
        print(f"noise {noise}: {memory[-1, 13]} to {memory[-1, 14]}")
    nothing = np.zeros((1, len(CELLS)), np.uint8)
    np.savez_compressed(
        recording.DATA / "court-traces.npz",
        names=list(CELLS),
        changes=np.diff(np.concatenate(cells), axis=0, prepend=nothing).T,
        starts=np.cumsum([0, *map(len, cells)]),
        actions=np.concatenate(actions).astype(np.uint8),
    )
    noise = {"chance that a random stretch begins": NOISE}
    recording.save_facts("court-traces", first_seed=FIRST_SEED, **noise)


def two_players(n_frames=40_000, seed=2):
    """Record what happens when two players follow the ball."""
    from multi_agent_ale_py import ALEInterface

    ale, rng = ALEInterface(), np.random.default_rng(seed)
    ale.setFloat(b"repeat_action_probability", 0.0)
    ale.setInt(b"frame_skip", 1)
    ale.loadROM(str(get_rom_path("pong")))
    ale.setMode(ale.getAvailableModes(2)[0])
    ale.reset_game()
    cells = list((CELLS | LEFT_PLAYER).values())
    memory, actions, left = [ale.getRAM()[cells]], [], np.zeros(2, int)
    moves, serves = np.array([0, 3, 4]), np.array([1, 11, 12])  # their buttons
    names = list(CELLS | LEFT_PLAYER)
    held = np.zeros(2, int)
    for t in range(n_frames):
        now = dict(zip(names, memory[-1].astype(int)))
        for player, goal in enumerate(("right_goal", "left_goal")):
            aim = now["y"] - 6 + t // 200 % 2 * rng.integers(-8, 9)
            away = aim - now[goal]
            if now["y"] and rng.random() < 0.97:
                held[player] = DOWN if away > 4 else UP if away < -4 else STAY
            elif left[player] == 0:  # any, for a while
                held[player], left[player] = rng.integers(3), rng.integers(20)
            left[player] = max(left[player] - 1, 0)
        ale.act((moves if now["y"] else serves)[held])
        actions.append(held.copy())
        memory.append(ale.getRAM()[cells])
    memory, actions = np.array(memory), np.array(actions, np.uint8)
    np.savez_compressed(
        recording.DATA / "court-two-players.npz",
        changes=np.diff(memory, axis=0, prepend=np.zeros_like(memory[:1])).T,
        actions=actions.T,  # the right player's, the left player's
    )
    recording.save_facts("court-two-players", seed=seed)


def weights():
    """Train again as the shipped agent was, and keep it at several ages."""
    made = facts("agent")
    seed, settings = made["seed"], made["settings"]
    model, games = (
        initialize_model(np.random.default_rng(seed)),
        make_games(N_GAMES),
    )
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    save_small("untrained", model, 0, seed)
    due = dict(AGES)
    start = new_run(new_agent(model), seed, critic=False)
    for run, _ in training(games, start, seed, settings):
        name = next(iter(due))
        if run.decisions >= due[name]:
            save_small(name, run.agent.model, run.decisions, seed)
            del due[name]
        if not due:
            break
    close(games)
    model = load_model(data_file("agent.safetensors"))
    save_small("shipped", model, all_decisions(made), seed)


def all_decisions(made):
    """Return how many decisions the shipped agent has made in training."""
    parts = (made, made.get("finished with"))
    return sum(part["settings"]["decisions"] for part in parts if part)


def save_small(name, model, decisions, seed):
    """Write weights as the page loads them, and print their size."""
    path = WEIGHTS / f"{name}.safetensors"
    save_small_model(path, model, {"decisions": decisions, "seed": seed})
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def ages():
    """Play greedy games on the emulator with the weights as they are."""
    rows, made = [], facts("agent")
    decisions = {"untrained": 0, **AGES, "shipped": all_decisions(made)}
    for name, label in LABELS.items():
        path = WEIGHTS / f"{name}.safetensors"
        n_games = 100 if name == "shipped" else 30
        returns, _ = evaluate(load_small_model(path), n_games)
        rows.append(
            {
                "name": name,
                "decisions": decisions[name],
                "file": path.name,
                "label": label.format(round(decisions[name] / 1e6)),
                "games": n_games,
                "mean": round(float(np.mean(returns)), 2),
            }
        )
        print(rows[-1], flush=True)
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    recording.write(WEIGHTS / "manifest.json", text + "\n")
    recording.save_table("ages", rows, **age_facts())


def rallies():
    """Record the first rally of three greedy games at each age."""
    tables, seeds = [], range(100_000, 100_003)  # the evaluation's first
    ages = recorded("ages")
    for name, decisions in zip(ages["name"], ages["decisions"]):
        model = load_small_model(WEIGHTS / f"{name}.safetensors")
        for seed, game in zip(seeds, watch(model, list(seeds))):
            rows = slice(0, np.flatnonzero(game.rewards)[0] + 1)
            table = pd.DataFrame(read_ram(game.ram[rows]))
            known = {"age": decisions, "seed": seed}
            table = table.assign(**known, reward=game.rewards[rows])
            tables.append(table.astype({"reward": int}))
    recording.save_table("rallies", pd.concat(tables), **age_facts())


def age_facts():
    """Return what the table of ages says about itself."""
    made = facts("agent")
    return {"seed": made["seed"], "settings": made["settings"]}


if __name__ == "__main__":
    recording.main(
        {
            "traces": traces,
            "weights": weights,
            "ages": ages,
            "rallies": rallies,
            "two_players": two_players,
        }
    )
