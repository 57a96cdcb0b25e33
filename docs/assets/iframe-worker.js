// Search runs in a worker, and a browser starts none for a page that was opened from a folder. There the worker's
// script runs in a hidden frame instead, which speaks to the page as a worker does. Nothing else uses workers here.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.waiting = [];
      this.send = (data) => this.waiting.push(data);
      const script = frame.contentDocument.createElement("script");
      script.src = url;
      script.onload = () => {
        this.send = (data) => inside.dispatchEvent(new MessageEvent("message", { data }));
        this.waiting.forEach(this.send);
      };
      script.onerror = () => this.dispatchEvent(new ErrorEvent("error", { message: `${url} was not read` }));
      frame.contentDocument.documentElement.append(script);
    }

    postMessage(data) {
      this.send(data);
    }
  };
}
