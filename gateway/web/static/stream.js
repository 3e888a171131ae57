// What the gateway tells: one stream of server-sent events, made anew with back-off when it breaks, seldom when hidden.

const QUICK_S = 0.5;
const HIDDEN_S = 10;
const FIRST_RETRY_S = 0.5;
const LAST_RETRY_S = 15;

export class Stream {
  // `told` gets (kind, data); `changed` is called when the stream's own state did.
  constructor(told, changed) {
    this.told = told;
    this.changed = changed;
    this.source = null;
    this.heardAt = null;
    this.openedAt = performance.now();
    this.retryAt = null;
    this.failures = 0;
    this.timer = 0;
    this.fresh = false;
    document.addEventListener("visibilitychange", () => this.open());
    window.addEventListener("online", () => this.open());
    window.addEventListener("pagehide", () => this.close());
    window.addEventListener("pageshow", (event) => event.persisted && this.open());
    setInterval(() => this.watch(), 500);
    this.open();
  }

  get periodS() {
    return document.hidden ? HIDDEN_S : QUICK_S;
  }

  // Seconds since the gateway was heard of last; null: never.
  get ageS() {
    return this.heardAt === null ? null : (performance.now() - this.heardAt) / 1000;
  }

  get state() {
    if (this.retryAt !== null) return "broken";
    if (this.heardAt === null) return "connecting";
    return this.ageS > 2.5 + 2 * this.periodS ? "silent" : "live";
  }

  get retryInS() {
    return this.retryAt === null ? null : Math.max(0, (this.retryAt - performance.now()) / 1000);
  }

  open() {
    this.close();
    this.openedAt = performance.now();
    this.fresh = true;
    const source = new EventSource(`live?n=200&every=${this.periodS}`);
    this.source = source;
    for (const kind of ["snapshot", "request", "log"]) {
      source.addEventListener(kind, (event) => source === this.source && this.heard(kind, JSON.parse(event.data)));
    }
    source.onerror = () => source === this.source && this.broke();
  }

  close() {
    clearTimeout(this.timer);
    this.retryAt = null;
    if (this.source) this.source.close();
    this.source = null;
  }

  heard(kind, data) {
    if (this.fresh) {
      // a new stream begins with what was lately: what was known before would stand there twice
      this.fresh = false;
      this.told("begin", null);
    }
    this.heardAt = performance.now();
    this.failures = 0;
    this.told(kind, data);
  }

  // The browser's own reconnecting gives up at a 503 and knows no back-off.
  broke() {
    this.close();
    const wait = Math.min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** this.failures) * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.retryAt = performance.now() + wait * 1000;
    this.timer = setTimeout(() => this.open(), wait * 1000);
    this.changed();
  }

  // A stream that is open and says nothing is broken, too.
  watch() {
    const since = Math.max(this.heardAt ?? 0, this.openedAt);
    if (this.source && (performance.now() - since) / 1000 > 6 + 2 * this.periodS) this.broke();
    this.changed();
  }
}
