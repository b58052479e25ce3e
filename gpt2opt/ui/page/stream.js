const TOO_BIG = 1009; // the code by which a server closes a socket whose message is larger than it reads

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
    this.socket.onclose = ({ code }) => {
      if (!this.open) return;
      this.open = false;
      const lost = "The connection to gpt2opt was lost: is it still running?";
      on({ event: "error", text: code === TOO_BIG ? "The prompt or the stop strings are too long: shorten them." : lost });
    };
  }

  stop() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ stop: true }));
  }
}
