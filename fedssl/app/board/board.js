// The page of the board: it asks for the runs again and again, and draws them. Every text of a user becomes a text node.

const SECONDS_BETWEEN = 3;
const MOST_CURVES = 8;
const MOST_CHIPS = 4;
const STATES = ["running", "finished", "interrupted", "failed", "killed"];
const DASHES = ["", "6 3", "2 2", "8 3 2 3"];
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

const at = id => document.getElementById(id);
const ticked = new Set(); // in the order in which they were ticked: the first is the baseline of a comparison
const opened = new Set(); // runs all of whose settings are shown
const rows = new Map();
const curves = new Map();
let runs = [];
let order = { key: "began", down: true };

function duration(seconds) {
  if (seconds === null) return "-";
  const [length, unit] = UNITS.find(([length]) => seconds >= 2 * length) ?? UNITS.at(-1);
  return `${(seconds / length).toFixed(seconds < 2 ? 1 : 0)} ${unit}`;
}

function made(name, content, kind) {
  const element = document.createElement(name);
  if (content !== undefined) element.append(content);
  if (kind) element.className = kind;
  return element;
}

function drawn(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

async function ask(place, sent) {
  const how = sent === undefined ? {} : { method: "POST", body: JSON.stringify(sent), headers: { "Content-Type": "application/json" } };
  const answer = await fetch(place, how);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function named(ids) {
  return [...ids].map(id => `run=${id}`).join("&");
}

function say(problem) {
  at("problem").hidden = !problem;
  at("problem").textContent = problem;
}

// The list

function shown() {
  const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = at("state").value;
  const chosen = runs.filter(run => (!state || run.state === state) && words.every(word => run.text.includes(word)));
  const value = run => order.key === "state" ? STATES.indexOf(run.state) : run[order.key];
  const sign = order.down ? -1 : 1;
  return chosen.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null); // the unknown comes last in either order
    return sign * (a < b ? -1 : a > b ? 1 : 0) || (one.place < other.place ? -1 : 1);
  });
}

function differing(some) {
  const values = new Map();
  for (const run of some) for (const [key, value] of run.settings) values.set(key, (values.get(key) ?? new Set()).add(value));
  const everywhere = key => some.every(run => run.settings.some(([each]) => each === key));
  return new Set([...values.keys()].filter(key => values.get(key).size > 1 || !everywhere(key)));
}

function chips(texts) {
  return texts.flatMap(text => [made("span", text, "chip"), " "]);
}

// The settings that are hidden at first, and the button that shows them; a refresh of the list leaves them shown.
function further(run, texts) {
  const rest = made("span");
  rest.append(...chips(texts));
  const button = made("button", undefined, "more");
  button.type = "button";
  const show = () => {
    rest.hidden = !opened.has(run.id);
    button.textContent = rest.hidden ? `and ${texts.length} more` : "show fewer";
    button.setAttribute("aria-expanded", !rest.hidden);
  };
  button.addEventListener("click", () => {
    if (!opened.delete(run.id)) opened.add(run.id);
    show();
  });
  show();
  return [rest, button];
}

function fill(row, run, keys) {
  const box = made("input");
  box.type = "checkbox";
  box.checked = ticked.has(run.id);
  box.setAttribute("aria-label", `tick ${run.place}`);
  box.addEventListener("change", () => {
    if (box.checked) ticked.add(run.id); else ticked.delete(run.id);
    draw();
    reloadCurves();
  });
  const link = made("a");
  for (const part of run.place.split(/(?<=[/,])/)) link.append(part, made("wbr")); // a line breaks between parts of a path
  link.href = `report?run=${run.id}`;
  link.target = "_blank";
  link.rel = "noopener";
  const name = made("td", link);
  name.append(made("small", run.seed === null ? run.name : `${run.name}, seed ${run.seed}`));
  if (run.note) {
    const note = made("details", undefined, "note");
    note.append(made("summary", run.note));
    name.append(note);
  }
  const state = made("td", made("span", run.state, `state-${run.state}`));
  const own = run.settings.filter(([key]) => keys.has(key)).map(([key, value]) => `${key}=${value}`);
  const settings = made("td");
  settings.append(...chips(own.slice(0, MOST_CHIPS)));
  if (own.length > MOST_CHIPS) settings.append(...further(run, own.slice(MOST_CHIPS)));
  const tags = made("td");
  for (const tag of run.tags) tags.append(made("span", tag, "chip"), " ");
  const rounds = run.rounds === run.num_rounds ? `${run.rounds}` : `${run.rounds}/${run.num_rounds || "?"}`;
  const accuracy = run.accuracy === null ? "-" : (run.accuracy * 100).toFixed(1);
  row.replaceChildren(made("td", box), name, state, made("td", rounds), made("td", accuracy), made("td", duration(run.seconds)), made("td"), settings, tags);
}

