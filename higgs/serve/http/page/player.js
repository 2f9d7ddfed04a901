
"use strict";
// Samples that may still be arriving, and one player for all of them, so that one at a time is heard.

const RATE = 24000; // of 16-bit samples that the server streams
const LEAD = 0.5; // seconds that must be there before a player that ran dry goes on

class Sound {
  constructor() {
    this.samples = new Float32Array(RATE * 4);
    this.length = 0;
    this.complete = false;
  }

  get seconds() {
    return this.length / RATE;
  }

  /** Base64 of 16-bit samples. */
  add(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const count = bytes.length >> 1;
    if (this.length + count > this.samples.length) {
      const larger = new Float32Array(2 * (this.length + count));
      larger.set(this.samples.subarray(0, this.length));
      this.samples = larger;
    }
    for (let n = 0; n < count; n++) this.samples[this.length + n] = view.getInt16(2 * n, true) / 32767;
    this.length += count;
  }
}

/** Float samples -> a WAV file. */
function wav(samples, rate = RATE) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const letters = (at, text) => [...text].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  letters(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  letters(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  letters(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, n) => view.setInt16(44 + 2 * n, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Blob([view.buffer], { type: "audio/wav" });
}

class Player {
  constructor() {
    this.sound = null;
    this.playing = false;
    this.at = 0; // sample at which it stands when it does not play
    this.parts = []; // what was handed to the sound card: { source, time, start, length }
    this.scheduled = 0;
    this.dry = false;
    this.onchange = () => {};
  }

  /** Must be called in a click: browsers allow sound only then. */
  wake() {
    this.context ??= new AudioContext({ sampleRate: RATE });
    this.context.resume();
  }

  get position() {
    let at = this.at;
    const now = this.playing ? this.context.currentTime : 0;
    for (const part of this.playing ? this.parts : []) {
      if (part.time <= now) at = part.start + Math.min(Math.round((now - part.time) * RATE), part.length);
    }
    return at;
  }

  play(sound = this.sound, from = 0) {
    this.pause();
    this.wake();
    this.sound = sound;
    this.at = this.scheduled = Math.min(from, sound.length);
    this.playing = true;
    this.dry = false;
    this.feed();
    this.onchange();
  }

  /** Hands over what has arrived. -> seconds until the first of it is heard, or null. */
  feed() {
    if (!this.playing) return null;
    const { sound, context } = this;
    const last = this.parts.at(-1);
    const end = last ? last.time + last.length / RATE : 0;
    if (last && end < context.currentTime) this.dry = true;
    const ready = sound.length - this.scheduled;
    if (!ready || (this.dry && !sound.complete && ready < LEAD * RATE)) return null;
    this.dry = false;
    const buffer = context.createBuffer(1, ready, RATE);
    buffer.copyToChannel(sound.samples.subarray(this.scheduled, sound.length), 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    const time = Math.max(end, context.currentTime + 0.02);
    source.connect(context.destination);
    source.start(time);
    this.parts.push({ source, time, start: this.scheduled, length: ready });
    this.scheduled = sound.length;
    return time - context.currentTime;
  }

  pause() {
    this.at = this.position;
    this.playing = false;
    for (const part of this.parts) part.source.stop();
    this.parts = [];
    this.onchange();
  }

  /** To be called while it plays: stops at the end. */
  check() {
    if (this.playing && this.sound.complete && this.position >= this.sound.length) this.pause();
  }

  seek(sample) {
    if (this.playing) this.play(this.sound, sample);
    else this.at = sample;
    this.onchange();
  }
}

/** The greatest sample of each of so many parts, computed again when the sound has grown. */
function peaksOf(sound, width) {
  if (sound.peaks?.length === width && sound.peaks.of === sound.length) return sound.peaks;
  const peaks = Object.assign(new Float32Array(width), { of: sound.length });
  const step = sound.length / width;
  for (let x = 0; x < width; x++) {
    for (let n = Math.floor(x * step); n < (x + 1) * step; n += 2) peaks[x] = Math.max(peaks[x], Math.abs(sound.samples[n]));
  }
  return (sound.peaks = peaks);
}

/** The outline of a sound, as tall as the canvas; what has been played is in the accent colour. */
function draw(canvas, sound, position) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * scale));
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  const colours = getComputedStyle(document.documentElement);
  pen.clearRect(0, 0, width, height);
  const peaks = sound ? peaksOf(sound, width) : new Float32Array(width);
  const most = peaks.reduce((one, other) => Math.max(one, other), 0.05);
  const played = sound ? (position / sound.length) * width : 0;
  const [accent, wave] = ["--accent", "--wave"].map((name) => colours.getPropertyValue(name));
  peaks.forEach((peak, x) => {
    pen.fillStyle = x < played ? accent : wave;
    const tall = Math.max(scale, (peak / most) * height);
    pen.fillRect(x, (height - tall) / 2, 1, tall);
  });
}
