// The table of all utterances: filters, order, one player, what belongs to one text side by side, a link to each.
// Its records are in <script id="utterances">, the sounds by place in that list in <script id="sounds">.
"use strict";

addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector(".utterances");
  const records = higgs.json("utterances");
  if (!place || !records) return;
  const sounds = higgs.json("sounds") || {};
  const el = higgs.element;

  records.forEach((record, number) => Object.assign(record, { number, times: record.times ?? [] }));
  const lines = new Map(); // record -> its row of the table
  let shown = [];
  let order = { key: "wer", down: true };
  let opened = null;

  const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));
  const title = (record) => record.seed === null ? record.group : `seed ${record.seed}`;
  const COLUMNS = [
    { key: "id", head: "id", show: (r) => r.id },
    { key: "group", head: "condition", wide: true, show: (r) => r.group },
    { key: "voice", head: "voice", wide: true, show: (r) => r.voice },
    { key: "form", head: "form", wide: true, show: (r) => r.form },
    { key: "seed", head: "seed", wide: true, show: (r) => r.seed ?? "" },
    { key: "text", head: "text, and what was heard", show: words },
    { key: "wer", head: "WER %", number: true, show: (r) => number(r.wer, 0) },
    { key: "similarity", head: "similarity", number: true, wide: true, show: (r) => number(r.similarity, 2) },
    { key: "mos", head: "MOS", number: true, wide: true, show: (r) => number(r.mos, 2) },
  ];

  // --- one record -------------------------------------------------------------------------------------------------

  /** The text, and below it how the hypothesis differs, word by word. */
  function words(record) {
    const parts = [el("p", {}, record.text)];
    if (record.words.some((pair) => pair.length > 1)) parts.push(differences(record));
    if (record.note) parts.push(el("p", { class: "soft" }, record.note));
    const facts = [record.voice, record.form, title(record)];
    if (record.similarity !== null) facts.push(`similarity ${number(record.similarity, 2)}`);
    if (record.mos !== null) facts.push(`MOS ${number(record.mos, 2)}`);
    parts.push(el("p", { class: "narrow soft" }, facts.filter(Boolean).join(", ")));
    return parts;
  }

  function differences(record) {
    const pieces = record.words.flatMap(([old, heard]) => [
      heard === undefined ? old : null, heard !== undefined && old ? el("del", {}, old) : null, " ",
      heard ? el("ins", {}, heard) : null, " ",
    ]);
    return el("p", { class: "differences" }, pieces.filter((piece) => piece !== null));
  }

  // --- sound ------------------------------------------------------------------------------------------------------

  const audio = el("audio", { controls: true, "aria-label": "player" });
  const label = el("span", { role: "status" });
  const transport = el("div", { class: "transport", hidden: true }, label, audio);
  document.body.append(transport);
  let playing = null;

  /** Starts the utterance from its beginning; the one that plays is stopped. */
  function play(record) {
    if (!sounds[record.number]) return;
    mark(false);
    playing = record;
    transport.hidden = false;
    const read = record.times.length ? record.times.flatMap(([word]) => [" ", el("span", { class: "word" }, word)]) : [` ${record.text}`];
    label.replaceChildren(el("a", { href: link(record) }, record.id), ...read);
    audio.src = sounds[record.number];
    audio.play().catch(() => {}); // a second one was asked for before the first began
    mark(true);
  }

  function toggle(record) {
    if (playing !== record) play(record);
    else if (audio.paused) audio.play().catch(() => {});
    else audio.pause();
  }

  function mark(on) {
    if (!playing) return;
    lines.get(playing)?.classList.toggle("playing", on);
    document.querySelectorAll(`circle[data-row="${playing.number}"]`).forEach((c) => c.classList.toggle("playing", on));
  }

  let frame = 0; // the next `readAlong`

  /** Marks the word that is being spoken, as long as something plays. */
  function readAlong() {
    if (!playing) return;
    label.querySelectorAll(".word").forEach((word, place) => {
      const [, start, end] = playing.times[place];
      const now = audio.currentTime >= start && audio.currentTime < end;
      if (now && !word.classList.contains("now")) word.scrollIntoView({ block: "nearest" });
      word.classList.toggle("now", now);
    });
    cancelAnimationFrame(frame);
    if (!audio.paused) frame = requestAnimationFrame(readAlong);
  }
  for (const event of ["play", "seeked", "ended"]) audio.addEventListener(event, readAlong);

  function buttons() {
    for (const button of document.querySelectorAll("button.play")) {
      const on = playing && Number(button.dataset.row) === playing.number && !audio.paused;
      button.textContent = on ? "❚❚" : "▶";
      button.setAttribute("aria-pressed", on ? "true" : "false");
    }
  }
  for (const event of ["play", "pause", "ended"]) audio.addEventListener(event, buttons);

  function playButton(record, tab = 0) {
    if (!sounds[record.number]) return el("small", {}, "no audio");
    const attributes = { type: "button", class: "play", "data-row": record.number, tabindex: tab };
    const made = el("button", { ...attributes, "aria-label": `play ${record.id}, ${title(record)}` }, "▶");
    made.addEventListener("click", (event) => { event.stopPropagation(); toggle(record); });
    return made;
  }

  // --- details of a text ------------------------------------------------------------------------------------------

  const link = (record) => `#${encodeURIComponent(record.id)}`;

  function detail(record) {
    const all = records.filter((other) => other.script === record.script);
    const versions = all.map((other) => el(
      "div", { class: other === record ? "this" : null },
      el("p", {}, playButton(other), " ", el("b", {}, other.seed === null ? other.group : `${other.group}, ${title(other)}`)),
      el("p", {}, el("small", {}, [
        `WER ${number(other.wer, 0)} %`, `similarity ${number(other.similarity, 2)}`,
        `to other voices ${number(other.others, 2)}`, `MOS ${number(other.mos, 2)}`, higgs.formatSeconds(other.seconds),
      ].join(", "))),
      other.words.length ? differences(other) : null,
      sounds[other.number] ? el("canvas", { role: "img", "aria-label": `spectrogram of ${other.id}`, "data-row": other.number }) : null,
    ));
    const how = record.command
      ? [el("p", {}, "Say it again, with the same codes ", copyButton(record.command)), el("pre", {}, record.command)]
      : record.group === "generated" ? [el("p", { class: "soft" }, "No command of `higgs speak` says this one again.")] : [];
    const permalink = el("p", {}, el("a", { href: link(record) }, "link to this utterance"), " · ", record.path);
    const cell = el("td", { colspan: COLUMNS.length + 1 }, el("div", { class: "versions" }, versions), how, permalink);
    return el("tr", { class: "detail" }, cell);
  }

  function copyButton(text) {
    const button = el("button", { type: "button" }, "copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        button.textContent = "select it and copy"; // pages from a file may not write to the clipboard everywhere
      }
    });
    return button;
  }

  function open(record) {
    close();
    const line = lines.get(record);
    if (!line) return;
    const added = detail(record);
    line.after(added);
    line.setAttribute("aria-expanded", "true");
    opened = { record, added };
    buttons();
    for (const canvas of added.querySelectorAll("canvas")) sketch(canvas).catch(() => canvas.remove());
  }

  function close() {
    if (!opened) return;
    opened.added.remove();
    lines.get(opened.record)?.setAttribute("aria-expanded", "false");
    opened = null;
  }

  async function sketch(canvas) {
    const bytes = Uint8Array.from(atob(sounds[canvas.dataset.row].split(",")[1]), (sign) => sign.charCodeAt(0)).buffer;
    drawSpectrogram(canvas, await new OfflineAudioContext(1, 1, 24000).decodeAudioData(bytes));
  }

  // --- table ------------------------------------------------------------------------------------------------------

  function classes(column) {
    const names = [column.wide && "wide", column.number && "number", column.key === "text" && "text"];
    return names.filter(Boolean).join(" ") || null;
  }

  function makeLine(record) {
    const cells = COLUMNS.map((column) => el(
      column.key === "id" ? "th" : "td",
      { class: classes(column), scope: column.key === "id" ? "row" : null },
      column.show(record),
    ));
    const line = el("tr", { class: "one", tabindex: -1, "aria-expanded": "false" }, el("td", {}, playButton(record, -1)), cells);
    line.addEventListener("click", (event) => {
      if (event.target.closest("button, a")) return;
      focusOn(record);
      if (opened?.record === record) close();
      else open(record);
    });
    return line;
  }

  function focusOn(record) {
    for (const line of lines.values()) line.tabIndex = -1;
    const line = lines.get(record);
    line.tabIndex = 0;
    line.focus({ preventScroll: true });
    line.scrollIntoView({ block: "nearest" });
  }

  const controls = {
    search: el("input", { type: "search", name: "search", placeholder: "words, or an id" }),
    group: choice("group"), voice: choice("voice"), form: choice("form"), seed: choice("seed"),
    bad: el("input", { type: "checkbox", name: "bad" }),
  };
  function choice(key) {
    const values = [...new Set(records.map((record) => record[key]).filter((value) => value !== null && value !== ""))];
    if (typeof values[0] === "number") values.sort((a, b) => a - b);
    return el("select", { name: key }, el("option", { value: "" }, "all"), values.map((v) => el("option", {}, String(v))));
  }
  const count = el("p", { role: "status", class: "soft" });
  const body = el("tbody");
  const heads = COLUMNS.map((column) => {
    const button = el("button", { type: "button" }, column.head);
    button.addEventListener("click", () => {
      const down = order.key === column.key ? !order.down : Boolean(column.number) && column.key === "wer";
      order = { key: column.key, down };
      update();
    });
    return el("th", { scope: "col", class: column.wide ? "wide" : null }, button);
  });
  const named = { search: "search", group: "condition", voice: "voice", form: "form", seed: "seed" };
  const form = el(
    "form", { class: "filters", role: "search", "aria-label": "utterances" },
    Object.entries(named).map(([key, name]) => el("label", {}, name, controls[key])),
    el("label", { class: "check" }, controls.bad, "WER above 50 %"),
  );
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  const table = el("table", { role: "treegrid", "aria-label": "utterances" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "play"), heads)), body);
  place.replaceChildren(form, count, el("div", { class: "scroll" }, table));

  const matches = (record) => {
    const asked = controls.search.value.trim().toLowerCase();
    const all = [record.id, record.text, record.heard || ""].join("\n").toLowerCase();
    return (!asked || all.includes(asked))
      && ["group", "voice", "form", "seed"].every((key) => !controls[key].value || String(record[key]) === controls[key].value)
      && (!controls.bad.checked || (record.wer ?? 0) > 50);
  };

  function compare(a, b) {
    const [x, y] = [a[order.key], b[order.key]];
    const missing = (value) => value === null || value === "";
    if (missing(x) || missing(y)) return missing(x) - missing(y); // at the end, in either order
    const sign = order.down ? -1 : 1;
    return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  }

  function update() {
    close();
    shown = records.filter(matches).sort((a, b) => compare(a, b) || a.number - b.number);
    body.replaceChildren(...shown.map((record) => {
      if (!lines.has(record)) lines.set(record, makeLine(record));
      lines.get(record).tabIndex = -1;
      return lines.get(record);
    }));
    if (shown.length) lines.get(shown[0]).tabIndex = 0;
    const seconds = shown.reduce((sum, record) => sum + (record.seconds || 0), 0);
    count.textContent = `${shown.length} of ${records.length} utterances, ${higgs.formatSeconds(seconds) || "0 s"}. `
      + "Arrows move, Space plays, Enter shows the versions of a text side by side.";
    heads.forEach((head, i) => head.setAttribute("aria-sort", COLUMNS[i].key !== order.key ? "none" : order.down ? "descending" : "ascending"));
    buttons();
  }

  body.addEventListener("keydown", (event) => {
    const at = shown.findIndex((record) => lines.get(record) === document.activeElement);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 };
    if (event.key in moves) focusOn(shown[Math.min(shown.length - 1, Math.max(0, moves[event.key]))]);
    else if (event.key === " ") toggle(shown[at]);
    else if (event.key === "Enter") (opened?.record === shown[at] ? close : open)(shown[at]);
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
  });

  // --- links and figures ------------------------------------------------------------------------------------------

  /** The utterance that the address names: shown even if a filter hides it. */
  function follow() {
    let id;
    try {
      id = decodeURIComponent(location.hash.slice(1));
    } catch {
      return; // not an address of ours
    }
    const record = records.find((some) => some.id === id);
    if (!record) return;
    if (!matches(record)) {
      form.reset();
      update();
    }
    open(record);
    focusOn(record);
    lines.get(record).scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", follow);

  for (const svg of document.querySelectorAll("svg.plot")) {
    svg.addEventListener("click", (event) => {
      const row = event.target.dataset?.row;
      if (row !== undefined) play(records[row]);
    });
  }
  for (const point of document.querySelectorAll("circle[data-row]")) {
    const record = records[point.dataset.row];
    const name = document.createElementNS("http://www.w3.org/2000/svg", "title");
    name.textContent = `${record.id}: ${record.text}`;
    point.append(name);
  }

  if (records.some((record) => record.group === "generated")) controls.group.value = "generated";
  update();
  follow();
});
