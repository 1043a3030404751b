"use strict";
// Filters, sorting, and the curves that BokehJS draws. The tables are there without it.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const form = $("filters");
const MOST = 12; // curves that can be told apart
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#8c564b"];
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const MARKS = {
  circle: "●", square: "■", triangle: "▲", diamond: "◆", inverted_triangle: "▼", star: "★",
  hex: "⬢", plus: "✚", square_pin: "✦", x: "✖",
};
const unique = (values) => [...new Set(values)];
const number = (value, maximumSignificantDigits = 4) =>
  value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e9)
    ? value.toLocaleString("en", { maximumSignificantDigits }) : value.toExponential(2);
for (const group of data.groups) for (const run of group.runs)
  for (const curve of Object.values(run.curves).flat()) { // null is what was no number
    curve.x = data.steps[curve.x].filter((_, i) => curve.y[i] !== null);
    curve.y = curve.y.filter((y) => y !== null);
  }

// Filters ------------------------------------------------------------------------------------
function options(select, values, all) {
  const before = select.value;
  select.replaceChildren(...(all ? [new Option("all", "")] : []), ...values.map((v) => new Option(v, v)));
  if (values.includes(before)) select.value = before;
}

function chosen(group) {
  const { experiment, arm, field, value } = Object.fromEntries(new FormData(form));
  return (!experiment || group.experiment === experiment) && (!arm || group.label === arm) &&
    (!field || (field in group.fields && (!value || group.fields[field] === value)));
}

function refill() {
  const of = data.groups.filter((g) => !form.experiment.value || g.experiment === form.experiment.value);
  options(form.arm, unique(of.map((g) => g.label)), true);
  for (const option of form.arm.options) option.title = of.find((g) => g.label === option.value)?.changed ?? "";
  options(form.seed, unique(of.flatMap((g) => g.runs.map((r) => r.seed))).sort((a, b) => a - b).map(String), true);
  const fields = data.fields.filter((name) => unique(of.map((g) => g.fields[name])).length > 1);
  options(form.field, fields, true);
  const values = unique(of.map((g) => g.fields[form.field.value])).filter((v) => v !== undefined);
  options(form.value, form.field.value ? values : [], true);
}

function apply() {
  refill();
  const seed = form.seed.value;
  for (const element of document.querySelectorAll("[data-groups]")) {
    const own = element.dataset.groups.split(" ").map((n) => data.groups[n]);
    const seeds = !seed || !("seed" in element.dataset) || element.dataset.seed === seed;
    element.hidden = !(own.some(chosen) && seeds);
  }
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  document.querySelectorAll("main table[id]:not(#legend)").forEach(hideColumns);
  history.replaceState(null, "", "?" + query + location.hash);
  draw();
}

// Curves -------------------------------------------------------------------------------------
const drawn = new Set(); // numbers of the groups whose curves are ticked
let view = null, shown = [];

function tickFirst() { // the first folder of each experiment; of questions, which differ in all, one
  const first = {};
  data.groups.forEach((group, i) => {
    const before = first[group.experiment] ??= group;
    const several = (g) => Object.values(g.runs[0].curves).some((curves) => curves[0].name);
    if (before === group || (before.folder === group.folder && !several(group) && !several(before))) drawn.add(i);
  });
}

function seriesOf(i, measure) {
  const group = data.groups[i], seed = form.seed.value;
  const runs = group.runs.filter((r) => measure in r.curves && (!seed || String(r.seed) === seed));
  const place = group.folder ? `${group.label} [${group.folder}]` : group.label;
  const label = form.experiment.value ? place : `${group.experiment}: ${place}`;
  const names = unique(runs.flatMap((r) => r.curves[measure].map((s) => s.name)));
  return names.flatMap((name) => {
    const title = name ? `${label}: ${name}` : label;
    const curves = runs.map((r) => ({ seed: r.seed, diverged: r.diverged, ...r.curves[measure].find((s) => s.name === name) })).filter((c) => c.x?.length);
    if (!curves.length) return [];
    if ($("draw").value === "runs")
      return curves.map((c) => ({ title: `${title}, seed ${c.seed}`, changed: group.changed, color: group.color, x: c.x, y: c.y, ends: c.diverged }));
    return [{ title, changed: group.changed, color: group.color, ends: curves.map((c) => c.diverged).find(Boolean), ...mean(curves) }];
  });
}

