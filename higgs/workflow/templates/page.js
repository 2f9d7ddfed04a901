// What every page has: one player at a time, contents that stand open where there is room, tables that the keyboard
// can scroll. `higgs` is what scripts of single pages use.
"use strict";

const higgs = {
  /** 3.25 -> "3.3 s", 83 -> "1:23"; nothing for what is not a number. */
  formatSeconds(seconds) {
    if (!Number.isFinite(seconds)) return "";
    if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  },

  /** Whatever <audio> starts to play below `root` pauses all others there. Call it once. */
  onePlayerAtATime(root = document) {
    root.addEventListener("play", (event) => {
      for (const other of root.querySelectorAll("audio")) {
        if (other !== event.target && !other.paused) other.pause();
      }
    }, true); // "play" does not bubble
  },

  /** An element with attributes, listeners (functions, under "on...") and children, null ones left out. Strings become
      text, never markup. */
  element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== null && value !== false) made.setAttribute(name, value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  },

  /** The JSON of a <script type="application/json" id="...">; null where the page has none. */
  json(id) {
    const block = document.getElementById(id);
    return block === null ? null : JSON.parse(block.textContent);
  },
};

higgs.onePlayerAtATime();

addEventListener("DOMContentLoaded", () => {
  const contents = document.querySelector("nav.contents details");
  const wide = matchMedia("(min-width: 72rem)");
  if (contents) {
    const follow = () => { contents.open = wide.matches; };
    wide.addEventListener("change", follow);
    contents.addEventListener("click", (event) => {
      if (event.target.closest("a") && !wide.matches) contents.open = false;
    });
    follow();
  }
  for (const box of document.querySelectorAll(".output_subarea, .scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
