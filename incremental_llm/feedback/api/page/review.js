// The review page. Whatever users wrote enters the page as text nodes only; the exact text goes back as JSON, since a form
// would turn every line end into CRLF.
"use strict";

const at = (id) => document.getElementById(id);
const passed = []; // ids that were put off in this sitting
let item = null;
let untouched = ""; // what the editor holds of the reply: it turns CRLF into LF
let busy = false;
const reviewer = document.body.dataset.reviewer; // whose page this is; another tab may have logged in somebody else since
const drafts = new Drafts(reviewer);
const LONG = 20_000; // characters of which size and difference take longer than a key may
const PAUSE = 300; // milliseconds without a key, after which they are shown
let pause = 0; // the timer for it
let leaving = false; // the page goes by its own will
const NOTICE = "illm-review-notice"; // what to say after a reload

class Refused extends Error {
  constructor(status, error) {
    super(`Expected ${error.expected}, found ${error.found}. ${error.do}`);
    this.status = status;
  }
}

async function send(path, body) {
  const headers = { "Content-Type": "application/json", "X-Illm-Review": "1" };
  const named = JSON.stringify({ ...body, reviewer });
  const answer = await fetch(path, { method: "POST", headers, body: named, redirect: "error" });
  const told = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, told.error);
  return told;
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

function showSize() {
  const text = at("text").value;
  const [many, heavy] = [[...text].length, bytes(text)];
  at("size").textContent = `${many} characters, ${heavy} bytes`;
  const parts = text === untouched ? [] : changes(item.reply, text);
  const changed = parts.some(([kind]) => kind !== "same");
  at("diff-title").textContent = changed ? "What a correction would change" : "The reply as it stands";
  at("diff").replaceChildren();
  if (!changed) edges(at("diff"), item.reply);
  for (const [kind, part] of changed ? parts : []) {
    const element = make(kind === "same" ? "span" : kind);
    if (kind === "same") show(element, part);
    else show(element, part.replace(/\n/g, "⏎\n").replace(/^ +$/, (spaces) => "·".repeat(spaces.length)));
    at("diff").append(element);
  }
}

function showSave() {
  at("save").disabled = busy || at("text").value === untouched;
}

// One item

const SECOND = ["", "Another reviewer has decided already, and you do not see how.", "Reviewers say different things so far."];
const KINDS = { conflict: "people disagree", low_margin: "low margin", safety: "safety", moderation: "moderation" };

function showItem(claim) {
  item = claim.item;
  at("work").hidden = false;
  at("why").replaceChildren(make("span", KINDS[item.kind] ?? item.kind, "tag"));
  if (item.kind !== item.reason) show(at("why"), item.reason.replaceAll("_", " "));
  at("hint").textContent = [item.hint, SECOND[Math.min(item.decided, 2)]].join(" ");
  at("prompt").replaceChildren(...item.prompt.map((turn) => block(turn.role, turn.content, "turn")));
  const pair = item.other !== null;
  at("replies").replaceChildren(block(pair ? "first reply" : "reply", item.reply, "reply"));
  if (pair) at("replies").append(block("second reply", item.other, "reply"));
  at("accept").firstElementChild.textContent = pair ? "First is better" : "Accept";
  at("reject").firstElementChild.textContent = pair ? "Second is better" : "Reject";
  showVoices();
  at("text").value = item.reply;
  untouched = at("text").value;
  fill(drafts.get(item.id) ?? item.reply);
  at("why").focus({ preventScroll: true }); // where a reader begins, and where keys are commands
  window.scrollTo(0, 0);
}

function showVoices() {
  let number = 0;
  at("voices").replaceChildren(...item.voices.map((voice) => {
    const line = make("li");
    const who = make("b");
    show(who, voice.who);
    line.append(who, ": ");
    edges(line, voice.says);
    if (voice.text && ++number < 10) {
      const take = make("button", "use it ");
      take.type = "button";
      take.dataset.take = number;
      take.append(make("kbd", number));
      take.addEventListener("click", () => fill(voice.says));
      line.append(take);
    }
    return line;
  }));
}

function fill(text) {
  at("text").value = text;
  const lost = (text.match(/\r/g) ?? []).length;
  at("ends").hidden = !lost;
  at("ends").textContent = `The reply holds ${lost} carriage returns; the editor writes line feeds only. To keep them, accept.`;
  record();
  refresh();
}

function record() {
  if (at("text").value === untouched) drafts.delete(item.id);
  else drafts.set(item.id, at("text").value);
  showSave();
}

function refresh() {
  clearTimeout(pause);
  if (!item) return;
  drafts.keep();
  showSize();
}

function typed() {
  record();
  clearTimeout(pause);
  if (Math.max(at("text").value.length, item.reply.length) < LONG) refresh();
  else pause = setTimeout(refresh, PAUSE);
}

function showCounts(counts) {
  const left = counts.open + counts.claimed + counts.waiting;
  const second = counts.waiting ? `, ${counts.waiting} of them wait for a second reviewer` : "";
  at("counts").textContent = `${left} to review${second}, ${counts.done} done`;
}

