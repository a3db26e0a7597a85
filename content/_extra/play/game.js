// A game: the court, the agent at the right, and who plays at the left. No page needed.
import { DOWN, STAY, UP, newCourt, objects, step } from "./court.js";
import { forward, greedy } from "./agent.js";

const BUTTONS = [UP, DOWN, STAY]; // what the agent's outputs mean
const STICKY = 0.25;

// Random numbers that a test can repeat (mulberry32).
export function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export class Game {
  constructor(model, random = Math.random) {
    Object.assign(this, { model, random, mayStay: true, hideOlder: false });
    this.restart();
  }

  restart() {
    this.court = newCourt();
    this.frames = 0;
    this.held = STAY; // what the emulator hears
    this.wanted = STAY;
    const picture = objects(this.court);
    this.scene = { previous: picture, current: picture, lastAction: 2 };
    this.thought = null;
  }

  get over() {
    return Math.max(this.court.leftScore, this.court.rightScore) >= 21;
  }

  // The agent looks, and decides for the next four frames.
  decide() {
    if (this.thought) {
      const { current } = this.scene;
      this.scene = { previous: current, current: objects(this.court), lastAction: this.action };
    }
    const hidden = { ...this.scene, previous: new Uint8Array(2560) };
    this.seen = this.hideOlder ? hidden : this.scene;
    this.thought = forward(this.seen, this.model, this.mayStay);
    this.action = greedy(this.thought.logits);
    this.wanted = BUTTONS[this.action];
  }

  // One frame. `left` is the reader's action, or null for the console's own player.
  tick(left) {
    if (this.over) return;
    if (this.frames % 4 === 0) this.decide();
    this.frames += 1;
    if (this.random() >= STICKY) this.held = this.wanted;
    this.court = step(this.court, this.held, left);
  }
}
