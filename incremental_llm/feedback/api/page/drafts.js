// What was typed for an item and not sent. It outlives a reload of the tab, and no decision and no logout; whoever closes
// the tab is asked first, since it does not outlive that.
"use strict";

const DRAFT = "illm-review-draft ";

class Drafts {
  #typed = new Map(); // by item
  #reviewer; // another one who logs in in this tab sees none of it

  constructor(reviewer) {
    this.#reviewer = reviewer;
  }

  get(item) {
    return this.#typed.get(item) ?? sessionStorage.getItem(this.#name(item)) ?? undefined;
  }

  set(item, text) {
    this.#typed.set(item, text);
  }

  delete(item) {
    this.#typed.delete(item);
    sessionStorage.removeItem(this.#name(item));
  }

  // Writes down what was typed; where the browser has no room for it, the question on closing is what is left.
  keep() {
    for (const [item, text] of this.#typed)
      try {
        sessionStorage.setItem(this.#name(item), text);
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
      }
  }

  clear() {
    this.#typed.clear();
    for (const name of Object.keys(sessionStorage)) if (name.startsWith(DRAFT)) sessionStorage.removeItem(name);
  }

  get any() {
    return this.#typed.size > 0;
  }

  #name(item) {
    return `${DRAFT}${item} ${this.#reviewer}`;
  }
}
