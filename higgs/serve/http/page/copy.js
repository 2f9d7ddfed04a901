
"use strict";
// A request of the page as a command or program that makes the same again. Recordings are named as files to download.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a shell
const fileOf = (voice) => `${voice.name.replace(/[^\p{L}\p{M}\p{N}_-]+/gu, "-") || "voice"}.wav`;

/** The body in JSON, split where the base64 of a recording belongs: texts at even places, voices between. */
function pieces(take) {
  const marks = new Map();
  const body = structuredClone(take.body);
  const mark = (voice, name) => {
    if (!name.own) return voice;
    const here = `recording-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
    marks.set(here, name.own);
    return { ...voice, audio: here };
  };
  body.voice = Array.isArray(body.voice)
    ? body.voice.map((voice, n) => mark(voice, take.voices[n]))
    : mark(body.voice, take.voices[0]);
  const found = [];
  let rest = JSON.stringify({ ...body, response_format: "wav" });
  for (const [here, own] of marks) {
    const [before, ...after] = rest.split(here);
    found.push(before, own);
    rest = after.join(here);
  }
  return [...found, rest];
}

function asCurl(take) {
  const url = `${location.origin}/v1/audio/speech`;
  const head = `curl ${quoted(url)} -H 'Content-Type: application/json'${key ? ' -H "Authorization: Bearer $HIGGS_API_KEY"' : ""}`;
  const parts = pieces(take);
  if (parts.length === 1) return `${head} -o speech.wav --data-raw ${quoted(parts[0])}`;
  const written = parts.map((part, n) =>
    n % 2 ? `base64 < ${quoted(fileOf(part))} | tr -d '\\n'` : `printf %s ${quoted(part)}`);
  return `{ ${written.join("; ")}; } | ${head} -o speech.wav --data-binary @-`;
}

function asCommand(take) {
  const { body, voices } = take;
  const options = [];
  if (Array.isArray(body.voice)) voices.forEach((voice, n) => options.push(`--speaker ${quoted(`${n}=${voice.name}`)}`));
  else if (voices[0].own) options.push(`--reference ${quoted(fileOf(voices[0].own))} --reference-text ${quoted(voices[0].own.text)}`);
  else options.push(`--voice ${quoted(voices[0].name)}`);
  if (body.scene) options.push(`--scene ${quoted(body.scene)}`);
  for (const name of ["temperature", "top_k", "top_p", "seed"]) {
    if (name in body) options.push(`--${name.replace("_", "-")} ${body[name]}`);
  }
  if (body.normalize !== false && /[^\p{L}\p{M}\s.,!?'’\[\]]|\d|\p{L}\.\p{L}/u.test(body.input)) options.push("--normalize");
  const text = (body.input.startsWith("-") ? "-- " : "") + quoted(body.input);
  const added = voices.filter((voice) => voice.own && Array.isArray(body.voice)).map(({ own }) =>
    `higgs voices add ${quoted(own.name)} ${quoted(fileOf(own))} --text ${quoted(own.text)}`);
  return [...added, ["higgs speak", ...options, "--out speech.wav", text].join(" ")].join(" && \\\n");
}

function asPython(take) {
  const parts = pieces(take);
  const modules = [...(parts.length > 1 ? ["base64"] : []), ...(key ? ["os"] : []), "urllib.request"];
  const body = parts.map((part, n) =>
    n % 2 ? `base64.b64encode(open(${JSON.stringify(fileOf(part))}, "rb").read()).decode()` : JSON.stringify(part));
  const lines = [...modules.map((name) => `import ${name}`), ""];
  lines.push(`body = ${body.join(" + ")}`, 'headers = {"Content-Type": "application/json"}');
  if (key) lines.push('headers["Authorization"] = f"Bearer {os.environ[\'HIGGS_API_KEY\']}"');
  lines.push(
    `request = urllib.request.Request(${JSON.stringify(`${location.origin}/v1/audio/speech`)}, body.encode(), headers)`,
    'with urllib.request.urlopen(request) as answer, open("speech.wav", "wb") as file:',
    "    file.write(answer.read())",
    "",
  );
  return lines.join("\n");
}
