"use strict";
// A listening test from its first page to the file of answers. Progress is held in localStorage under the page's hash.

const data = higgs.json("data");
const place = document.getElementById("test");
const sounds = new Sounds(data.clips);
const memory = `higgs-listen-${data.page}`;
const training = data.training.length;
const steps = [...data.training, ...data.trials];
const preference = data.kind === "preference";
const CHOICES = [
  [-2, "The first is much better"], [-1, "The first is better"], [0, "No preference"],
  [1, "The second is better"], [2, "The second is much better"],
];
const MOST_LETTERS = 60;
let player = null;
let view = null;
let state = remembered();

function remembered() {
  const fresh = { listener: "", step: -1, answers: {} };
  try {
    const known = JSON.parse(localStorage.getItem(memory));
    return known && typeof known.step === "number" && known.answers ? { ...fresh, ...known } : fresh;
  } catch {
    return fresh;
  }
}

function remember() {
  const stored = remembered(); // another tab may have gone on
  if (stored.listener === state.listener) {
    state.step = Math.max(stored.step, state.step);
    state.answers = { ...stored.answers, ...state.answers };
  }
  try {
    localStorage.setItem(memory, JSON.stringify(state));
  } catch {
    document.getElementById("fault").textContent = "This browser does not store progress: leave the page open until the end.";
    document.getElementById("fault").hidden = false;
  }
}

function go(step) {
  if (player) player.stop();
  state.step = step;
  remember();
  view = null;
  place.replaceChildren(step < 0 ? opening() : step < steps.length ? trial(step) : closing());
  place.querySelector("h1, h2").focus();
  window.scrollTo(0, 0);
}

function opening() {
  const name = higgs.element("input", { type: "text", maxlength: MOST_LETTERS, value: state.listener, required: true });
  const task = preference
    ? "You will hear the same text twice and say which sounds better."
    : "You will hear several sounds and score each from 0 to 100 for how natural it sounds. One of them is a recording of a person; it may speak another text.";
  const start = (event) => {
    event.preventDefault();
    state.listener = name.value.trim().slice(0, MOST_LETTERS);
    if (!state.listener) return;
    player = player || new Player(new AudioContext(), update);
    player.context.resume().then(() => go(0), failed);
  };
  return higgs.element("form", { class: "trial", onsubmit: start },
    higgs.element("h1", { tabindex: -1 }, "Listening test"),
    higgs.element("p", {}, task),
    higgs.element("p", {}, `${data.trials.length} texts, after ${training} for practice that do not count. Use headphones in a quiet room, and leave the volume as it is once you have set it in the practice.`),
    higgs.element("p", {}, "Space plays and pauses; while a sound plays, Tab switches to the next one at the same moment. You can close the page and go on later in the same browser."),
    higgs.element("label", {}, "Your name, or any word that stands for you ", name),
    higgs.element("button", { class: "main", type: "submit" }, "Start"));
}

function trial(step) {
  const current = steps[step];
  const practice = step < training;
  const count = practice ? `Practice ${step + 1} of ${training}` : `${step - training + 1} of ${data.trials.length}`;
  const next = higgs.element("button", { class: "main", disabled: true, onclick: () => go(step + 1) }, "Next");
  view = { step, current, practice, next, buttons: [], sliders: [], heard: new Set(), loaded: null };
  const parts = [
    higgs.element("progress", { max: data.trials.length, value: Math.max(0, step - training) }),
    higgs.element("h2", { tabindex: -1 }, count),
    higgs.element("p", {}, current.text),
    ...(preference ? pair() : scores()),
    higgs.element("p", { class: "dim" }, practice ? "Practice: this answer does not count. Set the volume now." : ""),
    next,
  ];
  update();
  return higgs.element("section", { class: "trial" }, ...parts);
}

function playButton(side, label) {
  const button = higgs.element("button", { class: "play", onclick: () => hear(side).catch(failed) }, label);
  view.buttons[side] = button;
  return button;
}

function pair() {
  const chosen = state.answers[view.current.trial];
  const choices = CHOICES.map(([score, label], number) => {
    const button = higgs.element("button", { onclick: () => answer(score) }, `${number + 1}  ${label}`);
    button.setAttribute("aria-pressed", String(chosen === score));
    return button;
  });
  view.choices = choices;
  return [
    higgs.element("div", { class: "stimuli" }, playButton(0, "▶ First"), playButton(1, "▶ Second")),
    higgs.element("p", { class: "dim" }, "Listen to both, then choose (keys 1 to 5)."),
    higgs.element("div", { class: "choices" }, ...choices),
  ];
}