// Talking to the server. What fails leaves the page as it is, and can be tried again: a decision counts once.

async function work(task) {
  if (busy) return;
  busy = true;
  for (const button of document.querySelectorAll("#actions button")) button.disabled = true;
  try {
    await task();
  } catch (error) {
    if (!(error instanceof Refused)) say("No connection to the server. Nothing was lost: your text is still here. Try again.", true);
    else if (error.status === 403 && !at("login")) anew();
    else if (error.status === 401 && !at("login")) say("You are logged out. Your text is still here: log in in another tab, then try again.", true);
    else say(error.message, true);
  } finally {
    busy = false;
    for (const button of document.querySelectorAll("#actions button")) button.disabled = false;
    if (item) showSave();
  }
}

// A 403 says that this browser is somebody else's by now: the page begins again in that name.
function anew() {
  const kept = drafts.any ? ` What ${reviewer} has typed is there again for ${reviewer} in this tab.` : "";
  sessionStorage.setItem(NOTICE, `This page was ${reviewer}'s, and this browser is logged in as somebody else now. Nothing was sent.${kept}`);
  reload();
}

function reload() {
  drafts.keep();
  leaving = true;
  location.reload();
}

function closing(event) {
  drafts.keep();
  if (drafts.any && !leaving) event.preventDefault(); // the browser asks
}

// Claims the item for longer. What fails is found again by the next key.
async function renew() {
  if (!item || document.hidden || busy) return;
  try {
    await send("/v1/review/claim", { item: item.id });
  } catch (error) {
    if (error.status === 403) anew();
  }
}

async function claim(wanted) {
  const told = await send("/v1/review/claim", wanted);
  showCounts(told.counts);
  if (told.claim) return showItem(told.claim);
  item = null;
  at("work").hidden = true;
  return say(passed.length
    ? `Nothing else to review. ${passed.length} were put off in this sitting: press n to see them again.`
    : "Nothing to review. Well done: press n to look again.");
}

async function decide(verdict, content) {
  const body = content === undefined ? { verdict } : { verdict, content };
  try {
    const told = await send(`/v1/review/items/${item.id}/decision`, body);
    drafts.delete(item.id);
    say(told.state === "waiting" ? "Stored. It counts when another reviewer says the same." : "");
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 409) throw error;
    return claimAgain();
  }
  return claim({ but: passed.slice(-100) });
}

async function claimAgain() {
  const mine = at("text").value;
  try {
    await send("/v1/review/claim", { item: item.id });
    say("Your time for this one had run out, and it is yours again. Nothing was sent yet: decide once more.", true);
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 409) throw error;
    say(`Somebody else has this one now, and nothing was sent. Press n for the next. (${error.message})`, true);
  }
  at("text").value = mine;
}

async function later() {
  if (!item) {
    passed.length = 0;
    say("");
    return claim({});
  }
  await send(`/v1/review/items/${item.id}/release`, {});
  if (!passed.includes(item.id)) passed.push(item.id);
  say("");
  return claim({ but: passed.slice(-100) });
}

// What is left is given back once the other one is there: it may be somebody else's by now.
async function back() {
  const [before, left] = [passed.pop(), item];
  if (before === undefined) return say("There is none before this one.");
  say("");
  try {
    await claim({ item: before });
  } catch (error) {
    if (!(error instanceof Refused)) passed.push(before);
    if (!(error instanceof Refused) || error.status !== 409) throw error;
    return say(`The one before is not yours to decide any more; this one still is. (${error.message})`, true);
  }
  if (left && left.id !== before) await send(`/v1/review/items/${left.id}/release`, {});
}

// A verdict on the reply as it stands would throw away what was typed.
function judge(verdict) {
  if (at("text").value === untouched) return decide(verdict);
  return say("You have changed the text: Ctrl+Enter saves it as the right reply, u puts the reply back.", true);
}

const ACTIONS = {
  accept: () => item && judge("accept"),
  reject: () => item && judge("reject"),
  skip: () => item && decide("skip"),
  save: () => item && at("text").value !== untouched && decide("correct", at("text").value),
  next: later,
  back,
};
const act = (name) => work(async () => ACTIONS[name]());

async function logout() {
  await send("/review/logout", {});
  drafts.clear();
  reload();
}

async function begun() {
  await act("next");
  const notice = sessionStorage.getItem(NOTICE);
  sessionStorage.removeItem(NOTICE);
  if (notice) say(notice, true);
}

function begin() {
  for (const name of ["accept", "reject", "save", "skip", "next"]) at(name).addEventListener("click", () => act(name));
  at("help").addEventListener("click", () => at("keys").showModal());
  at("logout").addEventListener("click", () => work(logout));
  at("text").addEventListener("input", typed);
  document.addEventListener("keydown", pressed);
  window.addEventListener("beforeunload", closing);
  const lease = Number(document.body.dataset.lease) * 1000;
  setInterval(renew, lease / 3);
  begun();
}

function login(event) {
  event.preventDefault();
  work(async () => {
    await send("/review/login", { key: at("key").value.trim() });
    location.reload();
  });
}

if (at("login")) at("login").addEventListener("submit", login);
else begin();
