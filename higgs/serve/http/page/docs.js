
"use strict";
// /openapi.json as tables: each request with its fields, types, bounds, defaults, and an example.

const COLUMNS = ["field", "type and bounds", "default", "example", "meaning"];
let api = null;
let model = ""; // the name that requests may say

function resolve(schema) {
  return schema.$ref ? schema.$ref.slice(2).split("/").reduce((value, name) => value[name], api) : schema;
}

function typeOf(schema) {
  const found = resolve(schema);
  if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(", ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  const several = found.anyOf ?? found.oneOf;
  if (several) return [...new Set(several.map(typeOf))].join(" or ");
  if (found.type === "array") return `list of (${typeOf(found.items)})${boundsOf(found)}`;
  if (found.properties) {
    return `{${Object.entries(found.properties).map(([name, inner]) => `"${name}": ${typeOf(inner)}`).join(", ")}}`;
  }
  return `${found.type ?? "anything"}${boundsOf(found)}`;
}

function boundsOf(schema) {
  const number = (value) => (value > 2 ** 53 ? `2^${Math.log2(value)}` : value);
  const found = [];
  const add = (name, text) => name in schema && found.push(text(number(schema[name])));
  add("minimum", (value) => `${value} or more`);
  add("exclusiveMinimum", (value) => `more than ${value}`);
  add("maximum", (value) => `at most ${value}`);
  add("exclusiveMaximum", (value) => `less than ${value}`);
  add("minLength", (value) => `${value} or more characters`);
  add("maxLength", (value) => `at most ${value} characters`);
  add("minItems", (value) => `${value} or more`);
  add("maxItems", (value) => `at most ${value}`);
  return found.length ? ` (${found.join(", ")})` : "";
}

/** Text whose parts between backticks are code. */
function marked(text) {
  const parts = text.split("`");
  return parts.map((part, n) => (n % 2 ? element("code", { textContent: part }) : part));
}

function fieldRow(name, schema, required) {
  const example = name === "model" ? model : schema.examples?.[0] ?? schema.default ?? resolve(schema).enum?.[0];
  const cells = [
    element("code", { textContent: name }),
    typeOf(schema),
    required ? "must be there" : schema.default === undefined ? "" : JSON.stringify(schema.default),
    element("code", { textContent: example === undefined || example === null ? "" : JSON.stringify(example) }),
  ].map((cell) => [cell]);
  cells.push(marked(schema.description ?? ""));
  const made = cells.map((cell, n) => element(n ? "td" : "th", n ? {} : { scope: "row" }, ...cell));
  made.forEach((cell, n) => (cell.dataset.column = COLUMNS[n])); // shown where a phone has no room for the head
  return element("tr", {}, ...made);
}

function table(title, fields, required) {
  const head = COLUMNS.map((text) => element("th", { scope: "col", textContent: text }));
  const rows = Object.entries(fields).map(([name, schema]) => fieldRow(name, schema, required.includes(name)));
  const place = element("div", { className: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
  Object.assign(place, { tabIndex: 0, role: "region", ariaLabel: `Fields of ${title}` });
  return place;
}

function exampleOf(path, method, body) {
  const held = key ? ' -H "Authorization: Bearer $HIGGS_API_KEY"' : "";
  const url = `${location.origin}${path.replace("{name}", model)}`;
  if (!body) return `curl ${url}${held}`;
  const fields = Object.entries(body.properties).filter(([name, schema]) => (body.required ?? []).includes(name) && schema.examples);
  const sent = JSON.stringify(Object.fromEntries(fields.map(([name, schema]) => [name, name === "model" ? model : schema.examples[0]])));
  const out = path.endsWith("/speech") ? " -o speech.mp3" : "";
  return `curl ${url}${held} -H 'Content-Type: application/json'${out} \\\n    -d '${sent}'`;
}

function request(path, method, operation) {
  const title = `${method.toUpperCase()} ${path}`;
  const id = `${method}${path.replace(/[^\w]+/g, "-")}`;
  const heading = element("h2", {}, element("code", { textContent: title }));
  heading.id = id;
  const content = operation.requestBody?.content["application/json"].schema;
  const body = content && resolve(content);
  const parts = [element("p", {}, ...marked(operation.description ?? operation.summary ?? ""))];
  if (body) parts.push(table(title, body.properties, body.required ?? []));
  const parameters = (operation.parameters ?? []).filter((parameter) => parameter.in !== "header");
  if (parameters.length) {
    parts.push(table(title, Object.fromEntries(parameters.map(({ name, schema }) => [name, schema])), parameters.filter((p) => p.required).map(({ name }) => name)));
  }
  parts.push(element("pre", { tabIndex: 0 }, exampleOf(path, method, body)));
  const link = element("a", { href: `#${id}`, textContent: title });
  return [element("li", {}, link), element("section", {}, heading, ...parts)];
}

async function start() {
  api = await (await call("/openapi.json")).json();
  model = (await (await call("/v1/models")).json()).data[0].id;
  const found = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).filter(([method]) => method !== "head").map(([method, operation]) => request(path, method, operation)));
  found.sort((one, other) => other[0].textContent.startsWith("POST") - one[0].textContent.startsWith("POST"));
  $("contents").replaceChildren(...found.map(([item]) => item));
  $("requests").replaceChildren(...found.map(([, section]) => section));
}

begin(start);
