"use strict";
// The page's data are text from files: it is only ever set as text, never parsed as HTML.
const SHOWN = 25;
const data = JSON.parse(document.getElementById("data").textContent);
const by = name => document.getElementById(name);
const right = answer => answer.score !== null && answer.score >= 0.5;
const scored = sample => sample.answers.every(answer => answer.score !== null);
const exitOf = answer => !answer.measured ? "unknown" : answer.exit === null ? "never" : `after layer ${answer.exit}`;
const shows = {
  all: () => true,
  changed: sample => sample.answers[0].text !== sample.answers[1].text,
  lost: sample => scored(sample) && sample.answers[0].score > sample.answers[1].score,
  gained: sample => scored(sample) && sample.answers[0].score < sample.answers[1].score,
  wrong: sample => sample.answers[1].score !== null && !right(sample.answers[1]),
};
const state = {show: "all", exit: "", words: "", page: 1, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1)))};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function row(name, answer, changed) {
  const made = element("tr");
  made.append(element("td", "soft", name), element("td", changed ? "differs" : "", answer.text || "(empty)"));
  const verdict = element("td");
  if (answer.score !== null) {
    const whole = answer.score === 0 || answer.score === 1;
    verdict.append(element("span", right(answer) ? "badge right" : "badge wrong",
      whole ? (right(answer) ? "right" : "wrong") : answer.score.toFixed(2)));
  }
  made.append(verdict, element("td", "exit", exitOf(answer)));
  return made;
}

function card(sample) {
  const made = element("article", "example"), pictures = element("div"), side = element("div");
  for (const index of sample.images) {
    const image = element("img");
    image.alt = `image of question ${sample.id}`;
    image.src = `data:image/jpeg;base64,${data.images[index]}`;
    pictures.append(image);
  }
  const table = element("table"), head = element("tr"), frame = element("div", "wide");
  for (const name of ["", "answer", "", "image removed"]) head.append(element("th", "", name));
  table.append(element("thead"), element("tbody"));
  table.tHead.append(head);
  const changed = shows.changed(sample);
  table.tBodies[0].append(row("without exit", sample.answers[0], false), row("with exit", sample.answers[1], changed));
  frame.append(table);
  side.append(element("div", "source", `question ${sample.id}`), element("div", "question", sample.question), frame);
  made.append(pictures, side);
  return made;
}

function draw() {
  const words = state.words.toLowerCase();
  const found = data.samples.filter(sample => (shows[state.show] ?? shows.all)(sample)
    && (!state.exit || exitOf(sample.answers[1]) === state.exit)
    && (!words || [sample.id, sample.question, ...sample.answers.map(a => a.text)].join("\n").toLowerCase().includes(words)));
  const pages = Math.max(1, Math.ceil(found.length / SHOWN));
  state.page = Math.min(Math.max(1, Number(state.page) || 1), pages);
  const start = (state.page - 1) * SHOWN, part = found.slice(start, start + SHOWN);
  by("cards").replaceChildren(...part.map(card));
  by("place").textContent = found.length ? `${start + 1} to ${start + part.length} of ${found.length}` : "none";
  by("before").disabled = state.page === 1;
  by("after").disabled = state.page === pages;
  for (const button of by("show").children) button.setAttribute("aria-pressed", button.value === state.show);
  const kept = Object.entries(state).filter(([name, value]) => value && !(name === "show" && value === "all") && !(name === "page" && value === 1));
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function set(change) {
  Object.assign(state, {page: 1}, change);
  draw();
}

const counts = new Map();
for (const sample of data.samples) {
  const exit = exitOf(sample.answers[1]);
  counts.set(exit, (counts.get(exit) ?? 0) + 1);
}
const layer = exit => exit.startsWith("after") ? Number(exit.split(" ")[2]) : Infinity;
for (const exit of [...counts.keys()].sort((a, b) => layer(a) - layer(b))) {
  const option = element("option", "", `${exit} (${counts.get(exit)})`);
  option.value = exit;
  by("exit").append(option);
}
for (const button of by("show").children) {
  const count = data.samples.filter(shows[button.value]).length;
  button.append(element("span", "count", count));
  button.hidden = !["all", "changed"].includes(button.value) && !data.samples.some(scored);
  button.onclick = () => set({show: button.value});
}
by("exit").value = state.exit;
by("words").value = state.words;
by("exit").onchange = event => set({exit: event.target.value});
by("words").oninput = event => set({words: event.target.value});
by("before").onclick = () => { set({page: state.page - 1}); scrollTo(0, 0); };
by("after").onclick = () => { set({page: state.page + 1}); scrollTo(0, 0); };
draw();
