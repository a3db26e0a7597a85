"""The page in Chromium: numbers as NumPy's, games to the end, keys, pointer, bad input.

The page is served under a sub-path; every request to another site is a failure.
"""

import json
import re
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from conftest import CONTENT, ROOT
from pages import serve
from play_numbers import numbers
from pong.keep_a_training_safe import load_small_model
from pong.play import Court, draw

PLAY = CONTENT / "_extra" / "play"
PAGE = ROOT / "tests" / "play.html"  # the game and the figures, in no theme


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Serve the page with what belongs to it under a sub-path."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PLAY, folder / "play")
    shutil.copy(PAGE, folder / "play")
    shutil.copy(CONTENT / "images" / "after.mp4", folder / "play")
    with serve(folder, "/book/") as address:
        yield f"{address}play/"


@pytest.fixture
def open_page(browser, site):
    contexts, errors, requests = [], [], []

    def open_page(path="play.html", before=None, **options):
        size = {"viewport": {"width": 1280, "height": 900}}
        context = browser.new_context(**(size | options))
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if before:
            before(page)
        page.goto(site + path)
        page.requests = requests
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    ours = (site.removesuffix("play/"), "data:", "blob:")
    assert all(url.startswith(ours) for url in requests)


@pytest.fixture
def page(open_page):
    return open_page()


def press(page, name):
    page.get_by_role("button", name=name).click()


def pong(page, expression):
    """Return what an expression with the state of the game, `pong`, gives."""
    scope = "const { pong } = document.querySelector('[data-pong=play]')"
    return page.evaluate(f"() => {{ {scope}; return {expression} }}")


def start(page):
    press(page, "Start")
    ready = "document.querySelector('[data-pong=play]').pong.game"
    page.wait_for_function(ready)


@pytest.fixture
def play(open_page):
    """Return a function that starts a game, whose time passes as tests say."""

    def play(**options):
        page = open_page(before=lambda p: p.clock.install(time=0), **options)
        page.clock.pause_at(10**9)
        start(page)
        return page

    return play


@pytest.fixture
def game(play):
    return play()


@pytest.fixture(scope="module")
def recorded():
    """Return what the page must compute, and the rally of its figure."""
    model = load_small_model(PLAY / "weights/shipped.safetensors")
    rally = re.search(r'application/json">(.*?)</script>', PAGE.read_text("utf-8"))
    return numbers(model, json.loads(rally[1]))


IMPORTS = """
const [court, agent, game, figures] = await Promise.all(
  ["court", "agent", "game", "figures"].map((name) => import(`./${name}.js`)));
const camel = (name) => name.replace(/_./g, (x) => x[1].toUpperCase());
const make = (fields, row) => Object.fromEntries(fields.map((name, i) => [camel(name), row[i]]));
const on = (picture) => Array.from(picture.keys()).filter((i) => picture[i]);
"""


def run(page, body, data=None):
    """Run it in the page; as text, a large `data` arrives faster."""
    parse = "const data = JSON.parse(text);"
    body = f"async (text) => {{ {parse} {IMPORTS} {body} }}"
    return page.evaluate(body, json.dumps(data))


def test_network_agrees_with_numpy(page, recorded):
    found = run(
        page,
        """
      const model = await agent.loadWeights("weights/shipped.safetensors");
      const worst = { logits: 0, value: 0, encoding: 0 };
      for (const scene of data.scenes) {
        const picture = (cells) => { const p = new Uint8Array(2560); cells.forEach((i) => (p[i] = 1)); return p; };
        const seen = { previous: picture(scene.previous), current: picture(scene.current), lastAction: scene.last };
        const thought = agent.forward(seen, model);
        thought.logits.forEach((z, k) => (worst.logits = Math.max(worst.logits, Math.abs(z - scene.logits[k]))));
        worst.value = Math.max(worst.value, Math.abs(thought.value - scene.value));
        const drawn = on(court.objects(make(data.fields, scene.court)));
        if (drawn.join() !== scene.current.join()) worst.encoding += 1;
      }
      return { ...worst, n: data.scenes.length };
    """,
        recorded,
    )
    assert found["n"] == 1000 and found["encoding"] == 0
    assert found["logits"] < 1e-4 and found["value"] < 1e-4


