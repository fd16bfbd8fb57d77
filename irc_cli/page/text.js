"use strict";
/* Builds elements. Text stays text: nothing here parses markup. */
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
const PART = 20000; // characters per part of a very long text

/* The text unchanged; a very long one in parts, so that the browser lays out only those in view. */
function inParts(text) {
  if (text.length <= 2 * PART) return [text];
  const found = [];
  for (let at = 0; at < text.length;) {
    const line = text.lastIndexOf("\n", at + PART);
    const end = at + PART >= text.length ? text.length : line > at ? line + 1 : at + PART;
    found.push(element("span", { class: "part" }, text.slice(at, end)));
    at = end;
  }
  return found;
}

const pre = (text) => element("pre", { dir: "auto", tabindex: "0" }, inParts(text));

/* A text that can be folded; nothing is cut. */
function foldable(title, text, open) {
  return element("details", { open }, element("summary", {}, title), pre(text));
}
