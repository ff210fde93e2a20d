// What each key does.
"use strict";

const KEYS = {
  a: () => act("accept"), r: () => act("reject"), s: () => act("skip"), n: () => act("next"), j: () => act("next"), k: () => act("back"),
  e: () => at("text").focus(), c: () => at("text").focus(), u: () => item && fill(item.reply), "?": () => at("keys").showModal(),
};

// The letter of a key, with Caps Lock too; where a layout writes no such letters, what stands there on a Latin one.
function named(event) {
  const key = event.key.toLowerCase();
  if (/^[a-z1-9?]$/.test(key)) return key;
  if (event.shiftKey) return event.code === "Slash" ? "?" : "";
  return /^(?:Key([A-Z])|Digit([1-9]))$/.exec(event.code)?.slice(1).join("").toLowerCase() ?? "";
}

function pressed(event) {
  if (at("keys").open) return;
  const writing = event.target === at("text");
  if (writing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); return act("save"); }
  if (writing && event.key === "Escape") return at("text").blur();
  if (writing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  const key = named(event);
  const taken = /^[1-9]$/.test(key) && document.querySelector(`[data-take="${key}"]`);
  const does = taken ? () => taken.click() : Object.hasOwn(KEYS, key) ? KEYS[key] : null;
  if (!does) return;
  event.preventDefault();
  does();
}
