// The timeline is a slider that shows and sets the video's position; its thumb is the cursor.
"use strict";
const video = document.getElementById("video");
const position = document.getElementById("position");
const reading = document.getElementById("reading");
const scores = position.dataset.scores.split(",");

function show() {
  position.value = video.currentTime;
  const frame = Math.round(position.value / position.step); // the slider stops only at frames
  const text = `${Number(position.value).toFixed(2)} s: score ${scores[Math.min(frame, scores.length - 1)]}`;
  position.setAttribute("aria-valuetext", text);
  reading.value = text;
}

function follow() {
  show();
  if (!video.paused) requestAnimationFrame(follow);
}

position.addEventListener("input", () => { video.currentTime = Number(position.value); });
video.addEventListener("play", follow);
video.addEventListener("seeked", show);
video.addEventListener("error", () => { document.getElementById("unplayable").hidden = false; });
for (const button of document.querySelectorAll("button[data-start]")) {
  button.addEventListener("click", () => {
    video.currentTime = Number(button.dataset.start);
    video.play();
  });
}
show();
