"use strict";
/* Making elements. Text only ever becomes text: nothing here parses markup. */
const SIGNS = { passed: "\u25cf", failed: "\u2715", truncated: "\u25e9", masked: "\u25cc" };

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const byId = (id) => document.getElementById(id);

function signed(value, digits = 3) {
  if (value === null || value === undefined) return "\u2013";
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value < 0 ? "-" : "+") + text;
}

const direction = (value) => (!value || Math.abs(value) < 0.0005 ? "zero" : value > 0 ? "up" : "down");
const stateOf = (name) => element("span", { class: `state ${name}` }, element("span", { "aria-hidden": "true" }, SIGNS[name]), ` ${name}`);
const tag = (text) => element("span", { class: "tag", dir: "auto" }, text);
const pre = (text) => element("pre", { dir: "auto", tabindex: "0" }, text);

/* Long texts are closed, and say how long they are; nothing is cut. */
function foldable(title, text, open) {
  return element("details", { open }, element("summary", {}, title), pre(text));
}
