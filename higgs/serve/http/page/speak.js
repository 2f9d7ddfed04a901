
"use strict";
// The form, the stream of a request, and the player.

const NUMBERS = ["temperature", "top_k", "top_p", "seed"];
let settings = null;
let voices = [];
let speakers = []; // the select of each speaker
let count = 0;
let running = null; // of the request that is being spoken
let frame = 0; // the next `tick`

function choices(chosen) {
  const option = (value, text) => element("option", { value, textContent: text });
  const groups = [element("optgroup", { label: "Voices of the server" }, ...voices.map((voice) =>
    option(voice.id, voice.description ? `${voice.name} (${voice.description})` : `${voice.name} (a recording)`)))];
  if (own.voices.length) {
    groups.push(element("optgroup", { label: "Of your own" }, ...own.voices.map(({ name }) => option(name, name))));
  }
  const select = element("select", {}, ...groups);
  if (chosen && [...select.options].some(({ value }) => value === chosen)) select.value = chosen;
  return select;
}

function refill(select, chosen = select.value) {
  const filled = choices(chosen);
  const { value } = filled;
  select.replaceChildren(...filled.children);
  select.value = value;
}

function voiceOf(name) {
  const mine = own.voices.find((voice) => voice.name === name);
  return mine ? { name, own: mine } : { name };
}

const sent = ({ name, own: mine }) => (mine ? { audio: mine.audio, text: mine.text } : name);

function addSpeaker() {
  const number = speakers.length;
  const select = choices(voices[number % Math.max(1, voices.length)]?.id);
  select.id = `speaker-${number}`;
  speakers.push(select);
  const insert = element("button", { type: "button", textContent: "Insert line" });
  insert.setAttribute("aria-label", `Insert line of speaker ${number}`);
  insert.onclick = () => insertLine(number);
  const label = element("label", { htmlFor: select.id, textContent: `Speaker ${number}` });
  $("speakers").append(element("div", { className: "cast tight" }, label, select, insert));
  $("add-speaker").disabled = speakers.length >= settings?.max_speakers;
}

function removeSpeaker() {
  speakers.pop();
  $("speakers").lastElementChild.remove();
  $("add-speaker").disabled = false;
}

function insertLine(number) {
  const text = $("text");
  const before = text.value.slice(0, text.selectionStart);
  const tag = `${before && !before.endsWith("\n") ? "\n" : ""}[SPEAKER${number}] `;
  text.setRangeText(tag, text.selectionStart, text.selectionEnd, "end");
  text.focus();
  counted();
}

function chooseKind() {
  const dialogue = $("dialogue").checked;
  $("one-voice").hidden = dialogue;
  $("cast").hidden = !dialogue;
  if (dialogue && !$("text").value.includes("[SPEAKER")) {
    const words = $("text").value.trim();
    $("text").value = `[SPEAKER0] ${words || "Is the train late?"}\n[SPEAKER1] It leaves in ten minutes.`;
  } else if (!dialogue) {
    $("text").value = $("text").value.replace(/\[SPEAKER\d+\] ?/g, "");
  }
  counted();
}

function counted() {
  if (!settings) return;
  const length = [...$("text").value].length;
  const words = $("text").value.replace(/\[SPEAKER\d+\]/g, "").split(/\s+/).filter(Boolean).length;
  const long = words > settings.max_words ? ` More than ${settings.max_words} words are spoken in chunks.` : "";
  $("text-help").textContent = `${length} of ${settings.max_characters} characters.${long}`;
}

/** What the form asks for: the body, and the voices with their names. */
function asked() {
  const chosen = $("dialogue").checked ? speakers.map(({ value }) => voiceOf(value)) : [voiceOf($("voice").value)];
  const voice = $("dialogue").checked ? chosen.map(sent) : sent(chosen[0]);
  const body = { model: settings.model, voice, input: $("text").value };
  if ($("scene").value.trim()) body.scene = $("scene").value;
  for (const name of NUMBERS) if ($(name).value) body[name] = Number($(name).value);
  if (!$("normalize").checked) body.normalize = false;
  return { body, voices: chosen };
}

async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) yield JSON.parse(event.slice("data: ".length));
  }
}