function mean(curves) { // at the steps that all runs have
  const rows = curves.map((c) => new Map(c.x.map((x, i) => [x, c.y[i]])));
  const x = curves[0].x.filter((step) => rows.every((row) => row.has(step)));
  const values = x.map((step) => rows.map((row) => row.get(step)));
  const y = values.map((v) => v.reduce((a, b) => a + b) / v.length);
  const sd = values.map((v, i) => v.length < 2 ? 0
    : Math.sqrt(v.reduce((sum, value) => sum + (value - y[i]) ** 2, 0) / (v.length - 1)));
  return { x, y, sd, runs: curves.length };
}

function style(all) { // a colour, a dash and a mark of its own for each
  const taken = new Set();
  all.forEach((curve, i) => {
    const free = [curve.color, ...COLORS].find((color) => color && !taken.has(color));
    curve.color = free ?? COLORS[i % COLORS.length];
    taken.add(curve.color);
    curve.dash = DASHES[i % DASHES.length];
    [curve.mark, curve.sign] = Object.entries(MARKS)[i % Object.keys(MARKS).length];
  });
}

async function draw() {
  const visible = data.groups.map((_, i) => i).filter((i) => chosen(data.groups[i]));
  const runs = visible.flatMap((i) => data.groups[i].runs);
  options($("measure"), unique(runs.flatMap((r) => Object.keys(r.curves))), false);
  const measure = $("measure").value;
  const all = visible.filter((i) => drawn.has(i)).flatMap((i) => seriesOf(i, measure)).filter((c) => c.x.length);
  shown = all.slice(0, MOST);
  $("note").textContent = all.length > MOST
    ? `The first ${MOST} of ${all.length} curves: filters and ticks choose others.`
    : all.length ? "" : "No curve: tick a network below, or choose other filters.";
  style(shown);
  legend(null);
  const plot = Bokeh.Plotting;
  const narrow = innerWidth < 640;
  const figure = plot.figure({
    height: narrow ? 320 : 440, sizing_mode: "stretch_width", toolbar_location: narrow ? null : "above",
    tools: narrow ? "pan,tap" : "box_zoom,pan,wheel_zoom,reset,save",
    x_axis_type: $("log-x").checked ? "log" : "linear", y_axis_type: $("log-y").checked ? "log" : "linear",
    x_axis_label: measure.includes(" ") && measure !== "what was measured" ? "training steps" : "",
    y_axis_label: measure, output_backend: "svg",
  });
  for (const curve of shown) {
    const { x, y, sd, color, dash, mark } = curve;
    if (sd && curve.runs > 1)
      figure.varea({ x, y1: y.map((v, i) => v - sd[i]), y2: y.map((v, i) => v + sd[i]), fill_color: color, fill_alpha: 0.15 });
    figure.line({ x, y, line_color: color, line_width: 2, line_dash: dash });
    const some = x.map((_, i) => i).filter((i) => i % Math.ceil(x.length / 9) === 0 || i === x.length - 1);
    figure.scatter({ x: some.map((i) => x[i]), y: some.map((i) => y[i]), marker: mark, size: 9, line_color: "white", fill_color: color });
    if (curve.ends) // reached infinity after its last value
      figure.scatter({ x: [x.at(-1)], y: [y.at(-1)], marker: "x", size: 16, line_color: color, line_width: 3 });
  }
  figure.toolbar.logo = null;
  figure.toolbar.active_drag = figure.toolbar.tools.find((tool) => tool.type === (narrow ? "PanTool" : "BoxZoomTool"));
  figure.add_tools(new Bokeh.CrosshairTool({ dimensions: "height", line_color: "#5b6575" }));
  figure.xaxis.formatter = new Bokeh.NumeralTickFormatter({ format: "0,0.[000]" });
  figure.on_event("mousemove", (event) => legend(event.x));
  figure.on_event("tap", (event) => legend(event.x));
  figure.on_event("mouseleave", () => legend(null));
  figure.on_event("doubletap", () => figure.reset.emit());
  view?.remove();
  $("chart").replaceChildren();
  view = await plot.show(figure, $("chart"));
}

