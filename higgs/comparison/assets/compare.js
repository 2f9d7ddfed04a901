"use strict";
// The texts of a comparison: one row is played at a time, all of its sides together.

const data = higgs.json("data");
const sounds = new Sounds(data.clips);
const bar = document.getElementById("bar");
const slider = bar.querySelector("input");
const labels = [...bar.querySelectorAll("[data-choose]")];
const offline = new OfflineAudioContext(1, 1, 24000);
let player = null;
let current = null;
let loading = 0;
let frame = 0; // the next `follow`

const rowOf = (element) => element.closest("[data-row]");
const clipsOf = (row) => data.rows[Number(row)];

function ready() {
  if (!player) player = new Player(new AudioContext(), show);
  return player.context.resume();
}

async function choose(row, side, offset = null) {
  await ready();
  const mine = ++loading; // a later choice ends the loading of an earlier one
  if (row !== current) {
    player.stop();
    const clips = clipsOf(row);
    const buffers = await Promise.all(clips.map((clip) => (clip === null ? null : sounds.decode(clip, player.context))));
    if (mine !== loading) return;
    player.load(buffers);
    current = row;
  }
  if (player.playing && offset === null) player.switchTo(side);
  else player.play(side, offset === null ? player.offset : offset);
}

function next(step) {
  const sides = clipsOf(current).map((clip, side) => (clip === null ? null : side)).filter((side) => side !== null);
  const place = sides.indexOf(player.side);
  player.switchTo(sides[(place + step + sides.length) % sides.length]);
}

function show() {
  if (current === null) return;
  bar.hidden = false;
  bar.querySelector("output").textContent = document.querySelector(`.text[data-row="${current}"] h3`)?.textContent || "";
  bar.querySelector("[data-toggle]").textContent = player.playing ? "Pause" : "Play";
  labels.forEach((label, side) => {
    label.setAttribute("aria-pressed", String(side === player.side));
    label.disabled = clipsOf(current)[side] === null;
  });
  for (const button of document.querySelectorAll("button.play")) {
    const mine = rowOf(button).dataset.row === current && Number(button.dataset.side) === player.side;
    button.classList.toggle("on", mine && player.playing);
    button.setAttribute("aria-pressed", String(mine && player.playing));
  }
  for (const side of document.querySelectorAll(".side")) {
    side.classList.toggle("on", rowOf(side).dataset.row === current && Number(side.dataset.side) === player.side);
  }
  follow();
}

function follow() {
  if (!player) return;
  slider.max = player.seconds;
  slider.value = player.position;
  bar.querySelector("small").textContent = `${player.position.toFixed(1)} of ${player.seconds.toFixed(1)} s`;
  for (const mark of document.querySelectorAll(".mark")) {
    const row = rowOf(mark).dataset.row;
    const clip = clipsOf(row)[Number(mark.closest(".side").dataset.side)];
    mark.hidden = row !== current || player.position > data.seconds[clip];
    mark.style.left = `${(100 * player.position) / (data.seconds[clip] || 1)}%`;
  }
  cancelAnimationFrame(frame);
  if (player.playing) frame = requestAnimationFrame(follow);
}

function toggle() {
  if (current === null) {
    const first = document.querySelector(".text:not([hidden]) button.play:not([hidden])");
    if (first) choose(rowOf(first).dataset.row, Number(first.dataset.side));
  } else if (player.playing) player.stop();
  else choose(current, player.side);
}

function failed(error) {
  const note = document.getElementById("fault");
  note.textContent = `This browser cannot play the sound of this page (Ogg Opus): ${error.message}`;
  note.hidden = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.play");
  const sketch = event.target.closest(".sketch");
  if (button) {
    const row = rowOf(button).dataset.row;
    const side = Number(button.dataset.side);
    if (row === current && player.playing && side === player.side) player.stop();
    else choose(row, side).catch(failed);
  } else if (sketch) {
    const box = sketch.getBoundingClientRect();
    const side = Number(sketch.closest(".side").dataset.side);
    const row = rowOf(sketch).dataset.row;
    const seconds = data.seconds[clipsOf(row)[side]];
    choose(row, side, ((event.clientX - box.left) / box.width) * seconds).catch(failed);
  }
});

document.addEventListener("keydown", (event) => {
  if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && !event.target.matches("summary, input, a")) {
    event.preventDefault();
    const button = event.target.closest("button.play");
    if (button && rowOf(button).dataset.row !== current) button.click();
    else toggle();
  } else if (event.key === "Tab" && player && player.playing) {
    event.preventDefault();
    next(event.shiftKey ? -1 : 1);
  } else if (current !== null && /^[1-9]$/.test(event.key) && event.key <= data.letters.length) {
    if (clipsOf(current)[event.key - 1] !== null) player.switchTo(Number(event.key) - 1);
  }
});

bar.querySelector("[data-toggle]").addEventListener("click", toggle);
slider.addEventListener("input", () => (player.playing ? player.play(player.side, Number(slider.value)) : (player.offset = Number(slider.value))));
labels.forEach((label) => label.addEventListener("click", () => player.switchTo(Number(label.dataset.choose))));

for (const button of document.querySelectorAll("button.play")) {
  if (clipsOf(rowOf(button).dataset.row)[Number(button.dataset.side)] === null) button.hidden = true;
}
const drawn = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((one) => one.isIntersecting)) {
    drawn.unobserve(entry.target);
    const clip = clipsOf(rowOf(entry.target).dataset.row)[Number(entry.target.closest(".side").dataset.side)];
    offline.decodeAudioData(sounds.bytes(clip)).then((buffer) => drawSpectrogram(entry.target, buffer), failed);
  }
}, { rootMargin: "300px" });
for (const sketch of document.querySelectorAll(".sketch")) {
  const side = Number(sketch.closest(".side").dataset.side);
  const clips = clipsOf(rowOf(sketch).dataset.row);
  const longest = Math.max(...clips.map((clip) => (clip === null ? 0 : data.seconds[clip])));
  if (clips[side] === null) sketch.hidden = true;
  else {
    sketch.style.width = `${(100 * data.seconds[clips[side]]) / longest}%`;
    drawn.observe(sketch.querySelector("canvas"));
  }
}

const search = document.getElementById("search");
const changed = document.getElementById("changed");
function filter() {
  const wanted = search.value.toLowerCase();
  let count = 0;
  for (const text of document.querySelectorAll(".text")) {
    text.hidden = !text.textContent.toLowerCase().includes(wanted) || (changed.checked && text.dataset.change === "0");
    count += !text.hidden;
  }
  document.getElementById("count").textContent = `${count} shown`;
}
search.addEventListener("input", filter);
changed.addEventListener("change", filter);
filter();
