(() => {
  "use strict";
  const TICK_MS = 50;
  const MAX_DRIFT_S = 0.08;
  let paused = false;
  let shownPair = null; // the element whose pair is being played
  let picked = null; // the question to which the up arrow went back

  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const questions = () => all(".study-question").filter((question) => question.offsetParent !== null);
  const radios = (question) => all("input[type=radio]", question);
  const isAnswered = (question) => radios(question).some((radio) => radio.checked);
  const current = () => picked ?? questions().find((question) => !isAnswered(question)); // what an arrow key answers
  const setTime = (videos, seconds) => videos.forEach((video) => { video.currentTime = seconds; });
  const play = (videos) => videos.forEach((video) => video.play().catch((error) => {
    if (error.name === "NotAllowedError") paused = true; // a phone that saves power: the button starts them
  }));

  // Browsers and screen readers know a group of radio buttons by a common name, which Gradio doesn't give, and takes
  // back whenever it draws one anew.
  function describe(question) {
    question.setAttribute("aria-label", question.querySelector("span").textContent);
    radios(question).filter((radio) => radio.name !== question.id).forEach((radio) => { radio.name = question.id; });
  }

  // Both start together, the shorter one waits on its last frame for the longer, and both start again.
  function keepInStep() {
    const pair = document.querySelector(".study-pair");
    const videos = pair ? all(".study-video", pair) : [];
    if (videos.length !== 2) return;
    if (pair !== shownPair) {
      shownPair = pair;
      picked = null;
      videos.forEach((video) => { video.muted = true; });
    }
    pair.querySelector(".study-problem").hidden = !videos.some((video) => video.error);
    pair.querySelector(".study-pause").textContent = paused ? "Play" : "Pause";
    questions().forEach(describe);
    questions().forEach((question) => question.classList.toggle("study-active", question === current()));
    all(".study-notice").forEach((notice) => { notice.hidden = !current(); });
    if (paused) return videos.forEach((video) => video.pause());
    if (videos.some((video) => video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA)) return;
    if (videos.every((video) => video.ended)) setTime(videos, 0);
    const running = videos.filter((video) => !video.ended);
    if (running.length === 2 && Math.abs(videos[0].currentTime - videos[1].currentTime) > MAX_DRIFT_S) {
      setTime(videos, Math.min(...videos.map((video) => video.currentTime)));
    }
    play(running.filter((video) => video.paused));
  }

  function choose(place) {
    if (!current()) return;
    const buttons = radios(current());
    ({ left: buttons[0], right: buttons.at(-1), tie: buttons.length === 3 ? buttons[1] : null })[place]?.click();
    picked = null;
  }

  function goBack() {
    const shown = questions();
    const from = current() ? shown.indexOf(current()) : shown.length;
    picked = shown[Math.max(from - 1, 0)];
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !document.querySelector(".study-pair")) return;
    if (event.target.closest("input, textarea, select, button, a")) return; // the browser's own keys
    const actions = {
      ArrowLeft: () => choose("left"),
      ArrowRight: () => choose("right"),
      ArrowDown: () => choose("tie"),
      ArrowUp: goBack,
      Enter: () => all("#study-next").forEach((button) => button.click()),
      " ": () => { paused = !paused; },
    };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  function onClick(event) {
    if (event.target.closest(".study-pause")) paused = !paused;
    if (event.target.closest(".study-question")) picked = null;
    // A mouse leaves the focus on what it clicked, and the next key would go there.
    if (event.detail > 0 && event.target.closest("input[type=radio], button")) event.target.blur();
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  setInterval(keepInStep, TICK_MS);
})();
