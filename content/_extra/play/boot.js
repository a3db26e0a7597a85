// Loads the game or a figure when the reader comes near it, and nothing before.
const parts = { play: "./play.js", figure: "./figures.js" };
const watcher = "IntersectionObserver" in window && new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    (window.requestIdleCallback ?? setTimeout)(() => load(target));
  }
}, { rootMargin: "300px" });

async function load(root) {
  try {
    (await import(parts[root.dataset.pong])).mount(root);
  } catch (error) {
    const reason = root.querySelector(".pong-reason");
    reason?.setAttribute("role", "status"); // play.css keeps no room then
    if (reason) reason.textContent = "This part could not be loaded. Reload the page to try again.";
    throw error;
  }
}

for (const root of document.querySelectorAll("[data-pong]")) {
  if (watcher) watcher.observe(root);
  else load(root);
}
