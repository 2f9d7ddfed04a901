
"use strict";
// What both pages need: elements, and calls of this server. The key is a variable, so it is gone with the page.

const $ = (id) => document.getElementById(id);
let key = "";

/** An element with properties and children; text is never read as markup. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (property in made) made[property] = value;
    else made.setAttribute(property, value);
  }
  made.append(...children);
  return made;
}

/** fetch, with the key. Throws an Error with the server's own words for whatever is not a success. */
async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text || `HTTP ${answer.status}`;
  try {
    message = JSON.parse(text).error.message;
  } catch { /* plain text */ }
  if (answer.status === 401) askForKey();
  throw new Error(message);
}

const post = (path, body, options = {}) =>
  call(path, { ...options, method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });

function show(place, error) {
  place.textContent = error ? error.message ?? error : "";
  place.hidden = !error;
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

/** `start` is called now, and again with each key that is given. */
async function begin(start) {
  const attempt = async () => {
    try {
      await start();
      $("key-form").hidden = true;
      show($("start-error"), null);
    } catch (error) {
      show($("start-error"), error);
    }
  };
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!/^[\x21-\x7e]+$/.test($("key").value)) return show($("start-error"), "A key is of letters, digits and signs of ASCII.");
    key = $("key").value;
    $("key").value = "";
    attempt();
  });
  await attempt();
}