def test_court_agrees_with_python(page, recorded):
    differences = run(
        page,
        """
      let wrong = 0, steps = 0, pictures = 0;
      for (const { actions, states, pictures: seen } of data.traces) {
        let now = court.newCourt();
        actions.forEach(([right, left], t) => {
          now = court.step(now, right, left);
          const truth = make(data.fields, states[t]);
          if (Object.keys(truth).some((name) => now[name] !== truth[name])) wrong += 1;
          steps += 1;
          if (t % 9 === 0) {
            if (on(court.objects(now)).join() !== seen[t / 9].join()) wrong += 1;
            pictures += 1;
          }
        });
      }
      data.preprocessed.forEach((cells, i) => {
        const now = make(data.fields, data.traces[0].states[100 + 10 * i]);
        if (on(figures.preprocess(now)).join() !== cells.join()) wrong += 1;
      });
      return { wrong, steps, pictures };
    """,
        recorded,
    )
    assert differences["wrong"] == 0 and differences["steps"] == 10_000


def test_the_canvas_shows_what_the_emulator_shows(page, recorded):
    wait = recorded["fields"].index("wait")
    states = [row for trace in recorded["traces"] for row in trace["states"]]
    # A score is drawn late: so look at each new one, too.
    rows = states[::332] + [row for row in states if row[wait] == 63]
    rows.append([*states[100][:-2], 9, 21])
    pictures = run(
        page,
        """
      const canvas = Object.assign(document.createElement("canvas"), { width: 160, height: 210 });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      return data.rows.map((row) => {
        court.paint(context, make(data.fields, row));
        return Array.from(context.getImageData(0, 0, 160, 210).data).filter((_, i) => i % 4 === 0).join();
      });
    """,
        {"rows": rows, "fields": recorded["fields"]},
    )
    gray = np.zeros(256, int)
    gray[[144, 92, 213, 236]] = 87, 147, 148, 236  # by their red
    for row, picture in zip(rows, pictures):
        shown = gray[np.reshape(picture.split(","), (210, 160)).astype(int)]
        truth = draw(Court(*(np.array([v]) for v in row)))
        # Row 0 has the console's black dash.
        assert np.array_equal(shown[1:], truth[1:])


def test_figures_agree_with_numpy(page, recorded):
    worst = run(
        page,
        """
      let worst = 0;
      const { rewards, values } = data.rally;
      for (const { gamma, lambda, advantages } of data.gae) {
        figures.gae(rewards, values, gamma, lambda).advantages.forEach((a, t) => (worst = Math.max(worst, Math.abs(a - advantages[t]))));
      }
      for (const [ratio, advantage, loss] of data.clip) worst = Math.max(worst, Math.abs(figures.clipLoss(ratio, advantage) - loss));
      return worst;
    """,
        recorded,
    )
    assert worst < 1e-5


def test_the_agent_keeps_its_strength_in_the_browser(page):
    results = run(
        page,
        """
      const model = await agent.loadWeights("weights/shipped.safetensors");
      return Array.from({ length: 20 }, (_, seed) => {
        const play = new game.Game(model, game.generator(seed + 1));
        while (!play.over) play.tick(null);
        return play.court.rightScore - play.court.leftScore;
      });
    """,
    )
    mean = sum(results) / len(results)
    assert abs(mean - 19.1) <= 2 and min(results) >= 0


def test_nothing_loads_before_start(page):
    page.wait_for_timeout(300)
    late = (".safetensors", ".json", ".mp4")
    assert not any(url.endswith(late) for url in page.requests)
    start(page)
    weights = [url for url in page.requests if url.endswith(late[0])]
    assert [url.rsplit("/", 1)[1] for url in weights] == ["shipped.safetensors"]


def test_a_game_ends_at_21_and_starts_again(game):
    # Nobody moves the left paddle, and nobody waits for the screen.
    result = pong(
        game,
        """(() => {
      let changes = 0, before = "";
      const status = document.querySelector(".pong-stage .pong-status");
      for (let t = 0; t < 60000 && !pong.game.over; t++) {
        pong.tick();
        if (status.textContent !== before) { changes += 1; before = status.textContent; }
      }
      return { ...pong.game.court, changes, text: before };
    })()""",
    )
    points = result["leftScore"] + result["rightScore"]
    assert max(result["leftScore"], result["rightScore"]) == 21
    # One announcement for each point.
    assert points - 1 <= result["changes"] <= points + 2
    assert "The agent wins" in result["text"]
    press(game, "New game")
    assert pong(game, "pong.mode") == "running"
    assert pong(game, "pong.game.court.rightScore") == 0


