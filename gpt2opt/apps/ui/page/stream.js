const MESSAGE_BYTES = 2 ** 20; // what the server reads at most; it cuts a longer message off, and then can't say why

// One stream is one web socket: stopping it, or closing it, touches no other.

export class Stream {
  constructor(ask, on) {
    this.open = true;
    this.socket = new WebSocket(`ws://${location.host}/stream`);
    this.socket.onopen = () => {
      const message = JSON.stringify(ask);
      if (new Blob([message]).size <= MESSAGE_BYTES) return this.socket.send(message);
      this.fail("The prompt or the stop strings are too long: shorten them.", on);
    };
    this.socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.event === "end" || event.event === "error") this.open = false;
      on(event);
    };
    this.socket.onclose = () => this.fail("The connection to gpt2opt was lost: is it still running?", on);
  }

  fail(text, on) {
    if (!this.open) return;
    this.open = false;
    this.socket.close();
    on({ event: "error", text });
  }

  stop() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ stop: true }));
  }
}
