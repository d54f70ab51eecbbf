// The timeline is a slider that shows and sets the video's position; its thumb is the cursor.
"use strict";
const video = document.getElementById("video");
const position = document.getElementById("position");
const reading = document.getElementById("reading");
const scores = position.dataset.scores.split(",");
const boxes = document.getElementById("boxes"); // null without faces
const faces = boxes ? JSON.parse(boxes.dataset.faces) : [];

// Places the boxes of the faces that are visible at a time over the picture, which may be smaller than its element.
function draw(time) {
  if (!boxes || !video.videoWidth) return;
  const scale = Math.min(video.clientWidth / video.videoWidth, video.clientHeight / video.videoHeight);
  const width = scale * video.videoWidth;
  const height = scale * video.videoHeight;
  const left = video.offsetLeft + (video.clientWidth - width) / 2;
  const top = video.offsetTop + (video.clientHeight - height) / 2;
  faces.forEach((face, index) => {
    const box = boxes.children[index];
    box.hidden = time < face.start || time >= face.end;
    if (box.hidden) return;
    const place = (time - face.start) / face.step;
    const before = Math.min(Math.floor(place), face.boxes.length - 1);
    const after = Math.min(before + 1, face.boxes.length - 1);
    const [l, t, r, b] = face.boxes[before].map((value, k) => value + (place - before) * (face.boxes[after][k] - value));
    box.style.left = `${left + l * width}px`;
    box.style.top = `${top + t * height}px`;
    box.style.width = `${(r - l) * width}px`;
    box.style.height = `${(b - t) * height}px`;
  });
}

// Describes the scores at a time: those of the visible faces, or that of the only one.
function describe(time) {
  const frame = Math.round(time / position.step); // the slider stops only at frames
  if (!faces.length) return `score ${scores[Math.min(frame, scores.length - 1)]}`;
  const seen = faces.filter((face) => time >= face.start && time < face.end).map((face) => {
    const score = face.scores[Math.min(frame - Math.round(face.start / position.step), face.scores.length - 1)];
    const role = face.speaker ? ", likely speaker" : "";
    return `face ${face.name}${role}: ${score === undefined ? "not scored" : `score ${score.toFixed(2)}`}`;
  });
  return seen.join("; ") || "no face";
}

function show() {
  position.value = video.currentTime;
  const text = `${Number(position.value).toFixed(2)} s: ${describe(Number(position.value))}`;
  position.setAttribute("aria-valuetext", text);
  reading.value = text;
  draw(video.currentTime);
}

function follow() {
  show();
  if (!video.paused) requestAnimationFrame(follow);
}

position.addEventListener("input", () => { video.currentTime = Number(position.value); });
video.addEventListener("play", follow);
video.addEventListener("loadeddata", show);
new ResizeObserver(() => draw(video.currentTime)).observe(video);
video.addEventListener("seeked", show);
video.addEventListener("error", () => { document.getElementById("unplayable").hidden = false; });
for (const button of document.querySelectorAll("button[data-start]")) {
  button.addEventListener("click", () => {
    video.currentTime = Number(button.dataset.start);
    video.play();
  });
}
show();
