
"use strict";
// A recording, from a file or the microphone, as a voice: cut, checked by the server, and kept in this page alone.

const OWN_SECONDS = 15; // of a recording that are used; what a request may hold bounds it too
const OWN_VOICES = 4;
const FILE_BYTES = 50e6; // before it is decoded here
const LEAST_MS = 1000; // of the microphone: before that a recorder may have written nothing yet

const own = { voices: [], audio: null, blob: null, taken: 0, checked: 0, recorder: null, asking: false, onchange: () => {}, settings: null };

async function base64Of(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let n = 0; n < bytes.length; n += 32768) text += String.fromCharCode(...bytes.subarray(n, n + 32768));
  return btoa(text);
}

/** Any audio that the browser reads -> the first seconds of it as WAV: mono, 16 bits, 24 kHz. */
async function cut(blob) {
  if (blob.size > FILE_BYTES) throw new Error(`This file has ${Math.round(blob.size / 1e6)} MB; at most ${FILE_BYTES / 1e6} MB are read.`);
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error("This is no audio file that the browser reads.");
  }
  const length = Math.min(decoded.length, OWN_SECONDS * RATE);
  const samples = new Float32Array(length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    const from = decoded.getChannelData(channel);
    for (let n = 0; n < length; n++) samples[n] += from[n] / decoded.numberOfChannels;
  }
  return { blob: wav(samples), cut: decoded.length > length };
}

async function take(blob, name) {
  show($("own-error"), null);
  const mine = ++own.taken; // a later one may be read sooner
  try {
    const part = await cut(blob);
    const audio = await base64Of(part.blob);
    if (mine !== own.taken) return;
    Object.assign(own, { blob: part.blob, audio });
    if ($("listen").src) URL.revokeObjectURL($("listen").src);
    $("listen").src = URL.createObjectURL(part.blob);
    $("transcript").value = "";
    $("own-name").value = name;
    $("recording").hidden = false;
    $("record-state").textContent = part.cut ? `Only its first ${OWN_SECONDS} s are used: the transcript is of those.` : "";
    await check();
  } catch (error) {
    if (mine === own.taken) show($("own-error"), error);
  }
}

/** Findings of the server; what it hears is the transcript where there is none yet. */
async function check() {
  const mine = ++own.checked; // a later one may be answered sooner
  const finding = (text, fatal = false) => element("li", { textContent: text, className: fatal ? "error" : "warning" });
  $("findings").replaceChildren(element("li", { textContent: "The server is checking the recording ..." }));
  try {
    const text = $("transcript").value.trim();
    const found = await (await post("/v1/audio/voices/check", { audio: own.audio, text })).json();
    if (mine !== own.checked) return;
    const lines = found.findings.map(({ message, fatal }) => finding(message, fatal));
    if (found.transcript && !$("transcript").value) {
      $("transcript").value = found.transcript;
      lines.push(finding("The transcript is what a recogniser of English heard: correct it."));
    }
    if (!lines.length) lines.push(element("li", { textContent: "As it should be." }));
    $("findings").replaceChildren(...lines);
  } catch (error) {
    if (mine !== own.checked) return;
    $("findings").replaceChildren();
    show($("own-error"), error);
  }
}

async function record() {
  if (own.recorder) return own.recorder.stop();
  if (own.asking) return;
  show($("own-error"), null);
  own.asking = true;
  let stream;
  try {
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: true };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    return show($("own-error"), `The microphone cannot be used: ${error.message}`);
  } finally {
    own.asking = false;
  }
  const parts = [];
  const recorder = (own.recorder = new MediaRecorder(stream));
  const started = performance.now();
  const clock = setInterval(() => {
    const seconds = (performance.now() - started) / 1000;
    $("record-state").textContent = `${seconds.toFixed(0)} of ${OWN_SECONDS} s`;
    if (seconds >= OWN_SECONDS && recorder.state === "recording") recorder.stop();
  }, 200);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    clearInterval(clock);
    own.recorder = null;
    stream.getTracks().forEach((track) => track.stop());
    $("record").textContent = "Record";
    $("record-state").textContent = "";
    if (performance.now() - started < LEAST_MS) return show($("own-error"), "Stopped within a second: nothing was recorded. Press Record again.");
    take(new Blob(parts, { type: recorder.mimeType }), "me");
  };
  recorder.start();
  $("record").textContent = "Stop recording";
  $("record-state").textContent = "Speak now.";
}

function use() {
  const text = $("transcript").value.trim();
  if (!text) {
    show($("own-error"), "Type what is said in the recording: the voice is learned from both.");
    return $("transcript").focus();
  }
  if (own.voices.length >= OWN_VOICES) return show($("own-error"), `${OWN_VOICES} voices at a time: remove one first.`);
  show($("own-error"), null);
  const wished = $("own-name").value.normalize("NFC").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "mine";
  const taken = (name) => own.voices.some((voice) => voice.name === name) || own.settings.names.includes(name);
  let name = wished;
  for (let n = 2; taken(name); n++) name = `${wished}-${n}`;
  const voice = { name, text, audio: own.audio, blob: own.blob };
  own.voices.push(voice);
  own.onchange(voice);
  $("recording").hidden = true;
  $("file").value = "";
  $("record-state").textContent = $("single").checked ? `${name} is the voice now.` : `${name} can be chosen in the cast.`;
}

function listOwn() {
  $("own-voices").replaceChildren(...own.voices.map((voice) => {
    const href = URL.createObjectURL(voice.blob);
    const gone = element("button", { type: "button", textContent: "Remove", ariaLabel: `Remove ${voice.name}` });
    gone.onclick = () => {
      own.voices = own.voices.filter((other) => other !== voice);
      own.onchange();
    };
    const saved = element("a", { className: "button", href, download: fileOf(voice), textContent: "Download" });
    const row = element("div", { className: "row tight" }, element("strong", { textContent: voice.name }), saved, gone);
    return element("li", {}, row, element("p", { className: "small soft", textContent: voice.text }));
  }));
}

function beginRecording() {
  $("file").onchange = () => {
    const [file] = $("file").files;
    if (file) take(file, file.name.replace(/\.[^.]*$/, ""));
  };
  $("record").onclick = record;
  $("use").onclick = use;
  $("transcript").onchange = check;
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    $("record").disabled = true;
    $("record-state").textContent = "Browsers give the microphone to https:// and to this machine only.";
  }
}
