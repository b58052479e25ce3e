// One stream is one web socket: stopping it, or closing it, touches no other.

export class Stream {
  constructor(ask, on) {
    this.open = true;
    this.socket = new WebSocket(`ws://${location.host}/stream`);
    this.socket.onopen = () => this.socket.send(JSON.stringify(ask));
    this.socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.event === "end" || event.event === "error") this.open = false;
      on(event);
    };
    this.socket.onclose = () => {
      if (!this.open) return;
      this.open = false;
      on({ event: "error", text: "The connection to gpt2opt was lost: is it still running?" });
    };
  }

  stop() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ stop: true }));
  }
}
