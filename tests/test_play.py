"""The page in Chromium, under a sub-path; a request to another site is a failure."""

import json
import re
import shutil

import pytest

from conftest import CONTENT, ROOT
from pages import check_barriers, serve, tabs
from play_numbers import numbers
from pong.keep_a_training_safe import load_small_model

PLAY = CONTENT / "_extra" / "play"
PAGE = ROOT / "tests" / "play.html"  # the game and the figures, in no theme
WEIGHTS = PLAY / "weights" / "shipped.safetensors"


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
    with tabs(browser, site) as open_tab:
        yield lambda **options: open_tab("play.html", **options)


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
    page.wait_for_function("document.querySelector('[data-pong=play]').pong.game")


def play(open_page, **options):
    """Start a game whose time passes as tests say."""
    page = open_page(before=lambda page: page.clock.install(time=0), **options)
    # What waits until the browser is idle would wait for ever once time stands still.
    page.get_by_role("button", name="Start").wait_for()
    page.clock.pause_at(10**9)
    start(page)
    return page


@pytest.fixture
def game(open_page):
    return play(open_page)


def run(page, body, data=None):
    """Run it in the page; as text, a large `data` arrives faster."""
    prepare = """
      const data = JSON.parse(text);
      const [court, agent, game, figures] = await Promise.all(
        ["court", "agent", "game", "figures"].map((name) => import(`./${name}.js`)));
      const model = await agent.loadWeights("weights/shipped.safetensors");
    """
    return page.evaluate(f"async (text) => {{ {prepare} {body} }}", json.dumps(data))


def test_the_page_computes_what_numpy_computes(page):
    rally = re.search(r'application/json">(.*?)</script>', PAGE.read_text("utf-8"))
    script = """
      const worst = {};
      const compare = (name, ours, theirs) => {
        const far = Array.from(ours, (value, i) => Math.abs(value - theirs[i]));
        worst[name] = Math.max(worst[name] ?? 0, theirs.length - ours.length, ...far);
      };
      const names = Object.keys(court.newCourt());
      const make = (row) => Object.fromEntries(names.map((name, i) => [name, row[i]]));
      const on = (picture) => Array.from(picture.keys()).filter((i) => picture[i]);
      const off = (cells) => Uint8Array.from({ length: 2560 }, (_, i) => cells.includes(i));

      for (const scene of data.scenes) {
        const seen = { previous: off(scene.previous), current: off(scene.current) };
        const thought = agent.forward({ ...seen, lastAction: scene.last }, model);
        compare("logits", thought.logits, scene.logits);
        compare("value", [thought.value], [scene.value]);
        const [up, down] = thought.logits;
        compare("pushes", [agent.pushes(thought, model).reduce((a, b) => a + b)], [up - down]);
        compare("objects", on(court.objects(make(scene.court))), scene.current);
      }
      for (const { both, actions, states } of data.games) {
        let now = court.newCourt();
        actions.forEach(([right, left], t) => {
          now = court.step(now, right, both ? left : null);
          compare("court", Object.values(now), states[t]);
        });
      }
      const canvas = Object.assign(document.createElement("canvas"), { width: 160, height: 210 });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const grays = { 144: 87, 92: 147, 213: 148, 236: 236 }; // by their red
      for (const { court: row, gray, preprocessed } of data.pictures) {
        court.paint(context, make(row));
        const { data: painted } = context.getImageData(0, 1, 160, 209);
        // Row 0 has the console's black dash.
        compare("canvas", gray.slice(160).map((_, i) => grays[painted[4 * i]]), gray.slice(160));
        compare("preprocess", on(figures.preprocess(make(row))), preprocessed);
      }
      const { rewards, values } = data.rally;
      for (const { gamma, lambda, advantages } of data.gae) {
        compare("gae", figures.gae(rewards, values, gamma, lambda).advantages, advantages);
      }
      for (const [ratio, advantage, loss] of data.clip) {
        compare("clip", [figures.clipLoss(ratio, advantage)], [loss]);
      }
      return worst;
    """
    worst = run(page, script, numbers(load_small_model(WEIGHTS), json.loads(rally[1])))
    names = "logits value pushes objects court canvas preprocess gae clip"
    assert worst == pytest.approx(dict.fromkeys(names.split(), 0), abs=1e-4)


def test_the_agent_keeps_its_strength_in_the_browser(page):
    script = """
      let changes = 0, kept = 0, forgotten = 0;
      const results = Array.from({ length: 10 }, (_, seed) => {
        const play = new game.Game(model, game.generator(seed + 1));
        while (!play.over) {
          const { held, action = 2 } = play;
          play.tick(null);
          if (play.frames % 4 === 1 && play.scene.lastAction !== action) forgotten += 1;
          if (held !== play.wanted) { changes += 1; kept += play.held === held; }
        }
        return play.court.rightScore - play.court.leftScore;
      });
      return [results, kept / changes, forgotten];
    """
    results, sticky, forgotten = run(page, script)
    assert abs(sticky - 0.25) < 0.02 and forgotten == 0
    mean = sum(results) / len(results)
    assert abs(mean - 19.1) <= 2 and min(results) >= 0


def test_nothing_loads_before_start(page):
    page.wait_for_timeout(300)
    urls = "performance.getEntriesByType('resource').map(part => part.name)"
    urls += r".filter(name => !/\.js$/.test(name))"  # they may come before or after
    before = page.evaluate(urls)
    assert not any(url.endswith((".safetensors", ".json", ".mp4")) for url in before)
    start(page)
    loaded = {url.rpartition("/")[2] for url in page.evaluate(urls)[len(before) :]}
    assert loaded == {"manifest.json", WEIGHTS.name}


