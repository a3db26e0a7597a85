"""Record the tables of the chapter "What it needs", with the shipped agent.

python scripts/what_it_needs.py erasing variants points openings
"""

import os

# As in the notebooks, before NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pandas as pd

from pong.inside_the_agent import watch
from pong.keep_a_training_safe import load_model, load_small_model
from pong.set_up import data_file, recorded
from pong.what_it_needs import ERASED, VARIANTS, arrival_rows, measure
from recording import ROOT, main, save_table, share_out

FIRST_SEED = 200_000
ERASING_GAMES, VARIANT_GAMES, POINTS_GAMES, AGE_GAMES = 30, 20, 40, 20
FACTS = {"environment": "ALE/Pong-v5", "actions": "greedy"}


def measure_games(key, kind, without, settings, n_games):
    """Return a row for each of some games of one kind."""
    model = load_model(data_file("agent.safetensors"))
    seeds = [FIRST_SEED + i for i in range(n_games)]
    returns, decisions = measure(model, seeds, without, **settings)
    columns = {key: kind, "seed": seeds, "return": returns.astype(int)}
    print(f"{kind}: {returns.mean():+.2f} in {n_games} games", flush=True)
    return pd.DataFrame(columns | {"decisions": decisions})


def erasing():
    """Record what becomes of the agent if it does not see a part."""
    n = len(ERASED)
    columns = ["erased"] * n, ERASED, ERASED, [{}] * n, [ERASING_GAMES] * n
    rows = share_out(measure_games, *columns)
    save_table("erasing", pd.concat(rows), **FACTS)


def variants():
    """Record how the agent does in other games than its own."""
    n, settings = len(VARIANTS), VARIANTS.values()
    columns = ["variant"] * n, VARIANTS, ["nothing"] * n, settings
    rows = share_out(measure_games, *columns, [VARIANT_GAMES] * n)
    save_table("variants", pd.concat(rows), **FACTS, variants=VARIANTS)


def watch_arrivals(seeds):
    """Return the balls that came to a paddle in some games."""
    model = load_model(data_file("agent.safetensors"))
    games = zip(seeds, watch(model, seeds))
    return pd.concat([arrival_rows(seed, game.ram) for seed, game in games])


def points():
    """Record where the agent wins and loses its points."""
    seeds = [FIRST_SEED + i for i in range(POINTS_GAMES)]
    tens = [seeds[i : i + 10] for i in range(0, len(seeds), 10)]
    rows = pd.concat(share_out(watch_arrivals, tens))
    print(rows.groupby(["player", "serve"])["missed"].agg(["size", "sum"]))
    save_table("points", rows, **FACTS, games=POINTS_GAMES)


def rallies_of(file, decisions):
    """Return a row for each rally: who was served to, and how it ended.

    met counts balls that the agent met; speed is that of the ball missed.
    """
    model = load_small_model(ROOT / "content/_extra/play/weights" / file)
    seeds, rows = [FIRST_SEED + i for i in range(AGE_GAMES)], []
    for seed, game in zip(seeds, watch(model, seeds)):
        balls = arrival_rows(seed, game.ram)
        own = balls["player"] == "agent"
        balls["met"] = (own & (balls["missed"] == 0)).astype(int)
        balls["lost"] = (own & (balls["missed"] == 1)).astype(int)
        rallies = balls.groupby(balls["serve"].cumsum())
        ends = rallies[["met", "lost"]].sum()
        ends.insert(0, "served_to", rallies["player"].first())
        ends["speed"] = rallies["speed"].last()
        rows.append(ends.assign(decisions=decisions, seed=seed))
    columns = ["decisions", "seed", "served_to", "met", "lost", "speed"]
    return pd.concat(rows)[columns]


def openings():
    """Record how the rallies of an agent end, at several ages."""
    ages = recorded("ages")
    rows = pd.concat(share_out(rallies_of, ages["file"], ages["decisions"]))
    met = rows["met"].clip(upper=3)
    print(pd.crosstab(rows["decisions"], [rows["lost"], met]))
    save_table("openings", rows, **FACTS, games=AGE_GAMES)


if __name__ == "__main__":
    main(
        {
            "erasing": erasing,
            "variants": variants,
            "points": points,
            "openings": openings,
        }
    )