function draw() {
  const body = document.querySelector("#runs tbody");
  const list = shown();
  const now = Date.now() / 1000;
  const keys = differing(list);
  const keyed = [...keys].join();
  for (const run of list) {
    const row = rows.get(run.id) ?? made("tr");
    rows.set(run.id, row);
    const said = keyed + run.said;
    if (row.said !== said) fill(row, run, keys);
    row.said = said;
    row.querySelector("input").checked = ticked.has(run.id);
    const age = run.began === null ? "-" : duration(Math.max(0, now - run.began));
    if (row.cells[6].textContent !== age) row.cells[6].textContent = age;
  }
  const wanted = list.map(run => rows.get(run.id));
  if (wanted.length !== body.rows.length || wanted.some((row, place) => body.rows[place] !== row)) body.replaceChildren(...wanted);
  for (const head of document.querySelectorAll("#runs th[data-key]")) {
    if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const counts = STATES.map(state => [state, runs.filter(run => run.state === state).length]).filter(([, count]) => count);
  const among = list.length === runs.length ? "" : `, ${list.length} shown`;
  at("count").textContent = `${runs.length} run${runs.length === 1 ? "" : "s"}${among}: ${counts.map(([state, count]) => `${count} ${state}`).join(", ") || "none"}`;
  at("ticked").textContent = ["tick runs to", "1 ticked; tick two or more to"][ticked.size] ?? `${ticked.size} ticked`;
  at("all").checked = list.length > 0 && list.every(run => ticked.has(run.id));
  if (ticked.size < 2) at("compare").removeAttribute("href");
  else at("compare").href = `comparison?${named(ticked)}`;
  for (const id of ["add", "untag", "remove"]) at(id).disabled = ticked.size === 0;
}

// The curves

function chosen() {
  const known = new Map(runs.map(run => [run.id, run]));
  if (ticked.size) return [...ticked].map(id => known.get(id)).filter(Boolean).slice(0, MOST_CURVES);
  const newest = shown().sort((one, other) => (other.state === "running") - (one.state === "running") || (other.began ?? 0) - (one.began ?? 0));
  return newest.slice(0, MOST_CURVES);
}

function called(run) {
  return `${run.name}${run.seed === null ? "" : ` seed ${run.seed}`}`;
}

// The name of a run among others: the folder tells apart runs of one name and seed, whose settings may be the same or too long to be seen.
function label(run, keys, others) {
  const settings = run.settings.filter(([key]) => keys.has(key)).map(([key, value]) => `${key}=${value}`).join(" ");
  const isAlone = others.every(other => other === run || called(other) !== called(run));
  return `${called(run)}${isAlone ? "" : ` in ${run.place}`}${settings ? ` (${settings})` : ""}`;
}

function steps(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= raw);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function drawCurves(pointed) {
  const lines = chosen().map(run => ({ run, points: curves.get(run.id)?.points ?? [] })).filter(line => line.points.length);
  const several = ticked.size > MOST_CURVES ? ` The first ${MOST_CURVES} of ${ticked.size} ticked runs.` : "";
  at("whose").textContent = `% of the moving average of the global model by round; ${ticked.size ? "ticked runs." : "of the listed runs those that go on, then the newest."}${several}`;
  at("curves").hidden = lines.length === 0;
  const chart = at("chart");
  const width = chart.clientWidth || 600, height = 260, left = 42, right = 16, top = 8, bottom = 34;
  const xs = lines.flatMap(line => line.points.map(point => point[0])), ys = lines.flatMap(line => line.points.map(point => point[1]));
  if (!xs.length) return chart.replaceChildren();
  const last = Math.max(...xs, 2), low = Math.min(95, Math.max(0, Math.floor(Math.min(...ys) / 5) * 5)), high = Math.min(100, Math.max(low + 5, Math.ceil(Math.max(...ys) / 5) * 5));
  const x = round => left + (round - 1) / (last - 1) * (width - left - right);
  const y = value => top + (high - value) / (high - low) * (height - top - bottom);
  const parts = [];
  for (const value of steps(low, high, 5)) {
    parts.push(drawn("line", { x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    parts.push(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value));
  }
  for (const round of steps(1, last, Math.min(8, last - 1, width / 80)).filter(Number.isInteger)) {
    parts.push(drawn("text", { x: x(round), y: height - 17, "text-anchor": "middle" }, round));
  }
  parts.push(drawn("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, "round"));
  const round = pointed === undefined ? undefined : Math.round(Math.min(last, Math.max(1, 1 + (pointed - left) / (width - left - right) * (last - 1))));
  if (round !== undefined) parts.push(drawn("line", { class: "pointer", x1: x(round), x2: x(round), y1: top, y2: height - bottom }));
  const drawnRuns = lines.map(line => line.run);
  const keys = differing(drawnRuns);
  const entries = lines.map(({ run, points }, number) => {
    const look = { stroke: `var(--c${number % 8})`, "stroke-dasharray": DASHES[number % DASHES.length] };
    parts.push(drawn("polyline", { ...look, points: points.map(([round, value]) => `${x(round).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
    if (points.length === 1) parts.push(drawn("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3, fill: look.stroke }));
    const seen = round === undefined ? points.at(-1) : points.filter(point => point[0] <= round).at(-1);
    const entry = made("li");
    const sample = drawn("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" });
    sample.append(drawn("line", { ...look, "stroke-width": 2, x1: 0, x2: 22, y1: 4, y2: 4 }));
    const words = label(run, keys, drawnRuns);
    entry.append(sample, `${seen ? `${seen[1].toFixed(1)} at round ${seen[0]}` : "-"}: ${words}`);
    entry.title = words;
    return entry;
  });
  chart.replaceChildren(...parts);
  at("legend").replaceChildren(...entries);
}

// Asking again

async function reload() {
  const found = await ask("runs");
  at("folder").textContent = `Runs in ${found.folder}`;
  document.title = `${found.folder} - fedssl board`;
  runs = found.runs.map(run => ({
    ...run,
    said: JSON.stringify(run),
    text: [run.place, run.name, `seed=${run.seed}`, run.method, run.note, ...run.tags, ...run.settings.map(pair => pair.join("="))].join(" ").toLowerCase(),
  }));
  const there = new Set(runs.map(run => run.id));
  for (const id of ticked) if (!there.has(id)) ticked.delete(id);
  for (const id of opened) if (!there.has(id)) opened.delete(id);
  for (const id of rows.keys()) if (!there.has(id)) rows.delete(id);
  draw();
  await reloadCurves();
}

async function reloadCurves() {
  const wanted = chosen().filter(run => curves.get(run.id)?.rounds !== run.rounds);
  if (wanted.length) {
    const found = await ask(`curves?${named(wanted.map(run => run.id))}`);
    for (const run of wanted) curves.set(run.id, { rounds: run.rounds, points: found[run.id] });
  }
  drawCurves();
}

let lost = false;
async function watch() {
  try {
    await reload();
    if (lost) say("");
    lost = false;
  } catch (error) {
    lost = true;
    say(error instanceof TypeError ? "The board does not answer: start fedssl board again, and open the address that it prints." : error.message);
  }
  document.body.dataset.drawn = "true";
  setTimeout(watch, SECONDS_BETWEEN * 1000);
}

async function change(place, sent) {
  try {
    const answer = await ask(place, { runs: [...ticked], ...sent });
    say("");
    return answer;
  } catch (error) {
    say(error.message);
    return undefined;
  }
}

async function tag(sent) {
  if (await change("tag", sent)) {
    at("tag").value = "";
    await reload();
  }
}

for (const head of document.querySelectorAll("#runs th[data-key]")) {
  head.querySelector("button").addEventListener("click", () => {
    const key = head.dataset.key;
    order = { key, down: order.key === key ? !order.down : !["place", "state"].includes(key) };
    draw();
  });
}
for (const [id, kind] of [["words", "input"], ["state", "change"]]) {
  at(id).addEventListener(kind, () => {
    draw();
    reloadCurves();
  });
}
at("tools").addEventListener("submit", event => event.preventDefault());
at("all").addEventListener("change", async () => {
  for (const run of shown()) if (at("all").checked) ticked.add(run.id); else ticked.delete(run.id);
  draw();
  await reloadCurves();
});
at("add").addEventListener("click", () => tag({ add: [at("tag").value] }));
at("untag").addEventListener("click", () => tag({ remove: [at("tag").value] }));
at("remove").addEventListener("click", async () => {
  const places = runs.filter(run => ticked.has(run.id)).map(run => run.place);
  const more = places.length > 10 ? `\n... and ${places.length - 10} more` : "";
  if (!window.confirm(`Delete ${places.length} run${places.length === 1 ? "" : "s"} with everything in the folders?\n\n${places.slice(0, 10).join("\n")}${more}`)) return;
  if (await change("remove", {})) await reload();
});
at("chart").addEventListener("pointermove", event => drawCurves(event.clientX - at("chart").getBoundingClientRect().left));
at("chart").addEventListener("pointerleave", () => drawCurves());
window.addEventListener("resize", () => drawCurves());
watch();
