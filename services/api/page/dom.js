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

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element of a drawing. */
function drawing(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A copy of a template, and its named parts. */
function fromTemplate(id) {
  const root = byId(id).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const node of root.querySelectorAll("[data-part]")) parts[node.dataset.part] = node;
  return { root, parts };
}

/** Puts `nodes` into `parent` in this order, and moves only what stands elsewhere: the keyboard's place survives. */
function arrange(parent, nodes) {
  let at = parent.firstElementChild;
  const wanted = new Set(nodes);
  for (const node of nodes) {
    while (at && !wanted.has(at)) {
      const gone = at;
      at = at.nextElementSibling;
      gone.remove();
    }
    if (at === node) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  while (at) {
    const gone = at;
    at = at.nextElementSibling;
    gone.remove();
  }
}

/** An element that holds a text alone. */
const words = (tag, className, textContent) => element(tag, { className, textContent });

/** What there is of `parts`, in one line. */
const inLine = (parts) => parts.filter(Boolean).join(" · ");

/** A button with words, and what it does. */
function button(text, className, act) {
  const node = element("button", { type: "button", className: `button ${className}`.trim(), textContent: text });
  node.addEventListener("click", () => act(node));
  return node;
}

/** A small button that copies `text()`; `what` says to screen readers what that is. */
function copyButton(what, text, words = "Copy") {
  const node = button(words, "tiny", () => copyFrom(node, text()));
  node.setAttribute("aria-label", `Copy ${what}`);
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

/** Shows in `node` why something could not be read; empty for no trouble. */
function showTrouble(node, text, problem = null) {
  setOptional(node, problem ? `${text} ${problem.message}.`.replace(/\.\.$/, ".") : "");
  setAttribute(node, "data-unreachable", problem?.status === 0);
}

/** Says something once to screen readers: outcomes only, never progress. */
function announce(text) {
  byId("announcer").textContent = text;
}

const NOTICE_TIME = 6_000;

/** Tells everybody what came of a deed whose trace may be out of sight; `change` is where to see it. */
function notify(text, change = null) {
  const notice = byId("notice");
  const parts = [words("span", "", text)];
  if (change) parts.push(leadTo(element("a", { textContent: "Show" }), change));
  notice.replaceChildren(...parts);
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => notice.replaceChildren(), NOTICE_TIME);
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
  if (!button.restoreTimer) button.restoreText = button.textContent;
  clearTimeout(button.restoreTimer);
  const copied = await copyText(text);
  button.textContent = copied ? "Copied" : "Not copied";
  if (copied) announce("Copied");
  button.restoreTimer = setTimeout(() => {
    button.restoreTimer = 0;
    button.textContent = button.restoreText;
  }, 1500);
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