@pytest.mark.parametrize("up, down", [("ArrowUp", "ArrowDown"), ("w", "s")])
def test_keys_move_the_paddle(game, up, down):
    places = []
    for key in (down, up):
        game.keyboard.down(key)
        game.clock.run_for(1500)
        game.keyboard.up(key)
        places.append(pong(game, "pong.game.court.left"))
    assert places[0] > 185 and places[1] < 60
    assert game.evaluate("scrollY") == 0


def test_pointer_moves_the_paddle(game):
    box = game.locator(".pong-court").first.bounding_box()
    for share in (0.8, 0.3):
        game.mouse.move(box["x"] + 30, box["y"] + share * box["height"])
        check_left_paddle(game, share)


def check_left_paddle(game, share):
    """Check that the paddle goes to a share of the court's height."""
    game.clock.run_for(900)
    wanted = 210 * share - 34 - 8 + 49
    assert abs(pong(game, "pong.game.court.left") - wanted) <= 4


def test_touch_moves_the_paddle_without_scrolling(play):
    phone = {"width": 360, "height": 640}
    game = play(viewport=phone, has_touch=True, is_mobile=True)
    box = game.locator(".pong-court").first.bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 640
    before = game.evaluate("scrollY")
    client = game.context.new_cdp_session(game)
    places = [box["y"] + 0.25 * box["height"] + 15 * k for k in range(13)]
    for y in places:
        kind = "touchMove" if y > places[0] else "touchStart"
        touch = {"type": kind, "touchPoints": [{"x": 180, "y": y}]}
        client.send("Input.dispatchTouchEvent", touch)
        game.clock.run_for(30)
    end = {"type": "touchEnd", "touchPoints": []}
    client.send("Input.dispatchTouchEvent", end)
    check_left_paddle(game, (places[-1] - box["y"]) / box["height"])
    assert game.evaluate("scrollY") == before
    assert game.evaluate("document.documentElement.scrollWidth") <= 360


def frames_in_a_second(game):
    before = pong(game, "pong.game.frames")
    game.clock.run_for(1000)
    return pong(game, "pong.game.frames") - before


def test_pause_step_and_slow_motion(game):
    assert 58 <= frames_in_a_second(game) <= 62
    press(game, "Slow motion")
    assert 14 <= frames_in_a_second(game) <= 16
    press(game, "Pause")
    assert frames_in_a_second(game) == 0
    press(game, "One decision further")
    first = pong(game, "pong.game.frames")
    press(game, "One decision further")
    assert first % 4 == 0 and pong(game, "pong.game.frames") == first + 4
    assert "It chose" in game.locator(".pong-stage .pong-status").inner_text()


def test_options_change_the_agent_and_its_opponent(game):
    press(game, "Forbid")
    press(game, "Hide its older frame")
    game.clock.run_for(700)
    assert pong(game, "pong.game.thought.probabilities[2]") == 0
    assert pong(game, "pong.game.seen.previous.every((cell) => cell === 0)")
    weights = {pong(game, "pong.game.model.W2[10]")}
    for age in ("untrained", "100k", "400k", "1m"):
        game.get_by_label("How old is it?").select_option(age)
        label = {"100k": "100,000", "400k": "400,000", "1m": "1 million"}
        game.locator(
            ".pong-stage .pong-status", has_text=f"Now playing: {label.get(age, age)}"
        ).wait_for()
        weights.add(pong(game, "pong.game.model.W2[10]"))
    assert len(weights) == 5
    before = pong(game, "pong.game.court.left")
    press(game, "Let the console")
    game.clock.run_for(500)
    # Its player follows the ball, and nobody has touched a key.
    assert pong(game, "pong.game.court.left") != before