async function speak() {
  if (running || !$("form").reportValidity()) return;
  show($("error"), settings ? null : "The server has not answered yet, or it waits for its key.");
  if (!settings) return;
  const item = { ...asked(), sound: new Sound(), stop: null, first: null };
  const size = new Blob([JSON.stringify(item.body)]).size + 100;
  if (size > settings.max_body_bytes) {
    const kilobytes = (bytes) => `${Math.round(bytes / 1000)} kB`;
    return show($("error"), `The recordings are too long together: ${kilobytes(size)}, and a request holds ${kilobytes(settings.max_body_bytes)}. Use shorter ones.`);
  }
  player.pause();
  player.wake();
  running = new AbortController();
  busy(true);
  const started = performance.now();
  try {
    const more = { response_format: "pcm", stream_format: "sse", timestamps: true };
    const answer = await post("/v1/audio/speech", { ...item.body, ...more }, { signal: running.signal });
    item.seed = answer.headers.get("x-seed");
    if (Number.isSafeInteger(Number(item.seed))) item.body.seed = Number(item.seed);
    for await (const event of eventsOf(answer)) {
      if (event.type === "speech.audio.delta") {
        item.sound.add(event.audio);
        item.took = (performance.now() - started) / 1000;
        if (item.first === null) begun(item, performance.now() - started);
        else if (player.sound === item.sound) player.feed();
      } else if (event.type === "speech.audio.words") item.words = event.words;
      else item.stop = event.stop_reason;
      report(item);
    }
    if (!item.stop) throw new Error("The connection broke off: the audio is not whole.");
  } catch (error) {
    if (error.name === "AbortError") item.stop = "stopped here";
    else show($("error"), error);
    item.stop ??= "not whole";
  }
  item.sound.complete = true;
  if (player.sound === item.sound) player.feed();
  running = null;
  busy(false);
  if (item.first !== null) report(item);
  list();
}

function begun(item, milliseconds) {
  item.number = ++count;
  player.play(item.sound);
  const [part] = player.parts;
  item.first = milliseconds + 1000 * Math.max(0, part.time - player.context.currentTime);
  made = [item, ...made];
  if (made.length > MOST_MADE) remove(made.at(-1));
  list();
  tick();
}

function report(item) {
  $("status").textContent = figures(item);
}

function busy(yes) {
  $("speak").disabled = $("again").disabled = yes;
  $("speak").textContent = yes ? "Speaking ..." : "Speak";
  $("status").ariaBusy = String(yes); // read out when it is complete
  $("stop").disabled = !yes && !player.playing;
}

function stop() {
  running?.abort();
  player.pause();
}

/** The player as it is now. */
function shown() {
  const { sound, position } = player;
  const seconds = sound ? sound.seconds : 0;
  $("play").textContent = player.playing ? "Pause" : "Play";
  $("play").disabled = $("seek").disabled = !sound;
  $("stop").disabled = !running && !player.playing;
  $("seek").max = seconds;
  $("seek").value = position / RATE;
  $("seek").setAttribute("aria-valuetext", `${(position / RATE).toFixed(1)} of ${seconds.toFixed(1)} seconds`);
  $("time").textContent = `${(position / RATE).toFixed(1)} of ${seconds.toFixed(1)} s`;
  draw($("wave"), sound, position);
  readAlong(position / RATE);
}

function tick() {
  player.check();
  shown();
  cancelAnimationFrame(frame);
  if (player.playing) frame = requestAnimationFrame(tick);
}

function playOrPause() {
  if (player.playing) return player.pause();
  player.play(player.sound, player.position >= player.sound.length ? 0 : player.position);
  tick();
}

async function start() {
  settings = await (await call("/v1/audio/settings")).json();
  ({ voices } = await (await call("/v1/audio/voices")).json());
  own.settings = { ...settings, names: voices.map(({ id }) => id) };
  $("model").textContent = `${settings.model}, Higgs Audio V2`;
  for (const name of NUMBERS) $(name).placeholder = settings[name];
  $("text").maxLength = settings.max_characters;
  if (!settings.references) {
    $("own").hidden = true;
    $("own-help").textContent = "This server takes recordings from its own machine alone, unless it has a key (--api-key).";
  }
  refill($("voice"));
  speakers.forEach((select, number) => refill(select, select.value || voices[number % voices.length]?.id));
  while (speakers.length < 2) addSpeaker();
  $("add-speaker").disabled = speakers.length >= settings.max_speakers;
  counted();
  shown();
}

own.onchange = (added) => {
  for (const select of [$("voice"), ...speakers]) refill(select);
  if (added && $("single").checked) $("voice").value = added.name;
  listOwn();
};
player.onchange = shown;

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
// A browser shows nothing where what is wrong is folded away.
$("form").addEventListener("invalid", (event) => {
  const folded = event.target.closest("details");
  if (folded) folded.open = true;
}, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    speak();
  } else if (event.key === "Escape") stop();
});
$("again").onclick = () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  speak();
};
$("stop").onclick = stop;
$("play").onclick = playOrPause;
$("switch").onclick = switchTo;
$("seek").oninput = () => player.seek(Math.round(Number($("seek").value) * RATE));
$("text").oninput = counted;
for (const radio of [$("single"), $("dialogue")]) radio.onchange = chooseKind;
$("add-speaker").onclick = addSpeaker;
window.addEventListener("resize", shown);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", shown);
beginRecording();
begin(start);