def test_a_game_ends_at_21_and_starts_again(game):
    # Nobody moves the left paddle, and nobody waits for the screen.
    script = """(() => {
      let changes = 0, before = "";
      const status = document.querySelector(".pong-stage .pong-status");
      for (let t = 0; t < 60000 && !pong.game.over; t++) {
        pong.tick();
        if (status.textContent !== before) { changes += 1; before = status.textContent; }
      }
      return { ...pong.game.court, changes, text: before };
    })()"""
    result = pong(game, script)
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


def test_touch_moves_the_paddle_without_scrolling(open_page):
    phone = {"width": 360, "height": 640}
    game = play(open_page, viewport=phone, has_touch=True, is_mobile=True)
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
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    check_left_paddle(game, (places[-1] - box["y"]) / box["height"])
    assert game.evaluate("scrollY") == before
    assert game.evaluate("document.documentElement.scrollWidth") <= 360


def frames_in_a_second(game):
    before = pong(game, "pong.game.frames")
    game.clock.run_for(1000)
    return pong(game, "pong.game.frames") - before


def test_pause_step_slow_motion_and_hidden_tab(game):
    assert 58 <= frames_in_a_second(game) <= 62
    press(game, "Slow motion")
    assert 14 <= frames_in_a_second(game) <= 16
    press(game, "Pause")
    assert frames_in_a_second(game) == 0
    press(game, "One decision further")
    first = pong(game, "pong.game.frames")
    press(game, "One decision further")
    assert first % 4 == 0 and pong(game, "pong.game.frames") == first + 4
    assert "it chose" in game.locator(".pong-stage .pong-status").inner_text()
    press(game, "Resume")
    game.evaluate("""() => {
      Object.defineProperty(document, "hidden", { value: true, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    assert frames_in_a_second(game) == 0


def test_options_change_the_agent_and_its_opponent(game):
    press(game, "Forbid")
    press(game, "Hide its older frame")
    select = """document.getElementById("pong-age").dispatchEvent(new KeyboardEvent(
        "keydown", {code: "ArrowUp", bubbles: true, cancelable: true}))"""
    assert game.evaluate(select)  # the arrow keys choose there, as everywhere
    game.clock.run_for(700)
    assert pong(game, "pong.game.thought.probabilities[2]") == 0
    assert pong(game, "pong.game.seen.previous.every((cell) => cell === 0)")
    weights = set()
    for age in json.loads((WEIGHTS.parent / "manifest.json").read_text("utf-8")):
        game.get_by_label("How old is it?").select_option(age["name"])
        game.locator(".pong-stage .pong-status", has_text=age["label"]).wait_for()
        weights.add(pong(game, "pong.game.model.W2[10]"))
        assert (WEIGHTS.parent / age["file"]).stat().st_size <= 1_100_000
    assert len(weights) == 5
    before = pong(game, "pong.game.court.left")
    press(game, "Let the console")
    game.clock.run_for(500)
    # Its player follows the ball, and nobody has touched a key.
    assert pong(game, "pong.game.court.left") != before


def test_reduced_motion_starts_paused(open_page):
    game = play(open_page, reduced_motion="reduce")
    assert frames_in_a_second(game) == 0
    assert pong(game, "pong.mode") == "paused"
    press(game, "Resume")
    assert frames_in_a_second(game) > 50


def build_figures(page):
    """Come near each figure, and wait for it."""
    for figure in page.locator("[data-figure]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".pong-built").wait_for()


def test_axe(page):
    build_figures(page)
    press(page, "Start")
    page.locator("[data-pong=play] .pong-units li").first.wait_for()
    press(page, "Pause")
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for theme in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            check_barriers(page, "wcag22aa", "best-practice")


def damaged():
    """Return the file of weights, damaged in all ways, by what the page says."""
    data = WEIGHTS.read_bytes()
    factors = 8 + int.from_bytes(data[:8], "little")  # the first numbers
    return {
        "cut off": data[:5000],
        "another shape": data.replace(b"5123", b"5122", 1),
        "no file of weights": b"<!doctype html>" * 10,
        "damaged": data[:factors] + b"\xff" * 40 + data[factors + 40 :],
        "missing": None,
    }


@pytest.mark.parametrize("reason", damaged())
def test_bad_weights_say_so(page, reason):
    body = damaged()[reason]
    answer = {"body": body} if body else {"status": 404}
    page.route("**/shipped.safetensors", lambda route: route.fulfill(**answer))
    press(page, "Start")
    page.locator("[data-pong=play] .pong-reason", has_text=reason).wait_for()
    assert page.locator("[data-pong=play] video").is_visible()
    if not body:
        page.problems.clear()  # the browser says it, too


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
    build_figures(page)

    def note(name):
        return page.locator(f"[data-figure={name}] .pong-status")

    assert note("frames").inner_text().startswith("4 of 6,400")
    curve = page.locator("[data-figure=clip] polyline").first.get_attribute("points")
    assert curve.endswith("100.0,35.0")  # the loss for a ratio of 1.5 is -1.2
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


def test_playing_on_leaves_no_memory_behind(page):
    start(page)
    press(page, "Pause")
    client = page.context.new_cdp_session(page)
    minutes = """(() => { for (let t = 0; t < 6000; t++) {
        if (pong.game.over) pong.game.restart();
        pong.mode = "running"; pong.tick(); if (t % 40 === 0) pong.render(); }
        pong.mode = "paused";
        return [pong.history.up.length, document.querySelectorAll("*").length]; })()"""
    used, sizes = [], set()
    for _ in range(5):  # the last 24,000 frames are seven minutes
        sizes.add(tuple(pong(page, minutes)))
        client.send("HeapProfiler.collectGarbage")
        used.append(client.send("Runtime.getHeapUsage")["usedSize"])
    assert used[-1] - used[0] < 0.5e6 and len(sizes) == 1
