// Texts on the review page: what cannot be seen gets a name, and the difference of two texts by words.
"use strict";

const bytes = (text) => new TextEncoder().encode(text).length;

function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const SIGNS = /\r|\t|\u00a0|[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e]|[\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
const NAMES = { "\r": "CR", "\t": "TAB", "\u00a0": "NBSP", "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufeff": "BOM" };

function sign(character) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const element = make("span", NAMES[character] ?? `U+${code}`, "sign");
  element.title = `U+${code}`;
  return element;
}

// The text with a name in the place of each character that cannot be seen, so that none can turn the rest around.
function show(parent, text) {
  let from = 0;
  for (const found of text.matchAll(SIGNS)) {
    parent.append(text.slice(from, found.index), sign(found[0]));
    from = found.index + found[0].length;
  }
  parent.append(text.slice(from));
}

function edges(parent, text) {
  const body = text.trim();
  const start = text.length - text.trimStart().length;
  const dots = (space) => space.replace(/ /g, "·").replace(/\n/g, "⏎\n");
  if (start) parent.append(make("span", dots(text.slice(0, start)), "sign"));
  show(parent, body);
  if (body && start + body.length < text.length) parent.append(make("span", dots(text.slice(start + body.length)), "sign"));
}

function block(title, text, className) {
  const element = make("div", undefined, className);
  const body = make("div");
  body.dir = "auto";
  edges(body, text);
  element.append(make("h3", title), body);
  return element;
}

// Differences, by words: the longest common subsequence of what lies between the common beginning and end

function words(text) {
  return text.match(/[\p{L}\p{N}\p{M}]+|\r\n|\s|[^\p{L}\p{N}\p{M}\s]/gu) ?? [];
}

function changes(before, after) {
  const [a, b] = [words(before), words(after)];
  let [head, tail] = [0, 0];
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const same = (list, from, to) => ["same", list.slice(from, to).join("")];
  const middle = [a.slice(head, a.length - tail), b.slice(head, b.length - tail)];
  return joined([same(a, 0, head), ...common(...middle), same(a, a.length - tail, a.length)]);
}

function common(a, b) {
  if (a.length * b.length > 4e6) return [["del", a.join("")], ["ins", b.join("")]]; // as one change: it would take seconds
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const found = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length)
    if (i < a.length && j < b.length && a[i] === b[j]) { found.push(["same", a[i]]); i++; j++; }
    else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) found.push(["del", a[i++]]);
    else found.push(["ins", b[j++]]);
  return found;
}

function joined(parts) {
  const found = [];
  for (const [kind, text] of parts)
    if (text && found.length && found[found.length - 1][0] === kind) found[found.length - 1][1] += text;
    else if (text) found.push([kind, text]);
  return found;
}