def test_hidden_tab_pauses(game):
    game.evaluate("""() => {
      Object.defineProperty(document, "hidden", { value: true, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    assert pong(game, "pong.mode") == "paused"


def test_reduced_motion_starts_paused(play):
    game = play(reduced_motion="reduce")
    assert frames_in_a_second(game) == 0
    assert pong(game, "pong.mode") == "paused"
    press(game, "Resume")
    assert frames_in_a_second(game) > 50


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe(open_page, mode, width):
    page = open_page(viewport={"width": width, "height": 800})
    page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
    for figure in page.locator("[data-figure]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".pong-built").wait_for()
    press(page, "Start")
    page.locator("[data-pong=play] .pong-units li").first.wait_for()
    press(page, "Pause")
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    options = {"runOnly": [*rules, "best-practice"]}
    results = Axe().run(page, options=options)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def damaged(kind):
    data = (PLAY / "weights/shipped.safetensors").read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    factors = json.loads(data[8:length])["factors"]["data_offsets"][0]
    start = length + factors
    return {
        "cut off": data[:5000],
        "another shape": data.replace(b"5123", b"5122", 1),
        "no file of weights": b"<!doctype html>" * 10,
        "damaged": data[:start] + b"\xff" * 40 + data[start + 40 :],
        "missing": None,
    }[kind]


@pytest.mark.parametrize(
    "kind", ["cut off", "another shape", "no file of weights", "damaged", "missing"]
)
def test_bad_weights_say_so(page, kind):
    body = damaged(kind)
    answer = {"body": body} if body else {"status": 404}
    page.route("**/shipped.safetensors", lambda route: route.fulfill(**answer))
    press(page, "Start")
    reason = page.locator("[data-pong=play] .pong-reason", has_text=kind)
    reason.wait_for()
    assert page.locator("[data-pong=play] video").is_visible()


def test_no_canvas_and_no_script_leave_the_video(open_page):
    script = "HTMLCanvasElement.prototype.getContext = () => null"
    for reason, options in (
        ("no canvas", {"before": lambda page: page.add_init_script(script)}),
        ("needs JavaScript", {"java_script_enabled": False}),
    ):
        part = open_page(**options).locator("[data-pong=play]")
        part.locator(".pong-reason", has_text=reason).wait_for()
        assert part.locator("video").is_visible()


def test_figures_answer(page):
    for figure in page.locator("[data-figure]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".pong-built").wait_for()

    def note(name):
        return page.locator(f"[data-figure={name}] .pong-status")

    before = note("gae").inner_text()
    page.get_by_label("λ").fill("0.5")
    assert note("gae").inner_text() != before
    page.get_by_label("ρ").fill("1.4")
    assert "flat" in note("clip").inner_text()
    press(page, "Load the agent")
    note("agent").filter(has_text="Most probable").wait_for()
    # Drag the right paddle up.
    agent = page.locator("[data-figure=agent]")
    row = agent.get_by_label("Right paddle, row", exact=True)
    canvas = agent.locator(".pong-court")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x = box["x"] + 142 / 160 * box["width"]
    y = box["y"] + (34 + 88) / 210 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 60, steps=4)
    page.mouse.up()
    assert int(row.input_value()) < 60
    assert "Most probable" in note("agent").inner_text()


def test_twenty_minutes_leave_no_memory_behind(page):
    start(page)
    press(page, "Pause")
    client = page.context.new_cdp_session(page)
    minutes = """(() => { for (let t = 0; t < 12000; t++) {
        if (pong.game.over) pong.game.restart();
        pong.mode = "running"; pong.tick(); if (t % 40 === 0) pong.render(); }
        pong.mode = "paused";
        return [pong.history.up.length, document.querySelectorAll("*").length]; })()"""
    used, sizes = [], set()
    for _ in range(7):  # the last 72,000 frames are 20 minutes
        decisions, elements = pong(page, minutes)
        assert decisions <= 150
        sizes.add(elements)
        client.send("HeapProfiler.collectGarbage")
        used.append(page.evaluate("performance.memory.usedJSHeapSize"))
    assert used[-1] - used[0] < 1.5e6 and len(sizes) == 1


def test_size_of_the_scripts():
    assert sum(path.stat().st_size for path in PLAY.glob("*.js")) <= 60_000
    for path in (PLAY / "weights").glob("*.safetensors"):
        assert path.stat().st_size <= 1_100_000
