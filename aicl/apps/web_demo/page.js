(() => {
  "use strict";
  const TICK_MS = 250;
  const MAX_DRIFT_S = 0.08;
  const RECORD_S = 3;
  let paused = false;

  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const refresh = () => document.querySelector("#web-refresh")?.click();
  const promptText = () => document.querySelector("#web-prompt textarea")?.value ?? "";
  const modelOf = (element) => Number(element.closest("[data-model]")?.dataset.model ?? 0);

  // A sentence beside what went wrong, until something else is tried.
  function tell(element, text) {
    const place = element.closest(".web-references, .web-image") ?? document.querySelector(".web-references");
    const notice = place?.querySelector(".web-notice");
    if (!notice) return;
    notice.textContent = text;
    notice.hidden = !text;
    if (text) notice.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  async function send(address, options, element) {
    tell(element, "");
    try {
      const answer = await fetch(address, { method: "POST", credentials: "same-origin", ...options });
      const content = await answer.json().catch(() => ({}));
      if (answer.ok) return true;
      tell(element, content.error ?? "The server did not take this.");
    } catch {
      tell(element, "The server cannot be reached: try again in a moment.");
    }
    return false;
  }

  async function choose(element, what) {
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify({ model: modelOf(element), ...what });
    if (await send("choose", { headers, body }, element)) refresh();
  }

  async function upload(element, kind, file, name) {
    const label = element.closest("label") ?? element;
    label.classList.add("web-busy");
    const headers = { "content-type": "application/octet-stream" };
    const done = await send(`upload/${kind}?name=${encodeURIComponent(name)}`, { headers, body: file }, element);
    label.classList.remove("web-busy");
    if (done) refresh();
  }

  // A few seconds from the camera, in a dialog that shows it first.
  async function record(element) {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640 }, audio: false });
    } catch {
      return tell(element, "There is no camera that this page may use: allow it, or upload a clip.");
    }
    const dialog = document.createElement("dialog");
    dialog.className = "web-dialog";
    dialog.innerHTML = `<video autoplay muted playsinline></video><p role="status">Show the action, as large as you can.</p>
      <div class="web-buttons"><button type="button" class="web-start">Record ${RECORD_S} seconds</button>
      <button type="button" class="web-close">Close</button></div>`;
    document.body.append(dialog);
    const [view, text, start, close] = ["video", "p", ".web-start", ".web-close"].map((each) => dialog.querySelector(each));
    view.srcObject = stream;
    const end = () => { stream.getTracks().forEach((track) => track.stop()); dialog.remove(); };
    close.addEventListener("click", end);
    dialog.addEventListener("cancel", end);
    start.addEventListener("click", async () => {
      start.disabled = true;
      for (let left = 3; left > 0; left -= 1) {
        text.textContent = `${left} ...`;
        await new Promise((resolve) => { setTimeout(resolve, 700); });
      }
      const parts = [];
      const recorder = new MediaRecorder(stream);
      recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
      recorder.addEventListener("stop", () => {
        end();
        upload(element, "reference", new Blob(parts), "webcam clip");
      });
      text.textContent = "Recording";
      recorder.start();
      setTimeout(() => recorder.stop(), 1000 * RECORD_S);
    });
    dialog.showModal();
  }

  function filter(select) {
    const verb = select.value;
    const place = select.closest(".web-gallery");
    all("[data-verbs]", place).forEach((clip) => {
      clip.hidden = verb !== "" && !clip.dataset.verbs.split(" ").includes(verb);
    });
    place.querySelector("[data-do=verb]").disabled = verb === "";
  }

  const actions = {
    example: (button) => choose(button, { do: "example", number: Number(button.dataset.id) }),
    prompt: (button) => choose(button, { do: "prompt", text: promptText() }),
    verb: (button) => choose(button, { do: "verb", text: button.closest(".web-gallery").querySelector("select").value }),
    remove: (button) => choose(button, { do: "remove", id: button.dataset.id }),
    first: (button) => choose(button, { do: "first", id: button.dataset.id }),
    show: (button) => choose(button, { do: "show", id: button.dataset.id }),
    webcam: (button) => record(button),
    pause: (button) => { paused = !paused; button.textContent = paused ? "Play" : "Pause"; },
    copy: async (button) => {
      await navigator.clipboard.writeText(button.closest(".web-code").querySelector("pre").textContent);
      button.textContent = "Copied";
    },
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button && !button.disabled) actions[button.dataset.do]?.(button);
  });
  document.addEventListener("change", (event) => {
    const { target } = event;
    if (target.matches("[data-upload]") && target.files[0]) {
      upload(target, target.dataset.upload, target.files[0], target.files[0].name);
      target.value = "";
    }
    if (target.matches("[data-caption]")) choose(target, { do: "caption", id: target.dataset.caption, text: target.value });
    if (target.matches("[data-filter]")) filter(target);
    if (target.matches("[data-frame]") && target.value) choose(target, { do: "frame", number: Number(target.value) });
  });
  document.addEventListener("keydown", (event) => { // a label is no button for the keyboard
    if (["Enter", " "].includes(event.key) && event.target.matches("label.web-file")) event.target.click();
  });
  for (const [kind, playing] of [["mouseover", true], ["focusin", true], ["mouseout", false], ["focusout", false]]) {
    document.addEventListener(kind, (event) => { // example clips move while one looks at them
      const video = event.target.closest?.(".web-clips [data-do]")?.querySelector("video");
      if (video) { if (playing) video.play().catch(() => {}); else video.pause(); }
    });
  }

  // The videos of a result play in step: the action can be compared only so.
  setInterval(() => {
    const videos = all(".web-result figure video");
    videos.forEach((video) => { video.muted = true; });
    if (paused) return videos.forEach((video) => video.pause());
    if (videos.length === 0 || videos.some((video) => video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA)) return;
    const { currentTime, duration } = videos[0];
    videos.slice(1).forEach((video) => {
      if (video.duration === duration && Math.abs(video.currentTime - currentTime) > MAX_DRIFT_S) video.currentTime = currentTime;
    });
    videos.filter((video) => video.paused).forEach((video) => video.play().catch(() => {}));
  }, TICK_MS);
})();