function legend(at) { // every curve's value at the step nearest to the pointer, or its last
  const nearest = (x) => x.reduce((best, value, i) => Math.abs(value - at) < Math.abs(x[best] - at) ? i : best, 0);
  const steps = new Set();
  $("legend").tBodies[0].replaceChildren(...shown.map((curve) => {
    const i = at === null ? curve.x.length - 1 : nearest(curve.x);
    steps.add(curve.x[i]);
    const row = document.createElement("tr");
    const sign = Object.assign(document.createElement("td"), { innerHTML:
      `<svg width="44" height="16" aria-hidden="true"><line x1="0" x2="44" y1="8" y2="8" stroke="${curve.color}" stroke-width="2" stroke-dasharray="${curve.dash.join(" ")}"/><text x="22" y="13" text-anchor="middle" font-size="14" fill="${curve.color}">${curve.sign}</text></svg>` });
    const name = document.createElement("td");
    name.textContent = curve.title + (curve.ends ? ` (reached infinity at step ${curve.ends.toLocaleString("en")})` : "");
    name.title = curve.changed;
    const value = document.createElement("td");
    const shown = (value) => $("measure").value.endsWith("%") ? value.toFixed(2) : number(value);
    const spread = curve.sd && curve.runs > 1 ? ` ± ${shown(curve.sd[i])}` : "";
    value.textContent = shown(curve.y[i]) + spread;
    row.append(sign, name, value);
    return row;
  }));
  const [low, high] = [Math.min(...steps), Math.max(...steps)];
  const where = low === high ? `at ${number(low, 9)}` : `at ${number(low, 9)} to ${number(high, 9)}`;
  $("at").textContent = at !== null ? where : shown.length ? `last value, ${where}` : "last value";
}

// Tables -------------------------------------------------------------------------------------
function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [one, other] = [key(a), key(b)];
        if (!one || !other) return !one - !other; // what is empty comes last, both ways
        const sign = up ? 1 : -1;
        return sign * (isNaN(one) || isNaN(other) ? one.localeCompare(other) : one - other);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}

function hideColumns(table) { // what is empty, and where all rows are of one place
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const texts = unique(rows.map((row) => row.cells[column]).map((cell) => cell.childElementCount ? "." : cell.textContent));
    const place = ["experiment", "runs"].includes(head.textContent);
    const idle = texts.length === 1 && (!texts[0] || place);
    for (const row of table.rows) row.cells[column].hidden = idle;
  });
}

function ticks() {
  const table = $("networks");
  table.tHead.rows[0].prepend(Object.assign(document.createElement("th"), { textContent: "" }));
  for (const row of table.tBodies[0].rows) {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", ariaLabel: "draw" });
    const number = Number(row.dataset.groups);
    box.checked = drawn.has(number);
    box.addEventListener("change", () => { drawn[box.checked ? "add" : "delete"](number); draw(); });
    row.insertCell(0).append(box);
  }
}

function copyButtons() {
  for (const text of document.querySelectorAll("pre")) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "copy" });
    button.addEventListener("click", async () => {
      const words = text.firstChild.textContent;
      try {
        await navigator.clipboard.writeText(words);
        button.textContent = "copied";
      } catch { // a file's page may not write: select it, to be copied by hand
        getSelection().selectAllChildren(text);
      }
    });
    text.append(button);
  }
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.matches("details")) {
    target.open = true;
    target.hidden = false;
    target.scrollIntoView();
  }
}

options(form.experiment, unique(data.groups.map((g) => g.experiment)), true);
const asked = new URLSearchParams(location.search);
form.experiment.value = asked.size ? asked.get("experiment") ?? "" : data.groups[0]?.experiment ?? "";
for (const name of ["arm", "seed", "field", "value"]) {
  refill();
  form[name].value = asked.get(name) ?? "";
}
tickFirst();
ticks();
for (const table of document.querySelectorAll("main table:not(#legend)")) sortable(table);
copyButtons();
form.hidden = $("curves").hidden = false;
form.addEventListener("change", (event) => {
  if (event.target.name === "experiment") form.arm.value = form.seed.value = form.field.value = "";
  if (event.target.name === "field" || event.target.name === "experiment") form.value.value = "";
  apply();
});
form.addEventListener("reset", () => setTimeout(() => { form.experiment.value = ""; apply(); }));
for (const id of ["measure", "draw", "log-x", "log-y"]) $(id).addEventListener("change", draw);
addEventListener("hashchange", openTarget);
apply();
openTarget();
})();
