"use strict";
// One player for the page, started by buttons of the class play. A button's data-key names its clip, data-title what the
// bar shows, and data-source its file where that is not audio/KEY.mp3.
const SHAPES = { play: "M3 1.5v13l11-6.5z", pause: "M3 2h3.5v12H3zM9.5 2H13v12H9.5z" };
const at = (id) => document.getElementById(id);

function mark(button) {
  const isOn = at("player").dataset.key === button.dataset.key && !at("player").paused;
  button.setAttribute("aria-pressed", String(isOn));
  button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${SHAPES[isOn ? "pause" : "play"]}"/></svg>`;
}

function toggle(button) {
  const player = at("player");
  if (player.dataset.key === button.dataset.key && !player.paused) {
    player.pause();
    return;
  }
  if (player.dataset.key !== button.dataset.key) {
    player.dataset.key = button.dataset.key;
    player.src = button.dataset.source ?? `audio/${button.dataset.key}.mp3`;
    at("playing").textContent = button.dataset.title;
    at("bar").hidden = false;
  }
  player.play().catch((error) => {
    if (error.name !== "AbortError") throw error; // of a clip that another one, or a pause, has stopped at once
  });
}

for (const name of ["play", "pause", "ended"]) {
  at("player").addEventListener(name, () => document.querySelectorAll(".play").forEach(mark));
}
