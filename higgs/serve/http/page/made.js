
"use strict";
// The list of what was made on this page: to hear again, two by turns, to save, and to copy as a command.

const MOST_MADE = 40;
const player = new Player();
const marked = { A: null, B: null };
let made = [];

function figures(item) {
  const ends = { stop: "", length: " Cut off: it is at its greatest length." };
  const more = item.stop === null ? "" : ends[item.stop] ?? ` Ended by: ${item.stop}.`;
  const factor = (item.took / item.sound.seconds).toFixed(2);
  return `First sound after ${Math.round(item.first)} ms; ${item.sound.seconds.toFixed(1)} s, real-time factor ${factor}.${more}`;
}

const nameOf = (item) => `${item.number}. ${item.voices.map(({ name }) => name).join(", ")}`;

function hear(item, from = 0) {
  player.play(item.sound, from);
  report(item);
  list();
  tick();
}

/** The words of what is in the player. */
function showWords(item) {
  if ($("words").of === item?.words) return;
  $("words").of = item?.words;
  $("words").replaceChildren(...(item?.words ?? []).flatMap(({ word }) => [element("span", { className: "word", textContent: word }), " "]));
  $("words").hidden = !item?.words?.length;
}

/** Marks the word that is being spoken, as long as something plays. */
function readAlong(seconds) {
  const box = $("words");
  box.of?.forEach(({ start, end }, n) => {
    const word = box.children[n];
    const now = player.playing && seconds >= start && seconds < end;
    if (now && !word.classList.contains("now")) box.scrollTop = word.offsetTop - box.clientHeight / 2;
    word.classList.toggle("now", now);
  });
}

/** Words with their times -> a file of WebVTT, which reads markup. */
function vtt(words) {
  const clock = (seconds) => new Date(Math.round(1000 * seconds)).toISOString().slice(11, 23);
  const safe = (word) => word.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const shortest = 0.04; // a caption without length is never shown, and WebVTT has none
  const ends = ({ start, end }) => clock(Math.max(end, start + shortest));
  const captions = words.map((one) => `${clock(one.start)} --> ${ends(one)}\n${safe(one.word)}\n\n`);
  return new Blob(["WEBVTT\n\n", ...captions], { type: "text/vtt" });
}

/** The other of A and B, at the same second. */
function switchTo() {
  const other = made.find(({ sound }) => sound === player.sound) === marked.A ? marked.B : marked.A;
  const at = player.position;
  hear(other, at < other.sound.length ? at : 0);
}

function mark(letter, item) {
  marked[letter] = marked[letter] === item ? null : item;
  const other = letter === "A" ? "B" : "A";
  if (marked[other] === item) marked[other] = null;
  list();
}

async function copy(button, text) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    window.prompt("The browser does not let the page copy; copy this:", text);
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function entry(item) {
  const button = (text, act, pressed) => {
    const it = element("button", { type: "button", textContent: text });
    it.setAttribute("aria-label", `${text}, number ${item.number}`);
    if (pressed !== undefined) it.setAttribute("aria-pressed", pressed);
    it.onclick = () => act(it);
    return it;
  };
  const copied = { curl: asCurl, "command line": asCommand, Python: asPython };
  const letters = [...item.body.input];
  const file = (text, ending, href) => element("a", {
    className: "button", download: `speech-${item.number}.${ending}`, href, textContent: text, "aria-label": `${text}, number ${item.number}`,
  });
  item.url ??= item.sound.complete ? URL.createObjectURL(wav(item.sound.samples.subarray(0, item.sound.length))) : undefined;
  item.captions ??= item.words?.length ? URL.createObjectURL(vtt(item.words)) : undefined;
  const saved = item.url ? [file("Download", "wav", item.url)] : [];
  if (item.captions) saved.push(file("Captions", "vtt", item.captions));
  const line = element("li", {},
    element("h3", { textContent: nameOf(item) }),
    element("p", { textContent: letters.length > 160 ? `${letters.slice(0, 160).join("")} ...` : item.body.input }),
    element("p", { className: "small soft", textContent: `Seed ${item.seed}. ${figures(item)}` }),
    element("div", { className: "row tight" },
      button("Play", () => hear(item)),
      button("A", () => mark("A", item), marked.A === item),
      button("B", () => mark("B", item), marked.B === item),
      ...saved,
      button("Use again", () => restore(item)),
      button("Remove", () => remove(item))),
    element("div", { className: "row tight small soft" }, "Copy as",
      ...Object.entries(copied).map(([name, make]) => button(name, (self) => copy(self, make(item))))));
  if (player.sound === item.sound) line.setAttribute("aria-current", "true");
  return line;
}

function list() {
  const inside = $("made").contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  $("made").replaceChildren(...made.map(entry));
  if (inside) [...$("made").querySelectorAll("button, a")].find((b) => b.getAttribute("aria-label") === inside)?.focus();
  $("made-help").hidden = made.length > 0;
  const current = made.find(({ sound }) => sound === player.sound);
  const letter = Object.keys(marked).find((name) => current && marked[name] === current);
  $("now").textContent = current ? `${letter ? `${letter}: ` : ""}${nameOf(current)}, seed ${current.seed}` : "Nothing yet.";
  showWords(current);
  $("switch").disabled = !(marked.A && marked.B);
  shown();
}

function remove(item) {
  if (player.sound === item.sound) {
    player.pause();
    player.sound = null;
    player.at = 0;
  }
  for (const url of [item.url, item.captions]) if (url) URL.revokeObjectURL(url);
  const place = made.indexOf(item);
  const inside = $("made").contains(document.activeElement);
  made = made.filter((other) => other !== item);
  for (const letter of ["A", "B"]) if (marked[letter] === item) marked[letter] = null;
  list();
  if (inside && !$("made").contains(document.activeElement)) {
    ($("made").children[Math.min(place, made.length - 1)]?.querySelector("button") ?? $("text")).focus();
  }
}

function restore(item) {
  const { body } = item;
  const dialogue = Array.isArray(body.voice);
  $(dialogue ? "dialogue" : "single").checked = true;
  $("text").value = body.input;
  chooseKind();
  if (dialogue) {
    while (speakers.length < item.voices.length) addSpeaker();
    while (speakers.length > item.voices.length) removeSpeaker();
    item.voices.forEach(({ name }, n) => refill(speakers[n], name));
  } else refill($("voice"), item.voices[0].name);
  $("scene").value = body.scene ?? "";
  for (const name of NUMBERS) $(name).value = body[name] ?? "";
  $("normalize").checked = body.normalize !== false;
  const gone = item.voices.filter((voice) => voice.own && !own.voices.includes(voice.own)).map(({ name }) => name);
  show($("error"), gone.length ? `${gone.join(", ")}: this recording is no longer here. Choose another voice.` : null);
  $("text").focus();
}
