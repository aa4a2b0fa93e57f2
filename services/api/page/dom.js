"use strict";
// Small helpers over the DOM. Text reaches the page through textContent only, so nothing
// that a client or a backend wrote can become markup.

const byId = (id) => document.getElementById(id);

/** Makes an element; `properties` are assigned, `children` are nodes or strings. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Writes only what changed, so that idle cards cost no layout and selections survive. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

function setAttribute(node, name, value) {
  const text = String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

/** Shows `text` in `node`, or hides it when there is nothing to say. */
function setOptional(node, text) {
  setText(node, text);
  setHidden(node, text === "");
}

/** Says something once to screen readers: outcomes only, never progress. */
function announce(text) {
  byId("announcer").textContent = text;
}

/** Copies `text`; the clipboard interface is missing on plain http away from loopback. */
async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused for want of permission: the older way below may still be allowed.
    }
  }
  const focused = document.activeElement;
  const area = element("textarea", { value: text, className: "visually-hidden" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

/** Copies, and lets the button say for a moment how that went. */
async function copyFrom(button, text) {
  const label = (button.dataset.label ??= button.textContent);
  const copied = await copyText(text);
  button.textContent = copied ? "Copied" : "Not copied";
  if (copied) announce("Copied");
  clearTimeout(button.restoreTimer);
  button.restoreTimer = setTimeout(() => { button.textContent = label; }, 1500);
}

/** An http(s) address as the page may link it, or null: the scheme is never trusted. */
function safeUrl(text) {
  try {
    const url = new URL(text, location.origin);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}
