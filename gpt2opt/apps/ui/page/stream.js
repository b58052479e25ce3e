export const MESSAGE_BYTES = 2 ** 20; // what the server reads at most; it cuts a longer message off, and then can't say why
const LONGEST_WAIT_MS = 5000;

// A stream is a text that the server writes. It goes on without its socket: a socket that is lost is opened again, and gets the events
// from the number on that this page has. A stream without an id, such as loading, ends with its socket.

export class Stream {
  constructor(ask, on, received = 0) {
    Object.assign(this, { ask, on, received, open: true, waitMs: 250 });
    this.connect();
  }

  connect() {
    const address = new URL("stream", location.href); // beside the page: a proxy gives it another path, or https
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.onopen = () => {
      const message = JSON.stringify({ ...this.ask, from: this.received });
      if (new Blob([message]).size <= MESSAGE_BYTES) return this.socket.send(message);
      this.end({ event: "error", text: "The prompt or the stop strings are too long: shorten them." });
    };
    this.socket.onmessage = (message) => {
      this.received += 1;
      this.waitMs = 250;
      const event = JSON.parse(message.data);
      if (event.event === "end" || event.event === "error") this.end(event);
      else this.on(event);
    };
    this.socket.onclose = () => {
      if (!this.open) return;
      if (!this.ask.id) return this.end({ event: "error", text: "The connection to gpt2opt was lost: is it still running?" });
      this.on({ event: "lost" });
      setTimeout(() => this.open && this.connect(), this.waitMs);
      this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
    };
  }

  end(event) {
    if (!this.open) return;
    this.open = false;
    this.socket.close();
    this.on(event);
  }

  stop() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ stop: true }));
    else this.end({ event: "end", lost: true });
  }
}
