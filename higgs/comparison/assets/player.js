"use strict";
// The sounds of a page, and a player that runs all sides of a row together and lets one of them be heard: a switch is a
// cross-fade of 8 ms at the same moment, without a gap.

const FADE = 0.008;

class Sounds {
  // Ogg Opus in base64 -> decoded sound, the last few of them held in memory.
  constructor(encoded, held = 36) {
    this.encoded = encoded;
    this.held = held;
    this.decoded = new Map();
  }

  bytes(clip) {
    return Uint8Array.from(atob(this.encoded[clip]), (letter) => letter.charCodeAt(0)).buffer;
  }

  decode(clip, context) {
    const known = this.decoded.get(clip);
    this.decoded.delete(clip);
    const sound = known || context.decodeAudioData(this.bytes(clip));
    this.decoded.set(clip, sound);
    if (this.decoded.size > this.held) this.decoded.delete(this.decoded.keys().next().value);
    return sound;
  }
}

class Player {
  // `changed` is called after each change of what is playing.
  constructor(context, changed = () => {}) {
    this.context = context;
    this.changed = changed;
    this.sides = [];
    this.side = 0;
    this.offset = 0;
    this.startedAt = null;
  }

  get playing() {
    return this.startedAt !== null;
  }

  get seconds() {
    return Math.max(0, ...this.buffers().map((buffer) => buffer.duration));
  }

  get position() {
    const passed = this.playing ? Math.max(0, this.context.currentTime - this.startedAt) : 0;
    return Math.min(this.offset + passed, this.seconds);
  }

  // Whether that side has no sound left where the others still have some.
  ended(side) {
    return this.position >= (this.sides[side]?.duration ?? 0);
  }

  buffers() {
    return this.sides.filter((buffer) => buffer);
  }

  // One buffer for each side, null where it has no sound; stops what was there before.
  load(buffers) {
    this.stop();
    this.sides = buffers;
    this.offset = 0;
  }

  play(side = this.side, offset = this.offset) {
    this.stop();
    this.side = side;
    this.offset = offset >= this.seconds ? 0 : offset;
    this.startedAt = this.context.currentTime;
    let left = 0;
    this.running = this.sides.map((buffer, place) => {
      if (!buffer) return null;
      const gain = this.context.createGain();
      gain.gain.value = place === side ? 1 : 0;
      gain.connect(this.context.destination);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(gain);
      if (this.offset < buffer.duration) {
        left += 1;
        source.onended = () => {
          left -= 1;
          if (left === 0 && this.running && this.running.some((one) => one && one.source === source)) this.finish();
        };
        source.start(this.startedAt, this.offset);
      }
      return { source, gain, started: this.offset < buffer.duration };
    });
    this.changed();
  }

  switchTo(side) {
    this.side = side;
    if (this.playing) {
      const now = this.context.currentTime;
      this.running.forEach((one, place) => {
        if (!one) return;
        const level = one.gain.gain;
        level.cancelScheduledValues(now);
        level.setValueAtTime(level.value, now);
        level.linearRampToValueAtTime(place === side ? 1 : 0, now + FADE);
      });
    }
    this.changed();
  }

  // Holds the position, from which `play` goes on.
  stop() {
    if (!this.playing) return;
    const position = this.position;
    for (const one of this.running) {
      if (one && one.started) {
        one.source.onended = null;
        one.source.stop();
      }
      if (one) one.gain.disconnect();
    }
    this.running = null;
    this.startedAt = null;
    this.offset = position;
    this.changed();
  }

  finish() {
    this.stop();
    this.offset = 0;
    this.changed();
  }
}

function typing(target) {
  return target instanceof Element && target.matches("input:not([type=range]):not([type=radio]):not([type=checkbox]), textarea, select");
}
