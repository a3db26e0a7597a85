// A recording marked with data-playing plays by itself while it is in view: only
// after the page is complete, and not where the reader wants things to keep still
// or to save data. Its controls stop it for good.
window.addEventListener("load", () => {
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const saving = navigator.connection && navigator.connection.saveData;
  if (still.matches || saving) return;
  const stoppedByReader = new WeakSet();
  const pausedByUs = new WeakSet();
  const observer = new IntersectionObserver((entries) => {
    for (const { target: video, isIntersecting } of entries) {
      if (isIntersecting && !stoppedByReader.has(video)) {
        video.play().catch(() => {}); // the poster stays
      } else if (!video.paused) {
        pausedByUs.add(video);
        video.pause();
      }
    }
  }, { threshold: 0.5 });
  for (const video of document.querySelectorAll("video[data-playing]")) {
    video.muted = true;
    video.addEventListener("pause", () => {
      if (!pausedByUs.delete(video)) stoppedByReader.add(video);
    });
    video.addEventListener("play", () => stoppedByReader.delete(video));
    observer.observe(video);
  }
});