function scores() {
  const known = state.answers[view.current.trial] || {};
  view.scores = { ...known };
  const rows = view.current.stimuli.map((stimulus, side) => {
    const shown = higgs.element("output", {}, known[stimulus.id] === undefined ? "–" : String(known[stimulus.id]));
    const slider = higgs.element("input", { type: "range", min: 0, max: 100, step: 1, value: known[stimulus.id] ?? 50 });
    slider.setAttribute("aria-label", `score of sound ${side + 1}`);
    const rate = () => {
      view.scores[stimulus.id] = Number(slider.value);
      shown.textContent = slider.value;
      answer(view.scores);
    };
    view.sliders.push(slider);
    slider.addEventListener("input", rate);
    slider.addEventListener("click", rate);
    return higgs.element("div", { class: "rating" }, playButton(side, `▶ ${side + 1}`), slider, shown);
  });
  return [higgs.element("p", { class: "dim" }, "0 bad, 25 poor, 50 fair, 75 good, 100 excellent. Listen to all, then move each slider."), ...rows];
}

async function hear(side) {
  const mine = view;
  if (!player) player = new Player(new AudioContext(), update);
  await player.context.resume();
  if (!mine.loaded) {
    mine.loaded = await Promise.all(mine.current.stimuli.map((one) => sounds.decode(one.clip, player.context)));
    if (mine === view) player.load(mine.loaded);
  }
  if (mine !== view) return;
  if (player.playing && player.side === side) player.stop();
  else switchTo(side);
}

// At the same moment, or from the start where that sound is over by then: what counts as heard can be heard.
function switchTo(side) {
  if (player.ended(side)) player.play(side, 0);
  else if (player.playing) player.switchTo(side);
  else player.play(side);
}

function answer(value) {
  if (view.heard.size < view.current.stimuli.length) return;
  state.answers[view.current.trial] = value;
  remember();
  update();
}

function complete() {
  const value = state.answers[view.current.trial];
  if (value === undefined || view.heard.size < view.current.stimuli.length) return false;
  return preference || view.current.stimuli.every((stimulus) => value[stimulus.id] !== undefined);
}

function update() {
  if (!view) return;
  if (player && player.playing && !player.ended(player.side)) view.heard.add(player.side);
  view.buttons.forEach((button, side) => {
    const on = player !== null && player.playing && player.side === side;
    button.classList.toggle("on", on);
    button.setAttribute("aria-pressed", String(on));
  });
  const all = view.heard.size === view.current.stimuli.length;
  if (view.choices) {
    view.choices.forEach((button, number) => {
      button.disabled = !all;
      button.setAttribute("aria-pressed", String(state.answers[view.current.trial] === CHOICES[number][0]));
    });
  }
  for (const slider of view.sliders) slider.disabled = !all;
  view.next.disabled = !complete();
}

function results() {
  const answers = data.trials.filter((one) => state.answers[one.trial] !== undefined).map((one) => {
    const value = state.answers[one.trial];
    if (!preference) return { trial: one.trial, scores: value };
    return { trial: one.trial, stimuli: one.stimuli.map((stimulus) => stimulus.id), score: value };
  });
  return { format: data.format, page: data.page, listener: state.listener, answers };
}

function closing() {
  const text = JSON.stringify(results(), null, 1);
  const link = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const name = [...state.listener.toLowerCase().replace(/[^\p{L}\p{M}\p{N}]+/gu, "-")].slice(0, 40).join("") || "listener";
  const again = () => {
    if (!confirm("Start again? The answers of this browser are deleted.")) return;
    state = { listener: "", step: -1, answers: {} };
    go(-1);
  };
  return higgs.element("section", { class: "trial" },
    higgs.element("h1", { tabindex: -1 }, "Thank you"),
    higgs.element("p", {}, "Download your answers and send the file to whoever asked you to listen."),
    higgs.element("p", {}, higgs.element("a", { id: "download", href: link, download: `ratings-${name}.json` }, "Download the answers")),
    higgs.element("details", {}, higgs.element("summary", {}, "Or copy them from here"), higgs.element("textarea", { readonly: true }, text)),
    higgs.element("p", {}, higgs.element("button", { onclick: again }, "Start again, for another listener")));
}

function failed(error) {
  const note = document.getElementById("fault");
  note.textContent = `This browser cannot play the sound of this page (Ogg Opus): ${error.message}`;
  note.hidden = false;
}

document.addEventListener("keydown", (event) => {
  if (!view || typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  const count = view.current.stimuli.length;
  if (event.key === " " && !event.target.matches("summary, a")) {
    event.preventDefault();
    const side = view.buttons.indexOf(event.target);
    hear(side >= 0 ? side : player && view.loaded ? player.side : 0).catch(failed);
  } else if (event.key === "Tab" && player && player.playing) {
    event.preventDefault();
    switchTo((player.side + (event.shiftKey ? count - 1 : 1)) % count);
  } else if (preference && /^[1-5]$/.test(event.key)) {
    answer(CHOICES[event.key - 1][0]);
  } else if (event.key === "Enter" && !view.next.disabled && !event.target.matches("button")) {
    go(view.step + 1);
  }
});

go(Math.min(state.step, steps.length));
